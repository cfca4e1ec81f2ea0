"""The masks that a user gives: index pictures, one for each object, COCO's or labelme's JSON."""

import base64
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from stma.data.images import IMAGE_SUFFIXES, almost_equal_sizes
from stma.data.masks import check_ids, has_void, read_mask, white_id
from stma.errors import InputError
from stma.runtime.opencv import cv2
from stma.runtime.outputs import check_path
from stma.video.reading import Video, find_frame

log = logging.getLogger(__name__)

CORNERS = 64  # of the polygon that a circle becomes
Size = tuple[int, int]
Mask = tuple[np.ndarray, bytes | None]  # (H, W) uint8, and its palette if it has one


@dataclass(frozen=True)
class GivenMask:
    """What is given for a frame; it is read again when it is needed, since there may be many.

    Attributes:
        path: of the file, or of the first of several.
        read: the mask, of the video's size.
        ids: the objects in it.
        digest: of the mask.
    """

    path: Path
    read: Callable[[], Mask]
    ids: frozenset[int]
    digest: str


@dataclass(frozen=True)
class _Part:
    """A mask, or one object of it.

    Attributes:
        frame: its name; None for the first.
        read: the mask as it is in the file.
        single: others may come with it.
    """

    frame: str | None
    path: Path
    read: Callable[[], Mask]
    single: bool = False


@dataclass
class _Values:
    """What the values of a video's index masks mean; see :func:`~stma.data.masks.read_mask`."""

    void: int | None
    white: int = 1
    paths: list[Path] = field(default_factory=list)


def find_masks(
    video: Video, arguments: Sequence[str], void: int | None = None
) -> dict[int, GivenMask]:
    """The masks given by the user, checked, by the number of their frame.

    Args:
        arguments: each a file, ``FRAME=FILE``, ``FRAME:ID=FILE`` with a black-and-white picture of
            one object, or a folder of files named like their frames, or of folders named like their
            frames with a file for each object. A file without its frame is of the first one; a COCO
            file names its frames itself.
        void: an ID in index masks that stands for no object; None if there is none.

    Raises:
        InputError: names the file and what is wrong with it.
    """
    if void is not None and not 1 <= void <= 255:
        raise InputError(f"--void {void}: give an ID from 1 to 255")
    labels, values = _Labels(), _Values(void)
    parts: dict[int, list[_Part]] = {}
    for argument in arguments:
        for part in _parts(video, argument, labels, values):
            number = 0 if part.frame is None else find_frame(video, part.frame, part.path)
            parts.setdefault(number, []).append(part)
    values.white = white_id(values.paths, void)
    found: dict[int, GivenMask] = {}
    colours: dict[int, tuple[bytes, Path]] = {}
    for number, some in sorted(parts.items()):
        if len(some) > 1 and not all(part.single for part in some):
            raise InputError(
                f"two masks for frame {video.name(number)}: {some[0].path} and {some[1].path}"
            )
        given, (mask, palette) = _checked(video, some)
        own = {} if palette is None else {i: palette[3 * i : 3 * i + 3] for i in given.ids}
        for i, colour in own.items():
            before, path = colours.setdefault(i, (colour, given.path))
            if colour != before:
                log.warning(
                    "%s: object %d has the number of one of another colour in %s, and so is the "
                    "same object; FRAME:ID=FILE gives it a number of its own",
                    given.path,
                    i,
                    path,
                )
        if has_void(mask):
            log.warning(
                "%s: 255 beside small IDs is taken for an object; if it means no label, give "
                "--void 255",
                given.path,
            )
        if given.ids:
            found[number] = given
        elif len(parts) == 1:
            raise InputError(f"{given.path}: the mask holds no object; every pixel is 0")
        else:
            name = video.name(number)
            log.warning(
                "%s: empty, and skipped; if object 1 is not in that frame, say --absent %s=1",
                given.path,
                name,
            )
    if not found:
        raise InputError("no mask; give one with --mask FIRST.png (stma app draws them)")
    labels.report()
    return found


def _checked(video: Video, parts: Sequence[_Part]) -> tuple[GivenMask, Mask]:
    """The mask of a frame, and what it holds."""

    def read() -> Mask:
        masks = [_fitted(part, video) for part in parts]
        mask = masks[0][0]
        for above, _ in masks[1:]:
            mask = np.where(above > 0, above, mask)
        return mask, masks[0][1]

    mask, palette = read()
    ids = frozenset(np.unique(mask).tolist()) - {0}
    digest = hashlib.sha256(mask.tobytes()).hexdigest()
    return GivenMask(parts[0].path, read, ids, digest), (mask, palette)


def _fitted(part: _Part, video: Video) -> Mask:
    """A mask that is a pixel off is resized: encoded videos often have only even sides."""
    mask, palette = part.read()
    if mask.shape == video.size:
        return mask, palette
    shown = f"{mask.shape[1]} x {mask.shape[0]}"
    if not almost_equal_sizes(mask.shape, video.size):
        raise InputError(
            f"{part.path}: {shown} pixels, the video {video.size[1]} x {video.size[0]}; a mask "
            "must have the size of its video, as it is shown"
        )
    _warn_once(f"{part.path}: {shown} pixels, one off its video; resized")
    resized = cv2.resize(mask, video.size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8), palette


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def find_absent(
    video: Video, arguments: Sequence[str], masks: Mapping[int, GivenMask], backward: bool
) -> dict[int, set[int]]:
    """The objects that the user says are not in a frame, by its number.

    Args:
        arguments: each ``FRAME=ID``.
        masks: see :func:`find_masks`.
        backward: whether the frames before the first mask are segmented too.

    Raises:
        InputError: there is no such frame, or the object is not known there.
    """
    found: dict[int, set[int]] = {}
    for argument in arguments:
        name, equals, identity = argument.partition("=")
        if not equals or not identity.isdecimal():
            raise InputError(f"--absent {argument}: give FRAME=ID, such as 120=3")
        number = find_frame(video, name, f"--absent {argument}")
        first = min(masks)
        if number < first:
            earlier = [first] if backward else []
        else:
            earlier = [each for each in masks if each < number]
        if not any(int(identity) in masks[each].ids for each in earlier):
            raise InputError(f"--absent {argument}: no mask has given object {identity} by then")
        if number in masks and int(identity) in masks[number].ids:
            raise InputError(f"--absent {argument}: the object is in {masks[number].path}")
        found.setdefault(number, set()).add(int(identity))
    return found


def _parts(video: Video, argument: str, labels: "_Labels", values: _Values) -> Iterator[_Part]:
    """What an argument means."""
    path = Path(argument)
    check_path(path)
    frame, equals, rest = argument.partition("=")
    if equals and not path.exists():
        name, colon, identity = frame.partition(":")
        if colon and video.number(frame) is None:
            yield _object(name or None, Path(rest), identity)
        else:
            yield from _file(frame, Path(rest), labels, values)
    elif not path.is_dir():
        yield from _file(None, path, labels, values)
    else:
        entries = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        files = [each for each in entries if each.suffix.lower() in (".png", ".json")]
        pictures = [
            each
            for folder in entries
            if folder.is_dir()
            for each in sorted(folder.iterdir())
            if each.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files and not pictures:
            raise InputError(f"{path}: the folder holds no PNG")
        for file in files:
            yield from _file(file.stem, file, labels, values)
        for picture in pictures:
            yield _object(picture.parent.name, picture, picture.stem)


def _object(frame: str | None, path: Path, identity: str) -> _Part:
    """A black-and-white picture of one object."""
    value = _id(path, identity)
    _check_exists(path)
    return _Part(frame, path, lambda: (read_mask(path, "binary")[0] * value, None), single=True)


def _file(frame: str | None, path: Path, labels: "_Labels", values: _Values) -> Iterator[_Part]:
    _check_exists(path)
    if path.suffix.lower() != ".json":
        values.paths.append(path)
        yield _Part(frame, path, lambda: _index_mask(path, values))
        return
    with _as_written(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "annotations" in content:
            yield from _coco(path, content)
        else:
            shapes = content["shapes"]
            size = int(content["imageHeight"]), int(content["imageWidth"])
            labels.take(shapes)
            yield _Part(frame, path, lambda: (_labelme(path, shapes, size, labels), None))


def _check_exists(path: Path) -> None:
    check_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such mask")


def _id(path: Path, identity: object) -> np.uint8:
    if not str(identity).isdecimal() or not 0 < int(str(identity)) < 256:
        raise InputError(f"{path}: {identity!r} is no number of an object; they are 1 to 255")
    return np.uint8(int(str(identity)))


def _index_mask(path: Path, values: _Values) -> Mask:
    mask, palette = read_mask(path, void=values.void, white=values.white)
    check_ids(mask, path)
    return mask, palette


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn what a damaged JSON file leads to into an :class:`InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: damaged, or not as COCO or labelme write it ({error!r})"
        ) from error


class _Labels:
    """The numbers of labelme's labels, the same in all files: those that are numbers keep them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: set[int] = set()

    def take(self, shapes: Sequence[Mapping[str, Any]]) -> None:
        for shape in shapes:
            name = self._name(shape)
            if name.isdecimal():
                self._numbers.add(int(name))
            elif name not in self._names:
                self._names.append(name)

    def number(self, shape: Mapping[str, Any]) -> int:
        name = self._name(shape)
        return int(name) if name.isdecimal() else self._all()[name]

    def report(self) -> None:
        """Say which numbers were given."""
        if self._names:
            found = ", ".join(f"{name} is {number}" for name, number in self._all().items())
            log.warning("labels become numbers: %s", found)

    def _all(self) -> dict[str, int]:
        free = (number for number in count(1) if number not in self._numbers)
        return dict(zip(self._names, free, strict=False))

    def _name(self, shape: Mapping[str, Any]) -> str:
        group = shape.get("group_id")
        return str(shape["label"]) if group is None else f"{shape['label']} ({group})"


def _labelme(
    path: Path, shapes: Sequence[Mapping[str, Any]], size: Size, labels: _Labels
) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    with _as_written(path):
        for shape in shapes:
            mask[_covered(path, shape, size)] = _id(path, labels.number(shape))
    return mask


def _covered(path: Path, shape: Mapping[str, Any], size: Size) -> np.ndarray:
    """``(H, W)`` bool: what a shape of labelme's covers."""
    kind = shape.get("shape_type", "polygon")
    points = np.asarray(shape["points"], float)
    if kind == "mask":
        left, top = np.round(points[0]).astype(int)
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
        covered = np.zeros(size, bool)
        place = covered[top : top + picture.shape[0], left : left + picture.shape[1]]
        place[:] = picture[: place.shape[0], : place.shape[1]]
        return covered
    if kind == "rectangle":
        (x, y), (right, bottom) = points
        points = np.array([(x, y), (right, y), (right, bottom), (x, bottom)])
    elif kind == "circle":
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind != "polygon":
        raise InputError(f"{path}: a {kind} has no area; give polygons, rectangles, circles, masks")
    return _segmentation([points.ravel().tolist()], size)


def _coco(path: Path, content: Mapping[str, Any]) -> Iterator[_Part]:
    """A mask for each picture that has annotations."""
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    tracked = all("track_id" in each for each in content["annotations"])
    if not tracked and len(by_image) > 1:
        raise InputError(
            f"{path}: annotations of several pictures need a track_id each, or it is unknown which "
            "are the same object"
        )
    images = {image["id"]: image for image in content["images"]}
    for image_id, annotations in by_image.items():
        image = images[image_id]
        size = int(image["height"]), int(image["width"])
        ids = [
            _id(path, each["track_id"] if tracked else n) for n, each in enumerate(annotations, 1)
        ]
        read = partial(_annotated, path, annotations, ids, size)
        yield _Part(Path(image["file_name"]).stem, path, read)


def _annotated(
    path: Path, annotations: Sequence[Mapping[str, Any]], ids: Sequence[np.uint8], size: Size
) -> Mask:
    mask = np.zeros(size, np.uint8)
    with _as_written(path):
        for identity, annotation in zip(ids, annotations, strict=True):
            mask[_segmentation(annotation["segmentation"], size)] = identity
    return mask, None


def _segmentation(segmentation: Any, size: Size) -> np.ndarray:
    """``(H, W)`` bool, from polygons or run lengths, compressed or not."""
    if isinstance(segmentation, list):
        segmentation = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = run_lengths.frPyObjects(segmentation, *size)
    return run_lengths.decode(segmentation).astype(bool)
