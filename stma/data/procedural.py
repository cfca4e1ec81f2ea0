"""Procedural clips: textured shapes that move, turn, deform and occlude one another.

A clip is a function of its seed alone. Nothing is stored: shapes are closed outlines, textures
small images, and every frame draws them back to front.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from stma.data.sampling import keep_objects
from stma.errors import InputError

TEXTURE_SIZE = 96
OUTLINE_POINTS = 72
MIN_PIXELS = 40  # of an object in the first frame, or it is not annotated
MAX_SCENES = 1000  # to try for one clip
SUBPIXEL_BITS = 4  # cv2.fillPoly's fixed-point coordinates
BEYOND = 0.1  # shorter sides: how far the middle of a shape drifts out of the frame
DRIFT = 0.2  # shorter sides that the camera moves to either side
ZOOM = 0.2  # logarithm of the camera's largest zoom
TURN = 0.3  # radians that it turns to either side
BLUR_STEPS = 5  # pictures averaged for one blurred frame
NEUTRAL_LIGHT = 128  # of a light field, in uint8


@dataclass
class SceneConfig:
    """What a scene holds, and how fast it moves.

    Attributes:
        min_objects, max_objects: annotated objects, all visible in the first frame.
        max_distractors: moving shapes that are never annotated; half of them look like an object.
        look_alike: how likely an object looks like the one before it.
        min_radius, max_radius: mean radius of a shape, as a share of the frame's shorter side.
        speed: how far an object travels in a frame, as a share of the shorter side.
        spin: how far an object turns in a frame, in radians.
        camera_speed: as `speed`, for the camera.
        leave: how likely an object's path leads out of the frame and back.
        blur: how likely a clip has motion blur.
        light: how likely the light of a clip changes, in time and across the frame.
    """

    min_objects: int = 1
    max_objects: int = 5
    max_distractors: int = 3
    look_alike: float = 0.25
    min_radius: float = 0.1
    max_radius: float = 0.24
    speed: float = 0.035
    spin: float = 0.08
    camera_speed: float = 0.012
    leave: float = 0.15
    blur: float = 0.3
    light: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= 255:
            raise InputError(
                f"min_objects {self.min_objects}, max_objects {self.max_objects}; "
                "needs 1 <= min_objects <= max_objects <= 255"
            )
        if self.max_distractors < 0:
            raise InputError(f"max_distractors is {self.max_distractors}; give 0 or more")
        if not 0 < self.min_radius <= self.max_radius:
            raise InputError(
                f"min_radius {self.min_radius}, max_radius {self.max_radius}; "
                "needs 0 < min_radius <= max_radius"
            )
        for name in ("speed", "spin", "camera_speed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more")
        for name in ("look_alike", "leave", "blur", "light"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a probability, 0 to 1")

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse frames (height, width) too small to show an object.

        Raises:
            InputError: says by how much.
        """
        height, width = size
        if min(size) < 16:
            raise InputError(f"frames of {height} x {width}; 16 pixels at least")
        largest = np.pi * (self.max_radius * min(size)) ** 2
        if largest < 2 * MIN_PIXELS:
            raise InputError(
                f"max_radius {self.max_radius} in frames of {height} x {width} makes "
                f"objects of {largest:.0f} pixels; {MIN_PIXELS} have to show, so give twice as many"
            )


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
class _Excursion:
    """A way out of the frame and back, again and again: still, out, back, still."""

    direction: np.ndarray  # (2,), in shorter sides
    delay: float  # frames
    duration: float

    def __call__(self, t: float) -> np.ndarray:
        phase = max(0.0, t - self.delay) % (1.5 * self.duration) / self.duration
        return self.direction * (np.sin(np.pi * phase) ** 2 if phase < 1 else 0.0)


@dataclass
class _Shape:
    """An outline and a texture, and where they are at time ``t`` (frames)."""

    texture: np.ndarray
    base: np.ndarray  # (P, 2), the outline at rest
    harmonics: np.ndarray  # (K, 4): order, amplitude, phase, phase speed
    elongation: float
    radius: float
    extent: np.ndarray  # width and height of the frame, in shorter sides
    position: np.ndarray  # in shorter sides, x then y
    velocity: np.ndarray
    sway: np.ndarray  # (2, 3): amplitude, angular speed, phase, for x and y
    angle: float
    spin: float
    scale_wave: np.ndarray  # amplitude, angular speed, phase
    shear_wave: np.ndarray
    excursion: _Excursion | None

    def outline(self, t: float) -> np.ndarray:
        """``(P, 2)`` in units of the radius."""
        theta = np.arctan2(self.base[:, 1], self.base[:, 0])
        order, amplitude, phase, speed = self.harmonics.T[:, :, None]
        factor = 1 + (amplitude * np.cos(order * theta + phase + speed * t)).sum(0)
        return factor[:, None] * self.base * [1, self.elongation]

    def transform(self, t: float, unit: float) -> np.ndarray:
        """``(2, 3)``: units of the radius to pixels of a fixed camera whose shorter side is
        ``unit`` pixels."""
        scale = self.radius * unit * np.exp(_wave(self.scale_wave, t))
        angle = self.angle + self.spin * t
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear = np.array([[1, _wave(self.shear_wave, t)], [0, 1]])
        sway = np.array([_wave(wave, t) for wave in self.sway])
        way = self.excursion(t) if self.excursion else 0.0
        position = _bounce(self.position + self.velocity * t, self.extent)
        centre = (position + sway + way) * unit
        return np.hstack([scale * rotation @ shear, centre[:, None]])


def _bounce(position: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Back from a little beyond the frame's edges, so that long clips do not empty themselves."""
    span = extent + 2 * BEYOND
    turned = np.mod(position + BEYOND, 2 * span)
    return np.minimum(turned, 2 * span - turned) - BEYOND


def _wave(wave: np.ndarray, t: float) -> float:
    """A sine that is 0 at ``t = 0``."""
    amplitude, speed, phase = wave
    return float(amplitude * (np.sin(speed * t + phase) - np.sin(phase)))


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
    direction = rng.uniform(0, 2 * np.pi)
    speed = config.speed * rng.uniform(0, 1)
    excursion = None
    if rng.random() < config.leave:
        out = rng.uniform(0, 2 * np.pi)
        distance = extent.max() + config.max_radius  # leads out from anywhere
        excursion = _Excursion(
            direction=distance * np.array([np.cos(out), np.sin(out)]),
            delay=rng.uniform(0, 6),
            duration=rng.uniform(6, 30),
        )
    return _Shape(
        texture=random_texture(rng),
        base=_random_base(rng),
        harmonics=harmonics,
        elongation=rng.uniform(0.5, 1.0),
        radius=rng.uniform(config.min_radius, config.max_radius),
        extent=extent,
        position=rng.uniform(0.12, 0.88, 2) * extent,
        velocity=speed * np.array([np.cos(direction), np.sin(direction)]),
        sway=np.stack(
            [
                rng.uniform(0, 3 * config.speed, 2),
                rng.uniform(0.1, 0.5, 2),
                rng.uniform(0, 2 * np.pi, 2),
            ],
            axis=1,
        ),
        angle=rng.uniform(0, 2 * np.pi),
        spin=rng.uniform(-config.spin, config.spin),
        scale_wave=np.array([rng.uniform(0, 0.25), rng.uniform(0.05, 0.3), rng.uniform(0, 6.3)]),
        shear_wave=np.array([rng.uniform(0, 0.25), rng.uniform(0.05, 0.3), rng.uniform(0, 6.3)]),
        excursion=excursion,
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


class _Light:
    """How the light of a clip changes: a gain and a tint in time, and a bright side."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.gains = [_random_wave(0.35, rng)] + [_random_wave(0.1, rng) for _ in range(3)]
        self.slope = rng.uniform(0.0, 0.45)
        self.angle, self.turn = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.1)

    def __call__(self, frame: np.ndarray, t: float) -> np.ndarray:
        gain, *tint = (np.exp(_wave(wave, t)) for wave in self.gains)
        lit = cv2.transform(frame, gain * np.diag(tint))
        angle = self.angle + self.turn * t
        ramp = np.linspace(-1, 1, 16, dtype=np.float32)
        field = 1 + self.slope * (np.cos(angle) * ramp + np.sin(angle) * ramp[:, None])
        field = (NEUTRAL_LIGHT * field).astype(np.uint8)
        field = cv2.resize(field, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return cv2.multiply(lit, cv2.merge([field] * 3), scale=1 / NEUTRAL_LIGHT)


def _random_wave(amplitude: float, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.uniform(0, amplitude), rng.uniform(0.05, 0.4), rng.uniform(0, 2 * np.pi)])


class Scene:
    """Everything that one clip shows; `render` draws it at any time.

    Args:
        config: what it holds and how fast.
        size: height and width of the frames.
        rng: the only source of chance.
    """

    def __init__(
        self, config: SceneConfig, size: tuple[int, int], rng: np.random.Generator
    ) -> None:
        self.size = size
        self.unit = float(min(size))
        extent = np.array([size[1], size[0]]) / self.unit
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
        direction = rng.uniform(0, 2 * np.pi)
        self.camera_velocity = (
            config.camera_speed
            * rng.uniform(0, 1)
            * np.array([np.cos(direction), np.sin(direction)])
        )
        self.camera_spin = rng.uniform(-0.01, 0.01)
        self.camera_zoom = rng.uniform(-0.01, 0.01)
        self.shutter = rng.uniform(0.3, 1.0) if rng.random() < config.blur else 0.0
        self.light = _Light(rng) if rng.random() < config.light else None

    def camera(self, t: float) -> np.ndarray:
        """``(3, 3)``: pixels of a fixed camera to those of the moving one."""
        centre = np.array([self.size[1], self.size[0]]) / 2
        # To and fro, since what drifted on would leave every object behind.
        angle = TURN * np.sin(self.camera_spin * t / TURN)
        zoom = np.exp(ZOOM * np.sin(self.camera_zoom * t / ZOOM))
        drift = DRIFT * np.sin(self.camera_velocity * t / DRIFT)
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = centre - linear @ centre + drift * self.unit
        return matrix

    def render(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Draw the frame at time ``t``: ``(H, W, 3)`` uint8 RGB and ``(H, W)`` uint8 indices.

        With motion blur, the frame is the mean over the time that the shutter is open, and the
        mask is that of its middle.
        """
        frame, mask = self._draw_at(t)
        if self.shutter > 0:
            steps = self.shutter * ((np.arange(BLUR_STEPS) + 0.5) / BLUR_STEPS - 0.5)
            middle = BLUR_STEPS // 2
            total = frame.astype(np.uint16)
            for step in np.delete(steps, middle):
                total += self._draw_at(t + step)[0]
            frame = ((total + BLUR_STEPS // 2) // BLUR_STEPS).astype(np.uint8)
        return (self.light(frame, t) if self.light else frame), mask

    def _draw_at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
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
            matrix = camera @ np.vstack([shape.transform(t, self.unit), [0, 0, 1]])
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
    """Draw one clip.

    Objects of which fewer than ``MIN_PIXELS`` show in the first frame lose their label; a scene
    without any object left is replaced by the next one.

    Args:
        size: height and width.
        times: frames to draw, in units of a frame.
        rng: the only source of chance.

    Returns:
        frames ``(T, H, W, 3)`` uint8, masks ``(T, H, W)`` uint8 and the number of objects.

    Raises:
        InputError: frames too small, or no scene of 1000 shows an object.
    """
    config.check_size(size)
    visible: list[int] = []
    for _ in range(MAX_SCENES):
        scene = Scene(config, size, rng)
        frame, mask = scene.render(times[0])
        counts = np.bincount(mask.ravel(), minlength=256)
        visible = [label for label in range(1, 256) if counts[label] >= MIN_PIXELS]
        if visible:
            break
    else:
        raise InputError(
            f"no object of {MIN_PIXELS} pixels in {MAX_SCENES} scenes; enlarge min_radius or frames"
        )
    rendered = [(frame, mask)] + [scene.render(t) for t in times[1:]]
    frames = np.stack([frame for frame, _ in rendered])
    masks = keep_objects(np.stack([mask for _, mask in rendered]), visible)
    return frames, masks, len(visible)
