"""A decoder that is stepped from outside says at each step what the model's forward says of the whole sequence."""

import pytest
import torch

from igpt_hf.model import kernel_simd
from igpt_hf.model.decoder import CacheState, Decoder
from igpt_hf.model.kernel_state import KernelState


KINDS = {
    "kernel": pytest.param(KernelState, marks=pytest.mark.skipif(kernel_simd.numba is None, reason="no numba")),
    "cache": CacheState,
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request, monkeypatch):
    monkeypatch.setattr("igpt_hf.model.decoder.is_sampler_usable", lambda model: request.param is KernelState)
    return request.param


@pytest.fixture(params=[{}, {"class_conditional_norm": True}], ids=["", "class-conditional norm"])
def model(tiny_model, request):
    return tiny_model(**request.param)


@torch.no_grad()
def expected_logits(model, ids):
    """What the model says of each next token, from a forward pass over all: (B, T) -> (B, T, V)."""
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("given", [0, 5])
def test_each_step_has_the_logits_of_the_models_forward(kind, model, random_ids, given):
    ids = random_ids(model.config, n=5)
    expected = expected_logits(model, ids[:, :-1])
    decoder = Decoder(model, ids[:, : 1 + given])
    assert isinstance(decoder._state, kind)
    for place in range(given, 16):
        torch.testing.assert_close(decoder.logits(), expected[:, place], rtol=0, atol=1e-5)
        decoder.push(ids[:, 1 + place])
    assert torch.equal(decoder.input_ids, ids)


def test_tokens_may_be_pushed_at_once_and_logits_be_asked_for_at_any_time(kind, model, random_ids):
    ids = random_ids(model.config, n=3)
    expected = expected_logits(model, ids[:, :-1])
    decoder = Decoder(model, ids[:, :1])
    decoder.push(ids[:, 1:7])
    decoder.push(ids[:, 7])
    for _ in range(2):
        torch.testing.assert_close(decoder.logits(), expected[:, 7], rtol=0, atol=1e-5)
    decoder.push(ids[:, 8:16])
    torch.testing.assert_close(decoder.logits(), expected[:, 15], rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [[2, 0, 2, 3], [0, 1, 1], [3, 2, 1, 0, 0, 1]], ids=str)
@pytest.mark.parametrize("asks_before", [True, False])
def test_after_a_reordering_sequences_go_on_as_those_that_they_became(kind, model, random_ids, index, asks_before):
    ids, index = random_ids(model.config, n=4), torch.tensor(index)
    decoder = Decoder(model, ids[:, :2])
    decoder.reorder(torch.arange(4))  # before anything is computed
    decoder.logits()
    decoder.push(ids[:, 2:6])
    if asks_before:
        decoder.logits()
    decoder.reorder(index)
    assert torch.equal(decoder.input_ids, ids[index, :6])
    new = random_ids(model.config, n=len(index), seed=1)[:, 1:9]
    decoder.push(new[:, :4])
    decoder.logits()
    decoder.push(new[:, 4:])
    expected = expected_logits(model, torch.cat([ids[index, :6], new], dim=1))[:, -1]
    torch.testing.assert_close(decoder.logits(), expected, rtol=0, atol=1e-5)


def test_sequences_that_are_copied_and_ended_at_random_go_on_as_themselves(kind, tiny_model):
    model = tiny_model(image_size=14)  # 49 tokens: keys and values fill several pages
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(model, torch.tensor([[16], [17]]))
    ids = decoder.input_ids
    for place in range(49):
        if place % 3 == 0:
            index = torch.randint(len(ids), (2 + place // 4 if place % 2 else len(ids),), generator=generator)
            decoder.reorder(index)
            ids = ids[index]
        expected = expected_logits(model, ids)[:, -1]
        torch.testing.assert_close(decoder.logits(), expected, rtol=0, atol=1e-5)
        tokens = torch.randint(16, (len(ids),), generator=generator)
        decoder.push(tokens)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
    assert torch.equal(decoder.input_ids, ids)


@pytest.mark.skipif(kernel_simd.numba is None, reason="no numba")
def test_the_logits_of_a_sequence_have_the_same_bits_alone_and_in_a_batch_for_any_number_of_threads(
    tiny_model, random_ids
):
    model = tiny_model()
    ids = random_ids(model.config, n=9)

    def logits(rows):
        decoder = Decoder(model, ids[rows, :6])
        decoder.logits()
        decoder.push(ids[rows, 6:10])
        return decoder.logits()

    alone = torch.cat([logits(slice(i, i + 1)) for i in range(9)])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(logits(slice(None)), alone)


def test_what_does_not_fit_is_refused(kind, model, random_ids):
    ids = random_ids(model.config, n=2)
    with pytest.raises(ValueError, match="at most 15 given tokens"):
        Decoder(model, ids)
    decoder = Decoder(model, ids[:, :15])
    for index in ([-1, 0], [0, 2], [], [0.0], [True, False]):
        with pytest.raises(ValueError, match="index must hold whole numbers from 0 to 1, got"):
            decoder.reorder(torch.tensor(index))
    for tokens in (ids[:, :3], ids[:1, 0]):
        with pytest.raises(ValueError, match="give each sequence as many, and not more"):
            decoder.push(tokens)
    decoder.push(ids[:, 15:])
    with pytest.raises(ValueError, match="the images are complete: all 16 tokens are there"):
        decoder.logits()
