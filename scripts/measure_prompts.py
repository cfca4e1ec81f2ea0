"""How good masks from clicks and boxes are, and how long they take: the table of docs/app.md.

    python scripts/measure_prompts.py --images ../shared/train/images --videos ../shared/validation

The user is simulated: the next click is the middle of the largest error (the point farthest from
its edge), on the mask so far; a box is the object's own. One object of each picture, drawn at
random among those of 200 pixels or more; all objects of the first frame of each video.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from stma.app.prompts import ENGINES, Prompt, PromptedFrame, Stroke, load_engine
from stma.data.images import read_image
from stma.data.masks import count_ids, read_mask

CLICKS = 5
SMALLEST = 200  # pixels


def examples(images: Path | None, videos: list[Path], count: int) -> Iterator[tuple]:
    """Name of the set, frame and objects."""
    rng = np.random.default_rng(0)
    paths = sorted(images.glob("*/Annotations/*.png")) if images else []
    for index in rng.permutation(len(paths))[:count]:
        frame, objects = read(paths[index])
        if objects:
            yield "images", frame, [objects[rng.integers(len(objects))]]
    for root in videos:
        for folder in sorted({path.parent for path in root.glob("Annotations/**/*.png")}):
            yield root.name, *read(min(folder.glob("*.png")))


def read(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Frame and objects of a mask's file."""
    mask, _ = read_mask(path)
    counts = count_ids(mask)
    folder = Path(str(path.parent).replace("Annotations", "JPEGImages"))
    frame = read_image(next(folder.glob(f"{path.stem}.*")))
    large = [value for value in range(1, 256) if counts[value] >= SMALLEST]
    return frame, [mask == value for value in large]


def next_click(target: np.ndarray, mask: np.ndarray) -> Stroke:
    """Where a user would click next."""
    best = (-1.0, (0, 0), True)
    for error, inside in ((target & ~mask, True), (mask & ~target, False)):
        distance = cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(distance.argmax(), distance.shape)
        best = max(best, (float(distance[y, x]), (int(x) - 1, int(y) - 1), inside))
    return Stroke([best[1]], best[2])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def clicked(frame: PromptedFrame, target: np.ndarray) -> Iterator[float]:
    """IoU after each click."""
    mask, strokes = None, []
    for _ in range(CLICKS):
        strokes.append(next_click(target, np.zeros_like(target) if mask is None else mask))
        mask = frame.segment(Prompt(strokes, mask=mask))
        yield iou(mask, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="SET/JPEGImages and SET/Annotations in it")
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="in the DAVIS layout")
    parser.add_argument("--count", type=int, default=200, help="pictures; default: 200")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    print("| engine | set | objects | 1 click | 3 | 5 | box | first click, s | later, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.engines:
        engine = load_engine(name, "cpu")
        scores, seconds = defaultdict(list), []
        for group, picture, objects in examples(
            arguments.images, arguments.videos, arguments.count
        ):
            times = [time.perf_counter()]
            frame = engine.look_at(picture)
            times.append(time.perf_counter())
            for target in objects:
                values = list(clicked(frame, target))
                times.append(time.perf_counter())
                y, x = np.nonzero(target)
                box = x.min(), y.min(), x.max() + 1, y.max() + 1
                values.append(iou(frame.segment(Prompt(box=box)), target))
                scores[group].append(values)
            click = (times[2] - times[1]) / CLICKS
            seconds.append((times[1] - times[0] + click, click))
        first, later = np.median(seconds, axis=0)
        for group, rows in scores.items():
            after = np.mean(rows, axis=0)[[0, 2, 4, 5]]
            numbers = " | ".join(f"{value:.2f}" for value in after)
            print(f"| {name} | {group} | {len(rows)} | {numbers} | {first:.2f} | {later:.2f} |")


if __name__ == "__main__":
    main()
