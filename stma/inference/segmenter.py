"""One video, one frame at a time: everything that segments videos uses this object."""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stma.errors import InputError
from stma.inference.state import network_digest, read_state, write_state
from stma.memory.spatial import SpatialMemory
from stma.memory.temporal import TemporalMemory, WholeBuffer
from stma.memory.video import VideoMemory
from stma.model.association import Reading
from stma.model.backbone import STRIDE, FrameEmbedding, pad_to_stride
from stma.model.stma import STMA, prepare_compiler
from stma.model.weights import load_model
from stma.runtime.config import check_types
from stma.runtime.device import autocast, check_precision, upload

log = logging.getLogger(__name__)

MAX_SCALE = 4.0
# A mask given for a known object replaces what is known of it where the prediction's IoU with it is
# below this: with less, the memory misleads; with more, it is worth keeping (docs/decisions.md).
AGREEMENT = 0.7
AT_ONCE = 16  # objects whose probabilities are held at the frame's size
TINY = 16.0  # pixels of the network's frame, one place of the decoder's map; less is soon lost
BACKEND: str | Callable = "inductor"  # of torch.compile
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MAX_GRAPHS = 1000  # each size of frames and each set of objects has its own


@dataclass
class SegmenterConfig:
    """How a video is segmented.

    Attributes:
        memory_interval: both memories take every n-th frame (3 on DAVIS, 5 on YouTube-VOS).
        queue_size: unpinned reference frames to hold; null for no limit.
        max_pinned: pinned frames that serve as references; null for all of them.
        capacity: elements of the temporal memory, ``h * w`` per frame; null for no eviction.
        top_k: each query reads only the k most similar elements; null reads all.
        kernel: each element is read around the query most similar to it, weighted by a Gaussian of
            this standard deviation, in shorter sides of the frame (KMN); null reads it everywhere.
            It holds the scores of all queries at once, 4 bytes for each query and element.
        short_side: larger frames are scaled down to this for the network; null never scales.
        scale: of the network's frames, applied after ``short_side``; above 1 enlarges them.
        compile: null, or a mode of ``torch.compile``, in which a frame is one graph: ``default``,
            or ``reduce-overhead``, which CUDA replays. Each set of objects that entered together,
            and each size of frame, is a graph: compiled for a minute or so, and kept in memory.
        precision: ``auto`` (bf16 on devices that multiply it, fp32 elsewhere), ``fp32``, ``bf16``
            or ``fp16``.
    """

    memory_interval: int = 5
    queue_size: int | None = 1
    max_pinned: int | None = None
    capacity: int | None = 10_000
    top_k: int | None = None
    kernel: float | None = None
    short_side: int | None = 480
    scale: float = 1.0
    compile: str | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if self.memory_interval < 1:
            raise InputError(f"memory_interval is {self.memory_interval}; give 1 or more")
        if self.short_side is not None and self.short_side < STRIDE:
            raise InputError(f"short_side is {self.short_side}; give {STRIDE} or more, or null")
        if not 0 < self.scale <= MAX_SCALE:
            raise InputError(f"scale is {self.scale}; give more than 0 and at most {MAX_SCALE}")
        if self.compile is not None and self.compile not in COMPILE_MODES:
            raise InputError(f"compile is {self.compile!r}; choose one of {COMPILE_MODES}, or null")
        if self.compile is not None and self.capacity is None:
            raise InputError("compile needs a memory that does not grow; give a capacity")
        if self.compile is not None and self.queue_size is None:
            raise InputError("compile needs references that do not grow; give a queue_size")
        check_precision(self.precision)
        # These check their own settings; do so before the first video is read.
        SpatialMemory(self.queue_size, self.max_pinned)
        TemporalMemory(self.capacity)
        Reading(self.top_k, self.kernel)

    @property
    def reading(self) -> Reading:
        """How the temporal memory is read."""
        return Reading(self.top_k, self.kernel)


class FrameResult:
    """The result for a frame.

    Args:
        probabilities: ``(N+1, h, w)``, of the frame's size or smaller.

    Attributes:
        mask: ``(H, W)`` uint8 with the given IDs; 0 is background.
        ids: the objects known so far, in the order in which they entered.
    """

    def __init__(self, mask: np.ndarray, probabilities: Tensor, ids: list[int]) -> None:
        self.mask = mask
        self.ids = ids
        self._probabilities = probabilities

    @cached_property
    def probabilities(self) -> Tensor:
        """``(N+1, H, W)`` fp32, background first, then the objects of ``ids``. Made when asked
        for: of many objects in large frames they fill gigabytes."""
        return _resize(self._probabilities, (self.mask.shape[0], self.mask.shape[1]))

    @cached_property
    def confidence(self) -> dict[int, float]:
        """For each object the mean of its probability where it is the most probable; of one that
        is nowhere, its highest probability. A given mask has 1."""
        best, index = (x.flatten() for x in self._probabilities.max(dim=0))
        count = self._probabilities.shape[0]
        sums = best.new_zeros(count).scatter_add_(0, index, best)
        sizes = torch.bincount(index, minlength=count)
        highest = self._probabilities.flatten(1).amax(dim=1)
        means = torch.where(sizes > 0, sums / sizes, highest)[1:]
        return dict(zip(self.ids, means.tolist(), strict=True))


class VideoSegmenter(Protocol):
    """What evaluation needs of a method; the baselines have it too."""

    def step(
        self, frame: np.ndarray, mask: np.ndarray | None = None, *, last: bool = False
    ) -> FrameResult:
        """Segment the next frame of the video; see :meth:`Segmenter.step`."""
        ...


class Segmenter:
    """Segments one video. Make a new one for each video; the network is shared.

    Frames may have any size; masks may bring new objects at any frame, or correct known ones. Until
    the first mask, every frame is background.

    Args:
        model: in evaluation mode, on the device to run on.
        config: None takes the settings that came with the weights.
        settings: single settings of :class:`SegmenterConfig`, such as ``memory_interval=3``, which
            replace those of ``config``.

    Attributes:
        ids: the objects known so far, in the order in which they entered.
        num_frames: the number of frames given so far.
    """

    def __init__(self, model: STMA, config: SegmenterConfig | None = None, **settings: Any) -> None:
        check_model(model)
        if not isinstance(config, SegmenterConfig | None):
            raise InputError(f"the settings are {config!r:.200}; give a SegmenterConfig, or None")
        if unknown := [name for name in settings if name not in SegmenterConfig.__annotations__]:
            raise InputError(
                f"no setting {unknown[0]!r}; there are {', '.join(SegmenterConfig.__annotations__)}"
            )
        self.model = model
        config = config or SegmenterConfig(**model.segmenter_settings)
        self.config = replace(config, **settings)
        self.device = model.mean.device
        self.dtype = model.mean.dtype
        self._in_step = False
        self.reset()

    @classmethod
    def from_pretrained(
        cls, weights: str | Path = "small", device: torch.device | str = "auto", **settings: Any
    ) -> "Segmenter":
        """``Segmenter(load_model(weights, device), **settings)``.

        Args:
            weights: a name, a file, or a folder that holds one; nothing is downloaded.

        Raises:
            InputError: see :func:`~stma.model.weights.load_model`.
        """
        return cls(load_model(weights, device), **settings)

    def reset(self) -> None:
        """Forget the video: the next frame is the first of another."""
        self._forget_objects()
        self.num_frames = 0
        self._frame_size: tuple[int, int] | None = None

    def _forget_objects(self) -> None:
        self.ids: list[int] = []
        self._entered_with: list[int] = []  # for every object, the pinned frame that gave it
        self._frames_since_first_mask = 0
        self._read: WholeBuffer | None = None  # of the temporal memory, until the next update
        self.memory = VideoMemory(
            spatial=SpatialMemory(self.config.queue_size, self.config.max_pinned),
            temporal=TemporalMemory(self.config.capacity),
        )

    @torch.inference_mode()
    def remove(self, object_id: int) -> None:
        """Remove an object from the video; it costs nothing from then on.

        In the following frames, its pixels become background, or another object's. If given again,
        it is a new object.

        Raises:
            InputError: there is no such object.
        """
        if object_id not in self.ids:
            known = ", ".join(map(str, self.ids)) or "none"
            raise InputError(f"object {object_id!r} is not in the video; objects: {known}")
        if self.ids == [object_id]:
            self._forget_objects()
            return
        index = self.ids.index(object_id)
        frame = self._entered_with.pop(index)
        del self.ids[index]
        if frame in self._entered_with:  # another object came with it
            self.memory.remove(index, None)
        else:
            self.memory.remove(index, frame)
            self._entered_with = [each - (each > frame) for each in self._entered_with]

    def save(self, path: str | Path) -> None:
        """Write the state of the video, for :meth:`load` to continue from.

        One safetensors file, written atomically: settings, objects and memories, not the network.

        Raises:
            InputError: it cannot be written.
        """
        temporal, counts = self.memory.temporal.state()
        spatial = self.memory.spatial.frames
        values = {
            "network": network_digest(self.model),
            "config": asdict(self.config),
            "ids": self.ids,
            "entered_with": self._entered_with,
            "num_frames": self.num_frames,
            "frame_size": self._frame_size,
            "frames_since_first_mask": self._frames_since_first_mask,
            "pinned": [pinned for _, pinned in spatial],
            "temporal": counts,
        }
        tensors = {f"temporal.{name}": tensor for name, tensor in temporal.items()}
        tensors |= {f"spatial.{number}": tokens for number, (tokens, _) in enumerate(spatial)}
        write_state(Path(path), values, tensors)

    @classmethod
    def load(cls, path: str | Path, model: STMA) -> "Segmenter":
        """Continue a video that :meth:`save` wrote; the next masks are those that would have
        followed, to the bit on the same machine and device.

        Args:
            model: with the weights that the video was begun with.

        Raises:
            InputError: the file is missing, damaged or not a saved video, or the network differs.
        """
        check_model(model)
        values, tensors = read_state(Path(path), model.mean.device)
        if values["network"] != network_digest(model):
            raise InputError(f"{path}: saved with other weights; load those it was begun with")
        segmenter = cls(model, SegmenterConfig(**values["config"]))
        segmenter.ids = values["ids"]
        segmenter._entered_with = values["entered_with"]
        segmenter.num_frames = values["num_frames"]
        segmenter._frame_size = values["frame_size"] and tuple(values["frame_size"])
        segmenter._frames_since_first_mask = values["frames_since_first_mask"]
        memory = segmenter.memory
        memory.spatial.restore(
            [(tensors[f"spatial.{i}"], pinned) for i, pinned in enumerate(values["pinned"])]
        )
        prefix = "temporal."
        memory.temporal.restore(
            {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)},
            values["temporal"],
        )
        memory.is_empty = not segmenter.ids
        return segmenter

    @torch.inference_mode()
    def step(
        self,
        frame: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        absent: Set[int] = frozenset(),
        last: bool = False,
    ) -> FrameResult:
        """Segment the next frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB: an array, a tensor (also ``(3, H, W)``) or a picture
                of Pillow's.
            mask: ``(H, W)`` integers, likewise, or None. Every ID in it is taken as given, whether
                new or known; 0 means "not annotated", so objects missing from it are predicted as
                in any other frame. A known object that is far from where it would be predicted
                enters anew: all that was known of it misleads.
            absent: known objects that are not in this frame; it is memorised so.
            last: whether no frame follows, so that the prediction need not be memorised.

        Raises:
            InputError: a frame or mask has the wrong type or size, a mask has no object, or an
                absent one is not known or in the mask; or another thread is in this call. The
                state of the video is unchanged.
        """
        probabilities, size = self._checked_step(frame, mask, absent, last)
        found = index_mask(probabilities, self.ids, size)
        return FrameResult(found, probabilities, list(self.ids))

    @torch.inference_mode()
    def predict(
        self,
        frame: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        absent: Set[int] = frozenset(),
        last: bool = False,
    ) -> Tensor:
        """Only the probabilities ``(N+1, H, W)`` of :meth:`step`. On a GPU they may not be ready
        yet: the host does not wait for it."""
        return _resize(*self._checked_step(frame, mask, absent, last))

    def _checked_step(
        self, frame: Any, mask: Any, absent: Set[int], last: bool
    ) -> tuple[Tensor, tuple[int, int]]:
        """Probabilities ``(N+1, h, w)``, at the network's size unless something was given, and the
        size of the frame."""
        frame = as_frame(frame)
        mask = None if mask is None else as_mask(mask)
        check_step(frame, mask, self._frame_size)
        check_absent(absent, mask, self.ids)
        if self._in_step:  # not a lock, since a segmenter can be copied
            raise InputError("another thread is in a step of this video; give each its own video")
        self._in_step = True
        try:
            return self._predict(frame, mask, absent, last), (frame.shape[0], frame.shape[1])
        finally:
            self._in_step = False

    def _predict(
        self, frame: np.ndarray, mask: np.ndarray | None, absent: Set[int], last: bool
    ) -> Tensor:
        size = (frame.shape[0], frame.shape[1])
        self._frame_size = size
        self.num_frames += 1
        if mask is None and not self.ids:
            return torch.ones(1, *size, device=self.device, dtype=self.dtype)

        given = None
        new_ids: list[int] = []
        with autocast(self.device, self.config.precision):
            image, small = self.network_input(frame)
            if mask is not None:
                given = upload(mask.astype(np.int64), self.device)
                values, counts = np.unique(mask, return_counts=True)
                areas = {int(i): int(n) for i, n in zip(values, counts, strict=True) if i != 0}
                for identity in self._misleading(image, small, mask, areas):
                    self.remove(identity)
                new_ids = [identity for identity in areas if identity not in self.ids]
                self._warn_of_tiny({i: areas[i] for i in new_ids}, size, small)
            elif absent:
                given = torch.zeros(size, dtype=torch.int64, device=self.device)
            return self._advance(image, small, size, given, new_ids, absent, last=last)

    def _misleading(
        self, image: Tensor, small: tuple[int, int], mask: np.ndarray, areas: dict[int, int]
    ) -> list[int]:
        """Known objects of the mask that would be predicted somewhere else."""
        known = [identity for identity in areas if identity in self.ids]
        if not known:
            return []
        probabilities = self._segment(image)[2][0, :, : small[0], : small[1]]
        predicted = index_mask(probabilities, self.ids, (mask.shape[0], mask.shape[1]))
        found = []
        for identity in known:
            given, other = mask == identity, predicted == identity
            if (given & other).sum() < AGREEMENT * (given | other).sum():
                found.append(identity)
        return found

    def _warn_of_tiny(
        self, areas: dict[int, int], size: tuple[int, int], small: tuple[int, int]
    ) -> None:
        shrinks = small[0] * small[1] / (size[0] * size[1])
        for identity, area in areas.items():
            if area * shrinks < TINY:
                log.warning(
                    "object %d covers %.0f of the pixels that the network sees (%d x %d) and will "
                    "soon be lost; %s",
                    identity,
                    area * shrinks,
                    *small[::-1],
                    "a larger --short-side (in a program short_side) helps; 0 never scales"
                    if shrinks < 1
                    else "give an enlarged video, or scale=2 in a program",
                )

    def _advance(
        self,
        image: Tensor,
        size: tuple[int, int],
        full_size: tuple[int, int],
        given: Tensor | None,
        new_ids: list[int],
        absent: Set[int],
        *,
        last: bool,
    ) -> Tensor:
        """Run the network and update the memories; probabilities ``(N+1, h, w)`` of all objects,
        of ``full_size`` if something is given.

        Args:
            image: see :meth:`network_input`; of ``size`` without its padding.
        """
        if self.ids:
            embedding, features, probabilities = self._segment(image)
            probabilities = probabilities[0, :, : size[0], : size[1]]
        else:
            embedding = self.model.embed(image)
            features = self.model.encode(embedding, self.memory)
            probabilities = torch.ones(1, *size, device=self.device, dtype=self.dtype)
        self.ids += new_ids
        if new_ids:
            self._entered_with += [max(self._entered_with, default=-1) + 1] * len(new_ids)
        known = probabilities
        if given is not None:
            # Merged at full size: a small object may have no pixel at the network's size.
            full = _resize(known, full_size)
            probabilities = merge_given(full, given, self.ids, absent)
            known = _resize(probabilities, size)

        on_grid = self._frames_since_first_mask % self.config.memory_interval == 0
        self._frames_since_first_mask += 1
        # New objects are always memorised, or the memory would not know all of `ids`.
        if new_ids or (not last and (on_grid or given is not None)):
            masks = pad_to_stride(known[None, 1:])
            pinned = bool(new_ids)
            self.model.memorize(image, embedding, features, masks, self.memory, pinned=pinned)
        return probabilities

    def _segment(self, image: Tensor) -> tuple[FrameEmbedding, Tensor, Tensor]:
        """The embedding, features and probabilities of a frame; one graph if it is compiled."""
        memory = self.memory
        if self.config.compile is None:
            return segment_frame(self.model, image, memory, self.config.reading)
        if memory.prepared is None:
            grid = (image.shape[2] // STRIDE, image.shape[3] // STRIDE)
            memory.prepared = self.model.prepare(memory, grid, all_slots=True)
            self._read = memory.temporal.whole_buffer() if len(memory.temporal) else None
        read = None if self._read is None else replace(self._read, received=[])
        torch.compiler.cudagraph_mark_step_begin()
        function = compiled_frame(BACKEND, self.config.compile)
        embedding, features, probabilities = function(
            self.model,
            image,
            replace(memory, temporal=read),  # type: ignore[arg-type]
            self.config.reading,
        )
        if read is not None:
            for used, group in zip(read.received, read.groups, strict=True):
                memory.temporal.count_use(used, group)
        # The next replay writes over what the graph has given; these outlive it.
        embedding = replace(embedding, tokens=embedding.tokens.clone())
        return embedding, features, probabilities.clone()

    def network_input(self, frame: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """A frame ``(H, W, 3)`` as the network sees it: normalised, scaled and padded
        ``(1, 3, H', W')``, and its height and width without the padding."""
        image = upload(np.array(frame), self.device)  # a frame may be read-only
        image = image.permute(2, 0, 1)
        if self.device.type != "cpu":  # which resizes bytes, four times as fast
            image = image.to(self.dtype) / 255
        size = network_size(
            frame.shape[0], frame.shape[1], self.config.short_side, self.config.scale
        )
        image = pad_to_stride(self.model.normalize(_resize(image, size)[None]))
        return image.contiguous(memory_format=torch.channels_last), size


def segment_frame(
    model: STMA, image: Tensor, memory: VideoMemory, reading: Reading
) -> tuple[FrameEmbedding, Tensor, Tensor]:
    """All that the network does for a frame that is not memorised.

    Args:
        image: ``(1, 3, H, W)``, normalised.
        memory: to be compiled, prepared with all slots.

    Returns:
        The embedding, features ``(1, L, C)``, probabilities ``(1, N+1, H, W)``.
    """
    embedding = model.embed(image)
    segmentation = model.segment(embedding, memory, reading)
    return embedding, segmentation.features, segmentation.probabilities


@lru_cache
def compiled_frame(backend: str | Callable, mode: str) -> Callable:
    """`segment_frame`, compiled once for all videos; each new shape is a graph of its own."""
    prepare_compiler(MAX_GRAPHS)
    return torch.compile(segment_frame, backend=backend, mode=mode, fullgraph=True, dynamic=False)


def check_model(model: object) -> None:
    """Refuse what cannot segment: no network, or one that trains or is in half precision."""
    if not isinstance(model, STMA):
        raise InputError(f"the model is {model!r:.200}; give the result of load_model(...)")
    if model.training:
        raise InputError("the model is in training mode; call model.eval() first")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes & {torch.float16, torch.bfloat16}:
        raise InputError(
            "the model is in half precision; call model.float(), and give precision='fp16' (or "
            "'bf16') to the Segmenter, which computes in it where that is safe"
        )


def as_frame(frame: Any) -> np.ndarray:
    """An array, from a picture of Pillow's or a tensor, whose channels may come first."""
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    if isinstance(frame, Tensor):
        frame = frame.numpy(force=True)
        if frame.ndim == 3 and frame.shape[2] != 3 and frame.shape[0] == 3:
            return np.ascontiguousarray(frame.transpose(1, 2, 0))
    if not isinstance(frame, np.ndarray):
        raise InputError(f"the frame is a {type(frame).__name__}; give an array, tensor or picture")
    return frame


def as_mask(mask: Any) -> np.ndarray:
    """An array, from an index picture of Pillow's or a tensor."""
    if isinstance(mask, Image.Image):
        if mask.mode not in ("P", "L", "1", "I", "I;16"):
            raise InputError(f"the mask is a picture of mode {mask.mode}; give one of IDs (P or L)")
        return np.asarray(mask)
    if isinstance(mask, Tensor):
        return mask.numpy(force=True)
    if not isinstance(mask, np.ndarray):
        raise InputError(f"the mask is a {type(mask).__name__}; give an array, tensor or picture")
    return mask


def check_step(
    frame: np.ndarray, mask: np.ndarray | None, frame_size: tuple[int, int] | None
) -> None:
    """Refuse what no method can use.

    Args:
        frame_size: ``(H, W)`` of earlier frames; None before the first.

    Raises:
        InputError: says what is wrong with the frame or the mask.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InputError(
            f"the frame is {frame.shape} of {frame.dtype}; give (height, width, 3) of uint8, RGB"
        )
    size = (frame.shape[0], frame.shape[1])
    if 0 in size:
        raise InputError(f"the frame is empty: {frame.shape}")
    if frame_size is not None and size != frame_size:
        raise InputError(
            f"the frame is {size[1]} x {size[0]}, those before it are "
            f"{frame_size[1]} x {frame_size[0]}; all frames of a video must have the same size"
        )
    if mask is None:
        return
    if mask.ndim != 2:
        raise InputError(
            f"the mask is {mask.shape}; give (height, width), where each pixel holds an ID, not RGB"
        )
    if mask.shape != size:
        raise InputError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]}, its frame {size[1]} x {size[0]}"
        )
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.integer):
        raise InputError(f"the mask is of {mask.dtype}; give integers")
    if not mask.any():
        raise InputError("the mask holds no object; leave it out if nothing is annotated")
    if mask.min() < 0 or mask.max() > 255:
        raise InputError(f"the mask holds IDs from {mask.min()} to {mask.max()}; they go up to 255")


def check_absent(absent: Set[int], mask: np.ndarray | None, ids: list[int]) -> None:
    """Raises :class:`InputError` for objects that are not known, or are in the mask."""
    for identity in absent:
        if identity not in ids:
            known = ", ".join(map(str, ids)) or "none"
            raise InputError(f"absent: object {identity} is not in the video; objects: {known}")
        if mask is not None and (mask == identity).any():
            raise InputError(f"absent: object {identity} is in the mask of this frame")


def merge_given(
    probabilities: Tensor, mask: Tensor, ids: list[int], absent: Set[int] = frozenset()
) -> Tensor:
    """Put given objects into a prediction.

    An object in the mask has probability 1 there and 0 elsewhere, an absent one 0 everywhere; what
    a known object loses goes to the background. Other objects keep their probabilities where
    nothing is given.

    Args:
        probabilities: ``(N+1, H, W)``, background first, then the first ``N`` of ``ids``.
        mask: ``(H, W)`` int64 IDs, 0 where nothing is annotated.
        ids: all objects, including those of the mask.
        absent: those of them that are not in this frame.

    Returns:
        ``(len(ids)+1, H, W)``.
    """
    row_of_id = torch.full((256,), -1, device=mask.device)
    for row, identity in enumerate([0, *ids]):  # one by one: the host would wait for a list
        row_of_id[identity] = row
    rows = row_of_id[mask]
    is_given = torch.zeros(len(ids) + 1, 1, 1, dtype=torch.bool, device=mask.device)
    is_given[rows] = True
    is_given[0] = False
    for identity in absent:
        is_given[1 + ids.index(identity)] = True
    # In place: with many objects each copy takes gigabytes.
    merged = probabilities.new_zeros(len(ids) + 1, *mask.shape)
    merged[: probabilities.shape[0]] = probabilities
    parts = zip(merged.split(AT_ONCE), is_given.split(AT_ONCE), strict=True)
    lost = [part.masked_fill(~given, 0.0).sum(dim=0) for part, given in parts]
    merged.masked_fill_(is_given, 0.0)
    merged[0] += torch.stack(lost).sum(dim=0)
    merged.masked_fill_(mask > 0, 0.0)
    return merged.scatter_add_(0, rows[None], (mask > 0)[None].to(merged.dtype))


def index_mask(
    probabilities: Tensor, ids: list[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """The most probable ID of every pixel: ``(N+1, H, W)`` to ``(H, W)`` uint8.

    Args:
        size: resize the probabilities to this first, a few objects at a time.
    """
    numbers = np.array([0, *ids], np.uint8)
    size = (probabilities.shape[1], probabilities.shape[2]) if size is None else size
    if probabilities.device.type == "cpu":
        return numbers[_best_rows(probabilities, size)]
    best = rows = None
    for start, some in enumerate(probabilities.split(AT_ONCE)):
        value, index = _resize(some, size).max(dim=0)
        row = (index + start * AT_ONCE).to(torch.uint8)
        if best is None or rows is None:
            best, rows = value, row
        else:
            rows = torch.where(value > best, row, rows)
            best = torch.maximum(best, value)
    assert rows is not None
    return numbers[rows.cpu().numpy()]  # here the host waits for the device


def _best_rows(probabilities: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The row of the largest value of every pixel, one row at a time by OpenCV, in a fifth of the
    time that PyTorch's resizing and maximum take on a CPU."""
    from stma.runtime.opencv import cv2  # a server may have PyTorch and no libGL

    rows = np.zeros(size, np.uint8)
    best: np.ndarray | None = None
    for row, values in enumerate(probabilities):
        if _enlarges(values.shape, size):
            values = cv2.resize(values.numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
        else:
            values = _resize(values[None], size)[0].numpy()
        if best is None:
            best = values
        else:
            rows[values > best] = row
            best = np.maximum(best, values)
    return rows


def network_size(
    height: int, width: int, short_side: int | None, scale: float = 1.0
) -> tuple[int, int]:
    """The size at which the network sees a frame, keeping its proportions.

    Args:
        short_side: the frame's largest short side; smaller frames are not enlarged to it.
        scale: applied to the result.
    """
    if short_side is not None and min(height, width) > short_side:
        scale *= short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(C, H, W)`` to another size, antialiased; probabilities are resized, never masks."""
    if x.shape[-2:] == size:
        return x
    smooth = not _enlarges(x.shape, size)  # else it makes no difference, and takes twice as long
    return F.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=smooth)[0]


def _enlarges(shape: Sequence[int], size: tuple[int, int]) -> bool:
    return shape[-2] <= size[0] and shape[-1] <= size[1]
