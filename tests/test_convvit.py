from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import nn

from stma.model.attention import TransformerBlock
from stma.model.convvit import ConvBlock, ConvViT
from stma.model.stml import encode_test


def test_convvit_b_has_the_names_and_shapes_of_convmae() -> None:
    """Recorded from the public ConvMAE code, one block of each stage."""
    with torch.device("meta"):
        state = ConvViT(dims=(256, 384, 768), depths=(2, 2, 11), num_heads=12).state_dict()
    expected = {
        "pos_embed": (1, 196, 768),
        "patch_embed1.proj.weight": (256, 3, 4, 4),
        "patch_embed1.norm.weight": (256,),
        "patch_embed2.proj.weight": (384, 256, 2, 2),
        "patch_embed3.proj.weight": (768, 384, 2, 2),
        "patch_embed4.weight": (768, 768),
        "blocks1.1.norm1.weight": (256,),
        "blocks1.1.conv1.weight": (256, 256, 1, 1),
        "blocks1.1.attn.weight": (256, 1, 5, 5),
        "blocks1.1.conv2.bias": (256,),
        "blocks1.1.mlp.fc1.weight": (1024, 256, 1, 1),
        "blocks2.1.mlp.fc2.weight": (384, 1536, 1, 1),
        "blocks3.10.norm1.bias": (768,),
        "blocks3.10.attn.qkv.weight": (2304, 768),
        "blocks3.10.attn.qkv.bias": (2304,),
        "blocks3.10.attn.proj.weight": (768, 768),
        "blocks3.10.mlp.fc1.weight": (3072, 768),
        "norm.bias": (768,),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert expected.items() <= shapes.items()
    assert len(shapes) == 205  # as many as ConvMAE's encoder has


def test_strides_and_channels() -> None:
    backbone = ConvViT(dims=(4, 8, 12), depths=(1, 1, 2), num_heads=2)
    frame = backbone.embed(torch.randn(2, 3, 32, 48))
    assert frame.grid == (2, 3)
    assert frame.tokens.shape == (2, 6, 12)
    stride8, stride4 = backbone.fine_features(frame, frame.tokens)
    assert stride8.shape == (2, 8, 4, 6)
    assert stride4.shape == (2, 4, 8, 12)


def test_a_block_without_its_residuals_is_the_identity() -> None:
    block = ConvBlock(4)
    for layer in (block.conv2, block.mlp.fc2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_a_block_is_timms_transformer_block() -> None:
    """With the same parameter names, as in MAE and ConvMAE."""
    torch.manual_seed(0)
    theirs = Block(12, num_heads=2, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = TransformerBlock(12, num_heads=2)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 6, 12)
    assert torch.allclose(encode_test([ours], tokens, None), theirs(tokens), atol=1e-6)
