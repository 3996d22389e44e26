"""The gated PixelCNN of the benchmarks is what it claims to be: causal, normalized, conditional."""

import itertools

import pytest
import torch

from pixelcnn import GatedPixelCNN


@pytest.fixture
def model() -> GatedPixelCNN:
    """Random weights everywhere, also in the head and the class biases, which start at zero."""
    model = GatedPixelCNN(channels=4, layers=3, size=3, first_size=5, num_labels=2)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def test_a_pixel_depends_on_the_pixels_before_it_and_on_no_other(model):
    size, labels = 6, torch.zeros(16, dtype=torch.long)
    pixels = torch.rand(16, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = model(pixels, labels).flatten(1)
    for place in range(size * size):
        (gradient,) = torch.autograd.grad(logits[:, place].sum(), pixels, retain_graph=True)
        seen = gradient.flatten(1).abs().sum(0) > 0  # in some image: a single one may be where all ReLUs are closed
        assert not seen[place:].any()
        row, column = divmod(place, size)
        if column > 0:
            assert seen[place - 1]
        if row > 0:
            assert seen[place - size]
            assert column + 1 == size or seen[place - size + 1]  # no blind spot to the right


def test_probabilities_of_all_small_images_sum_to_one(model):
    pixels = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 3, 3)
    for label in (0, 1):
        nats = model.nats(pixels, torch.full((len(pixels),), label))
        assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-5)
        assert nats.std() > 0.1


def test_classes_have_distributions_of_their_own(model):
    pixels = (torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    first, second = (model.nats(pixels, torch.full((4,), label)) for label in (0, 1))
    assert (first - second).abs().min() > 1e-3


def test_the_default_has_the_size_of_the_seed_model():
    assert sum(parameter.numel() for parameter in GatedPixelCNN().parameters()) == 34_241
