"""The ID value encoder: from a frame and its masks to one value map per object.

It is also the paper's feature enhancement layer: on the first frame, when memory is empty, it turns
the frame and its ground truth into the first object features (our reading).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stma.model.blocks import (
    ResidualBlock,
    group_norm,
    init_convolutions,
    per_object,
    split_objects,
)


class ValueEncoder(nn.Module):
    """(image, mask of the object, masks of the others) to ``C x h x w``, for each object.

    A ResNet up to stride 16 with GroupNorm. Its first convolution is split: the image part is the
    same for all objects and is computed once.

    Args:
        dim: channels of a value.
        widths: channels at strides 4, 8 and 16.
        depth: residual blocks per stride.
    """

    def __init__(self, dim: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.stem_image = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.stem_masks = nn.Conv2d(2, widths[0], 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(
            group_norm(widths[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        )
        stages: list[nn.Module] = []
        in_dim = widths[0]
        for index, width in enumerate(widths):
            stages.append(ResidualBlock(in_dim, width, stride=1 if index == 0 else 2))
            stages += [ResidualBlock(width, width) for _ in range(depth - 1)]
            in_dim = width
        self.stages = nn.Sequential(*stages)
        self.project = nn.Conv2d(in_dim, dim, 1)
        self.apply(init_convolutions)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Encode.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            masks: ``(B, N, H, W)`` probabilities or hard masks.

        Returns:
            ``(B, N, C, h, w)``.
        """
        others = masks.sum(dim=1, keepdim=True) - masks
        pairs = torch.stack([masks, others], dim=-1)  # channels last, as the images
        image = self.stem_image(images)
        values = []
        for some in split_objects(pairs):
            x = per_object(image, self.stem_masks(some.flatten(0, 1).permute(0, 3, 1, 2)))
            x = self.project(self.stages(self.stem(x)))
            values.append(x.unflatten(0, some.shape[:2]))
        return torch.cat(values, dim=1)
