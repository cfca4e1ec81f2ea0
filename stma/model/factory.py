"""The one place where sizes are chosen: a flat configuration to a built network."""

from dataclasses import dataclass, field

import torch

from stma.errors import InputError
from stma.model.association import SIMILARITIES, Association, Reading
from stma.model.backbone import IMAGENET, Backbone, Normalization
from stma.model.convvit import ConvViT
from stma.model.decoder import Decoder
from stma.model.object_features import NoObjectFeatures, ObjectFeatures
from stma.model.per_object import PerObjectSTMA
from stma.model.stma import STMA
from stma.model.streams import PER_OBJECT, STREAMS, VARIANTS
from stma.model.timm_backbone import TimmStages, TimmViT, facts
from stma.model.value_encoder import ValueEncoder
from stma.model.vit import ViT
from stma.runtime.config import check_types

BACKBONES = ("convvit", "vit", "timm")


@dataclass
class ModelConfig:
    """Every size of the network. The defaults are ConvViT-B.

    Attributes:
        backbone: ``convvit``, ``vit`` or ``timm``.
        timm: the name of a backbone of timm; what it has of ``dims``, ``depths`` and ``num_heads``
            is taken from it: of a plain ViT all at stride 16, of another strides 4 and 8.
        dims: channels at strides 4, 8 and 16; a ViT makes the first two with its pyramid or stem.
        depths: blocks at these strides; a ViT without a stem has them only at stride 16. Every
            network needs 2 or more there, since nothing reads the objects after the last block.
        drop_path: stochastic depth of the last block.
        value_dim: channels of an ID value; null for the width of a token.
        value_widths: channels of the value encoder at strides 4, 8 and 16.
        value_depth: its residual blocks per stride.
        decoder_widths: channels of the decoder at stride 16, and at strides 8 and 4.
        similarity: ``dot`` or ``l2``.
        enhanced_keys: whether the memory keys of a frame that gives objects are recomputed once
            these are known (ours).
        train_top_k: in training, each query reads only the k most similar elements of the memory;
            null reads all (ours; inference has ``segmenter.top_k``).
        train_kernel: in training, each element is read around the query most similar to it; null
            reads it everywhere (ours; inference has ``segmenter.kernel``, which says more).
        reference_pooling: references keep the means of squares of so many tokens a side, which
            saves time (ours); 1 keeps all tokens.
        class_token: whether a ViT's frames carry one, as in pretraining (ours).
        conv_stem: whether a ViT's features at strides 4 and 8 come from a convolutional stem on the
            image, built as ConvViT's first two stages, instead of a pyramid on its last feature
            (ours).
        mean, std: of red, green and blue in ``[0, 1]``, with which frames are normalised; null for
            timm's, if it has the backbone, and otherwise ImageNet's.
        variant: ``full``, or an ablation of Table 1: ``no_object``, ``no_spatial_memory``,
            ``no_temporal_memory``, ``joint``.
    """

    backbone: str = "convvit"
    timm: str | None = None
    dims: list[int] = field(default_factory=lambda: [256, 384, 768])
    depths: list[int] = field(default_factory=lambda: [2, 2, 11])
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    value_dim: int | None = None
    value_widths: list[int] = field(default_factory=lambda: [64, 128, 256])
    value_depth: int = 2
    decoder_widths: list[int] = field(default_factory=lambda: [256, 128])
    similarity: str = "dot"
    enhanced_keys: bool = False
    train_top_k: int | None = None
    train_kernel: float | None = None
    reference_pooling: int = 1
    class_token: bool = False
    conv_stem: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    variant: str = "full"

    def __post_init__(self) -> None:
        check_types(self, "model.")
        lengths = {"dims": 3, "depths": 3, "value_widths": 3, "decoder_widths": 2}
        for name, length in lengths.items():
            value = getattr(self, name)
            if len(value) != length:
                raise InputError(f"model.{name} is {list(value)}; it needs {length} numbers")
            if min(value) < (0 if name == "depths" else 1):
                raise InputError(f"model.{name} is {list(value)}; give positive numbers")
        if self.backbone not in BACKBONES:
            raise InputError(f"model.backbone is {self.backbone!r}; choose one of {BACKBONES}")
        if (self.backbone == "timm") != (self.timm is not None):
            raise InputError(
                f"model.timm is {self.timm!r}, but model.backbone {self.backbone!r}; model=timm "
                "needs model.timm=NAME, and others have none"
            )
        self._take_from_timm()
        for name, values in zip(("mean", "std"), self.normalization, strict=True):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise InputError(f"model.{name} is {values}; give three numbers, or null")
        if self.backbone == "vit" and not self.conv_stem and list(self.depths[:2]) != [0, 0]:
            raise InputError(
                f"model.depths is {list(self.depths)}; a ViT needs [0, 0, n], or model.conv_stem"
            )
        for name, without in (("class_token", ("convvit", "timm")), ("conv_stem", ("convvit",))):
            if self.backbone in without and getattr(self, name):
                raise InputError(f"model.{name} is true, but only a vit has one")
        if self.depths[2] < 2:
            raise InputError(
                f"model.depths is {list(self.depths)}; the last needs 2 or more, as the objects "
                "reach the frame through the block before the last"
            )
        if self.similarity not in SIMILARITIES:
            raise InputError(
                f"model.similarity is {self.similarity!r}; choose one of {SIMILARITIES}"
            )
        if self.variant not in VARIANTS:
            raise InputError(f"model.variant is {self.variant!r}; choose one of {VARIANTS}")
        if self.variant == PER_OBJECT:
            unused: dict[str, object] = {"value_dim": None, "similarity": "dot"}
            unused |= {"enhanced_keys": False, "train_top_k": None, "train_kernel": None}
            for name, default in unused.items():
                if getattr(self, name) != default:
                    raise InputError(
                        f"model.{name} is {getattr(self, name)!r}, but model.variant={PER_OBJECT} "
                        "has no temporal memory to read; leave it out"
                    )
        if self.reference_pooling != 1 and self.variant in (PER_OBJECT, "no_spatial_memory"):
            raise InputError(
                f"model.reference_pooling is {self.reference_pooling}, but with model.variant="
                f"{self.variant} references cannot be pooled; leave it out"
            )
        if self.num_heads < 1 or self.dims[2] % self.num_heads or self.dims[2] % 4:
            raise InputError(
                f"model.dims[2] is {self.dims[2]}; it must be divisible by "
                f"model.num_heads ({self.num_heads}) and, for the position embedding, by 4"
            )
        if not 0 <= self.drop_path < 1:
            raise InputError(f"model.drop_path is {self.drop_path}; give 0 <= drop_path < 1")
        for name in ("value_dim", "train_top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; give 1 or more, or null")
        for name in ("value_depth", "mlp_ratio", "reference_pooling", "train_kernel"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; give a positive number")

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of red, green and blue in ``[0, 1]``."""
        assert self.mean is not None
        assert self.std is not None
        return self.mean, self.std

    def _take_from_timm(self) -> None:
        """Fill in what the backbone of that name determines."""
        mean, std = IMAGENET
        if self.timm is not None:
            known = facts(self.timm)
            mean, std = known.mean, known.std
            if known.is_vit:
                self.dims[2], self.depths[2] = known.dims[0], known.depth
                self.num_heads = known.num_heads
            else:
                self.dims[:2], self.conv_stem = known.dims, False
            if not self.conv_stem:
                self.depths[:2] = [0, 0]
            if known.rotary and self.reference_pooling != 1:
                raise InputError(
                    f"model.reference_pooling is {self.reference_pooling}, but tokens of "
                    f"model.timm={self.timm} have rotary positions, and means of them none"
                )
        self.mean = list(mean) if self.mean is None else self.mean
        self.std = list(std) if self.std is None else self.std


def build_backbone(config: ModelConfig) -> Backbone:
    """A backbone with fresh weights."""
    backbone = _fresh_backbone(config)
    backbone.normalization = config.normalization
    return backbone


def _fresh_backbone(config: ModelConfig) -> Backbone:
    if config.timm is not None and facts(config.timm).is_vit:
        return TimmViT(
            config.timm,
            fine_dims=(config.dims[1], config.dims[0]),
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            stem_depths=config.depths[:2] if config.conv_stem else None,
        )
    if config.timm is not None:
        return TimmStages(
            config.timm,
            config.dims[2],
            config.depths[2],
            config.num_heads,
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
        )
    if config.backbone == "vit":
        return ViT(
            dim=config.dims[2],
            depth=config.depths[2],
            num_heads=config.num_heads,
            fine_dims=(config.dims[1], config.dims[0]),
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            class_token=config.class_token,
            stem_depths=config.depths[:2] if config.conv_stem else None,
        )
    return ConvViT(
        dims=config.dims,
        depths=config.depths,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_path=config.drop_path,
    )


def build_model(config: ModelConfig) -> STMA:
    """A network with fresh weights (seed torch first to reproduce them)."""
    backbone = build_backbone(config)
    value_dim = backbone.dim if config.value_dim is None else config.value_dim

    def build_decoder() -> Decoder:
        return Decoder(value_dim, backbone.dim, backbone.fine_dims, config.decoder_widths)

    model: STMA
    if config.variant == PER_OBJECT:
        model = PerObjectSTMA(backbone, build_decoder())
    else:
        streams = STREAMS[config.variant]()
        has_objects = streams.reads_objects
        model = STMA(
            backbone=backbone,
            value_encoder=ValueEncoder(value_dim, config.value_widths, config.value_depth),
            object_features=(
                ObjectFeatures(value_dim, backbone.dim) if has_objects else NoObjectFeatures()
            ),
            association=Association(config.similarity),
            decoder=build_decoder(),
            streams=streams,
            enhanced_keys=config.enhanced_keys,
            train_reading=Reading(config.train_top_k, config.train_kernel),
            reference_pooling=config.reference_pooling,
        )
        # Depthwise and pointwise convolutions of few channels are much faster this way everywhere.
    return model.to(memory_format=torch.channels_last)
