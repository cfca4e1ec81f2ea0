"""One video as a user works on it, kept in a folder: what was given, what was computed, and how to
continue.

The page (:mod:`stma.app.page`) shows it; nothing here knows about a browser.
"""

import io
import json
import os
import shutil
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stma.data.images import natural_order
from stma.data.masks import count_ids, read_mask
from stma.data.pictures import save_mask
from stma.errors import InputError
from stma.inference.segmenter import Segmenter, SegmenterConfig
from stma.model.stma import STMA
from stma.runtime.device import out_of_memory_explained
from stma.runtime.outputs import full_disks_told, remove_partials, replacing
from stma.runtime.threads import read_ahead
from stma.video.given import find_masks
from stma.video.reading import Video, VideoFrameAt, open_video
from stma.video.scores import DOUBTFUL
from stma.video.writing import OUTPUTS, Writer

RECORD = "video.json"
STATES = 12  # of the segmenter, kept along the video to continue from; at most twice as many
UNDOS = 100
SHOWN_BYTES = 100_000_000  # of frames that were shown, kept decoded
SEEK = 12  # frames further on, it is quicker to seek than to decode all
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
class Given:
    """What the user says about one frame.

    Attributes:
        png: the mask, encoded: IDs; 0 where nothing is said.
        ids: the objects in it.
        found: objects that the network had found in this frame, and about which the mask decides.
    """

    png: bytes
    ids: frozenset[int]
    found: frozenset[int]

    @property
    def absent(self) -> frozenset[int]:
        """Objects that had been found there but are not."""
        return self.found - self.ids

    def mask(self, removed: Set[int]) -> np.ndarray:
        """``(H, W)`` uint8, without removed objects."""
        return without(np.asarray(Image.open(io.BytesIO(self.png))), removed)


@dataclass
class _Work:
    """All that a change changes, so that it can be undone.

    Attributes:
        given: by the number of the frame.
        names: of the objects, by their IDs.
        removed: objects that are gone; their pixels stay in the files, and are not shown.
        begin: the first frame whose mask is up to date.
        end: the first one after it whose mask is not.
    """

    given: dict[int, Given] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    begin: int = 0
    end: int = 0

    def copy(self) -> "_Work":
        return _Work(dict(self.given), dict(self.names), set(self.removed), self.begin, self.end)

    @property
    def first(self) -> int:
        """The first frame in which an object is given."""
        said = (n for n, each in self.given.items() if each.ids - self.removed)
        return min(said, default=0)

    def forget(self, number: int, first: int) -> None:
        """Masks that depend on a frame are no longer up to date.

        Args:
            number: of the frame that changed.
            first: before it did.
        """
        if number <= first or self.first != first:
            self.begin = self.end = self.first
        else:
            self.end = max(self.begin, min(self.end, number))


@dataclass(frozen=True)
class _Change:
    """A step of undo.

    Attributes:
        frame: where to look at it.
        what: it was, in words.
        work: before (undo) or after it (redo).
        runs: how many runs there had been.
    """

    frame: int
    what: str
    work: _Work
    runs: int


class Session:
    """Masks of a video, and what they come from. Calls from several threads take turns.

    The masks of frames ``begin`` to ``end`` are up to date: :meth:`run` goes on forward from
    there, or backward. A change makes those that depend on it old: they stay to be seen until they
    are computed again.

    Args:
        folder: that :meth:`create` has made.

    Attributes:
        video: what is segmented.
        num_frames: of the video.
        notice: what the user should know about the file; empty if nothing.
        revision: counts the changes of what a user sees.

    Raises:
        InputError: the folder is damaged, or the video is no longer there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            source, self.num_frames = Path(record["source"]), int(record["frames"])
            self.notice = str(record["notice"])
            self._work = self._read_work(record)
            self._confidence = {int(n): float(c) for n, c in record["confidence"].items()}
            self._used = int(record["used"])  # the largest ID so far
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder / RECORD}: not the record of a video ({error}); remove the folder"
            ) from error
        self.video: Video = open_video(folder / source)  # an absolute path stays one
        self.revision = 0
        self.closed = False
        for name in ("given", "masks", "states"):
            (folder / name).mkdir(exist_ok=True)
        remove_partials(folder)
        self._known = {n for n in range(self.num_frames) if self._mask_path(n).exists()}
        self._keep_what_exists()
        self._undo: list[_Change] = []
        self._redo: list[_Change] = []
        self._runs = 0
        self._spacing = max(1, self.num_frames // STATES)
        self._segmenters: dict[bool, tuple[int, Segmenter]] = {}  # by direction; next frame
        self._lock = threading.RLock()
        self._running = threading.Lock()
        self._stop = threading.Event()
        self._reading = threading.Lock()
        self._frames: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cursor: tuple[int, Iterator[VideoFrameAt]] | None = None

    @classmethod
    def create(
        cls, path: Path, folder: Path, limits: Limits | None = None, owned: bool = False
    ) -> "Session":
        """Begin with a video.

        Args:
            folder: where the session makes its own folder, named like the video.
            owned: move the file into it; it is deleted with it, or when it is refused.

        Raises:
            InputError: it is not a video, or exceeds the limits; nothing is left behind.
        """
        own = _new_folder(folder, path)
        try:
            with full_disks_told(own):
                source = path.resolve()
                if owned:
                    source = Path(shutil.move(path, own / path.name))
                video = _open(source, limits or Limits())
                record = {
                    "source": source.name if owned else str(source),
                    "frames": len(video),
                    "notice": "",
                    "confidence": {},
                    "used": 0,
                    **_written(_Work()),
                }
                (own / RECORD).write_text(json.dumps(record), encoding="utf-8")
            return cls(own)
        except InputError as error:
            shutil.rmtree(own)
            message = str(error)
            for parent in (own, path.parent):
                message = message.replace(f"{parent}{os.sep}", "")
            raise InputError(message) from error

    def _read_work(self, record: dict[str, Any]) -> _Work:
        given = {}
        for number, each in record["given"].items():
            png = (self.folder / "given" / f"{number}.png").read_bytes()
            given[int(number)] = Given(png, frozenset(each["ids"]), frozenset(each["found"]))
        names = {int(i): str(name) for i, name in record["names"].items()}
        begin, end = int(record["begin"]), int(record["end"])
        return _Work(given, names, set(record["removed"]), begin, end)

    def _keep_what_exists(self) -> None:
        """Masks that were deleted behind our back are computed again."""
        work = self._work
        missing = (n for n in range(work.begin, work.end) if n not in self._known)
        if (gap := next(missing, None)) is not None:
            work.end = gap
            if gap <= work.first:
                work.begin = work.end = work.first

    @property
    def ids(self) -> list[int]:
        """The objects, in order."""
        return sorted(set(self._work.names) - self._work.removed)

    @property
    def given_frames(self) -> list[int]:
        """Frames about which something is given, in order."""
        work = self._work
        return sorted(
            n for n, each in work.given.items() if (each.ids | each.absent) - work.removed
        )

    @property
    def first(self) -> int:
        """The first frame in which an object is given."""
        return self._work.first

    @property
    def begin(self) -> int:
        """The first frame whose mask is up to date."""
        return self._work.begin

    @property
    def end(self) -> int:
        """The first frame after it whose mask is not."""
        return self._work.end

    def describe(self) -> dict[str, Any]:
        """What a page shows, but for the pictures."""
        with self._lock:
            work = self._work
            height, width = self.video.size
            fresh = range(work.begin, work.end)
            doubtful = [n for n, c in self._confidence.items() if c < DOUBTFUL and n in fresh]
            return {
                "name": self.video.path.name,
                "frames": self.num_frames,
                "width": width,
                "height": height,
                "aspect": float(self.video.pixel_aspect),
                "rate": float(self.video.rate),
                "objects": [{"id": i, "name": work.names[i]} for i in self.ids],
                "given": self.given_frames,
                "first": work.first,
                "begin": work.begin,
                "end": work.end,
                "old": _ranges(self._known - set(fresh)) if self.ids else [],
                "doubtful": sorted(doubtful),
                "undo": self._undo[-1].what if self._undo else None,
                "redo": self._redo[-1].what if self._redo else None,
                "notice": self.notice,
                "revision": self.revision,
            }

    def frame(self, number: int) -> np.ndarray:
        """``(H, W, 3)`` uint8.

        Raises:
            InputError: there is none of that number, or it cannot be read.
        """
        self._check_number(number)
        with self._reading:
            if number not in self._frames:
                self._decode(number)
            self._frames.move_to_end(number)
            return self._frames[number]

    def _decode(self, number: int) -> None:
        if self._cursor is None or not 0 <= number - self._cursor[0] < SEEK:
            self._cursor = number, self.video.frames(number)
        _, frames = self._cursor
        self._cursor = None  # unless all goes well
        for frame in frames:
            self._frames[frame.number] = frame.image
            while len(self._frames) * frame.image.nbytes > SHOWN_BYTES and len(self._frames) > 1:
                self._frames.popitem(last=False)
            if frame.number >= number:
                self._cursor = frame.number + 1, frames
                return
        self._set_end_of_video(next(iter(self.video.frames_backward(number))).number + 1)
        self._check_number(number)

    def _set_end_of_video(self, count: int) -> None:
        """The header is sometimes wrong, or the file truncated."""
        with self._lock:
            if count >= self.num_frames:
                return
            self.notice = (
                f"The file ends after {count} frames; its header says {self.num_frames}. It may be "
                "truncated."
            )
            self.num_frames = max(1, count)
            self._work.end = min(self._work.end, self.num_frames)
            self._work.begin = min(self._work.begin, self._work.end)
            late = [number for number in self._work.given if number >= self.num_frames]
            for number in late:
                del self._work.given[number]
            if late:
                self.notice += f" What was drawn on frame {late[0]} is dropped."
            self._save()

    def mask(self, number: int) -> np.ndarray:
        """``(H, W)`` uint8: the mask of a frame as far as it is known: up to date, or old with what
        is given since."""
        with self._lock:
            self._check_number(number)
            work = self._work
            mask = self._computed(number)
            if number not in work.given or work.begin <= number < work.end:
                return mask
            given = work.given[number].mask(work.removed)
            decided = work.given[number].ids | work.given[number].found
            return np.where(given > 0, given, without(mask, decided))

    def _computed(self, number: int) -> np.ndarray:
        if number not in self._known:
            return np.zeros(self.video.size, np.uint8)
        return without(read_mask(self._mask_path(number))[0], self._work.removed)

    def draw(self, number: int, mask: np.ndarray, what: str = "drawing") -> bool:
        """Change what a frame shows. If its mask was up to date, all of the new one is given, else
        the objects that changed.

        Args:
            mask: ``(H, W)`` uint8, IDs.
            what: it was, for undo.

        Returns:
            Whether it differs.

        Raises:
            InputError: there is no such frame, or the mask has another size.
        """
        with self._lock:
            shown = self.mask(number)
            if mask.shape != shown.shape or mask.dtype != np.uint8:
                raise InputError(
                    f"the mask is {mask.shape} of {mask.dtype}, the video {shown.shape} of uint8"
                )
            if np.array_equal(mask, shown):
                return False
            self._remember(number, what)
            work, first = self._work, self._work.first
            found = _ids(self._computed(number))
            if not work.begin <= number < work.end:
                differ = mask != shown
                decided = _ids(mask[differ]) | _ids(shown[differ & (mask == 0)])
                if (before := work.given.get(number)) is not None:
                    decided |= before.ids | before.found
                found &= decided
                mask = np.where(np.isin(mask, list(decided)), mask, 0).astype(np.uint8)
            elif number in work.given:
                found |= work.given[number].found
            given = Given(_png(mask), frozenset(_ids(mask)), frozenset(found - work.removed))
            work.given.pop(number, None)
            if given.ids or given.absent:
                work.given[number] = given
            for identity in given.ids - set(work.names):
                work.names[identity] = f"object {identity}"
            self._used = max(self._used, *given.ids, 0)
            self._purge(work.removed & given.ids)
            work.forget(number, first)
            self._changed()
            return True

    def give(self, number: int, path: Path) -> list[int]:
        """Take masks from a file, over what is there; see :func:`~stma.video.given.find_masks`.

        Args:
            number: of the frame, if the file does not name its own.

        Returns:
            The frames that changed.

        Raises:
            InputError: what is wrong with the file.
        """
        self._check_number(number)
        named = self.video.number(path.stem)
        frame = self.video.name(number if named is None else named)
        masks = find_masks(self.video, [f"{frame}={path}"])
        for each, given in masks.items():
            mask = given.read()[0]
            shown = without(self.mask(each), given.ids)
            self.draw(each, np.where(mask > 0, mask, shown), "import")
        return sorted(masks)

    def add_object(self) -> int:
        """A new object; its ID is one that was never used.

        Raises:
            InputError: there are 255.
        """
        with self._lock:
            if self._used >= 255:
                raise InputError("a mask has room for 255 objects, and all were used")
            self._used = identity = self._used + 1
            self._work.names[identity] = f"object {identity}"
            self._changed(stops=False)
            return identity

    def rename(self, identity: int, name: str) -> None:
        """Give an object another name.

        Raises:
            InputError: there is no such object.
        """
        with self._lock:
            self._check_object(identity)
            self._work.names[identity] = name.strip()[:80] or f"object {identity}"
            self._changed(stops=False)

    def remove(self, identity: int) -> None:
        """Remove an object from all frames.

        Raises:
            InputError: there is no such object.
        """
        with self._lock:
            self._check_object(identity)
            work, first = self._work, self._work.first
            where = [number for number, each in work.given.items() if identity in each.ids]
            self._remember(min(where, default=0), f"removal of {work.names[identity]}")
            work.removed.add(identity)
            if work.first != first or not any(
                each.ids - work.removed for each in work.given.values()
            ):
                work.begin = work.end = work.first
            for _, segmenter in self._segmenters.values():
                if identity in segmenter.ids:
                    segmenter.remove(identity)
            self._changed()

    def _purge(self, ids: Set[int]) -> None:
        """An ID that was removed is that of a new object: its old pixels go from the files."""
        if not ids:
            return
        for number in self._known:
            mask, _ = read_mask(self._mask_path(number))
            if np.isin(mask, list(ids)).any():
                save_mask(self._mask_path(number), without(mask, ids))
        for path in (self.folder / "states").iterdir():
            path.unlink()
        self._work.removed -= ids

    def undo(self) -> int | None:
        """Take back the last change.

        Returns:
            The frame to look at; None if there is nothing to undo.
        """
        return self._revert(self._undo, self._redo)

    def redo(self) -> int | None:
        """Take back the last :meth:`undo`; see there."""
        return self._revert(self._redo, self._undo)

    def _remember(self, number: int, what: str) -> None:
        self._undo.append(_Change(number, what, self._work.copy(), self._runs))
        del self._undo[:-UNDOS]
        self._redo.clear()

    def _revert(self, source: list[_Change], target: list[_Change]) -> int | None:
        with self._lock:
            if not source:
                return None
            self.stop()
            change, now = source.pop(), self._work
            target.append(_Change(change.frame, change.what, now.copy(), self._runs))
            self._work = work = change.work.copy()
            work.names = {i: now.names.get(i, name) for i, name in work.names.items()}
            if change.runs != self._runs:  # masks have been computed since
                work.begin, work.end = now.begin, now.end
                numbers = work.given.keys() | now.given.keys()
                differing = [n for n in numbers if work.given.get(n) != now.given.get(n)]
                returned = now.removed - work.removed
                differing += [n for n, each in work.given.items() if each.ids & returned]
                if differing:
                    work.forget(min(differing), now.first)
                if not work.begin <= work.first <= work.end:
                    work.begin = work.end = work.first
            self._segmenters.clear()
            self._changed()
            return min(change.frame, self.num_frames - 1)

    def run(
        self, model: STMA, backward: bool = False, config: SegmenterConfig | None = None
    ) -> Iterator[int]:
        """Segment on from the last mask that is up to date, until the end of the video or
        :meth:`stop`.

        Args:
            backward: from the first frame given, to the video's beginning.
            config: None takes the settings that came with the weights.

        Yields:
            The number of every frame, as soon as it has a mask.

        Raises:
            InputError: nothing is given, a frame cannot be read, memory or disk are full, or the
                video is being segmented already; what is done is kept.
        """
        if not self._running.acquire(blocking=False):
            raise InputError("the video is being segmented already")
        try:
            with full_disks_told(self.folder), out_of_memory_explained():
                yield from self._run(model, backward, config)
        finally:
            self._running.release()
            if not self.closed:
                self._save()

    def _run(self, model: STMA, backward: bool, config: SegmenterConfig | None) -> Iterator[int]:
        with self._lock:
            self._check_open()
            if not any(each.ids - self._work.removed for each in self._work.given.values()):
                raise InputError("nothing is drawn yet; mark an object on a frame first")
            stop = self._stop = threading.Event()  # of this run; another may start after it
            self._runs += 1
            if self._work.begin == 0 if backward else self._work.end >= self.num_frames:
                return
            number, segmenter = self._segmenter_for(model, backward, config)
        frames = self.video.frames_backward(number) if backward else self.video.frames(number)
        read = number
        ahead = read_ahead(frames)
        try:
            for frame in ahead:
                if not self._step(segmenter, frame, backward, stop):
                    return
                read = frame.number + 1
                yield frame.number
        finally:
            ahead.close()
        if not backward:
            self._set_end_of_video(read)

    def _step(
        self, segmenter: Segmenter, frame: VideoFrameAt, backward: bool, stop: threading.Event
    ) -> bool:
        """Segment a frame; False if the run was stopped meanwhile."""
        number = frame.number
        with self._lock:
            if stop.is_set():
                return False
            removed = set(self._work.removed)
            given = self._work.given.get(number)
            mask = None if given is None else given.mask(removed)
            absent = frozenset[int]() if given is None else given.absent & set(segmenter.ids)
            self._segmenters.pop(backward, None)  # until the frame is done
        # Not under the lock, so that the page answers meanwhile.
        result = segmenter.step(
            frame.image, mask if mask is not None and mask.any() else None, absent=absent
        )
        with self._lock:
            if stop.is_set():
                return False
            save_mask(self._mask_path(number), result.mask)
            self._known.add(number)
            seen = [result.confidence[i] for i in _ids(result.mask)]
            self._confidence[number] = min(seen, default=1.0)
            work = self._work
            if backward:
                work.begin = min(work.begin, number)
            if not backward or number == work.first:
                work.end = max(work.end, number + 1)
            self._segmenters[backward] = number + (-1 if backward else 1), segmenter
            if not backward and work.end % self._spacing == 0:
                segmenter.save(self._state_path(work.end))
                self._save()
            self.revision += 1
        return True

    def _segmenter_for(
        self, model: STMA, backward: bool, config: SegmenterConfig | None
    ) -> tuple[int, Segmenter]:
        """The next frame to segment, and what has seen those before it."""
        work = self._work
        if not work.begin <= work.first <= work.end:
            work.begin = work.end = work.first
        due = work.begin - 1 if backward else work.end
        if backward in self._segmenters and self._segmenters[backward][0] == due:
            return self._segmenters[backward]
        if backward:
            work.begin = work.first
            return work.first, Segmenter(model, config)
        states = {int(path.stem): path for path in (self.folder / "states").glob("*.state")}
        for late in [each for each in states if each > work.end]:
            states.pop(late).unlink()
        usable = [each for each in states if each > work.first]
        if not usable or due <= work.first:
            work.end = work.first
            return work.first, Segmenter(model, config)
        number = max(usable)
        try:
            segmenter = Segmenter.load(states[number], model)
        except InputError:  # damaged, or of other weights: what can be computed again is no loss
            states[number].unlink()
            return self._segmenter_for(model, backward, config)
        for identity in work.removed & set(segmenter.ids):
            segmenter.remove(identity)
        return number, segmenter

    def stop(self) -> None:
        """End :meth:`run` after its current frame; the next run continues from there."""
        self._stop.set()

    def write(
        self,
        kind: str,
        ids: Collection[int] | None = None,
        on_frame: Callable[[int], object] = lambda count: None,
    ) -> Path:
        """A file with masks, for download.

        Args:
            kind: one of ``DOWNLOADS``; folders are zipped. Masks are those of all frames before
                ``end``, background before ``begin``, and those given; the rest shows what was
                segmented.
            ids: objects in it; None for all.
            on_frame: called with the number of frames done.

        Raises:
            InputError: there is no mask yet.
        """
        self._check_open()
        numbers = set(range(self.end)) if self.end > self.begin else set()
        if kind == "masks":
            numbers |= set(self.given_frames)
        if not numbers:
            raise InputError("there is no mask yet; draw one" + ", and segment" * (kind != "masks"))
        downloads = self.folder / "download"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir()
        chosen = set(self.ids if ids is None else ids)
        with full_disks_told(downloads):
            stem = self.video.path.stem
            if kind == "masks":
                path = downloads / f"{stem}_masks.zip"
                with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                    for count, number in enumerate(sorted(numbers)):
                        mask = only(self._final(number), chosen)
                        archive.writestr(f"{self.video.name(number)}.png", _png(mask))
                        on_frame(count + 1)
                return path
            name, make = OUTPUTS[kind]
            path = downloads / f"{stem}_{name}"
            self._write_all(make(path, self.video), chosen, len(numbers), on_frame)
            return self._zip(path) if path.is_dir() else path

    def _final(self, number: int) -> np.ndarray:
        """The mask of a frame that is exported: old ones are not."""
        fresh = self.begin <= number < self.end
        if fresh or number in self._work.given:
            return self.mask(number)
        return np.zeros(self.video.size, np.uint8)

    def _write_all(
        self, writer: Writer, ids: Set[int], count: int, on_frame: Callable[[int], object]
    ) -> None:
        for frame in read_ahead(self.video.frames()):
            if frame.number >= count:
                break
            writer.write(frame, only(self._final(frame.number), ids))
            on_frame(frame.number + 1)
        writer.close(complete=count >= self.num_frames)

    def _zip(self, folder: Path) -> Path:
        """Uncompressed: PNGs get no smaller."""
        path = folder.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.iterdir(), key=lambda file: natural_order(file.stem)):
                archive.write(file, file.name)
        return path

    def delete(self) -> None:
        """Stop, and delete the session's files."""
        self.stop()
        with self._reading, self._lock:
            self.closed = True
            self._frames.clear()
            self._cursor = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def _changed(self, stops: bool = True) -> None:
        if stops:
            self.stop()
        self._save()

    def _save(self) -> None:
        """Write what :meth:`__init__` reads."""
        with self._lock, full_disks_told(self.folder):
            self._check_open()
            self.revision += 1
            folder = self.folder / "given"
            kept = {f"{number}.png": each.png for number, each in self._work.given.items()}
            for name, png in kept.items():
                if not (folder / name).exists() or (folder / name).read_bytes() != png:
                    with replacing(folder / name) as partial:
                        partial.write_bytes(png)
            inside = self.video.path.parent == self.folder
            record = {
                "source": self.video.path.name if inside else str(self.video.path),
                "frames": self.num_frames,
                "notice": self.notice,
                "confidence": self._confidence,
                "used": self._used,
                **_written(self._work),
            }
            with replacing(self.folder / RECORD) as partial:
                partial.write_text(json.dumps(record), encoding="utf-8")
            for path in folder.iterdir():
                if path.name not in kept:
                    path.unlink()

    def _check_open(self) -> None:
        if self.closed:
            raise InputError("this video was removed; open it again")

    def _check_number(self, number: int) -> None:
        self._check_open()
        if not 0 <= number < self.num_frames:
            raise InputError(f"the video has no frame {number}; its last is {self.num_frames - 1}")

    def _check_object(self, identity: int) -> None:
        if identity not in self.ids:
            raise InputError(f"object {identity} is not in the video; objects: {self.ids}")

    def _mask_path(self, number: int) -> Path:
        return self.folder / "masks" / f"{self.video.name(number)}.png"

    def _state_path(self, number: int) -> Path:
        return self.folder / "states" / f"{number}.state"


def without(mask: np.ndarray, ids: Collection[int]) -> np.ndarray:
    """A mask of IDs, uint8, with these turned into background."""
    return np.where(np.isin(mask, list(ids)), 0, mask).astype(np.uint8) if ids else mask


def only(mask: np.ndarray, ids: Collection[int]) -> np.ndarray:
    """A mask of IDs, uint8, with all but these turned into background."""
    return np.where(np.isin(mask, list(ids)), mask, 0).astype(np.uint8)


def _ids(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(count_ids(mask)).tolist()) - {0} if mask.size else set()


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    save_mask(file, mask)
    return file.getvalue()


def _ranges(numbers: Set[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    return list(zip(starts, ends, strict=True))


def _written(work: _Work) -> dict[str, Any]:
    given = {
        number: {"ids": sorted(each.ids), "found": sorted(each.found)}
        for number, each in work.given.items()
    }
    return asdict(work) | {"given": given, "removed": sorted(work.removed)}


def _new_folder(parent: Path, path: Path) -> Path:
    """A new folder, named like the video."""
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem)[:60] or "video"
    for name in (stem, *(f"{stem}-{count}" for count in range(2, 10_000))):
        try:
            with full_disks_told(parent):
                (parent / name).mkdir()
        except FileExistsError:
            continue
        return parent / name
    raise InputError(f"{parent}: too many videos named {stem}")


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
