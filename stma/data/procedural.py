"""Procedural clips: textured shapes that move, turn, deform and occlude one another.

A clip is a function of its seed alone. Nothing is stored: shapes are closed outlines, textures are
small images, and every frame draws them back to front.
"""

from dataclasses import dataclass

import numpy as np

from stma.data.scene import Motion, Scene, SceneConfig, draw_clip, random_motion
from stma.runtime.opencv import cv2

TEXTURE_SIZE = 96
OUTLINE_POINTS = 72
SUBPIXEL_BITS = 4  # cv2.fillPoly's fixed-point coordinates


def random_texture(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> np.ndarray:
    """``(size, size, 3)`` uint8: noise, clouds, patches, stripes, checks or spots."""
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    frequency = rng.uniform(2, 9)
    kind = rng.integers(6)
    if kind == 0:
        pattern = _noise(int(rng.integers(3, 14)), size, rng)
    elif kind == 4:
        octaves = [_noise(3 * 2**n, size, rng) / 2**n for n in range(4)]
        pattern = np.sum(octaves, axis=0, dtype=np.float32) / 1.875
    elif kind == 5:
        seeds = rng.uniform(0, 1, (int(rng.integers(4, 16)), 2)).astype(np.float32)
        distances = (columns[..., None] - seeds[:, 0]) ** 2 + (rows[..., None] - seeds[:, 1]) ** 2
        tones = rng.uniform(-0.3, 1.3, len(seeds)).astype(np.float32)
        pattern = tones[distances.argmin(-1)]
    elif kind == 1:
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along)
    elif kind == 2:
        pattern = 0.5 + 0.5 * np.sign(
            np.sin(2 * np.pi * frequency * along) * np.sin(2 * np.pi * frequency * across)
        )
    else:
        waves = np.cos(2 * np.pi * frequency * along) * np.cos(2 * np.pi * frequency * across)
        pattern = np.clip(4 * waves - 1, 0, 1)
    pattern = pattern[..., None]
    texture = colours[0] * pattern + colours[1] * (1 - pattern)
    texture += rng.normal(0, rng.uniform(2, 14), (size, size, 1))
    return np.clip(texture, 0, 255).astype(np.uint8)


def _noise(cells: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """``(size, size)`` float32: ``cells x cells`` random tones, smoothly joined."""
    tones = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(tones, (size, size), interpolation=cv2.INTER_CUBIC)


def _random_base(rng: np.random.Generator) -> np.ndarray:
    """``(P, 2)``: a circle, a polygon, a star or a rounded square, of mean radius about 1."""
    theta = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    circle = np.stack([np.cos(theta), np.sin(theta)], 1)
    kind = rng.integers(4)
    if kind == 0:
        return circle
    if kind == 1:
        power = rng.uniform(3, 8)
        return circle / (np.abs(circle) ** power).sum(1, keepdims=True) ** (1 / power)
    count = int(rng.integers(3, 8))
    if kind == 2:
        radii = rng.uniform(0.7, 1.3, count)
    else:
        count, radii = 2 * count, np.tile([1.35, rng.uniform(0.5, 0.85)], count)
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count
    corners = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    along = np.arange(OUTLINE_POINTS) * count / OUTLINE_POINTS
    corner, share = along.astype(int), (along % 1)[:, None]
    return (1 - share) * corners[corner] + share * corners[(corner + 1) % count]


@dataclass
class _Shape:
    """An outline and a texture, and how they move."""

    texture: np.ndarray
    base: np.ndarray  # (P, 2), the outline at rest
    harmonics: np.ndarray  # (K, 4): order, amplitude, phase, phase speed
    elongation: float
    motion: Motion

    def outline(self, t: float) -> np.ndarray:
        """``(P, 2)`` in units of the radius."""
        theta = np.arctan2(self.base[:, 1], self.base[:, 0])
        order, amplitude, phase, speed = self.harmonics.T[:, :, None]
        factor = 1 + (amplitude * np.cos(order * theta + phase + speed * t)).sum(0)
        return factor[:, None] * self.base * [1, self.elongation]


def _random_shape(config: SceneConfig, rng: np.random.Generator, extent: np.ndarray) -> _Shape:
    orders = np.arange(2, 6)
    harmonics = np.stack(
        [
            orders,
            rng.uniform(0, 0.32, 4) / np.sqrt(orders - 1),
            rng.uniform(0, 2 * np.pi, 4),
            rng.uniform(-0.25, 0.25, 4),
        ],
        axis=1,
    )
    return _Shape(
        texture=random_texture(rng),
        base=_random_base(rng),
        harmonics=harmonics,
        elongation=rng.uniform(0.5, 1.0),
        motion=random_motion(config, extent, np.pi, rng),
    )


def _look_alike(
    shape: _Shape, config: SceneConfig, rng: np.random.Generator, extent: np.ndarray
) -> _Shape:
    """Another shape with the same texture, and half of the time the same outline."""
    other = _random_shape(config, rng, extent)
    other.texture = shape.texture
    if rng.random() < 0.5:
        other.base, other.harmonics = shape.base, shape.harmonics
        other.elongation = shape.elongation
    return other


class ProceduralScene(Scene):
    """Textured shapes on a textured ground; see :class:`stma.data.scene.Scene`."""

    def __init__(
        self, config: SceneConfig, size: tuple[int, int], rng: np.random.Generator
    ) -> None:
        super().__init__(config, size, rng)
        extent = self.extent
        num_objects = int(rng.integers(config.min_objects, config.max_objects + 1))
        num_distractors = int(rng.integers(config.max_distractors + 1))
        self.shapes: list[_Shape] = []
        for _ in range(num_objects):
            if self.shapes and rng.random() < config.look_alike:
                self.shapes.append(_look_alike(self.shapes[-1], config, rng, extent))
            else:
                self.shapes.append(_random_shape(config, rng, extent))
        self.labels = list(range(1, num_objects + 1)) + [0] * num_distractors
        for _ in range(num_distractors):
            if rng.random() < 0.5:
                model = self.shapes[int(rng.integers(num_objects))]
                self.shapes.append(_look_alike(model, config, rng, extent))
            else:
                self.shapes.append(_random_shape(config, rng, extent))
        self.depth_order = rng.permutation(len(self.shapes))

        self.background = random_texture(rng, 2 * TEXTURE_SIZE)
        self.background_scale = rng.uniform(0.8, 2.0) * self.unit / TEXTURE_SIZE

    def draw_at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`stma.data.scene.Scene.draw_at`."""
        height, width = self.size
        camera = self.camera(t)
        scale = self.background_scale
        texture_to_frame = camera @ np.diag([scale, scale, 1.0])
        frame = cv2.warpAffine(
            self.background,
            texture_to_frame[:2],
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        mask = np.zeros((height, width), np.uint8)
        for index in self.depth_order:
            shape, label = self.shapes[index], self.labels[index]
            matrix = camera @ shape.motion.transform(t, self.unit)
            _draw(frame, mask, shape, label, matrix, t)
        return frame, mask


def _draw(
    frame: np.ndarray, mask: np.ndarray, shape: _Shape, label: int, matrix: np.ndarray, t: float
) -> None:
    """Paint a shape over ``frame`` and ``mask``, within its bounding box."""
    height, width = mask.shape
    outline = shape.outline(t) @ matrix[:2, :2].T + matrix[:2, 2]
    left, top = np.floor(outline.min(0)).astype(int)
    right, bottom = np.ceil(outline.max(0)).astype(int) + 1
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    size = (int(right - left), int(bottom - top))
    offset = np.array([left, top])
    points = np.round((outline - offset) * 2**SUBPIXEL_BITS).astype(np.int32)[None]
    alpha = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(alpha, points, 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    inside = alpha > 127

    # The texture spans three radii, so that the longest outline stays on it.
    texture_scale = 3.0 / TEXTURE_SIZE
    texture_to_unit = np.array([[texture_scale, 0, -1.5], [0, texture_scale, -1.5], [0, 0, 1.0]])
    texture_to_box = (matrix @ texture_to_unit)[:2]
    texture_to_box[:, 2] -= offset
    texture = cv2.warpAffine(
        shape.texture,
        texture_to_box,
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    box = (slice(top, bottom), slice(left, right))
    blend = cv2.merge([alpha] * 3).astype(np.float32) / 255
    frame[box] = (frame[box] + blend * (texture.astype(np.float32) - frame[box]) + 0.5).astype(
        np.uint8
    )
    mask[box][inside] = label


def procedural_clip(
    config: SceneConfig, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw one clip; see :func:`stma.data.scene.draw_clip`.

    Args:
        size: height and width.
        times: frames to draw, in units of a frame.
        rng: the only source of chance.

    Raises:
        InputError: frames too small, or no scene of 1000 shows an object.
    """
    config.check_size(size)
    return draw_clip(lambda: ProceduralScene(config, size, rng), times)
