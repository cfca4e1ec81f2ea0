import math

import pytest
import torch

from stma.memory.temporal import TemporalMemory
from stma.model import association as module
from stma.model.association import (
    Association,
    Reading,
    affinity_scores,
    best_query,
    kernelize,
    largest,
    read_all,
    read_top_k,
)


def test_dot_and_l2_scores_by_hand() -> None:
    query = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])
    keys = torch.tensor([[[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]])
    assert affinity_scores(query, keys, "dot").flatten().tolist() == [5 / 2, 0]
    # -|q - k|^2 / sqrt(C) is -5/2 and -9/2; |q|^2 = 5, which the softmax cancels, is left out.
    assert affinity_scores(query, keys, "l2").flatten().tolist() == [0, -4 / 2]


def masked_below_top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < threshold, -math.inf)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_top_k_reads_what_a_softmax_over_the_k_largest_would(k: int) -> None:
    """Gathered and dense, with the gradients of queries, keys and values."""
    torch.manual_seed(0)
    query = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 7, 3, 6, dtype=torch.float64, requires_grad=True)
    scores = query @ keys.transpose(1, 2)
    scores = scores.masked_fill(torch.tensor([False] * 5 + [True] * 2), -math.inf)

    gathered, received = read_top_k(scores, values, k)
    dense, dense_received = read_all(masked_below_top_k(scores, min(k, 7)), values)
    assert torch.allclose(gathered, dense, atol=1e-12)
    assert torch.allclose(received, dense_received, atol=1e-12)
    assert not received.requires_grad
    weight = torch.randn_like(dense)
    for a, b in zip(
        torch.autograd.grad((gathered * weight).sum(), (query, keys, values), retain_graph=True),
        torch.autograd.grad((dense * weight).sum(), (query, keys, values)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("elements", [70, 1000, 1024])
def test_the_largest_are_found_by_blocks(elements: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, elements)
    scores[0, 0, 32:48] += 9  # all in one block
    scores[1, :, -5:] += 9  # beyond the last whole block
    scores[0, 1, : elements // 2] = -math.inf
    for k in (1, 5, 16):
        value, index = largest(scores, k)
        assert torch.equal(value.sort().values, scores.topk(k).values.sort().values)
        assert torch.equal(scores.gather(2, index), value)


@pytest.mark.parametrize("queries", [16, 48, 50])
def test_the_best_query_of_each_element(queries: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, queries, 7)
    value, index = best_query(scores)
    assert torch.equal(value, scores.amax(dim=1))
    assert torch.equal(index, scores.argmax(dim=1))


def test_a_kernel_lowers_scores_by_the_distance_from_the_best_query() -> None:
    # Four queries, two elements.
    scores = torch.tensor([[[3.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 0.0]]])
    kernelize([scores], (2, 2), sigma=0.5)
    # The next token is half the shorter side away, one sigma: 1/2 less, or 1 less aslant.
    expected = torch.tensor([[[3.0, -0.5], [1.5, -1.0], [1.5, 1.0], [-1.0, -0.5]]])
    # Up to a constant for each query, which a softmax does not see.
    torch.testing.assert_close(scores.softmax(dim=2), expected.softmax(dim=2))


def test_what_looks_alike_elsewhere_no_longer_reads_the_object() -> None:
    association = Association()
    memory = TemporalMemory()
    keys = torch.tensor([[[8.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]])
    values = torch.tensor([[[[1.0], [0.0]]]])  # the object is the first element
    memory.write(keys, values, torch.zeros(1, 1, 4), pinned=True)
    query = torch.zeros(1, 6, 4)
    query[0, :, 0] = torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 1.9])  # the object, and its like
    query[0, 4, 1] = 1.0  # the background, beside it
    object_, like = association(query, memory, (1, 6), Reading(kernel=0.1))[0, 0, [0, 5], 0]
    assert object_ > 0.99
    assert like < 0.01
    wide = association(query, memory, (1, 6), Reading(kernel=1e4))
    torch.testing.assert_close(wide, association(query, memory, (1, 6)))


def test_gradients_pass_a_kernel() -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 6, 3).double().requires_grad_() for _ in range(3))

    def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        scores = query @ keys.mT
        kernelize([scores], (2, 3), sigma=0.7)
        return read_all(scores, values[:, :, None])[0]

    assert torch.autograd.gradcheck(read, (query, keys, values))


@pytest.mark.parametrize("similarity", ["dot", "l2"])
@pytest.mark.parametrize(("top_k", "kernel"), [(None, None), (4, None), (4, 0.3)])
def test_queries_read_a_few_at_a_time_read_the_same(
    similarity: str, top_k: int | None, kernel: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups of objects, the second of which knows only the second frame."""
    torch.manual_seed(0)
    association = Association(similarity)
    query = torch.randn(2, 9, 4)
    frames = [(torch.randn(2, 5, 4), torch.randn(2, objects, 5, 6)) for objects in (1, 3)]
    readouts, uses = [], []
    for at_once in (9, 4, 1):
        monkeypatch.setattr(module, "CPU_QUERIES", at_once)
        memory = TemporalMemory(capacity=10)
        for keys, values in frames:
            memory.write(keys, values, torch.zeros(2, values.shape[1], 4), pinned=True)
        readouts.append(association(query, memory, (3, 3), Reading(top_k, kernel)))
        uses.append((memory._usage, memory._age))
    for readout, (usage, age) in zip(readouts[1:], uses[1:], strict=True):
        assert torch.allclose(readout, readouts[0], atol=1e-6)
        assert torch.allclose(usage, uses[0][0], atol=1e-5)
        assert torch.equal(age, torch.ones(2, 10))
    assert uses[0][0].sum() == pytest.approx(2 * 9, abs=1e-4)  # every query gives a weight of 1


def test_a_long_memory_is_read_by_few_queries_at_a_time() -> None:
    cpu = torch.device("cpu")
    assert module.queries_at_once(1, 10_000, cpu) == module.CPU_QUERIES
    assert module.queries_at_once(1, 486_000, cpu) * 486_000 <= module.CPU_SCORES
    assert module.queries_at_once(16, 10**9, cpu) == 1


def test_readout_is_the_affinity_weighted_mean_of_values() -> None:
    association = Association()
    memory = TemporalMemory()
    keys = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]])
    values = torch.tensor([[[[1.0], [3.0]], [[10.0], [20.0]]]])  # two objects
    memory.write(keys, values, torch.zeros(1, 2, 4), pinned=True)
    query = torch.tensor([[[math.log(3), 0.0, 0.0, 0.0]]])  # weights 3/4 and 1/4
    readout = association(query, memory, (1, 1))
    assert readout.shape == (1, 2, 1, 1)
    assert readout.flatten().tolist() == pytest.approx([1.5, 12.5])


def test_late_objects_read_as_if_older_elements_did_not_exist() -> None:
    torch.manual_seed(0)
    association = Association()
    early, late = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    early_values, late_values = torch.randn(1, 1, 3, 5), torch.randn(1, 2, 3, 5)
    query = torch.randn(1, 6, 4)

    memory = TemporalMemory(capacity=20)
    memory.write(early, early_values, torch.zeros(1, 1, 4), pinned=True)
    memory.write(late, late_values, torch.zeros(1, 2, 4), pinned=True)
    readout = association(query, memory, (2, 3))

    only_late = TemporalMemory(capacity=20)
    only_late.write(late, late_values, torch.zeros(1, 2, 4), pinned=True)
    assert torch.allclose(readout[:, 1], association(query, only_late, (2, 3))[:, 1])

    only_first = TemporalMemory(capacity=20)
    only_first.write(early, early_values, torch.zeros(1, 1, 4), pinned=True)
    only_first.write(late, late_values[:, :1], torch.zeros(1, 1, 4), pinned=True)
    assert torch.allclose(readout[:, 0], association(query, only_first, (2, 3))[:, 0])


def test_readings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="top_k is 0"):
        Reading(top_k=0)
    with pytest.raises(ValueError, match=r"kernel is -0\.1"):
        Reading(kernel=-0.1)


def test_unknown_similarity() -> None:
    with pytest.raises(ValueError, match="cosine"):
        Association("cosine")
