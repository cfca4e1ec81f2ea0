"""Segment a clip with an export of `stma export`: needs only NumPy, Pillow and onnxruntime.

python scripts/segment_onnx.py EXPORT FRAMES FIRST_MASK.png OUT     (FRAMES: a folder of pictures)
"""

import json
import re
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
        self.references: list = []  # their tokens: the first frame's and the newest
        self.pooled: list = []  # (N, C) of every memorised frame
        self.memory: dict = {}  # its elements, by name, M first
        self.steps = 0

    def run(self, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        part = self.parts[f"{name}.onnx"]
        return part.run(None, {x.name: y for x, y in zip(part.get_inputs(), inputs, strict=True)})

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (N+1, H, W) of background and `ids` in the next frame (H, W, 3)."""
        full, memory, settings = frame.shape[:2], self.memory, self.settings
        scale = settings["scale"] * min(1, (settings["short_side"] or min(full)) / min(full))
        size = max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
        picture = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)
        image = np.float32(np.asarray(picture)).transpose(2, 0, 1) / 255
        mean, std = (np.float32(self.about[x])[:, None, None] for x in ("mean", "std"))
        image = self.pad((image - mean) / std)
        features, stride8, stride4, tokens = self.run("encode", image, *self.cache)
        if mask is not None:
            self.ids = [int(i) for i in np.unique(mask) if i]
            known = np.float32(np.equal.outer([0, *self.ids], mask))
            small = resize(known, size)
        else:
            keys, values = memory["keys"][None], memory["values"][None]
            readout, used = self.run("readout", features, keys, values)
            memory["usage"] += used[0]
            memory["age"] += 1
            small = self.run("decoder", readout, features, stride8, stride4)[0][0]
            small = small[:, : size[0], : size[1]]
            known = resize(small, full)
        if self.steps % settings["memory_interval"] == 0:
            self.memorize(image, features, tokens, self.pad(small[1:]))
        self.steps += 1
        return known

    def memorize(self, image, features, tokens, masks) -> None:  # type: ignore[no-untyped-def]
        """When the memory is full, over its least used elements after the first frame's."""
        values, pooled = self.run("value_encoder", image, masks)
        count, zero = values.shape[1], np.zeros(values.shape[1], np.float32)
        new = {"keys": features[0].reshape(-1, count).T, "values": values[0]}
        new |= {"usage": zero, "age": zero, "frame": np.full(count, len(self.pooled))}
        held = self.memory or {name: array[:0] for name, array in new.items()}
        frequency = held["usage"] / np.maximum(held["age"], 1)
        frequency[held["frame"] == 0] = np.inf
        excess = len(frequency) + count - max(self.settings["capacity"] or 2**62, 2 * count)
        kept = np.sort(np.argsort(frequency, kind="stable")[max(0, excess) :])
        self.memory = {name: np.concatenate([held[name][kept], new[name]]) for name in new}
        self.pooled.append(pooled)
        self.references.append(tokens)
        if len(self.references) > 1 + (2**62 if (n := self.settings["queue_size"]) is None else n):
            del self.references[1]
        objects = np.max([self.pooled[n] for n in np.unique(self.memory["frame"])], axis=0)
        self.cache = self.run("references", np.stack(self.references, axis=1), objects)
        if len(self.pooled) == 1 and self.about["enhanced_keys"]:
            self.memory["keys"] = self.run("encode", image, *self.cache)[0][0].reshape(-1, count).T

    def pad(self, x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, 0), *((0, -n % self.about["stride"]) for n in x.shape[1:])])[None]


def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W), bilinear, antialiased."""
    maps = [Image.fromarray(each).resize(size[::-1], Image.Resampling.BILINEAR) for each in x]
    return np.stack([np.asarray(each) for each in maps])


def pictures(folder: Path) -> list[Path]:
    """The frames, in order: img_2 comes before img_10, and 99 before 100."""
    found = [x for x in folder.iterdir() if x.suffix.lower() in (".jpg", ".jpeg", ".png")]
    parts = {x: re.split(r"(\d+)", x.stem) for x in found if not x.name.startswith(".")}
    return sorted(parts, key=lambda x: [int(y) if y.isdecimal() else y for y in parts[x]])


def davis_palette() -> bytes:
    palette = np.zeros((256, 3), int)
    for bit in range(24):
        palette[:, bit % 3] |= (np.arange(256) >> bit & 1) << (7 - bit // 3)
    return palette.astype(np.uint8).tobytes()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    export, frames, first_mask, output = map(Path, sys.argv[1:])
    video, first = Video(export), Image.open(first_mask)
    output.mkdir(parents=True, exist_ok=True)
    for path in pictures(frames):
        picture = np.asarray(Image.open(path).convert("RGB"))
        probabilities = video.step(picture, None if video.steps else np.asarray(first))
        result = Image.fromarray(np.array([0, *video.ids], np.uint8)[probabilities.argmax(axis=0)])
        result.putpalette(first.getpalette() or davis_palette())
        result.save(output / f"{path.stem}.png")
