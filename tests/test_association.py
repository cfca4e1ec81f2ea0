import math

import pytest
import torch

from stma.memory.temporal import TemporalMemory
from stma.model.association import Association, affinity_scores, keep_top_k


def test_dot_and_l2_scores_by_hand() -> None:
    query = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])
    keys = torch.tensor([[[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]])
    assert affinity_scores(query, keys, "dot").flatten().tolist() == [5 / 2, 0]
    # -|q - k|^2 / sqrt(C) is -5/2 and -9/2; |q|^2 = 5, which the softmax cancels, is left out.
    assert affinity_scores(query, keys, "l2").flatten().tolist() == [0, -4 / 2]


def test_top_k_keeps_the_largest() -> None:
    scores = torch.tensor([[[0.1, 3.0, 2.0, -1.0]]])
    assert keep_top_k(scores, 2).tolist() == [[[-math.inf, 3.0, 2.0, -math.inf]]]
    assert torch.equal(keep_top_k(scores, 9), scores)


def test_readout_is_the_affinity_weighted_mean_of_values() -> None:
    association = Association(dim=4)
    memory = TemporalMemory()
    keys = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]])
    values = torch.tensor([[[[1.0], [3.0]], [[10.0], [20.0]]]])  # two objects
    memory.write(keys, values, torch.zeros(1, 2, 4), pinned=True)
    query = torch.tensor([[[math.log(3), 0.0, 0.0, 0.0]]])  # weights 3/4 and 1/4
    readout = association(query, memory)
    assert readout.shape == (1, 2, 1, 1)
    assert readout.flatten().tolist() == pytest.approx([1.5, 12.5])


def test_late_objects_read_as_if_older_elements_did_not_exist() -> None:
    torch.manual_seed(0)
    association = Association(dim=4)
    early, late = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    early_values, late_values = torch.randn(1, 1, 3, 5), torch.randn(1, 2, 3, 5)
    query = torch.randn(1, 6, 4)

    memory = TemporalMemory(capacity=20)
    memory.write(early, early_values, torch.zeros(1, 1, 4), pinned=True)
    memory.write(late, late_values, torch.zeros(1, 2, 4), pinned=True)
    readout = association(query, memory)

    only_late = TemporalMemory(capacity=20)
    only_late.write(late, late_values, torch.zeros(1, 2, 4), pinned=True)
    assert torch.allclose(readout[:, 1], association(query, only_late)[:, 1])

    only_first = TemporalMemory(capacity=20)
    only_first.write(early, early_values, torch.zeros(1, 1, 4), pinned=True)
    only_first.write(late, late_values[:, :1], torch.zeros(1, 1, 4), pinned=True)
    assert torch.allclose(readout[:, 0], association(query, only_first)[:, 0])


def test_a_key_projection_sets_the_width_of_keys() -> None:
    assert Association(dim=8, key_dim=3).key(torch.randn(1, 5, 8)).shape == (1, 5, 3)


def test_unknown_similarity() -> None:
    with pytest.raises(ValueError, match="cosine"):
        Association(dim=4, similarity="cosine")
