"""Surprise per pixel: it adds up to the likelihood, and each pixel has its own conditional probability."""

import math

import pytest
import torch

from igpt_hf.evaluation.surprise import surprise_maps


def pixel_surprise(model, ids):
    return torch.from_numpy(surprise_maps(model, ids)["pixels"])


@pytest.mark.parametrize("patch_size, image_size", [(1, 5), (2, 8), (3, 6)])
def test_the_pixels_add_up_to_the_likelihood(patch_size, image_size, tiny_model, random_ids):
    model = tiny_model(patch_size=patch_size, image_size=image_size, neighborhood_radius=1)
    ids = random_ids(model.config)
    surprise = pixel_surprise(model, ids)
    assert surprise.shape == (3, image_size, image_size)
    assert (surprise >= 0).all()
    torch.testing.assert_close(surprise.sum((1, 2)), -model.log_likelihood(ids), atol=1e-5, rtol=0)


def test_an_untrained_model_pays_one_bit_per_pixel(tiny_model, random_ids):
    model = tiny_model()
    model.lm_head.weight.data.zero_()
    surprise = pixel_surprise(model, random_ids(model.config))
    torch.testing.assert_close(surprise, torch.full_like(surprise, math.log(2)))


@torch.no_grad()
def test_a_pixel_has_the_probability_that_its_block_leaves_it(tiny_model, random_ids):
    """By hand, for the third block of the top row: its pixels stand at rows 0 and 1, columns 4 and 5."""
    model = tiny_model()
    ids = random_ids(model.config, n=1)
    p = model(input_ids=ids[:, :-1]).logits[0, 2].double().softmax(0)
    bits = [ids[0, 3].item() >> k & 1 for k in range(4)]
    surprise = pixel_surprise(model, ids)[0]
    before = 1.0
    for k in range(4):
        agree = sum(p[v].item() for v in range(16) if [v >> i & 1 for i in range(k + 1)] == bits[: k + 1])
        assert surprise[k // 2, 4 + k % 2].item() == pytest.approx(-math.log(agree / before), abs=1e-6)
        before = agree


def test_ids_that_are_no_whole_image_are_an_error(tiny_model):
    with pytest.raises(ValueError, match="whole image"):
        pixel_surprise(tiny_model(), torch.zeros(1, 5, dtype=torch.long))


def test_a_last_token_out_of_range_is_an_error_though_the_model_does_not_read_it(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    ids[0, -1] = model.config.vocab_size
    with pytest.raises(ValueError, match="token 16 is out of range: 0 to 15"):
        surprise_maps(model, ids)
