"""The settings of one dataset: a YAML block in configs/dataset."""

from dataclasses import dataclass, field
from pathlib import Path

from stma.data.composite import CompositeConfig
from stma.data.image_folder import Layout
from stma.data.masks import MASK_VALUES
from stma.data.scene import SceneConfig
from stma.data.transforms import TransformConfig
from stma.errors import InputError
from stma.runtime.config import check_ranges, check_types
from stma.runtime.outputs import check_path

KINDS = ("videos", "images", "procedural", "composite")
MADE = ("cut_from", "grounds", "composite", "scene")
ON_DISK = (
    "root",
    "images",
    "masks",
    "parts",
    "layouts",
    "split",
    "exclude",
    "published",
    "mask_values",
    "mask_void",
    "annotation_stride",
    "repeats",
    "min_pixels",
    "clear_pixels",
    "transform",
)
NEEDLESS = {  # keys that mean nothing to a kind, and that its YAML blocks do not have
    "videos": ("layouts", *MADE),
    "images": ("images", "masks", "parts", "split", "annotation_stride", *MADE),
    "procedural": (*ON_DISK, "cut_from", "grounds", "composite"),
    "composite": (*ON_DISK, "scene"),
}


@dataclass
class DatasetConfig:
    """One dataset.

    Attributes:
        kind: ``videos`` (the DAVIS layout), ``images`` (a clip is one image, deformed),
            ``procedural`` (drawn on the fly) or ``composite`` (cut from others on the fly).
        root: its folder; the last two kinds have none.
        images, masks: for videos: the two folders of clips, under the root or absolute.
        parts: for videos: subfolders of the root that each hold such a pair of folders, if the
            set comes in parts.
        layouts: for images: where they are; the first that finds an image is used.
        split: for videos: a list in ``ImageSets``; null takes every clip.
        exclude: names of clips or images to leave out; ``*`` stands for any text (``*7`` leaves
            out every tenth of a set of numbered pictures, to validate on).
        published: how many clips or images the set was published with; null: any number.
        mask_values: ``index`` (a pixel is the ID of its object) or ``binary`` (bright is object).
        mask_void: an ID of pixels without a label, which are read as background; null if none is.
        annotation_stride: frames of the video from one annotated frame to the next; a clip's
            maximum gap is divided by it.
        repeats: how often each clip occurs in an epoch.
        weight: share of all samples, 0 to 1; null: given by the number of clips and repeats.
        min_pixels, clear_pixels: an object is followed if it shows ``min_pixels`` in the first
            frame, and either ``clear_pixels`` there or never more than four times its first area.
        transform: augmentation; clips made on the fly have none.
        scene: what procedural clips show.
        composite: what composite clips show.
        cut_from: datasets that composite clips cut their objects from, all equally likely.
        grounds: datasets that they take their backgrounds from; if empty, those of ``cut_from``.
    """

    kind: str = "videos"
    root: str = ""
    images: str = "JPEGImages"
    masks: str = "Annotations"
    parts: list[str] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    split: str | None = None
    exclude: list[str] = field(default_factory=list)
    published: int | None = None
    mask_values: str = "index"
    mask_void: int | None = None
    annotation_stride: int = 1
    repeats: int = 1
    weight: float | None = None
    min_pixels: int = 1
    clear_pixels: int = 0
    transform: TransformConfig = field(default_factory=TransformConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    composite: CompositeConfig = field(default_factory=CompositeConfig)
    cut_from: dict[str, "DatasetConfig"] = field(default_factory=dict)
    grounds: dict[str, "DatasetConfig"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}; choose one of {KINDS}")
        if self.mask_values not in MASK_VALUES:
            raise InputError(f"mask_values is {self.mask_values!r}; choose one of {MASK_VALUES}")
        check_ranges(
            self, mask_void=(1, 255), annotation_stride=1, repeats=1, min_pixels=1, clear_pixels=0
        )
        if self.mask_void is not None and self.mask_values == "binary":
            raise InputError("mask_void is set, but binary masks hold no IDs")
        if self.weight is not None:
            if not 0 < self.weight <= 1:
                raise InputError(
                    f"weight is {self.weight}; it is a share of all samples, more than 0 and at "
                    "most 1 (null: by the number of clips)"
                )
            if self.repeats != 1:
                raise InputError("weight and repeats are both given; give only one of them")
        check_path(Path(self.root))
        if self.kind == "images" and not self.layouts:
            raise InputError("layouts is empty; say where images and masks are under the root")
        for key in ("cut_from", "grounds"):
            for name, block in getattr(self, key).items():
                if block.kind not in ("videos", "images"):
                    raise InputError(f"{key}.{name} is {block.kind}; give videos or images")

    def folders(self) -> list[Path]:
        """All that are read, also by the datasets that it is made of."""
        blocks = (*self.cut_from.values(), *self.grounds.values())
        found = [folder for block in blocks for folder in block.folders()]
        if self.kind == "images" or (self.kind == "videos" and self.root):
            found.append(Path(self.root))
        if self.kind == "videos":
            parts = [Path(self.root, part) for part in self.parts or [""]]
            found += [part / name for part in parts for name in (self.images, self.masks)]
        return found
