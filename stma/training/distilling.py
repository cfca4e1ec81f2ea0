"""A start for a backbone without public weights: it learns the features of one that has them.

The paper's backbone starts from ImageNet. A stage with ``teacher=`` passes on what a public ViT has
learned there, on the pictures at hand and without their masks (ours).
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stma.errors import InputError
from stma.model.backbone import Backbone
from stma.model.pretrained import load_pretrained, read_public_checkpoint
from stma.model.stma import STMA
from stma.model.stml import encode_test
from stma.model.vit import ViT
from stma.structures import ClipBatch

HEAD_DIM = 64  # of all public ViTs
BLOCK = re.compile(r"(?:.*\.)?blocks\.(\d+)\.attn\.qkv\.weight")


def build_teacher(path: str | Path) -> ViT:
    """A public ViT of any size, as :func:`~stma.model.pretrained.load_pretrained` reads them.

    Raises:
        InputError: the file is faulty, or of no ViT.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in read_public_checkpoint(path).items()}
    blocks = {int(match[1]) for name in shapes if (match := BLOCK.fullmatch(name))}
    dim = next((shape[1] for name, shape in shapes.items() if BLOCK.fullmatch(name)), 0)
    if not blocks or dim % HEAD_DIM:
        raise InputError(f"{path}: not a ViT's weights; a teacher is one of DINOv2, MAE or MoCo v3")
    teacher = ViT(
        dim=dim,
        depth=len(blocks),
        num_heads=dim // HEAD_DIM,
        fine_dims=(8, 8),
        class_token=any(name.endswith("cls_token") for name in shapes),
    )
    load_pretrained(teacher, path)
    return teacher.eval().requires_grad_(False)


class Distillation(nn.Module):
    """The backbone of ``model`` with a head that predicts the teacher's tokens from its own.

    Args:
        teacher: a file; see :func:`build_teacher`.
    """

    def __init__(self, model: STMA, teacher: str | Path) -> None:
        super().__init__()
        self.backbone = model.backbone
        self._student = [model]  # whose other parameters do not learn
        self._teacher = [build_teacher(teacher)]  # nor does it, and no checkpoint needs it
        dim, target_dim = model.backbone.dim, self._teacher[0].dim
        self.head = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, target_dim)
        )

    def forward(self, clip: ClipBatch) -> Tensor:
        """Smooth L1 between prediction and target over all frames, a scalar; the channels of a
        target's token have mean 0 and variance 1."""
        images = self._student[0].normalize(clip.frames.flatten(0, 1))
        teacher = self._teacher[0].to(images.device)
        with torch.no_grad():
            target = lone_tokens(teacher, images).float()
        target = F.layer_norm(target, target.shape[-1:])
        return F.smooth_l1_loss(self.head(lone_tokens(self.backbone, images)).float(), target)


def lone_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """``(B, L, C)``: what a backbone makes of normalised images that read only themselves."""
    frame = backbone.embed(images)
    rope = backbone.rope(frame.grid)
    return backbone.finish(encode_test(backbone.last_stage, frame.tokens, None, rope=rope))
