"""The optimizer: Muon against the library's, and the moving average of the weights."""

import copy

import pytest
import torch
from torch import nn
from transformers import get_polynomial_decay_schedule_with_warmup

from igpt_hf.training.optimizer import Muon, MuonAdamW, average_weights, orthogonalize, swap_average


SHAPES = [(48, 16), (16, 16), (64, 16), (16, 64), (16, 16)]


def random_parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def take_steps(optimizer, parameters, steps: int = 3, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_orthogonalized_matrices_keep_their_singular_vectors_and_have_singular_values_near_one():
    matrices = torch.randn(5, 16, 64, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert 0.6 < values.min() and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.allclose(orthogonalize(matrices.mT), result.mT, atol=1e-5)
    core = left.mT @ result @ right.mT  # diagonal, if the singular vectors are the same
    assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_takes_the_steps_of_the_library(weight_decay):
    ours, theirs = random_parameters(), random_parameters()
    take_steps(Muon(ours, 0.02, weight_decay=weight_decay), ours)
    take_steps(torch.optim.Muon(theirs, lr=0.02, weight_decay=weight_decay), theirs)
    for a, b, start in zip(ours, theirs, random_parameters(), strict=True):
        assert (a - b).norm() < 0.02 * (a - start).norm()  # theirs works in bfloat16: 8 bits


def test_a_schedule_that_asks_for_the_learning_rate_finds_it(tiny_model):
    optimizer = MuonAdamW(tiny_model(), lr=0.02, muon_lr=0.01)
    schedule = get_polynomial_decay_schedule_with_warmup(optimizer, 0, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.01], rel=1e-4)


def test_a_matrix_without_a_gradient_stays():
    parameters = random_parameters()
    parameters[0].grad = torch.ones_like(parameters[0])
    Muon(parameters, 0.02).step()
    assert [torch.equal(a, b) for a, b in zip(parameters, random_parameters(), strict=True)] == [False] + [True] * 4


@pytest.mark.parametrize(
    "make", [lambda p: Muon(p, 0.1), lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.AdamW(p, 0.1)]
)
def test_the_average_follows_the_weights_and_swaps_exactly(make):
    parameters = random_parameters()
    optimizer = make(parameters)
    average_weights(optimizer, decay=0.5)
    path = []
    for step in range(30):
        take_steps(optimizer, parameters, steps=1, seed=step)
        path.append(parameters[0].detach().clone())
    expected = path[0]
    for count, weights in enumerate(path):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * weights
    swap_average(optimizer)
    assert torch.allclose(parameters[0], expected, atol=1e-5)
    assert not torch.allclose(parameters[0], path[-1], atol=1e-3)
    swap_average(optimizer)
    assert torch.equal(parameters[0], path[-1])


def test_the_state_survives_saving_and_goes_on_exactly(tiny_model):
    def steps(model, optimizer, seeds):
        for seed in seeds:
            take_steps(optimizer, list(model.parameters()), steps=1, seed=seed)
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def new():
        model = tiny_model()
        optimizer = MuonAdamW(model, 0.01, 0.02, weight_decay=0.1)
        average_weights(optimizer, 0.9)
        return model, optimizer

    model, optimizer = new()
    weights = steps(model, optimizer, [0, 1])
    state = copy.deepcopy(optimizer.state_dict())
    expected = steps(model, optimizer, [2, 3])
    swap_average(optimizer)
    expected_average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    model, optimizer = new()
    model.load_state_dict(weights, strict=False)
    optimizer.load_state_dict(state)
    resumed = steps(model, optimizer, [2, 3])
    swap_average(optimizer)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert all(torch.equal(parameter, expected_average[name]) for name, parameter in model.named_parameters())


def test_weight_decay_pulls_matrices_to_zero_but_no_gain(tiny_model):
    model = tiny_model(class_conditional_norm=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    MuonAdamW(model, 0.1, 0.1, weight_decay=0.5).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "proj.weight" in name}
