"""How typical an image is of the training data."""

import math

import torch

from igpt_hf.evaluation.likelihood import log_likelihoods
from igpt_hf.evaluation.typicality import marginal_nats, nats_quantiles, percentiles


def test_marginal_nats_are_those_of_the_mixture_over_classes(tiny_model):
    model = tiny_model(image_size=2, patch_size=1, neighborhood_radius=1)
    images = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    ids = torch.cat([torch.full((16, 1), model.config.start_token_id), images], dim=1)
    nats = marginal_nats(log_likelihoods(model, ids))
    assert math.isclose((-nats).exp().sum(), 1, rel_tol=1e-5)  # over all 16 images
    expected = -(model.class_log_likelihoods(ids).exp().mean(dim=1)).log()
    torch.testing.assert_close(nats, expected)


def test_percentiles_are_ranks_among_the_validation_images(tiny_model):
    model = tiny_model()
    torch.manual_seed(0)
    ids = model.generate(torch.full((200, 1), model.config.start_token_id))
    quantiles = nats_quantiles(model, ids)
    assert len(quantiles) == 101 and quantiles == sorted(quantiles)
    nats = marginal_nats(log_likelihoods(model, ids))
    ranks = percentiles(nats, quantiles)
    below = (nats[:, None] > nats).double().mean(dim=1) * 100
    assert abs(ranks - below.numpy()).max() < 1.5
    assert percentiles(torch.tensor([-5.0, 1e6]), quantiles).tolist() == [0, 100]
