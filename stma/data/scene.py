"""What procedural and composite clips share: how objects, the camera and the light move.

A scene is drawn back to front, at any time, from layers that each have their own pixels. All chance
comes from one generator, when the scene is made; drawing has none.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stma.data.masks import count_ids
from stma.data.sampling import keep_objects
from stma.errors import InputError
from stma.runtime.config import check_ranges, check_types
from stma.runtime.opencv import cv2

MIN_PIXELS = 40  # of an object in the first frame; a smaller one is not annotated
MAX_SCENES = 1000  # to try for one clip
BEYOND = 0.1  # shorter sides: how far the centre of a layer drifts out of the frame
DRIFT = 0.2  # shorter sides that the camera moves to either side
ZOOM = 0.2  # logarithm of the camera's largest zoom
TURN = 0.3  # radians that it turns to either side
BLUR_STEPS = 5  # pictures averaged for one blurred frame
NEUTRAL_LIGHT = 128  # of a light field, in uint8


@dataclass
class SceneConfig:
    """What a scene contains, and how fast it moves.

    Attributes:
        min_objects, max_objects: annotated objects, all visible in the first frame.
        max_distractors: moving shapes that are never annotated; half of them look like an object.
        look_alike: probability that an object looks like the one before it.
        min_radius, max_radius: mean radius of a shape, as a share of the frame's shorter side.
        speed: how far an object travels per frame, as a share of the shorter side.
        spin: how far an object turns per frame, in radians.
        growth: largest amplitude of the slow wave in the logarithm of an object's size; 0.7 lets it
            grow or shrink up to fourfold.
        camera_speed: as `speed`, for the camera.
        leave: probability that an object's path leads out of the frame and back.
        blur: probability that a clip has motion blur.
        light: probability that the light of a clip changes, in time and across the frame.
    """

    min_objects: int = 1
    max_objects: int = 5
    max_distractors: int = 3
    look_alike: float = 0.25
    min_radius: float = 0.1
    max_radius: float = 0.24
    speed: float = 0.035
    spin: float = 0.08
    growth: float = 0.25
    camera_speed: float = 0.012
    leave: float = 0.15
    blur: float = 0.3
    light: float = 0.3

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, min_objects=1, max_objects=(self.min_objects, 255), max_distractors=0)
        check_ranges(self, min_radius=0.001, max_radius=self.min_radius)
        check_ranges(self, speed=0, spin=0, growth=0, camera_speed=0)
        check_ranges(self, look_alike=(0, 1), leave=(0, 1), blur=(0, 1), light=(0, 1))

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse frames (height, width) too small to show an object.

        Raises:
            InputError: says by how much.
        """
        height, width = size
        if min(size) < 16:
            raise InputError(f"frames of {height} x {width}; at least 16 pixels a side")
        largest = np.pi * (self.max_radius * min(size)) ** 2
        if largest < 2 * MIN_PIXELS:
            raise InputError(
                f"max_radius {self.max_radius} in frames of {height} x {width} makes "
                f"objects of {largest:.0f} pixels; {MIN_PIXELS} have to show, so give twice as many"
            )


@dataclass
class Excursion:
    """A repeated trip out of the frame and back: still, out, back, still."""

    direction: np.ndarray  # (2,), in shorter sides
    delay: float  # frames
    duration: float

    def __call__(self, t: float) -> np.ndarray:
        phase = max(0.0, t - self.delay) % (1.5 * self.duration) / self.duration
        return self.direction * (np.sin(np.pi * phase) ** 2 if phase < 1 else 0.0)


@dataclass
class Motion:
    """Where a layer is at time ``t`` (frames): it travels, sways, turns, grows and shears.

    Attributes:
        radius: its size, in shorter sides of the frame.
        extent: width and height of the frame, in shorter sides.
        position, velocity: in shorter sides, x then y.
        sway: ``(2, 3)``: amplitude, angular speed and phase, for x and y.
        scale_wave, shear_wave: amplitude, angular speed and phase.
    """

    radius: float
    extent: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    sway: np.ndarray
    angle: float
    spin: float
    scale_wave: np.ndarray
    shear_wave: np.ndarray
    excursion: Excursion | None

    def transform(self, t: float, unit: float) -> np.ndarray:
        """``(3, 3)``: units of the radius to pixels of a fixed camera whose shorter side is
        ``unit`` pixels."""
        scale = self.radius * unit * np.exp(_wave(self.scale_wave, t))
        angle = self.angle + self.spin * t
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear = np.array([[1, _wave(self.shear_wave, t)], [0, 1]])
        sway = np.array([_wave(wave, t) for wave in self.sway])
        way = self.excursion(t) if self.excursion else 0.0
        position = _bounce(self.position + self.velocity * t, self.extent)
        matrix = np.eye(3)
        matrix[:2, :2] = scale * rotation @ shear
        matrix[:2, 2] = (position + sway + way) * unit
        return matrix


def random_motion(
    config: SceneConfig, extent: np.ndarray, tilt: float, rng: np.random.Generator
) -> Motion:
    """Args: tilt: largest initial rotation of a layer, in radians to either side."""
    direction = rng.uniform(0, 2 * np.pi)
    speed = config.speed * rng.uniform(0, 1)
    excursion = None
    if rng.random() < config.leave:
        out = rng.uniform(0, 2 * np.pi)
        distance = extent.max() + config.max_radius  # leads out from anywhere
        excursion = Excursion(
            direction=distance * np.array([np.cos(out), np.sin(out)]),
            delay=rng.uniform(0, 6),
            duration=rng.uniform(6, 30),
        )
    return Motion(
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
        angle=rng.uniform(-tilt, tilt),
        spin=rng.uniform(-config.spin, config.spin),
        scale_wave=np.array(
            [rng.uniform(0, config.growth), rng.uniform(0.05, 0.3), rng.uniform(0, 6.3)]
        ),
        shear_wave=np.array([rng.uniform(0, 0.25), rng.uniform(0.05, 0.3), rng.uniform(0, 6.3)]),
        excursion=excursion,
    )


def _bounce(position: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Turn back a little beyond the frame's edges, so that long clips do not become empty."""
    span = extent + 2 * BEYOND
    turned = np.mod(position + BEYOND, 2 * span)
    return np.minimum(turned, 2 * span - turned) - BEYOND


def _wave(wave: np.ndarray, t: float) -> float:
    """A sine that is 0 at ``t = 0``."""
    amplitude, speed, phase = wave
    return float(amplitude * (np.sin(speed * t + phase) - np.sin(phase)))


class Light:
    """How the light of a clip changes: a gain and a tint over time, and a brighter side."""

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


class Scene(ABC):
    """Everything that one clip shows; `render` draws it at any time.

    Args:
        config: what it contains and how fast it moves.
        size: height and width of the frames.
        rng: the only source of chance.
    """

    def __init__(
        self, config: SceneConfig, size: tuple[int, int], rng: np.random.Generator
    ) -> None:
        self.size = size
        self.unit = float(min(size))
        self.extent = np.array([size[1], size[0]]) / self.unit
        direction = rng.uniform(0, 2 * np.pi)
        self.camera_velocity = (
            config.camera_speed
            * rng.uniform(0, 1)
            * np.array([np.cos(direction), np.sin(direction)])
        )
        self.camera_spin = rng.uniform(-0.01, 0.01)
        self.camera_zoom = rng.uniform(-0.01, 0.01)
        self.shutter = rng.uniform(0.3, 1.0) if rng.random() < config.blur else 0.0
        self.light = Light(rng) if rng.random() < config.light else None

    def camera(self, t: float) -> np.ndarray:
        """``(3, 3)``: pixels of a fixed camera to those of the moving one."""
        centre = np.array([self.size[1], self.size[0]]) / 2
        # Back and forth, since a steady drift would leave every object behind.
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
        mask belongs to the middle of that time.
        """
        frame, mask = self.draw_at(t)
        if self.shutter > 0:
            steps = self.shutter * ((np.arange(BLUR_STEPS) + 0.5) / BLUR_STEPS - 0.5)
            middle = BLUR_STEPS // 2
            total = frame.astype(np.uint16)
            for step in np.delete(steps, middle):
                total += self.draw_at(t + step)[0]
            frame = ((total + BLUR_STEPS // 2) // BLUR_STEPS).astype(np.uint8)
        return (self.light(frame, t) if self.light else frame), mask

    @abstractmethod
    def draw_at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """The frame and its mask at one moment, without blur or changes of light."""


def draw_clip(
    new_scene: Callable[[], Scene], times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw one clip.

    Objects with fewer than ``MIN_PIXELS`` in the first frame lose their label; a scene left without
    any object is replaced by the next one.

    Args:
        times: frames to draw, in units of a frame.

    Returns:
        frames ``(T, H, W, 3)`` uint8, masks ``(T, H, W)`` uint8 and the number of objects.

    Raises:
        InputError: no scene of 1000 shows an object.
    """
    for _ in range(MAX_SCENES):
        scene = new_scene()
        first = scene.render(times[0])
        counts = count_ids(first[1])
        visible = [label for label in range(1, 256) if counts[label] >= MIN_PIXELS]
        if visible:
            break
    else:
        raise InputError(
            f"no object of {MIN_PIXELS} pixels in {MAX_SCENES} scenes; enlarge min_radius or frames"
        )
    rendered = [first] + [scene.render(t) for t in times[1:]]
    frames = np.stack([frame for frame, _ in rendered])
    masks = keep_objects(np.stack([mask for _, mask in rendered]), visible)
    return frames, masks, len(visible)
