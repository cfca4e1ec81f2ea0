"""Composite clips: objects cut out of real pictures and videos, moving over other real pictures.

What BL30K does with rendered models, this does with whatever masks are at hand. An object is cut
out along its mask with a soft edge, and pasted on an unrelated picture; it moves, turns, grows,
bends, hides others and leaves the frame, while the camera moves as well. Objects and grounds from
videos keep playing, so that a horse gallops while it is carried about. Unlabelled cut-outs, half of
them copies of an object, pass by too.

Every layer is resampled once per frame, along with its transparency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stma.data.masks import count_ids
from stma.data.scene import Motion, Scene, SceneConfig, random_motion
from stma.data.transforms import (
    ColourConfig,
    apply_colours,
    draw_colour,
    random_thin_plate,
    smooth_map,
)
from stma.errors import InputError
from stma.runtime.config import check_ranges
from stma.runtime.opencv import cv2

BEND_SPEED = (0.05, 0.35)  # radians per frame, of the two deformations of a layer
MAX_PICTURES = 50  # to search for an object that is large enough
BEND_GRID = 9  # points along a side where a deformation is computed; linear in between
LARGEST_ZOOM = 2.5  # of a cut-out: beyond it there is only blur
GROUND_ZOOM = (1.05, 1.6)  # the ground's shorter side, in shorter sides of the frame
MARGIN = 3  # pixels kept around a cut-out, for its soft edge


@dataclass
class CompositeConfig(SceneConfig):
    """What a composite clip shows, in addition to :class:`stma.data.scene.SceneConfig`.

    Attributes:
        tilt: largest initial rotation of a cut-out, in radians to either side.
        min_cut: least pixels of an object in its own picture; smaller ones are not cut out.
        edge: standard deviation of the blur of a cut-out's edge, in pixels of its picture.
        bend: probability that a cut-out bends as it moves.
        bend_strength: standard deviation of its control points, as a share of its sides.
        play: probability that a cut-out or ground from a video plays instead of standing still.
        follow_ground: probability that the ground's own objects are annotated too.
        colour: largest changes of each layer's colours, the same for the whole clip.
    """

    min_objects: int = 1
    max_objects: int = 3
    min_radius: float = 0.08
    max_radius: float = 0.38
    speed: float = 0.03
    spin: float = 0.04
    light: float = 0.2
    blur: float = 0.1
    tilt: float = 0.35
    min_cut: int = 300
    edge: float = 0.8
    bend: float = 0.5
    bend_strength: float = 0.05
    play: float = 0.7
    follow_ground: float = 0.5
    colour: ColourConfig = field(default_factory=lambda: ColourConfig(0.2, 0.1, 0.2, 0.03))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, min_cut=1, tilt=(0, np.pi), edge=(0, 5), bend_strength=(0, 0.1))
        check_ranges(self, bend=(0, 1), play=(0, 1), follow_ground=(0, 1))


class Pictures(Protocol):
    """Where cut-outs and grounds come from: pictures with masks, or the frames of videos."""

    def pictures(
        self, times: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Frames ``(H, W, 3)`` uint8 and index masks ``(H, W)`` of one video; for a still picture,
        only itself.

        Args:
            times: increasing from 0, in frames after the first, which is drawn at random.

        Raises:
            InputError: names the faulty file.
        """
        ...


@dataclass(frozen=True)
class Sprite:
    """One frame of a cut-out.

    Attributes:
        pixels: ``(h, w, 4)`` uint8, RGB times alpha, and alpha.
        centre: (x, y), the mean of the object's pixels.
        radius: of a circle with the object's area in the first frame, in pixels.
    """

    pixels: np.ndarray
    centre: np.ndarray
    radius: float


@dataclass(frozen=True)
class Bend:
    """Two smooth deformations that come and go, each at its own speed.

    Attributes:
        fields: displacements at a grid of points of the unit square, ``(G, G, 2)`` float32 each.
    """

    fields: tuple[np.ndarray, np.ndarray]
    speeds: np.ndarray
    phases: np.ndarray

    def __call__(self, points: np.ndarray, t: float) -> np.ndarray:
        """Displacements ``(P, 2)`` of points ``(P, 2)`` of the unit square at time ``t``; points
        outside move with its edge."""
        first, second = np.sin(self.speeds * t + self.phases)
        field = cv2.addWeighted(self.fields[0], first, self.fields[1], second, 0.0)
        places = ((BEND_GRID - 1) * points).astype(np.float32)[None]
        return cv2.remap(  # type: ignore[call-overload]  # no second map is None
            field, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[0]


def random_bend(strength: float, rng: np.random.Generator) -> Bend:
    """Args: strength: standard deviation of the control points, as a share of the sides."""
    grid = np.linspace(0, 1, BEND_GRID)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    fields = [
        random_thin_plate(strength, rng)(points).reshape(BEND_GRID, BEND_GRID, 2) for _ in range(2)
    ]
    first, second = (field.astype(np.float32) for field in fields)
    return Bend((first, second), rng.uniform(*BEND_SPEED, 2), rng.uniform(0, 2 * np.pi, 2))


@dataclass(frozen=True)
class Layer:
    """A cut-out, one sprite for each frame of the clip (or one for all), and how it moves."""

    sprites: list[Sprite]
    motion: Motion
    mirrored: bool
    bend: Bend | None

    def matrix(self, frame: int, t: float, unit: float) -> np.ndarray:
        """``(3, 3)``: pixels of a frame's sprite to pixels of a fixed camera at time ``t``."""
        sprite = self.sprites[min(frame, len(self.sprites) - 1)]
        side = -1.0 if self.mirrored else 1.0
        to_unit = np.diag([side / sprite.radius, 1 / sprite.radius, 1.0])
        to_unit[:2, 2] = -sprite.centre * [side, 1] / sprite.radius
        return self.motion.transform(t, unit) @ to_unit


def cut_sprites(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], value: int, edge: float
) -> list[Sprite]:
    """One object in successive frames, with transparency; frames without it are left out."""
    sprites: list[Sprite] = []
    radius = 0.0
    for image, mask in zip(images, masks, strict=True):
        inside = (mask == value).view(np.uint8)
        left, top, width, height = cv2.boundingRect(inside)
        if not width:
            continue
        moments = cv2.moments(inside, binaryImage=True)
        radius = radius or float(np.sqrt(moments["m00"] / np.pi))
        rows = slice(max(top - MARGIN, 0), top + height + MARGIN)
        columns = slice(max(left - MARGIN, 0), left + width + MARGIN)
        alpha = 255 * inside[rows, columns]
        if edge > 0:
            # Objects continue beyond the picture's edge; otherwise they would fade there.
            alpha = cv2.GaussianBlur(alpha, (0, 0), edge, borderType=cv2.BORDER_REPLICATE)
        colours = cv2.multiply(image[rows, columns], cv2.merge([alpha] * 3), scale=1 / 255)
        centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        pixels = np.dstack([colours, alpha])
        sprites.append(Sprite(pixels, centre - [columns.start, rows.start], radius))
    return sprites


def shrunk(sprite: Sprite, factor: int) -> Sprite:
    """``factor`` times smaller, by averaging pixels, so that drawing it small does not alias."""
    if factor < 2:
        return sprite
    height, width = sprite.pixels.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    pixels = cv2.resize(sprite.pixels, size, interpolation=cv2.INTER_AREA)
    ratio = np.array(size) / [width, height]
    return Sprite(pixels, (sprite.centre + 0.5) * ratio - 0.5, sprite.radius * ratio.mean())


class CompositeScene(Scene):
    """Cut-outs over a picture; see :class:`stma.data.scene.Scene`.

    Args:
        times: of the frames; what comes from videos advances with them.
        cut_from: where objects are cut from, all equally likely.
        grounds: where the backgrounds come from, likewise.

    Raises:
        InputError: no object of ``min_cut`` pixels is found.
    """

    def __init__(
        self,
        config: CompositeConfig,
        size: tuple[int, int],
        times: np.ndarray,
        cut_from: Sequence[Pictures],
        grounds: Sequence[Pictures],
        rng: np.random.Generator,
    ) -> None:
        super().__init__(config, size, rng)
        self.config, self.times, self.rng = config, times, rng
        self.cut_from = cut_from
        num_objects = int(rng.integers(config.min_objects, config.max_objects + 1))
        num_distractors = int(rng.integers(config.max_distractors + 1))
        self.layers: list[Layer] = []
        for _ in range(num_objects):
            alike = self.layers[-1:] if rng.random() < config.look_alike else []
            self.layers.append(self._new_layer(alike))
        for _ in range(num_distractors):
            alike = self.layers[:num_objects] if rng.random() < 0.5 else []
            self.layers.append(self._new_layer(alike))
        self.labels = list(range(1, num_objects + 1)) + [0] * num_distractors
        self.depth_order = rng.permutation(len(self.layers))
        self._draw_ground(grounds, num_objects)

    def _pictures(self, pool: Sequence[Pictures]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        rng = self.rng
        times = self.times if rng.random() < self.config.play else self.times[:1]
        return pool[int(rng.integers(len(pool)))].pictures(times, rng)

    def _new_layer(self, alike: Sequence[Layer]) -> Layer:
        """With a new object, or a copy of one of ``alike``."""
        config, rng = self.config, self.rng
        motion = random_motion(config, self.extent, config.tilt, rng)
        if alike:
            sprites = alike[int(rng.integers(len(alike)))].sprites
        else:
            sprites = self._new_sprites(motion)
        bend = None
        if rng.random() < config.bend:
            bend = random_bend(config.bend_strength, rng)
        return Layer(sprites, motion, mirrored=bool(rng.random() < 0.5), bend=bend)

    def _new_sprites(self, motion: Motion) -> list[Sprite]:
        config, rng = self.config, self.rng
        images, masks, value = self._find_object()
        colour = draw_colour(config.colour, rng)
        images = [apply_colours(image, colour) for image in images]
        sprites = cut_sprites(images, masks, value, config.edge)
        zoom = motion.radius * self.unit / sprites[0].radius
        motion.radius *= min(1.0, LARGEST_ZOOM / zoom)
        return [shrunk(sprite, int(1 / zoom)) for sprite in sprites]

    def _find_object(self) -> tuple[list[np.ndarray], list[np.ndarray], int]:
        for _ in range(MAX_PICTURES):
            images, masks = self._pictures(self.cut_from)
            counts = count_ids(masks[0])
            counts[0] = 0
            ids = np.flatnonzero(counts >= self.config.min_cut)
            if len(ids):
                return images, masks, int(self.rng.choice(ids))
        raise InputError(
            f"no object of {self.config.min_cut} pixels in {MAX_PICTURES} pictures to cut from; "
            "give another source in cut_from, or a smaller composite.min_cut"
        )

    def _draw_ground(self, grounds: Sequence[Pictures], num_objects: int) -> None:
        config, rng = self.config, self.rng
        images, masks = self._pictures(grounds)
        colour = draw_colour(config.colour, rng)
        zoom = rng.uniform(*GROUND_ZOOM) * self.unit / min(images[0].shape[:2])
        factor = max(1, int(1 / zoom))
        height, width = (side // factor for side in images[0].shape[:2])
        self.grounds = [
            cv2.resize(apply_colours(image, colour), (width, height), interpolation=cv2.INTER_AREA)
            for image in images
        ]
        zoom = max(zoom * factor, *(1.02 * np.array(self.size) / (height, width)))
        room = np.maximum(0, zoom * np.array([width, height]) - [self.size[1], self.size[0]])
        side = -1.0 if rng.random() < 0.5 else 1.0
        self.ground_matrix = np.diag([side * zoom, zoom, 1.0])
        self.ground_matrix[:2, 2] = -rng.uniform(0, 1, 2) * room
        if side < 0:
            self.ground_matrix[0, 2] += zoom * (width - 1)
        self.ground_masks: list[np.ndarray] = []
        if rng.random() < config.follow_ground:
            ids = np.setdiff1d(masks[0], [0])
            ids = rng.permutation(ids)[: 255 - num_objects]
            table = np.zeros(256, np.uint8)
            table[ids] = num_objects + 1 + np.arange(len(ids))
            self.ground_masks = [
                cv2.resize(
                    cv2.LUT(mask, table), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
                )
                for mask in masks
            ]

    def draw_at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`stma.data.scene.Scene.draw_at`."""
        index = int(np.abs(self.times - t).argmin())
        camera = self.camera(t)
        matrix = (camera @ self.ground_matrix)[:2]
        size = self.size[::-1]
        ground = self.grounds[min(index, len(self.grounds) - 1)]
        # Mirrored beyond its edges: as good as more of the scene, with twins of its objects.
        frame = cv2.warpAffine(
            ground, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        frame = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA)  # four channels, like the sprites
        if self.ground_masks:
            ground_mask = self.ground_masks[min(index, len(self.ground_masks) - 1)]
            mask = cv2.warpAffine(ground_mask, matrix, size, flags=cv2.INTER_NEAREST)
        else:
            mask = np.zeros(self.size, np.uint8)
        for place in self.depth_order:
            layer = self.layers[place]
            sprite = layer.sprites[min(index, len(layer.sprites) - 1)]
            matrix = camera @ layer.matrix(index, t, self.unit)
            paste(frame, mask, sprite.pixels, matrix, layer.bend, t, self.labels[place])
        return cv2.cvtColor(frame, cv2.COLOR_RGBA2RGB), mask


def paste(
    frame: np.ndarray,
    mask: np.ndarray,
    pixels: np.ndarray,
    matrix: np.ndarray,
    bend: Bend | None,
    t: float,
    label: int,
) -> None:
    """Paint a sprite over ``frame`` and ``mask``, in place, within its bounding box.

    Args:
        frame: ``(H, W, 4)`` uint8; the fourth channel means nothing.
        pixels: ``(h, w, 4)`` uint8, RGB times alpha, and alpha.
        matrix: ``(3, 3)``, pixels of the sprite to those of the frame.
    """
    sides = np.array([pixels.shape[1], pixels.shape[0]])
    margin = 0.15 * sides if bend is not None else 0 * sides
    low, high = -margin - 1, sides + margin
    corners = np.array([low, [low[0], high[1]], high, [high[0], low[1]]])
    corners = corners @ matrix[:2, :2].T + matrix[:2, 2]
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, mask.shape[::-1])
    if left >= right or top >= bottom:
        return
    size = (int(right - left), int(bottom - top))
    inverse = np.linalg.inv(matrix)
    inverse[:2, 2] += inverse[:2, :2] @ [left, top]
    if bend is None:
        drawn = cv2.warpAffine(
            pixels, inverse[:2], size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
    else:

        def source(points: np.ndarray) -> np.ndarray:
            points = points @ inverse[:2, :2].T + inverse[:2, 2]
            return points + bend(points / sides, t) * sides

        drawn = cv2.remap(  # type: ignore[call-overload]  # no second map is None
            pixels, smooth_map(source, size[::-1]), None, cv2.INTER_LINEAR
        )
    alpha = drawn[..., 3]
    box = (slice(top, bottom), slice(left, right))
    under = cv2.multiply(frame[box], cv2.merge([255 - alpha] * 4), scale=1 / 255)
    frame[box] = cv2.add(under, drawn)
    mask[box][alpha > 127] = label
