import dataclasses

import pytest
import torch
from conftest import make_batch

from stma.memory.video import VideoMemory
from stma.model.association import Reading
from stma.model.backbone import FrameEmbedding
from stma.model.stma import STMA
from stma.structures import ClipBatch


def test_one_distribution_per_pixel_for_every_frame_but_the_first(tiny_model: STMA) -> None:
    clip = make_batch(batch=2, num_frames=3, size=48)
    probabilities = tiny_model(clip).probabilities
    num_objects = clip.valid_objects.shape[1]
    assert probabilities.shape == (2, 2, num_objects + 1, 48, 48)
    assert torch.allclose(probabilities.sum(2), torch.ones(2, 2, 48, 48).double(), atol=1e-9)


def test_clips_of_any_size(tiny_model: STMA) -> None:
    clip = make_batch(num_frames=3, size=48)
    cut = dataclasses.replace(
        clip, frames=clip.frames[..., :41, :37], masks=clip.masks[..., :41, :37]
    )
    assert tiny_model(cut).logits.shape[-2:] == (41, 37)


def test_padding_a_clip_with_objects_changes_nothing(tiny_model: STMA) -> None:
    clip = make_batch(batch=1)
    count = clip.valid_objects.shape[1]
    valid = torch.cat([clip.valid_objects, torch.zeros(1, 2, dtype=torch.bool)], dim=1)
    padded = dataclasses.replace(clip, valid_objects=valid, has_padding=True)
    alone, together = tiny_model(clip).probabilities, tiny_model(padded).probabilities
    assert torch.allclose(together[:, :, : count + 1], alone, atol=1e-9)
    assert (together[:, :, count + 1 :] == 0).all()


def test_objects_permute(tiny_model: STMA) -> None:
    clip = make_batch(seed=2)
    assert clip.valid_objects.shape[1] == 3
    renamed = torch.tensor([0, 3, 1, 2])[clip.masks.long()]  # object 1 is now 3, 2 is 1, 3 is 2
    permuted = tiny_model(dataclasses.replace(clip, masks=renamed)).probabilities
    expected = tiny_model(clip).probabilities[:, :, [0, 2, 3, 1]]
    assert torch.allclose(permuted, expected, atol=1e-9)


def test_clips_of_a_batch_do_not_see_one_another(tiny_model: STMA) -> None:
    first, second = make_batch(seed=1), make_batch(seed=2)
    count = max(first.valid_objects.shape[1], second.valid_objects.shape[1])

    def pad(clip: ClipBatch) -> torch.Tensor:
        missing = count - clip.valid_objects.shape[1]
        return torch.nn.functional.pad(clip.valid_objects, (0, missing))

    both = ClipBatch(
        names=[],
        frames=torch.cat([first.frames, second.frames]),
        masks=torch.cat([first.masks, second.masks]),
        valid_objects=torch.cat([pad(first), pad(second)]),
        references=torch.cat([first.references, second.references]),
    )
    together = tiny_model(both).probabilities
    alone = tiny_model(second).probabilities
    assert torch.allclose(together[1:, :, : alone.shape[2]], alone, atol=1e-9)


def test_the_references_that_a_clip_names_are_the_ones_read(tiny_model: STMA) -> None:
    clip = make_batch(num_frames=4)
    references = clip.references.clone()
    references[:, 3] = torch.tensor([0, 1])
    other = references.clone()
    other[:, 3] = torch.tensor([1, 2])
    before = tiny_model(dataclasses.replace(clip, references=references)).logits
    after = tiny_model(dataclasses.replace(clip, references=other)).logits
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-6)


def memory_of_one_frame(
    model: STMA, clip: ClipBatch | None = None
) -> tuple[VideoMemory, list[FrameEmbedding]]:
    clip = make_batch() if clip is None else clip
    with torch.no_grad():
        images = model.normalize(clip.frames[0])
        frames = model.embed(images).frames(clip.frames.shape[1])
        memory = VideoMemory()
        masks = torch.nn.functional.one_hot(clip.masks[0, 0].long())[..., 1:].permute(2, 0, 1)[None]
        features = model.encode(frames[0], memory)
        model.memorize(images[:1], frames[0], features, masks.double(), memory, pinned=True)
    return memory, frames


def test_enhanced_keys_know_the_objects_that_a_frame_gives(tiny_model: STMA) -> None:
    clip = make_batch()
    other = dataclasses.replace(clip, masks=clip.masks.flip(-1))
    tiny_model.double()

    def first_keys(clip: ClipBatch) -> torch.Tensor:
        return memory_of_one_frame(tiny_model, clip)[0].temporal.keys

    assert torch.equal(first_keys(clip), first_keys(other))  # the paper's: before they are known
    tiny_model.enhanced_keys = True
    assert not torch.allclose(first_keys(clip), first_keys(other), atol=1e-6)


def test_references_are_pooled_and_the_frame_is_not(tiny_model: STMA) -> None:
    clip = make_batch(num_frames=3, size=64)
    everything = tiny_model(clip).logits
    tiny_model.reference_pooling = 2
    memory, frames = memory_of_one_frame(tiny_model, clip)
    (held, _), *_ = memory.spatial.frames
    assert held.shape[1] * 4 == frames[0].tokens.shape[1] == memory.temporal.keys.shape[1]
    first_square = frames[0].tokens[:, [0, 1, 4, 5]].mean(dim=1)
    torch.testing.assert_close(held[:, 0], first_square)
    pooled = tiny_model(clip).logits
    assert pooled.shape == everything.shape
    assert not torch.allclose(pooled, everything, atol=1e-6)


def test_object_tokens_say_something_of_their_own_in_training_alone(tiny_model: STMA) -> None:
    clip = make_batch(batch=2, num_frames=3, size=41)
    assert tiny_model(clip).object_logits is None
    logits = tiny_model.train()(clip).object_logits
    assert logits.shape == (2, 2, clip.valid_objects.shape[1], 3, 3)


def test_object_logits_are_never_in_half_precision(tiny_model: STMA) -> None:
    clip = make_batch(num_frames=2)
    tiny_model.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = tiny_model(clip)
    logits = prediction.object_logits
    assert logits.dtype == prediction.logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("enhanced_keys", [False, True])
def test_the_running_mean_sees_the_objects_of_each_frame_once(
    tiny_model: STMA, enhanced_keys: bool
) -> None:
    tiny_model.enhanced_keys = enhanced_keys
    clip = make_batch(batch=2, num_frames=4)
    tiny_model.train()(clip)
    features = tiny_model.object_features
    assert features._observed[-1] == 3 * clip.valid_objects.sum()  # read by frames 1, 2 and 3


def test_top_k_and_kernel_of_training_are_for_training_alone(tiny_model: STMA) -> None:
    clip = make_batch(num_frames=3)
    everything = tiny_model(clip).logits
    tiny_model.train_reading = Reading(top_k=1)
    assert torch.equal(tiny_model(clip).logits, everything)
    tiny_model.train()
    assert not torch.allclose(tiny_model(clip).logits, everything, atol=1e-6)
    tiny_model.train_reading = Reading(top_k=10_000)  # more than there are
    assert torch.allclose(tiny_model(clip).logits, everything, atol=1e-9)
    tiny_model.train_reading = Reading(kernel=0.1)
    assert not torch.allclose(tiny_model(clip).logits, everything, atol=1e-6)
    assert torch.equal(tiny_model.eval()(clip).logits, everything)
