"""Tensors that know their device and shape but hold no numbers, as if they were on a GPU."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

# Torch 2.6 looks for the driver when it builds a graph of gradients, and ends the process without
# one. Nobody has tried those between the two.
FIRST_WITHOUT_CARD = "2.15"


class FusedAttention(TorchFunctionMode):
    """A card's attention stores no scores; without a card, torch would choose one that does."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if function is not F.scaled_dot_product_attention:
            return function(*arguments, **keywords)
        query, key, value = arguments
        mask = keywords.get("attn_mask")
        if mask is not None:
            mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, compute_log_sumexp=query.requires_grad
        )[0]


def can_do_without(device: torch.device) -> bool:
    """Whether this torch can imagine the device, if it is not there."""
    is_there = device.type == "cpu" or torch.cuda.is_available()
    return is_there or torch.__version__ >= FIRST_WITHOUT_CARD


@contextmanager
def without_numbers(device: torch.device) -> Iterator[None]:
    """A context in which tensors hold no numbers and torch believes in a card with bf16."""
    with ExitStack() as stack:
        if device.type == "cuda":
            for owner, name, value in (
                (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
                (torch.cuda, "is_bf16_supported", lambda *a, **k: True),
                (Tensor, "pin_memory", lambda tensor: tensor),  # fake memory cannot be pinned
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
            stack.enter_context(FusedAttention())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def put_on(module: nn.Module, device: torch.device) -> None:
    """Give a module of the meta device tensors on another one, without numbers."""
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    shape, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype
                    fake: Any = torch.empty_strided(shape, stride, dtype=dtype, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake) if is_parameter else fake


def backward(loss: Tensor) -> None:
    """``loss.backward()``, node by node in the same order: torch's own engine cannot run if a
    tensor's device does not exist. Parts of the graph held elsewhere are kept."""
    root: Any = loss.grad_fn
    waiting: Counter[Any] = Counter()  # how many gradients each node still waits for
    found, pending = {root}, [root]
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in found:
                    found.add(node)
                    pending.append(node)
    gradients: dict[Any, list[Tensor | None]] = {root: [torch.ones_like(loss)]}
    number = itertools.count()  # nodes cannot be compared
    ready = [(0, next(number), root)]
    del found, loss, root
    # Recomputed blocks ask which pass of the engine they are in.
    one_pass = mock.patch.object(torch._C, "_current_graph_task_id", return_value=0)
    with torch.no_grad(), one_pass:
        while ready:
            _, _, node = heapq.heappop(ready)
            results = node(*gradients.pop(node))
            following = node.next_functions
            del node  # and everything it kept
            results = results if isinstance(results, tuple) else (results,)
            for gradient, (target, index) in zip(results, following, strict=True):
                if target is None:
                    continue
                if gradient is not None:
                    expected = target._input_metadata[index]
                    if gradient.shape != expected.shape:
                        gradient = gradient.sum_to_size(expected.shape)
                    gradient = gradient.to(expected.dtype)
                    slots = gradients.setdefault(target, [None] * len(target._input_metadata))
                    slots[index] = gradient if slots[index] is None else slots[index] + gradient
                waiting[target] -= 1
                if waiting[target] == 0 and target in gradients:
                    heapq.heappush(ready, (-target._sequence_nr(), next(number), target))
            del results, following
