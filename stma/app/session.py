"""One video as a user works on it: what was drawn, what was computed, and how to continue.

The page (:mod:`stma.app.page`) shows it; nothing here knows about a browser.
"""

import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stma.data.images import natural_order
from stma.data.masks import count_ids, read_mask
from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.stma import STMA
from stma.runtime.outputs import full_disks_told
from stma.runtime.threads import read_ahead
from stma.video.reading import Video, VideoFrameAt, open_video
from stma.video.writing import OUTPUTS, Writer

STATES = 12  # of the segmenter, kept along the video to continue from; at most twice as many
DOWNLOADS = ("masks", *OUTPUTS)


@dataclass(frozen=True)
class Limits:
    """Limits for one video.

    Attributes:
        megabytes: of the file.
        frames: of the video.
    """

    megabytes: int = 500
    frames: int = 3000


@dataclass(frozen=True)
class Drawing:
    """What the user says about one frame.

    Attributes:
        mask: ``(H, W)`` uint8 IDs; 0 where nothing is said.
        found: objects that were segmented there before.
    """

    mask: np.ndarray
    found: frozenset[int]

    @property
    def erased(self) -> frozenset[int]:
        """Objects that were segmented there but are absent."""
        return self.found - set(np.flatnonzero(count_ids(self.mask)).tolist())


@dataclass
class _State:
    path: Path
    removed: set[int]  # objects removed after it was saved


class Session:
    """Masks of a video up to some frame, and the drawings they come from.

    A drawing makes all masks from its frame on unknown; :meth:`run` recomputes them from the
    nearest earlier state that was kept. Calls from several threads take turns.

    Args:
        path: of the video.
        model: see :class:`Segmenter`; shared with other sessions, of which one may run at a time.
        folder: where the session makes its own folder, deleted by :meth:`close`.
        owned: move the file into that folder; it is deleted with it, or when it is refused.
        config: of the segmenter; None takes the settings that came with the weights.

    Attributes:
        num_frames: of the video.
        done: masks of the frames before this one are known.
        closed: whether its files have been deleted.

    Raises:
        InputError: it is not a video, or exceeds the limits.
    """

    def __init__(
        self,
        path: Path,
        model: STMA,
        folder: Path,
        limits: Limits | None = None,
        owned: bool = False,
        config: SegmenterConfig | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="video-", dir=folder))
        try:
            if owned:
                path = Path(shutil.move(path, self._folder / path.name))
            self.video = _open(path, limits or Limits())
        except InputError as error:
            shutil.rmtree(self._folder)
            raise InputError(str(error).replace(f"{path.parent}{os.sep}", "")) from error
        self.num_frames = len(self.video)
        self.done = 0
        self.closed = False
        self._model, self._config = model, config
        (self._folder / "masks").mkdir()
        self._drawings: dict[int, Drawing] = {}
        self._segmenter: Segmenter | None = None
        self._states: dict[int, _State] = {}
        self._spacing = max(1, self.num_frames // STATES)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._shown: VideoFrameAt | None = None

    @property
    def ids(self) -> list[int]:
        """Objects that are drawn somewhere, in order."""
        drawn = [np.flatnonzero(count_ids(each.mask)) for each in self._drawings.values()]
        return sorted({int(i) for ids in drawn for i in ids} - {0})

    @property
    def drawn_frames(self) -> list[int]:
        """Frames on which something was drawn or erased, in order."""
        return sorted(self._drawings)

    def frame(self, number: int) -> np.ndarray:
        """``(H, W, 3)`` uint8; if there is no frame of that number, the nearest one before it.

        Raises:
            InputError: it cannot be read.
        """
        with self._lock:
            if self._shown is None or self._shown.number != number:
                self._shown = next(iter(self.video.frames_backward(number)))
            return self._shown.image

    def mask(self, number: int) -> np.ndarray:
        """``(H, W)`` uint8: the known mask of a frame, or else what is drawn on it."""
        with self._lock:
            if number < self.done:
                return read_mask(self._mask_path(number))[0]
            if number in self._drawings:
                return self._drawings[number].mask
            return np.zeros(self.video.size, np.uint8)

    def draw(self, number: int, mask: np.ndarray) -> bool:
        """Correct a frame: from now on its mask is this one, and those after it are unknown.

        Returns:
            Whether it differs from the known one.
        """
        with self._lock:
            shown = self.mask(number)
            if np.array_equal(mask, shown):
                return False
            found = set(np.unique(shown).tolist()) - {0} if number < self.done else set()
            if number in self._drawings:
                found |= self._drawings[number].found
            self._keep(number, Drawing(mask.copy(), frozenset(found)))
            self._forget_from(number)
            return True

    def run(self) -> Iterator[int]:
        """Segment from the first frame whose mask is unknown to the end of the video, or until
        :meth:`stop`.

        Yields:
            The number of every frame, as soon as it has a mask.

        Raises:
            InputError: nothing is drawn, a frame cannot be read, or one that was drawn on does not
                exist; earlier masks are kept.
        """
        self._check_open()
        if not self.ids:
            raise InputError("nothing is drawn yet; paint an object on a frame first")
        stop = self._stop = threading.Event()  # of this run; another may start after it
        segmenter = self._segmenter_at(self.done)
        read = segmenter.num_frames
        for frame in read_ahead(self.video.frames()):
            if frame.number < read:
                continue
            with self._lock:
                if stop.is_set():
                    return
                with full_disks_told(self._folder):
                    self._step(segmenter, frame)
            yield frame.number
            read = frame.number + 1
        self.num_frames = read  # headers are sometimes wrong
        if late := [number for number in self.drawn_frames if number >= read]:
            for number in late:
                del self._drawings[number]
            raise InputError(
                f"the video ends after {read} frames; what was drawn on frame {late[0]} is dropped"
            )

    def _step(self, segmenter: Segmenter, frame: VideoFrameAt) -> None:
        drawing = self._drawings.get(frame.number)
        given, absent = None, frozenset[int]()
        if drawing is not None:
            given = drawing.mask if drawing.mask.any() else None
            absent = drawing.erased & set(segmenter.ids)
        result = segmenter.step(frame.image, given, absent=absent)
        save_mask(self._mask_path(frame.number), result.mask)
        self.done = max(self.done, frame.number + 1)
        self._segmenter = segmenter
        if segmenter.num_frames % self._spacing == 0 and segmenter.num_frames not in self._states:
            path = self._folder / f"{segmenter.num_frames}.state"
            segmenter.save(path)
            self._states[segmenter.num_frames] = _State(path, set())

    def _segmenter_at(self, number: int) -> Segmenter:
        """A segmenter that has seen the frames before this one, or as many as possible."""
        with self._lock:
            if self._segmenter is not None and self._segmenter.num_frames == number:
                return self._segmenter
            before = [each for each in self._states if each <= number]
            if not before:
                return Segmenter(self._model, self._config)
            state = self._states[max(before)]
            segmenter = Segmenter.load(state.path, self._model)
            for identity in state.removed & set(segmenter.ids):
                segmenter.remove(identity)
            return segmenter

    def stop(self) -> None:
        """End :meth:`run` after its current frame; the next run continues from there."""
        self._stop.set()

    def remove(self, identity: int) -> None:
        """Remove an object from all drawings and all masks.

        Raises:
            InputError: there is no such object.
        """
        with self._lock:
            if identity not in self.ids:
                raise InputError(f"object {identity} is not in the video; objects: {self.ids}")
            self.stop()
            for number, drawing in list(self._drawings.items()):
                rest = without(drawing.mask, {identity})
                self._keep(number, Drawing(rest, drawing.found - {identity}))
            if not self.ids:
                self._forget_from(0)
                return
            for number in range(self.done):
                mask = self.mask(number)
                if (mask == identity).any():
                    save_mask(self._mask_path(number), without(mask, {identity}))
            for state in self._states.values():
                state.removed.add(identity)
            if self._segmenter is not None and identity in self._segmenter.ids:
                self._segmenter.remove(identity)

    def _keep(self, number: int, drawing: Drawing) -> None:
        """Keep a drawing if it says anything."""
        if drawing.mask.any() or drawing.erased:
            self._drawings[number] = drawing
        else:
            self._drawings.pop(number, None)

    def _forget_from(self, number: int) -> None:
        self.stop()
        self.done = min(self.done, number)
        if self._segmenter is not None and self._segmenter.num_frames > number:
            self._segmenter = None
        for each in [each for each in self._states if each > number]:
            self._states.pop(each).path.unlink()

    def write(self, kind: str) -> Path:
        """A file with all known masks, for download.

        Args:
            kind: one of ``DOWNLOADS``; folders are zipped.

        Raises:
            InputError: no mask is known yet.
        """
        self._check_open()
        with self._lock, full_disks_told(self._folder):
            if not self.done:
                raise InputError("no frame is segmented yet; press Segment first")
            stem = self.video.path.stem
            if kind == "masks":
                return self._zip(self._folder / "masks", f"{stem}_masks.zip", self.done)
            name, make = OUTPUTS[kind]
            path = self._folder / f"{stem}_{name}"
            self._write_all(make(path, self.video))
            return self._zip(path, f"{path.name}.zip") if path.is_dir() else path

    def _write_all(self, writer: Writer) -> None:
        for frame in read_ahead(self.video.frames()):
            if frame.number >= self.done:
                break
            writer.write(frame, self.mask(frame.number))
        writer.close(complete=self.done >= self.num_frames)

    def _zip(self, folder: Path, name: str, count: int | None = None) -> Path:
        """Zip the first files of a folder (default: all), uncompressed: PNGs get no smaller."""
        path = self._folder / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            files = sorted(folder.iterdir(), key=lambda file: natural_order(file.stem))
            for file in files[:count]:
                archive.write(file, file.name)
        return path

    def close(self) -> None:
        """Stop, and delete all the session's files."""
        self.stop()
        with self._lock:
            self.done, self.closed = 0, True
            shutil.rmtree(self._folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self.closed:
            raise InputError("this video was closed and its files deleted; open it again")

    def _mask_path(self, number: int) -> Path:
        return self._folder / "masks" / f"{self.video.name(number)}.png"


def without(mask: np.ndarray, ids: Set[int]) -> np.ndarray:
    """A mask of IDs, uint8, with these turned into background."""
    return np.where(np.isin(mask, list(ids)), 0, mask).astype(np.uint8)


def _open(path: Path, limits: Limits) -> Video:
    """Raises :class:`InputError` for what is no video, too large or too long."""
    size = path.stat().st_size if path.is_file() else 0
    if size > limits.megabytes * 10**6:
        raise InputError(
            f"{path}: {size / 1e6:.0f} MB, and the limit is {limits.megabytes} MB; make a smaller "
            "copy, or start the page with a larger --max-megabytes"
        )
    video = open_video(path)
    if len(video) > limits.frames:
        raise InputError(
            f"{path}: {len(video)} frames, and the limit is {limits.frames}; cut it "
            "(ffmpeg -ss 0:10 -t 0:30 -i IN OUT.mp4), or start the page with a larger --max-frames"
        )
    return video
