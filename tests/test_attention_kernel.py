"""The numba attention equals torch's, in values and in gradients, and its results do not depend on the threads."""

import importlib
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from igpt_hf import attention_igpt
from igpt_hf.attention_igpt import causal_attention, is_kernel_usable


needs_numba = pytest.mark.skipif(attention_igpt.numba is None, reason="numba is not installed")


@pytest.fixture(autouse=True)
def seed_and_restored_threads():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def random_inputs(batch, heads, length, size, spread=1.0):
    """Query, key and value as views of one projection (B, T, 3, H, D), and a gradient (B, T, H, D)."""
    fused = spread * torch.randn(batch, length, 3, heads, size)
    query, key, value = (x.detach().requires_grad_() for x in fused.permute(2, 0, 3, 1, 4))
    return (query, key, value), torch.randn(batch, length, heads, size)


def reference(query, key, value):
    return scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).contiguous()


def same_bits(results, expected):
    return all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def output_and_gradients(attention, inputs, grad):
    out = attention(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@needs_numba
@pytest.mark.parametrize("size", [8, 16, 4])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 2, 16), (2, 1, 49), (3, 2, 196), (1, 2, 197)])
def test_output_and_gradients_equal_torch_attention(shape, size):
    batch, heads, length = shape
    inputs, grad = random_inputs(batch, heads, length, size)
    results = output_and_gradients(causal_attention, inputs, grad)
    assert results[0].shape == (batch, length, heads, size)
    assert results[0].is_contiguous()
    for result, expected in zip(results, output_and_gradients(reference, inputs, grad), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@needs_numba
def test_gradients_reach_the_projection_that_query_key_and_value_are_views_of():
    fused = torch.randn(2, 20, 3, 2, 8, requires_grad=True)
    grads = [
        torch.autograd.grad(attention(*fused.permute(2, 0, 3, 1, 4)).square().sum(), fused)[0]
        for attention in (causal_attention, reference)
    ]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@needs_numba
def test_any_strides_of_the_inputs_and_of_the_gradient_give_the_same_bits():
    inputs, grad = random_inputs(2, 2, 33, 8)
    expected = output_and_gradients(causal_attention, inputs, grad)
    contiguous = [x.detach().contiguous().requires_grad_() for x in inputs]
    strided_grad = torch.stack([grad, grad], dim=-1)[..., 0]
    assert same_bits(output_and_gradients(causal_attention, contiguous, strided_grad), expected)

    gradients_of_sum = torch.autograd.grad(causal_attention(*inputs).sum(), inputs)  # an expanded gradient of ones
    assert same_bits(gradients_of_sum, output_and_gradients(causal_attention, inputs, torch.ones_like(grad))[1:])


@needs_numba
def test_scores_of_magnitude_100_and_more_stay_accurate():
    inputs, grad = random_inputs(2, 2, 100, 8, spread=12.0)
    query, key, _ = inputs
    assert (query @ key.transpose(2, 3)).abs().max() * 8**-0.5 > 200
    results = output_and_gradients(causal_attention, inputs, grad)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for result, expected in zip(results, output_and_gradients(reference, exact, grad.double()), strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


@needs_numba
def test_equal_scores_average_the_values_seen_so_far():
    value = torch.randn(1, 1, 40, 8)
    means = value.cumsum(2) / torch.arange(1, 41)[:, None]
    for constant in (0.0, 1e4, -1e4):  # a constant key adds the same number to all scores of a query
        out = causal_attention(torch.ones_like(value), torch.full_like(value, constant), value)
        torch.testing.assert_close(out.transpose(1, 2), means, rtol=1e-5, atol=1e-5)


@needs_numba
def test_the_future_does_not_change_a_single_bit():
    inputs, grad = random_inputs(2, 2, 60, 8)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[:, :, 37:] = 100 * torch.randn_like(x[:, :, 37:])
    before, after = causal_attention(*inputs), causal_attention(*changed)
    assert torch.equal(before[:, :37], after[:, :37])
    assert not torch.equal(before[:, 37:], after[:, 37:])

    grad[:, 37:] = 0  # then positions from 37 on have no influence on the loss
    for gradient in torch.autograd.grad(before, inputs, grad):
        assert torch.all(gradient[:, :, 37:] == 0)


@needs_numba
@pytest.mark.parametrize("poisoned", [0, 1, 2])
def test_not_a_number_is_passed_on_and_not_hidden(poisoned):
    inputs, _ = random_inputs(1, 1, 30, 8)
    inputs[poisoned].data[0, 0, 10, 3] = float("nan")
    assert causal_attention(*inputs)[:, 10].isnan().any()


@needs_numba
def test_results_are_bit_identical_from_run_to_run_and_for_every_number_of_threads():
    inputs, grad = random_inputs(25, 2, 70, 8)
    expected = output_and_gradients(causal_attention, inputs, grad)
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(output_and_gradients(causal_attention, inputs, grad), expected)


@needs_numba
def test_an_image_gets_the_same_bits_alone_and_in_a_batch():
    (query, key, value), _ = random_inputs(4, 2, 50, 8)
    together = causal_attention(query, key, value)
    assert torch.equal(together[2:3], causal_attention(query[2:3], key[2:3], value[2:3]))


@needs_numba
def test_several_python_threads_may_call_at_once():
    inputs, grad = random_inputs(12, 2, 50, 8)
    expected, results = output_and_gradients(causal_attention, inputs, grad), {}

    def work(name):
        results[name] = output_and_gradients(causal_attention, inputs, grad)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(same_bits(result, expected) for result in results.values())


@needs_numba
def test_an_empty_batch_gives_an_empty_result():
    inputs, grad = random_inputs(0, 2, 10, 8)
    results = output_and_gradients(causal_attention, inputs, grad)
    assert [tuple(x.shape) for x in results] == [(0, 10, 2, 8)] + 3 * [(0, 2, 10, 8)]


@needs_numba
def test_kernel_is_usable_only_for_float32_of_one_shape_on_the_cpu():
    x = torch.zeros(2, 2, 7, 8)
    assert is_kernel_usable()
    assert is_kernel_usable(x, x, x)
    assert not is_kernel_usable(x.double())
    assert not is_kernel_usable(x.to("meta"))
    assert not is_kernel_usable(x[:, :, -1:], x)  # one new query, and the keys of a cache
    assert not is_kernel_usable(torch.zeros(1, 1, 2, 128))


def test_without_numba_the_module_imports_and_says_that_the_kernel_is_not_usable(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # makes `import numba` raise ImportError
    spec = importlib.util.spec_from_file_location("attention_without_numba", attention_igpt.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.is_kernel_usable()
    assert not module.is_kernel_usable(torch.zeros(1, 1, 2, 8))


@needs_numba
def test_a_second_process_loads_the_compiled_kernels_from_disk(tmp_path, monkeypatch):
    copy = tmp_path / "attention_copy.py"  # alone in a folder, as next to a checkpoint
    copy.write_text(Path(attention_igpt.__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    kernels = importlib.import_module("attention_copy").make_kernels(8)
    assert [sum(kernel.stats.cache_hits.values()) for kernel in kernels] == [0, 0]
    script = (
        "import attention_copy, torch; x = torch.ones(1, 1, 3, 8, requires_grad=True);"
        "attention_copy.causal_attention(x, x, x).sum().backward();"
        "print([sum(kernel.stats.cache_hits.values()) for kernel in attention_copy.make_kernels(8)])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "[1, 1]\n"
