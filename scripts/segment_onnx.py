"""Segment a clip with an export of `stma export`: needs only NumPy, Pillow and onnxruntime.

python scripts/segment_onnx.py EXPORT FRAMES FIRST_MASK.png OUT     (FRAMES: a folder of pictures)
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Video:
    """The five parts of the network, and both memories of one video."""

    def __init__(self, export: Path) -> None:
        self.about = about = json.loads((export / "stma.json").read_text())
        self.settings = about["segmenter"]
        self.parts = {name: onnxruntime.InferenceSession(export / name) for name in about["parts"]}
        empty = np.zeros((about["blocks"], about["heads"], 0, about["head_dim"]), np.float32)
        self.cache = [empty, empty]  # keys and values of the references
        self.references: list = []  # (tokens, pinned)
        self.ids: list[int] = []
        self.entered: list[int] = []  # the memorised frame at which each object entered
        self.pooled: list = []  # (N, C) of every memorised frame
        self.steps = 0
        self.elements: dict = {}  # of the temporal memory, by name, M first

    def run(self, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        part = self.parts[f"{name}.onnx"]
        names = [each.name for each in part.get_inputs()]
        return part.run(None, dict(zip(names, inputs, strict=True)))

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Segment the next frame (H, W, 3), with a mask (H, W) if objects are given; returns
        probabilities (N+1, H, W) of the background and of `ids`."""
        full = frame.shape[:2]
        short = self.settings["short_side"] or min(full)
        scale = self.settings["scale"] * min(1, short / min(full))
        size = max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
        image = resize(np.float32(frame).transpose(2, 0, 1) / 255, size)
        mean, std = (np.float32(self.about[x])[:, None, None] for x in ("mean", "std"))
        image = self.pad((image - mean) / std)
        features, key, stride8, stride4, tokens = self.run("encode", image, *self.cache)
        small = np.ones((1, *size), np.float32)
        if self.ids:
            small = self.run("decoder", self.read(key), features, stride8, stride4)[0][0]
            small = small[:, : size[0], : size[1]]
        known = resize(small, full)
        new = [] if mask is None else [int(i) for i in np.unique(mask) if i and i not in self.ids]
        if mask is not None:
            self.ids += new
            self.entered += [len(self.pooled)] * len(new)
            known = np.concatenate([known, np.zeros((len(new), *full), np.float32)])
            # What an object loses to a given mask is background.
            for row, i in enumerate(self.ids, start=1):
                known[0] += known[row] * (i in mask)
                known[row] *= i not in mask
            known[:, mask > 0] = np.equal.outer([0, *self.ids], mask[mask > 0])
            small = resize(known, size)
        on_grid = self.steps % self.settings["memory_interval"] == 0
        if self.ids and (on_grid or mask is not None):
            self.memorize(image, key, tokens, self.pad(small[1:]), bool(new))
        self.steps += bool(self.ids)
        return known

    def read(self, key: np.ndarray) -> np.ndarray:
        """Objects that entered together share a softmax over what was memorised since."""
        readouts = []
        for entered in sorted(set(self.entered)):
            objects = [n for n, e in enumerate(self.entered) if e == entered]
            since = self.elements["frame"] >= entered
            values = self.elements["values"][since][:, objects]
            readout, received = self.run(
                "readout", key, self.elements["keys"][since][None], values[None]
            )
            self.elements["usage"][since] += received[0] * len(objects) / len(self.ids)
            readouts.append(readout)
        self.elements["age"] += 1
        return np.concatenate(readouts, axis=1)

    def memorize(self, image, key, tokens, masks, pinned) -> None:  # type: ignore[no-untyped-def]
        self.references.append((tokens, pinned))
        loose = [n for n, (_, stays) in enumerate(self.references) if not stays]
        if self.settings["queue_size"] is not None and len(loose) > self.settings["queue_size"]:
            del self.references[loose[0]]
        values, pooled = self.run("value_encoder", image, masks)
        self.pooled.append(pooled[0])
        self.write(key[0], values[0], pinned)
        chosen = [tokens for tokens, _ in self.references]
        objects = np.full(pooled.shape, -np.inf, np.float32)
        for n in np.unique(self.elements["frame"]):  # frames with elements left
            old = self.pooled[n]
            objects[0, : len(old)] = np.maximum(objects[0, : len(old)], old)
        self.cache = self.run("references", np.stack(chosen, axis=1), objects)
        if pinned and self.about["enhanced_keys"]:
            self.elements["keys"][-key.shape[1] :] = self.run("encode", image, *self.cache)[1][0]

    def write(self, key: np.ndarray, values: np.ndarray, pinned: bool) -> None:
        """Write a frame into the temporal memory; when full, over the least used elements."""
        count = len(key)
        fill = {"frame": len(self.pooled) - 1, "pinned": pinned, "usage": 0.0, "age": 0}
        new = {"keys": key, "values": values} | {k: np.full(count, v) for k, v in fill.items()}
        if not (held := self.elements):
            self.elements = new
            return
        late = values.shape[1] - held["values"].shape[1]
        held["values"] = np.pad(held["values"], ((0, 0), (0, late), (0, 0)))
        capacity = max(self.settings["capacity"] or 2**62, held["pinned"].sum() + count)
        excess = max(0, len(held["age"]) + count - capacity)
        frequency = np.where(held["pinned"], np.inf, held["usage"] / np.maximum(held["age"], 1))
        kept = np.sort(np.argsort(frequency, kind="stable")[excess:])
        self.elements = {name: np.concatenate([held[name][kept], new[name]]) for name in new}

    def pad(self, x: np.ndarray) -> np.ndarray:
        below, right = (-side % self.about["stride"] for side in x.shape[1:])
        return np.pad(x, ((0, 0), (0, below), (0, right)))[None]


def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W), bilinear, antialiased."""
    maps = [Image.fromarray(each).resize(size[::-1], Image.Resampling.BILINEAR) for each in x]
    return np.stack([np.asarray(each) for each in maps])


def main(export: Path, frames: Path, first_mask: Path, output: Path) -> None:
    video, mask = Video(export), Image.open(first_mask)
    output.mkdir(parents=True, exist_ok=True)
    for n, path in enumerate(sorted(frames.iterdir())):
        frame = np.asarray(Image.open(path).convert("RGB"))
        known = video.step(frame, np.asarray(mask) if n == 0 else None)
        ids = np.array([0, *video.ids], np.uint8)[known.argmax(axis=0)]
        result = Image.fromarray(ids)
        result.putpalette(mask.getpalette() or bytes(768))
        result.save(output / f"{path.stem}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
