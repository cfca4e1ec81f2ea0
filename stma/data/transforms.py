"""Augmentation of whole clips: all geometry of a frame in one resampling, all colour in one matrix.

Geometry maps output points to points of the original: crop, flip, affine and thin plate are
composed first, then every output pixel is sampled from the original once, bilinearly for images and
from the nearest pixel for masks. Points are (x, y) in pixels, and the centre of the first pixel is
(0, 0), as in OpenCV.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stma.errors import InputError
from stma.runtime.config import check_ranges, check_types
from stma.runtime.opencv import cv2

FILL = (
    124,
    116,
    104,
)  # ImageNet's mean colour, around the picture; before colours change, it normalises to zero
THIN_PLATE_GRID = (4, 3)  # control points: one at random in each cell, so that no two coincide
THIN_PLATE_SPACING = 8  # output pixels between the points where a deformation is computed
TO_GREY = np.tile([0.299, 0.587, 0.114], (3, 1))
CROP_TRIES = 10


@dataclass
class ColourConfig:
    """Largest changes of colour: a factor from ``1 - x`` to ``1 + x``; hue as a share of the
    circle."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, brightness=(0, 1), contrast=(0, 1), saturation=(0, 1), hue=(0, 0.5))


@dataclass
class TransformConfig:
    """How clips are augmented. "Per clip" is drawn once for all frames of a clip.

    Attributes:
        crop_scale: per clip: area of the crop as a share of the frame's, ``[from, to]``.
        crop_ratio: per clip: width / height of the crop, ``[from, to]``.
        flip: per clip: probability of mirroring.
        rotate, shear: per frame: largest angle in degrees, to either side.
        zoom: per frame, ``[from, to]``.
        shift: per frame: largest shift as a share of the output's sides, to either side.
        thin_plate: per frame: standard deviation of 12 control points, as a share of the output's
            sides; 0 for none.
        colour: per clip.
        frame_colour: per frame, on top.
        greyscale: per clip: probability of losing all colour.
    """

    crop_scale: list[float] = field(default_factory=lambda: [0.36, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    flip: float = 0.5
    rotate: float = 15.0
    shear: float = 10.0
    zoom: list[float] = field(default_factory=lambda: [1.0, 1.0])
    shift: float = 0.0
    thin_plate: float = 0.0
    colour: ColourConfig = field(default_factory=lambda: ColourConfig(0.1, 0.03, 0.03))
    frame_colour: ColourConfig = field(default_factory=lambda: ColourConfig(0.01, 0.01, 0.01))
    greyscale: float = 0.05

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("crop_scale", "crop_ratio", "zoom"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise InputError(f"{name} is {values}; give [from, to] with 0 < from <= to")
        if self.crop_scale[1] > 1:
            raise InputError(f"crop_scale is {self.crop_scale}; a crop is at most 1 (zoom out?)")
        check_ranges(self, flip=(0, 1), greyscale=(0, 1), rotate=(0, 180), shear=(0, 60))
        check_ranges(self, shift=(0, 1), thin_plate=(0, 0.1))


class ThinPlate:
    """A thin-plate spline (Bookstein): a smooth deformation of the plane that displaces control
    points as given.

    Args:
        points: ``(K, 2)``, not all on one line.
        displacements: ``(K, 2)``.
    """

    def __init__(self, points: np.ndarray, displacements: np.ndarray) -> None:
        count = len(points)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _thin_plate_kernel(points, points)
        system[:count, count] = 1
        system[:count, count + 1 :] = points
        system[count:, :count] = system[:count, count:].T
        right = np.zeros((count + 3, 2))
        right[:count] = displacements
        solution = np.linalg.solve(system, right)
        self.points = points
        self.weights, self.offset, self.linear = (
            solution[:count],
            solution[count],
            solution[count + 1 :],
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Displacements ``(N, 2)`` at points ``(N, 2)``."""
        return (
            _thin_plate_kernel(points, self.points) @ self.weights
            + self.offset
            + points @ self.linear
        )


def random_thin_plate(strength: float, rng: np.random.Generator) -> ThinPlate:
    """Of the unit square: 12 control points, moved by normal deviates of deviation ``strength``."""
    cells = np.stack(
        np.meshgrid(np.arange(THIN_PLATE_GRID[0]), np.arange(THIN_PLATE_GRID[1])), -1
    ).reshape(-1, 2)
    points = (cells + rng.uniform(0.15, 0.85, cells.shape)) / THIN_PLATE_GRID
    return ThinPlate(points, rng.normal(0, strength, points.shape))


def _thin_plate_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``r^2 log r`` between all points of two sets."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return 0.5 * squared * np.log(np.maximum(squared, 1e-30))


@dataclass(frozen=True)
class Warp:
    """Where one frame's output pixels come from: first the thin plate, then the matrix.

    Attributes:
        matrix: ``(3, 3)``, output points to original points.
        size: height and width of the output.
        thin_plate: displacements in the unit square of the output, or None.
    """

    matrix: np.ndarray
    size: tuple[int, int]
    thin_plate: ThinPlate | None = None

    @property
    def shrinking(self) -> float:
        """Original pixels per output pixel, along the direction with the fewest."""
        return float(np.linalg.svd(self.matrix[:2, :2], compute_uv=False)[-1])

    def of_reduced(self, reduce: int) -> "Warp":
        """The same warp for an original that was read ``reduce`` times smaller."""
        shift = (reduce - 1) / 2  # of the first pixel's centre
        to_reduced = np.array([[1, 0, -shift], [0, 1, -shift], [0, 0, reduce]]) / reduce
        return Warp(to_reduced @ self.matrix, self.size, self.thin_plate)

    def image(self, image: np.ndarray) -> np.ndarray:
        """``(H, W, 3)`` uint8 to ``(*size, 3)``, bilinear."""
        return self._apply(image, cv2.INTER_LINEAR, FILL)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """``(H, W)`` uint8 to ``size``, nearest; 0 outside."""
        return self._apply(mask, cv2.INTER_NEAREST, (0, 0, 0))

    def _apply(
        self, pixels: np.ndarray, interpolation: int, fill: tuple[int, int, int]
    ) -> np.ndarray:
        if self.thin_plate is not None:
            return cv2.remap(  # type: ignore[call-overload]  # no second map is None
                pixels,
                self.map(),
                None,
                interpolation,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=fill,
            )
        return cv2.warpAffine(
            pixels,
            self.matrix[:2],
            self.size[::-1],
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )

    def map(self) -> np.ndarray:
        """``(*size, 2)`` float32: the original point of every output pixel."""
        unit = np.array(self.size[::-1])

        def source(points: np.ndarray) -> np.ndarray:
            if self.thin_plate is not None:
                points = points + self.thin_plate((points + 0.5) / unit) * unit
            return points @ self.matrix[:2, :2].T + self.matrix[:2, 2]

        return smooth_map(source, self.size)


def smooth_map(source: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """``(*size, 2)`` float32: where every output pixel comes from, for `cv2.remap`.

    Args:
        source: output points ``(P, 2)`` to original points. It is smooth, so it is evaluated only
            on a coarse grid; matrices may be part of it: linear interpolation commutes with them.
    """
    height, width = size
    x, y = (_coarse(side) for side in (width, height))
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    coarse = source(points).reshape(len(y), len(x), 2).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=THIN_PLATE_SPACING, fy=THIN_PLATE_SPACING)
    margin = THIN_PLATE_SPACING
    return np.ascontiguousarray(fine[margin : margin + height, margin : margin + width])


def _coarse(side: int) -> np.ndarray:
    """Points whose linear upsampling, less the margin, gives ``0..side-1``."""
    count = -(-side // THIN_PLATE_SPACING)
    return (np.arange(-1, count + 1) + 0.5) * THIN_PLATE_SPACING - 0.5


def draw_warps(
    config: TransformConfig,
    original: tuple[int, ...],
    size: tuple[int, int],
    num_frames: int,
    rng: np.random.Generator,
) -> list[Warp]:
    """One warp for each frame of a clip, all with the same crop and flip.

    Args:
        original: height and width of the frames.
        size: height and width of the output.
    """
    crop = _crop(_draw_box(config, original, rng), size)
    if rng.random() < config.flip:
        crop = crop @ np.array([[-1, 0, size[1] - 1], [0, 1, 0], [0, 0, 1.0]])
    warps = []
    for _ in range(num_frames):
        matrix = crop @ np.linalg.inv(_draw_affine(config, size, rng))
        plate = random_thin_plate(config.thin_plate, rng) if config.thin_plate > 0 else None
        warps.append(Warp(matrix, size, plate))
    return warps


def window(original: tuple[int, ...], size: tuple[int, int], point: np.ndarray) -> Warp:
    """A crop of the frame around a pixel, never shrunk, so that the output has the pixel.

    Args:
        point: row and column.
    """
    sides = np.minimum(original, size)
    top, left = np.clip(point - sides // 2, 0, np.array(original) - sides)
    return Warp(_crop((left, top, sides[1], sides[0]), size), size)


def _draw_box(
    config: TransformConfig, original: tuple[int, ...], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, width and height of a crop: torchvision's RandomResizedCrop, in subpixels."""
    height, width = original
    low, high = np.log(config.crop_ratio)
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(config.crop_scale[0], config.crop_scale[1])
        ratio = np.exp(rng.uniform(low, high))
        box_width, box_height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            break
    else:
        ratio = float(np.clip(width / height, config.crop_ratio[0], config.crop_ratio[1]))
        box_width, box_height = min(width, height * ratio), min(height, width / ratio)
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return left, top, box_width, box_height


def _crop(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """``(3, 3)``: points of the output to those of the original."""
    left, top, width, height = box
    x, y = width / size[1], height / size[0]
    # Pixel edges, not centres, align with the box: hence the halves.
    return np.array([[x, 0, left + (x - 1) / 2], [0, y, top + (y - 1) / 2], [0, 0, 1]])


def _draw_affine(
    config: TransformConfig, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """``(3, 3)``: rotation, shear and zoom about the centre of the output, then a shift."""
    height, width = size
    angle = np.deg2rad(rng.uniform(-config.rotate, config.rotate))
    shear = np.tan(np.deg2rad(rng.uniform(-config.shear, config.shear)))
    zoom = rng.uniform(config.zoom[0], config.zoom[1])
    shift = rng.uniform(-config.shift, config.shift, 2) * (width, height)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre - linear @ centre + shift
    return matrix


@dataclass(frozen=True)
class Colour:
    """One drawn change of colour, applied in this order."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False

    def matrix(self, mean: np.ndarray) -> np.ndarray:
        """``(4, 4)``, for (R, G, B, 1): all the changes, since each is linear.

        Args:
            mean: ``(3,)``, of the picture: contrast is relative to its grey.
        """
        saturate = self.saturation * np.eye(3) + (1 - self.saturation) * TO_GREY
        after = _hue_rotation(self.hue) @ saturate if self.hue else saturate
        if self.grey:
            after = TO_GREY @ after
        offset = (1 - self.contrast) * self.brightness * (TO_GREY @ mean)
        matrix = np.eye(4)
        matrix[:3, :3] = self.contrast * self.brightness * after
        matrix[:3, 3] = after @ offset
        return matrix


def _hue_rotation(hue: float) -> np.ndarray:
    """``(3, 3)``: a rotation about the grey axis, by a share of the circle."""
    angle = 2 * np.pi * hue
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def draw_colour(config: ColourConfig, rng: np.random.Generator, greyscale: float = 0.0) -> Colour:
    """Args: greyscale: probability of losing all colour."""
    brightness, contrast, saturation = (
        rng.uniform(1 - x, 1 + x) for x in (config.brightness, config.contrast, config.saturation)
    )
    hue = rng.uniform(-config.hue, config.hue)
    return Colour(brightness, contrast, saturation, hue, grey=rng.random() < greyscale)


def apply_colours(image: np.ndarray, *colours: Colour) -> np.ndarray:
    """Several changes, one after another, at the cost of one; ``(H, W, 3)`` uint8."""
    mean = np.array(cv2.mean(image)[:3])
    total = np.eye(4)
    for colour in colours:
        matrix = colour.matrix(mean)
        mean = matrix[:3, :3] @ mean + matrix[:3, 3]
        total = matrix @ total
    return cv2.transform(image, total[:3])
