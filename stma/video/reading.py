"""Reading a video a frame at a time: a file of any common format, or a folder of pictures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, dropwhile, islice
from mimetypes import guess_type
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stma.data.images import IMAGE_SUFFIXES, image_size, natural_order, read_image
from stma.errors import InputError
from stma.runtime.outputs import check_path

# What FFmpeg may read a file as. Without a list it also reads playlists, which open other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi,mpegts,mpeg,flv,asf,ogg,apng,ivf"
MIN_SIDE = 16  # pixels, the side of one token
MAX_PIXELS = 20_000_000  # 5K passes, 8K does not
PICTURE_RATE = 24  # frames per second of a folder of pictures
TRUNCATED = 0.9  # of the length in the header; a little less is normal
BACKWARD_BYTES = 200_000_000  # of frames held at once when a file is read backward

KINDS = {"image": "a single picture", "audio": "sound, or damaged"}  # of files that are no video
NOT_A_FILE = (
    "not a video file; download what is at an address first. A camera or a live stream needs ten "
    "lines of Python: docs/own_video.md has them"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoFrameAt:
    """One frame of a video.

    Attributes:
        number: from 0, in display order.
        image: ``(H, W, 3)`` uint8, RGB, upright.
        pts: when it is shown, in units of the video's ``time_base``.
    """

    number: int
    image: np.ndarray
    pts: int


class Video(Protocol):
    """What can be segmented.

    Attributes:
        path: of the file or folder.
        size: ``(H, W)`` of the frames, upright.
        time_base: seconds per unit of the frames' ``pts``.
        rate: frames per second, on average.
        start: seconds, where its clock begins.
        pixel_aspect: width of a pixel by its height, as shown.
        files: all files it is read from.
        has_sound: whether there is a sound track.
        whole: whether it goes on to the end of its file, and so does its sound.
    """

    path: Path
    files: list[Path]
    has_sound: bool
    whole: bool
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    start: Fraction
    pixel_aspect: Fraction

    def __len__(self) -> int:
        """Number of frames, as far as known without decoding all."""
        ...

    def name(self, number: int) -> str:
        """The name of a frame, and of its mask's file."""
        ...

    def number(self, name: str) -> int | None:
        """The number of the frame that the user calls ``name``; None if there is none."""
        ...

    def seconds(self, number: int) -> Fraction:
        """When a frame is shown, by the video's clock."""
        ...

    def frames(self, first: int = 0) -> Iterator[VideoFrameAt]:
        """All frames from this one on, in order, in constant memory.

        Raises:
            InputError: a frame cannot be read.
        """
        ...

    def frames_backward(self, start: int) -> Iterator[VideoFrameAt]:
        """Frames ``start``, ``start - 1``, ... 0, in constant memory."""
        ...


def find_frame(video: Video, name: str, what: object) -> int:
    """The number of the frame that the user calls ``name``.

    Args:
        what: the file or option that names it, for the message.

    Raises:
        InputError: there is none.
    """
    number = video.number(name)
    if number is None:
        raise InputError(
            f"{what}: the video has no frame {name}; its frames are {video.name(0)} to "
            f"{video.name(len(video) - 1)}"
        )
    return number


def open_video(path: str | Path) -> Video:
    """A video file (mp4, mov, webm, mkv, gif, ...), or a folder of pictures.

    Raises:
        InputError: there is none, it cannot be read, or its frames are too small or too large.
    """
    if "://" in str(path):
        raise InputError(f"{path}: {NOT_A_FILE}")
    path = Path(path)
    check_path(path)
    if path.is_dir():
        return PictureFolder(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_file():
        raise InputError(f"{path}: {NOT_A_FILE}")
    try:
        return VideoFile(path)
    except InputError as error:
        kind, _, _ = str(guess_type(path.name, strict=False)[0]).partition("/")
        if kind not in KINDS or not isinstance(error.__cause__, av.FFmpegError):
            raise
        raise InputError(
            f"{path}: {KINDS[kind]}; give a video (mp4, mov, webm, ...) or a folder of pictures"
        ) from error


class VideoFile:
    """A file that FFmpeg reads; see :class:`Video`.

    Frames are rotated and mirrored as the file says, scaled to the first one's size if it changes,
    and converted to 8 bits.
    """

    whole = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path]
        with self._opened() as (container, stream):
            self._num_in_header = stream.frames
            if stream.frames and "mp4" in container.format.name:
                # All frames are in its index; phones leave those that were trimmed in the file.
                self._num_in_header = sum(not entry.is_discard for entry in stream.index_entries)
            self.rate = stream.average_rate or Fraction(PICTURE_RATE)
            assert stream.time_base is not None
            self.time_base = stream.time_base
            self.has_sound = bool(container.streams.audio)
            # Broadcasts and camcorders count from anywhere, often hours.
            self.start = max(Fraction(0), Fraction(container.start_time or 0, av.time_base))
            self.pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
            packet = next(container.demux(stream), None)
            if packet is not None and packet.has_sidedata("encryption_info"):
                raise InputError(f"{path}: the video is encrypted; give one without protection")
        with self._opened() as (container, stream):
            first = next(_decoded(container.decode(stream), path, 0), None)
        if first is None:
            raise InputError(f"{path}: the video has no frame")
        self._stored_size = first.height, first.width
        turned = first.rotation % 180 != 0
        self.size = self._stored_size[::-1] if turned else self._stored_size
        if turned:
            self.pixel_aspect = 1 / self.pixel_aspect
        self._mirrored = _is_mirrored(first)
        self._first_time = first.pts
        _check_size(path, self.size)

    def __len__(self) -> int:
        return self._num_in_header or len(self._packet_times)

    def name(self, number: int) -> str:
        return f"{number:05d}"

    def number(self, name: str) -> int | None:
        number = int(name) if name.isdecimal() else -1
        return number if 0 <= number < len(self) else None

    def seconds(self, number: int) -> Fraction:
        if number < len(self._times):
            return self._times[number] * self.time_base
        return self.start + number / self.rate

    def frames(self, first: int = 0) -> Iterator[VideoFrameAt]:
        with self._opened() as (container, stream):
            begin, decoded = 0, _decoded(container.decode(stream), self.path, first)
            if 0 < first < len(self._times):
                due = self._times[first]
                container.seek(due, stream=stream)
                decoded = dropwhile(lambda frame: frame.pts is None or frame.pts < due, decoded)
                found = next(decoded, None)
                if found is None or found.pts != due:  # seeking is impossible
                    yield from dropwhile(lambda frame: frame.number < first, self.frames())
                    return
                begin, decoded = first, chain([found], decoded)
            number, last = begin - 1, None
            for number, frame in enumerate(decoded, begin):
                # Some formats have no times, and some files wrong ones.
                pts = round(number / self.rate / self.time_base) if frame.pts is None else frame.pts
                last = pts if last is None else max(pts, last + 1)
                if number >= first:
                    yield VideoFrameAt(number, self._image(frame), last)
            if number + 1 < self._num_in_header:
                log.warning(
                    "%s: the video ends after %d of the %d frames in its header; either the file "
                    "is truncated, or it hides some",
                    self.path,
                    number + 1,
                    self._num_in_header,
                )
            elif "matroska" in container.format.name and container.duration and last is not None:
                told = container.duration / av.time_base  # of the longest stream
                seconds = float(last * self.time_base + 1 / self.rate - self.start)
                if seconds < TRUNCATED * told:
                    log.warning(
                        "%s: the video ends after %d frames and %.1f s of the %.1f s in its "
                        "header; it may be truncated",
                        self.path,
                        number + 1,
                        seconds,
                        told,
                    )

    def frames_backward(self, start: int) -> Iterator[VideoFrameAt]:
        most = max(1, BACKWARD_BYTES // (3 * self.size[0] * self.size[1]))
        count = 1  # the caller may want a single frame
        while start >= 0:
            first = max(0, start - count + 1)
            yield from reversed(list(islice(self.frames(first), start - first + 1)))
            start, count = first - 1, min(2 * count, most)

    @cached_property
    def _times(self) -> list[int]:
        """The display time of every frame; empty if the file does not say."""
        times = [time for time in self._packet_times if time is not None]
        return sorted(times) if len(times) == len(self._packet_times) else []

    @cached_property
    def _packet_times(self) -> list[int | None]:
        """The times of all frames, in storage order, found without decoding."""
        times: list[int | None] = []
        with self._opened() as (container, stream), _told(self.path, 0):
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
        if self._first_time is None:
            return times
        # A recording may begin between key frames: what is before the first is not shown.
        return [time for time in times if time is None or time >= self._first_time]

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        with _told(self.path, 0):
            # "file:", since a colon in a name would make it a protocol.
            container = av.open(f"file:{self.path}", options={"format_whitelist": FORMATS})
        with container:
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise InputError(f"{self.path}: the file has no video stream")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]

    def _image(self, frame: VideoFrame) -> np.ndarray:
        height, width = self._stored_size
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        if self._mirrored:
            image = image[::-1]
        return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


def _is_mirrored(frame: VideoFrame) -> bool:
    """Whether it is shown upside down and then rotated, as some front cameras have it."""
    shown = frame.side_data.get("DISPLAYMATRIX")
    if shown is None:
        return False
    values = np.frombuffer(shown, np.int32)  # type: ignore[call-overload]  # it is a buffer
    matrix = values.reshape(3, 3)[:2, :2]
    return bool(np.linalg.det(matrix.astype(float)) < 0)


def _decoded(frames: Iterator[VideoFrame], path: Path, number: int) -> Iterator[VideoFrame]:
    """The same frames; errors name the frame that was due, counting from ``number``."""
    while True:
        with _told(path, number):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
        number += 1


@contextmanager
def _told(path: Path, number: int) -> Iterator[None]:
    """Turn FFmpeg's errors into ours.

    Args:
        number: of the frame being read.
    """
    try:
        yield
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        if number:
            raise InputError(
                f"{path}: damaged or truncated, unreadable from frame {number} on ({reason}); "
                "a copy skips what is damaged (ffmpeg -i IN OUT.mp4)"
            ) from error
        raise InputError(
            f"{path}: cannot be read as a video: damaged, truncated or something else ({reason})"
        ) from error


class PictureFolder:
    """A folder of JPEGs or PNGs, one for each frame, in the order of their names; see
    :class:`Video`. A frame has the name of its file."""

    whole = True
    has_sound = False

    def __init__(self, path: Path) -> None:
        self.path = path
        found = [
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
        ]
        if not found:
            raise InputError(f"{path}: the folder holds no {', '.join(IMAGE_SUFFIXES)}")
        kinds = {entry.suffix.lower() for entry in found}
        if ".png" in kinds and len(kinds) > 1:
            raise InputError(
                f"{path}: the folder holds JPEGs and PNGs; give one with only the video's frames"
            )
        self.files = sorted(found, key=lambda entry: natural_order(entry.stem))
        self._numbers = {entry.stem: number for number, entry in enumerate(self.files)}
        if len(self._numbers) < len(self.files):
            raise InputError(f"{path}: two pictures have the same name except for the suffix")
        self.time_base = Fraction(1, PICTURE_RATE)
        self.rate = Fraction(PICTURE_RATE)
        self.start, self.pixel_aspect = Fraction(0), Fraction(1)
        self.size = image_size(self.files[0])
        _check_size(self.files[0], self.size)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        return self.files[number].stem

    def number(self, name: str) -> int | None:
        if name.isdecimal() and name not in self._numbers:  # 7 is 00007
            same = (n for stem, n in self._numbers.items() if stem.isdecimal())
            return next((n for n in same if int(self.name(n)) == int(name)), None)
        return self._numbers.get(name)

    def seconds(self, number: int) -> Fraction:
        return number * self.time_base

    def frames(self, first: int = 0) -> Iterator[VideoFrameAt]:
        return map(self._read, range(first, len(self)))

    def frames_backward(self, start: int) -> Iterator[VideoFrameAt]:
        return map(self._read, range(start, -1, -1))

    def _read(self, number: int) -> VideoFrameAt:
        path = self.files[number]
        image = read_image(path)
        if image.shape[:2] != self.size:
            height, width = image.shape[:2]
            raise InputError(
                f"{path}: {width} x {height} pixels, the first picture {self.size[1]} x "
                f"{self.size[0]}; all frames of a video must have the same size"
            )
        return VideoFrameAt(number, image, number)


class Span:
    """Every ``step``-th frame of a video from ``first`` to ``last``, both included; see
    :class:`Video`. Frames keep their names, and are numbered anew.

    Raises:
        InputError: there is no frame in it.
    """

    def __init__(
        self, video: Video, first: int = 0, last: int | None = None, step: int = 1
    ) -> None:
        if step < 1:
            raise InputError(f"the step is {step} frames; give 1 or more")
        last = len(video) - 1 if last is None else last
        if first > last:
            raise InputError(
                f"{video.path}: no frame from {video.name(first)} to {video.name(last)}"
            )
        self._video, self._numbers = video, range(first, last + 1, step)
        self.path, self.size, self.time_base = video.path, video.size, video.time_base
        self.pixel_aspect, self.has_sound = video.pixel_aspect, video.has_sound
        self.files = (
            [video.files[n] for n in self._numbers] if len(video.files) > 1 else video.files
        )
        self.rate = video.rate / step
        self.start = video.seconds(first) if first else video.start
        self.whole = video.whole and last == len(video) - 1

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, number: int) -> str:
        return self._video.name(self._numbers[number])

    def number(self, name: str) -> int | None:
        number = self._video.number(name)
        return None if number not in self._numbers else self._numbers.index(number)  # type: ignore[arg-type]

    def seconds(self, number: int) -> Fraction:
        return self._video.seconds(self._numbers[number])

    def frames(self, first: int = 0) -> Iterator[VideoFrameAt]:
        for frame in self._video.frames(self._numbers[first]):
            if frame.number in self._numbers:
                yield replace(frame, number=self._numbers.index(frame.number))
            if frame.number >= self._numbers[-1]:
                return

    def frames_backward(self, start: int) -> Iterator[VideoFrameAt]:
        for frame in self._video.frames_backward(self._numbers[start]):
            if frame.number in self._numbers:
                yield replace(frame, number=self._numbers.index(frame.number))
            if frame.number <= self._numbers[0]:
                return


def _check_size(path: Path, size: tuple[int, int]) -> None:
    height, width = size
    if min(size) < MIN_SIDE:
        raise InputError(
            f"{path}: frames of {width} x {height} pixels; give at least {MIN_SIDE} x {MIN_SIDE}"
        )
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path}: frames of {width} x {height} pixels, and the limit is {MAX_PIXELS:,} in all; "
            "make a smaller copy (ffmpeg -i IN -vf scale=-2:1080 OUT.mp4)"
        )
