"""What is written for a segmented video: masks, overlay, cut-out, COCO's run lengths."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from pycocotools import mask as run_lengths

from stma.data.masks import count_ids
from stma.data.pictures import draw_overlay, save_mask
from stma.runtime.opencv import cv2
from stma.runtime.outputs import replacing
from stma.runtime.threads import Later
from stma.version import __version__
from stma.video.reading import Video, VideoFrameAt

log = logging.getLogger(__name__)

FRINGE = np.ones((17, 17), np.uint8)  # around an object, where a coded video mixes colours


class Writer(Protocol):
    """Takes the frames of a video."""

    def write(self, frame: VideoFrameAt, mask: np.ndarray) -> None:
        """Write the next frame, given its mask ``(H, W)`` uint8."""
        ...

    def close(self, *, complete: bool = True) -> None:
        """Finish after all frames; only now does the file get its name.

        Args:
            complete: whether the video's last frame was among them.
        """
        ...


class PictureWriter:
    """A PNG for each frame, ``<frame>.png``.

    Args:
        save: writes a picture, given its path, the frame's image and its mask.
    """

    def __init__(
        self, folder: Path, video: Video, save: Callable[[Path, np.ndarray, np.ndarray], object]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._video, self._save = folder, video, save

    def write(self, frame: VideoFrameAt, mask: np.ndarray) -> None:
        path = self._folder / f"{self._video.name(frame.number)}.png"
        self._save(path, frame.image, mask)

    def close(self, *, complete: bool = True) -> None:
        """Every file is already complete."""


def mask_writer(folder: Path, video: Video, palette: bytes | None = None) -> PictureWriter:
    """Palette PNGs, in DAVIS's colours where the palette (RGB triples from ID 0 on) ends."""
    return PictureWriter(folder, video, lambda path, _, mask: save_mask(path, mask, palette))


def _save_cutout(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    Image.fromarray(cut_out(image, mask)).save(path, compress_level=1)


def cut_out(image: np.ndarray, mask: np.ndarray, around: np.ndarray | None = None) -> np.ndarray:
    """``(H, W, 4)``: the picture where the mask is, transparent elsewhere.

    Args:
        around: also keep the colours of pixels within this kernel of an object, although they are
            transparent.
    """
    alpha = (mask > 0).astype(np.uint8)
    kept = alpha if around is None else cv2.dilate(alpha, around)
    return np.dstack([image * kept[..., None], 255 * alpha])


VP9 = {"deadline": "realtime", "cpu-used": "6", "crf": "28", "b": "0"}
# Alternate references are impossible with an alpha channel.
CODECS = {
    "mp4": ("libx264", "yuv420p", {"preset": "ultrafast", "crf": "23"}),
    "webm": ("libvpx-vp9", "yuva420p", VP9 | {"auto-alt-ref": "0"}),
    "matroska": ("ffv1", "gray", {}),
}


class VideoWriter:
    """An encoded video with the timing of the original, and its sound.

    Args:
        draw: makes the picture to show from a frame and its mask.
        kind: ``mp4`` (H.264; odd sizes lose their last row or column), ``webm`` (VP9; keeps an
            alpha channel) or ``matroska`` (FFV1, lossless, one channel and no sound).
    """

    def __init__(
        self,
        path: Path,
        video: Video,
        draw: Callable[[np.ndarray, np.ndarray], np.ndarray],
        kind: str = "mp4",
    ) -> None:
        self._draw = draw
        self._video = video
        self._stack = ExitStack()
        partial = self._stack.enter_context(replacing(path))
        self._container = self._stack.enter_context(av.open(f"file:{partial}", "w", format=kind))
        codec, pixels, options = CODECS[kind]
        self._height, self._width = video.size
        if pixels == "yuv420p":
            self._height, self._width = self._height // 2 * 2, self._width // 2 * 2
        stream = self._container.add_stream(codec, rate=video.rate, options=options)
        stream.pix_fmt = pixels
        if pixels == "yuva420p":
            stream.metadata["alpha_mode"] = "1"
        stream.height, stream.width = self._height, self._width
        stream.codec_context.sample_aspect_ratio = video.pixel_aspect
        # Players would assume BT.709 for large videos.
        stream.codec_context.colorspace = Colorspace.ITU601
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.time_base = video.time_base
        self._stream = stream
        self._sound = None
        if video.has_sound and kind != "matroska":
            self._sound = self._stack.enter_context(
                _Sound(video.path, self._container, video.start)
            )
        self._end = Fraction(0)

    def write(self, frame: VideoFrameAt, mask: np.ndarray) -> None:
        drawn = self._draw(frame.image, mask)[: self._height, : self._width]
        if drawn.ndim == 2:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="gray")
        elif drawn.shape[2] == 3:  # converted by OpenCV in a third of FFmpeg's time
            planes = np.asarray(cv2.cvtColor(drawn, cv2.COLOR_RGB2YUV_I420), np.uint8)
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        else:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgba")
        picture.pts = frame.pts - round(self._video.start / self._video.time_base)
        picture.time_base = self._video.time_base
        self._end = frame.pts * self._video.time_base + 1 / self._video.rate
        self._container.mux(self._stream.encode(picture))
        if self._sound is not None:
            self._sound.copy(self._end)

    def close(self, *, complete: bool = True) -> None:
        with self._stack:
            self._container.mux(self._stream.encode())
            if self._sound is not None:
                self._sound.copy(None if complete and self._video.whole else self._end)


class _Sound:
    """Copies the first sound track of a file into another, without re-encoding.

    Args:
        start: seconds; what is heard then comes at the output's beginning.
    """

    def __init__(self, path: Path, output: av.container.OutputContainer, start: Fraction) -> None:
        self._path, self._output, self._start = path, output, start
        self._source = av.open(f"file:{path}")
        track = self._source.streams.audio[0]
        self._copy: AudioStream | None = None
        name = track.codec_context.name
        if name in output.supported_codecs:
            self._copy = output.add_stream_from_template(track)
        else:
            log.warning("%s: its sound (%s) does not fit into %s", path, name, output.format.name)
        self._packets = self._source.demux(track)
        self._next: av.Packet | None = None
        self._advance()

    def __enter__(self) -> "_Sound":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def copy(self, end: Fraction | None) -> None:
        """Copy up to a time in seconds, or all that is left."""
        while self._next is not None and self._copy is not None:
            packet = self._next
            if packet.pts is not None:
                if end is not None and packet.pts * packet.time_base > end:
                    return
                shift = round(self._start / packet.time_base)
                packet.pts -= shift
                if packet.pts + (packet.duration or 0) < 0:  # over before the first frame
                    self._advance()
                    continue
                if packet.dts is not None:
                    packet.dts -= shift
                packet.stream = self._copy
                self._output.mux(packet)
            self._advance()

    def _advance(self) -> None:
        try:
            self._next = next(self._packets, None)
        except av.error.InvalidDataError:
            log.warning("%s: its sound is damaged and ends early", self._path)
            self._next = None


class CocoWriter:
    """COCO's annotations with compressed run lengths, as pycocotools reads them.

    An annotation is an object in a frame; its ``track_id`` and ``category_id`` are the object's ID.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self._path, self._video = path, video
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, frame: VideoFrameAt, mask: np.ndarray) -> None:
        name = f"{self._video.name(frame.number)}.png"
        if self._video.path.is_dir():
            name = self._video.files[frame.number].name
        height, width = self._video.size
        image = {"id": frame.number, "file_name": name, "height": height, "width": width}
        self._images.append(image)
        for object_id in (np.flatnonzero(count_ids(mask)[1:]) + 1).tolist():
            encoded = run_lengths.encode(np.asfortranarray(mask == object_id, dtype=np.uint8))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": frame.number,
                    "category_id": object_id,
                    "track_id": object_id,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                    "area": int(run_lengths.area(encoded)),
                    "bbox": run_lengths.toBbox(encoded).tolist(),
                    "iscrowd": 0,
                }
            )

    def close(self, *, complete: bool = True) -> None:
        ids = sorted({each["track_id"] for each in self._annotations})
        content = {
            "annotations": self._annotations,
            "images": self._images,
            "categories": [{"id": i, "name": f"object {i}"} for i in ids],
            "info": {"description": self._video.path.name, "version": f"stma {__version__}"},
        }
        with replacing(self._path) as unfinished:
            unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


# What the user may ask for: the file or folder, and how it is made.
OUTPUTS: dict[str, tuple[str, Callable[[Path, Video], Writer]]] = {
    "overlay": (
        "overlay.mp4",
        lambda path, video: VideoWriter(
            path, video, partial(draw_overlay, out=np.empty((*video.size, 3), np.uint8))
        ),
    ),
    "cutout": ("cutout", partial(PictureWriter, save=_save_cutout)),
    "webm": (
        "cutout.webm",
        lambda path, video: VideoWriter(
            path, video, lambda image, mask: cut_out(image, mask, FRINGE), "webm"
        ),
    ),
    "mkv": (
        "masks.mkv",
        lambda path, video: VideoWriter(path, video, lambda image, mask: mask, "matroska"),
    ),
    "coco": ("masks.json", CocoWriter),
}


class Background(ExitStack):
    """Runs writers in threads, one each; at most a few frames wait.

    A context, at whose end all is written. What a writer raises is raised by one of the next calls,
    or at the end. The writers stay open.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        super().__init__()
        self._threads = [(writer, self.enter_context(Later())) for writer in writers]

    def write(self, frame: VideoFrameAt, mask: np.ndarray) -> None:
        """Have all writers write a frame; neither array may change afterwards."""
        for writer, thread in self._threads:
            thread.call(writer.write, frame, mask)

    def flush(self) -> None:
        """Wait until all is written."""
        for _, thread in self._threads:
            thread.flush()
