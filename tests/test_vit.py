import torch

from stma.model.vit import ViT


def test_names_and_shapes_are_those_of_mae() -> None:
    with torch.device("meta"):
        model = ViT(dim=768, depth=12, num_heads=12, fine_dims=(384, 192))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 196, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.11.mlp.fc2.weight": (768, 3072),
        "norm.weight": (768,),
    }
    assert expected.items() <= shapes.items()


def test_the_pyramid_supplies_strides_8_and_4() -> None:
    model = ViT(dim=16, depth=1, num_heads=2, fine_dims=(12, 8))
    frame = model.embed(torch.randn(2, 3, 32, 48))
    assert frame.tokens.shape == (2, 1 + 6, 16)
    features = model.finish(frame.tokens)
    assert torch.equal(features, model.norm(frame.tokens[:, 1:]))
    stride8, stride4 = model.fine_features(frame, features)
    assert stride8.shape == (2, 12, 4, 6)
    assert stride4.shape == (2, 8, 8, 12)


def test_a_stem_supplies_strides_8_and_4_from_the_image_alone() -> None:
    model = ViT(dim=16, depth=1, num_heads=2, fine_dims=(12, 8), stem_depths=(2, 1))
    assert len(model.stem.blocks1) == 2
    frame = model.embed(torch.randn(2, 3, 32, 48))
    stride8, stride4 = model.fine_features(frame, features=torch.empty(0))
    assert stride8.shape == (2, 12, 4, 6)
    assert stride4.shape == (2, 8, 8, 12)
    assert not any(name.startswith("to_stride") for name in model.state_dict())


def test_every_frame_has_the_same_class_token_unless_there_is_none() -> None:
    model = ViT(dim=16, depth=1, num_heads=2, fine_dims=(12, 8))
    tokens = model.embed(torch.randn(3, 3, 32, 48)).tokens
    assert torch.equal(tokens[:, :1], model.cls_token.expand(3, 1, 16))
    without = ViT(dim=16, depth=1, num_heads=2, fine_dims=(12, 8), class_token=False)
    assert without.embed(torch.randn(3, 3, 32, 48)).tokens.shape == (3, 6, 16)
    assert without.finish(tokens).shape == (3, 7, 16)
