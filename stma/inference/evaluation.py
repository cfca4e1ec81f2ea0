"""Segment the videos of a root, write and score the masks, and draw what came out."""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stma.data.images import fit_mask, read_image, read_mask
from stma.data.video_folder import VideoFolder, find_videos
from stma.device import device_name, resolve_device
from stma.errors import InputError
from stma.inference.baselines import CopyFirstMask, FlowWarp
from stma.inference.scoring import ObjectScore, score_videos, summarize, write_csv
from stma.inference.segmenter import Segmenter, SegmenterConfig, VideoSegmenter
from stma.model.weights import load_model
from stma.outputs import prepare_output
from stma.pictures import (
    contact_sheet,
    draw_overlay,
    save_mask,
    save_picture,
    write_video,
)

log = logging.getLogger(__name__)

METHODS = ("stma", "copy", "flow")
SHEET_COLUMNS = 6


@dataclass
class EvalConfig:
    """What to evaluate.

    Attributes:
        root: a folder in the DAVIS layout.
        output: where masks, scores and pictures go.
        weights: a file of train.py; needed by the method ``stma``.
        method: ``stma``, or a reference without training: ``copy`` or ``flow``.
        split: a list of videos in ``ImageSets``; null for all with masks.
        clips: only these videos; null for all.
        segmenter: how a video is segmented.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        sheets, videos: draw a contact sheet and an overlay video of each clip.
    """

    root: str
    output: str
    weights: str | None = None
    method: str = "stma"
    split: str | None = None
    clips: list[str] | None = None
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    device: str = "auto"
    sheets: bool = True
    videos: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; choose one of {METHODS}")
        if self.method == "stma" and self.weights is None:
            raise InputError("weights: give a .safetensors file of train.py (or method=copy)")


@dataclass(frozen=True)
class Evaluation:
    """What came out of an evaluation.

    Attributes:
        scores: one per object of each fully annotated clip; empty where there is none.
        frames: that a method had to predict or take.
        seconds: that the method took for them, reading and writing apart.
    """

    scores: list[ObjectScore]
    frames: int
    seconds: float

    @property
    def fps(self) -> float:
        return self.frames / self.seconds

    def table(self) -> str:
        """J&F, J and F per clip and their mean, and FPS."""
        lines = []
        if self.scores:
            rows = summarize(self.scores)
            width = max(len(row.name) for row in rows)
            lines.append(f"{'clip':<{width}}   J&F     J     F")
            lines += [
                f"{row.name:<{width}} {row.jf:5.1f} {row.j:5.1f} {row.f:5.1f}" for row in rows
            ]
        else:
            lines.append("nothing to score: no clip of 3 frames or more has a mask for each")
        lines.append(f"{self.fps:.1f} frames/s ({self.frames} frames, reading and writing apart)")
        return "\n".join(lines)


def evaluate(config: EvalConfig) -> Evaluation:
    """Segment, write, score and draw; everything goes below ``config.output``.

    Raises:
        InputError: something in the input is wrong; the message names it.
    """
    device = resolve_device(config.device)
    videos = find_videos(config.root, config.split, config.clips)
    new_segmenter = _method(config, device)
    output = Path(config.output)
    mask_root = output / "masks"
    prepare_output(output, "eval.log")
    _remove_old_results(output, videos)
    for subfolder in ("masks", "sheets", "videos"):
        (output / subfolder).mkdir(exist_ok=True)

    seconds, num_frames = 0.0, 0
    progress = tqdm(total=sum(len(video.frames) for video in videos), unit="frame", desc="segment")
    with progress:
        for video in videos:
            progress.set_postfix_str(video.name)
            folder = mask_root / video.name
            seconds += segment_video(video, new_segmenter(), folder, device, progress.update)
            num_frames += len(video.frames)

    scored = [video for video in videos if video.fully_annotated and len(video.frames) > 2]
    if left_out := [video.name for video in videos if video not in scored]:
        log.info(
            "not scored, for want of a mask for every frame or of 3 frames: %s", ", ".join(left_out)
        )
    scores: list[ObjectScore] = []
    if scored:
        scores = score_videos(scored, mask_root, processes=os.cpu_count() or 1)
    result = Evaluation(scores, num_frames, seconds)
    _write_results(output, config, result, device)
    for video in tqdm(
        videos, unit="clip", desc="draw", disable=not (config.sheets or config.videos)
    ):
        draw_video(video, mask_root / video.name, output, sheet=config.sheets, movie=config.videos)
    return result


def _method(config: EvalConfig, device: torch.device) -> Callable[[], VideoSegmenter]:
    if config.method == "copy":
        return CopyFirstMask
    if config.method == "flow":
        return FlowWarp
    assert config.weights is not None
    model = load_model(config.weights, device)
    return lambda: Segmenter(model, config.segmenter)


def segment_video(
    video: VideoFolder,
    segmenter: VideoSegmenter,
    output: Path,
    device: torch.device,
    on_frame: Callable[[], object] = lambda: None,
) -> float:
    """Segment one video and write its masks, in the palette of its first given mask.

    Returns:
        Seconds that the method took.

    Raises:
        InputError: names the frame or mask.
    """
    output.mkdir(parents=True, exist_ok=True)
    palette: bytes | None = None
    known: list[int] = []
    seconds = 0.0
    for index, path in enumerate(video.frames):
        frame = read_image(path)
        mask = None
        if path.stem in video.masks:
            mask, mask_palette = read_mask(video.masks[path.stem])
            palette = palette or mask_palette
            if not mask.any() and not video.fully_annotated:
                raise InputError(f"{video.masks[path.stem]}: holds no object")
            mask = fit_mask(mask, frame, video.masks[path.stem])
            mask = only_new_objects(mask, known)
        start = _now(device)
        try:
            result = segmenter.step(frame, mask, last=index + 1 == len(video.frames))
        except InputError as error:
            where = path if mask is None else f"{path} with {video.masks[path.stem]}"
            raise InputError(f"{where}: {error}") from error
        seconds += _now(device) - start
        known = result.ids
        save_mask(output / f"{path.stem}.png", result.mask, palette)
        on_frame()
    if not known:
        raise InputError(f"{video.mask_folder}: no mask holds an object")
    return seconds


def only_new_objects(mask: np.ndarray, known: Sequence[int]) -> np.ndarray | None:
    """What a method may see of a mask: objects where they first appear, never again.

    Full annotations hold the answer in every frame, and a later mask of a benchmark may repeat
    objects; both come down to this. None where nothing is new.
    """
    new = np.where(np.isin(mask, known), 0, mask).astype(mask.dtype)
    return new if new.any() else None


def draw_video(video: VideoFolder, masks: Path, output: Path, *, sheet: bool, movie: bool) -> None:
    """Draw overlays of a segmented video.

    ``sheets/<video>.png`` shows frames from first to last and, where there are masks for all, the
    truth below; ``videos/<video>.mp4`` all frames.
    """

    def overlay(path: Path, mask_path: Path) -> np.ndarray:
        return draw_overlay(read_image(path), read_mask(mask_path)[0])

    if sheet:
        count = min(SHEET_COLUMNS, len(video.frames))
        chosen = [
            video.frames[i]
            for i in np.linspace(0, len(video.frames) - 1, count).round().astype(int)
        ]
        stems = ", ".join(path.stem for path in chosen)
        rows = [
            (
                f"{video.name}: result at frames {stems}",
                [overlay(path, masks / f"{path.stem}.png") for path in chosen],
            )
        ]
        if video.fully_annotated:
            rows.append(("truth", [overlay(path, video.masks[path.stem]) for path in chosen]))
        save_picture(output / "sheets" / f"{video.name}.png", contact_sheet(rows))
    if movie:
        write_video(
            output / "videos" / f"{video.name}.mp4",
            (overlay(path, masks / f"{path.stem}.png") for path in video.frames),
        )


def _remove_old_results(output: Path, videos: Sequence[VideoFolder]) -> None:
    """Nothing of an earlier run may be taken for this one's."""
    for name in ("results.json", "results.txt", "scores.csv"):
        (output / name).unlink(missing_ok=True)
    for video in videos:
        for path in (output / "masks" / video.name).glob("*.png"):
            path.unlink()
        (output / "sheets" / f"{video.name}.png").unlink(missing_ok=True)
        (output / "videos" / f"{video.name}.mp4").unlink(missing_ok=True)


def _write_results(
    output: Path, config: EvalConfig, result: Evaluation, device: torch.device
) -> None:
    summary = {
        "config": asdict(config),
        "device": device_name(device),
        "fps": result.fps,
        "frames": result.frames,
        "scores": [asdict(row) | {"jf": row.jf} for row in summarize(result.scores)]
        if result.scores
        else None,
    }
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    (output / "results.txt").write_text(result.table() + "\n")
    if result.scores:
        write_csv(output / "scores.csv", result.scores)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
