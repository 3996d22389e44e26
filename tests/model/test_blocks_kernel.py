"""The blocks compiled by numba equal the model's modules, in values and in gradients, whatever the threads."""

import ast
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.model import kernel_simd, modeling_igpt
from igpt_hf.model.decoder import Decoder
from igpt_hf.model.kernel_dispatch import TASKS, are_blocks_usable, single_thread_of_torch


pytestmark = pytest.mark.skipif(kernel_simd.numba is None, reason="numba is not installed")

SHAPES = [
    {},  # 16 tokens: with the prompt one more than fit into one vector
    {"image_size": 28},
    {"image_size": 10, "neighborhood_radius": 0},
    {"image_size": 6, "neighborhood_radius": 1, "hidden_act": "quick_gelu", "num_hidden_layers": 3},
    {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 32, "patch_size": 1},
    {"class_conditional_norm": True},
    {"class_conditional_norm": True, "hidden_size": 32, "num_attention_heads": 4, "num_labels": 1},
]


@pytest.fixture(autouse=True)
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def loss_and_gradients(model, ids):
    """Logits, and d loss / d every parameter, of a loss that looks at every logit."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).cos()
    (logits * weights).sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same_bits(results, expected):
    return torch.equal(results[0], expected[0]) and all(torch.equal(g, expected[1][n]) for n, g in results[1].items())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_all_gradients_equal_those_of_the_modules(tiny_model, random_ids, monkeypatch, shape):
    model = tiny_model(**shape)
    for parameter in model.parameters():
        parameter.data *= 0.5
    ids = random_ids(model.config, n=TASKS + 3)  # some groups have two images, and some images the start token
    ids[::4, 0] = model.config.start_token_id
    assert are_blocks_usable(model.model, ids)
    logits, gradients = loss_and_gradients(model, ids)
    monkeypatch.setattr(modeling_igpt, "are_blocks_usable", lambda *_: False)
    expected_logits, expected = loss_and_gradients(model, ids)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert expected[name].abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())


def test_sequences_may_be_shorter_than_an_image(tiny_model, random_ids, monkeypatch):
    model, results = tiny_model(), []
    ids = random_ids(model.config, n=2)
    for length in (1, 7, 16):
        results.append(model(input_ids=ids[:, :length], use_cache=False).logits)
    monkeypatch.setattr(modeling_igpt, "are_blocks_usable", lambda *_: False)
    for logits in results:
        expected = model(input_ids=ids[:, : logits.shape[1]], use_cache=False).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_scores_of_magnitude_100_and_more_stay_accurate(tiny_model, random_ids):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attention.qkv_proj.weight[:32] *= 12
    ids = random_ids(model.config)
    logits = model(input_ids=ids, use_cache=False).logits
    exact = model.double()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits.double(), exact, rtol=1e-3, atol=1e-3)


def test_the_future_does_not_change_a_single_bit(tiny_model, random_ids):
    model = tiny_model(image_size=28)
    ids = random_ids(model.config, n=2)
    changed = ids.clone()
    changed[:, 100:] = (changed[:, 100:] + 5) % model.config.vocab_size
    with torch.no_grad():
        before, after = (model(input_ids=x, use_cache=False).logits for x in (ids, changed))
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_results_are_bit_identical_from_run_to_run_and_for_every_number_of_threads(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=45)  # more than there are groups of images
    expected = loss_and_gradients(model, ids)
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(loss_and_gradients(model, ids), expected)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("size", [2, 8, 32])
def test_gradients_of_the_halves_of_a_batch_add_up_to_those_of_the_whole_to_the_last_bit(
    tiny_model, random_ids, size, conditional
):
    """What training on two processes, or in two accumulated steps, relies on."""
    model = tiny_model(class_conditional_norm=conditional)
    ids = random_ids(model.config, n=size)

    def gradients(ids):
        model.zero_grad()
        model(input_ids=ids, labels=ids, num_items_in_batch=size, use_cache=False).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    whole, first, second = (gradients(part) for part in (ids, ids[: size // 2], ids[size // 2 :]))
    assert all(torch.equal(whole[name], first[name] + second[name]) for name in whole)
    assert all(whole[name].abs().max() > 0 for name in whole)


def test_an_image_gets_the_same_bits_alone_and_in_a_batch_with_and_without_gradients(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=4)
    together = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(together[2:3], model(input_ids=ids[2:3], use_cache=False).logits)
    with torch.no_grad():
        assert torch.equal(together, model(input_ids=ids, use_cache=False).logits)


def test_several_python_threads_may_call_at_once(tiny_model, random_ids):
    model = tiny_model()
    ids, results = random_ids(model.config, n=12), {}
    expected = model.log_likelihood(ids)

    def work(name):
        results[name] = model.log_likelihood(ids)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results.values())


def test_not_a_number_is_passed_on_and_not_hidden(tiny_model, random_ids):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    assert model(input_ids=random_ids(model.config), use_cache=False).logits.isnan().all()


def mean_nats(model, ids):
    """The loss, in the model's own precision."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.mT, ids[:, 1:])


def penalty_gradients(model, ids):
    """Gradients of the loss, and of half their squared norm, a gradient penalty: two dictionaries."""
    parameters = dict(model.named_parameters())
    first = torch.autograd.grad(mean_nats(model, ids), parameters.values(), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first) / 2, parameters.values())
    return dict(zip(parameters, first, strict=True)), dict(zip(parameters, second, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_second_derivatives_are_those_of_the_modules_in_double_precision(tiny_model, random_ids, shape):
    model = tiny_model(**shape)
    for parameter in model.parameters():
        parameter.data *= 0.5
    ids = random_ids(model.config, n=2)
    assert are_blocks_usable(model.model, ids)
    results = penalty_gradients(model, ids)
    model.double().set_attn_implementation("eager")
    for found, expected in zip(results, penalty_gradients(model, ids), strict=True):
        for name, gradient in found.items():
            scale = expected[name].abs().max().item()
            assert scale > 0, name
            torch.testing.assert_close(gradient, expected[name].float(), rtol=1e-3, atol=1e-4 * scale)


def test_a_second_derivative_is_the_slope_of_the_first(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=2)
    _, second = penalty_gradients(model, ids)
    model.double()
    prompt = 12 * 17 + ids[0, 0].item() - 16  # its row, after the neighbors' tables
    for name, place in (("model.embeddings.context.weight", (prompt, 3)), ("lm_head.weight", (2, 5))):
        weight, slopes = model.get_parameter(name), []
        for step in (1e-5, -2e-5):
            weight.data[place] += step
            model.zero_grad()
            mean_nats(model, ids).backward()
            slopes.append(sum(parameter.grad.square().sum().item() for parameter in model.parameters()) / 2)
        assert second[name][place].item() == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-3)
        weight.data[place] += 1e-5


def test_a_new_model_has_second_derivatives_though_its_head_is_zero_and_its_loss_is_linear(random_ids):
    torch.manual_seed(0)
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=2, num_labels=3))
    ids = random_ids(model.config, n=2)
    logits = model(input_ids=ids, use_cache=False).logits
    head, up = model.lm_head.weight, model.model.layers[0].mlp.up_proj.weight
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).cos()
    (gradient,) = torch.autograd.grad((logits * weights).sum(), head, create_graph=True)
    (found,) = torch.autograd.grad(gradient.square().sum(), up)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    by_hand = torch.einsum("btv,btc->vc", weights, hidden)
    (expected,) = torch.autograd.grad(by_hand.square().sum(), up)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_frozen_weights_have_no_part_in_a_gradient_penalty(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=2)
    frozen = {name for name in dict(model.named_parameters()) if "embeddings" in name or name == "model.norm.weight"}
    first = torch.autograd.grad(mean_nats(model, ids), model.parameters(), create_graph=True)
    names = [name for name, _ in model.named_parameters()]
    penalty = sum(x.square().sum() for name, x in zip(names, first, strict=True) if name not in frozen) / 2
    expected = dict(zip(names, torch.autograd.grad(penalty, model.parameters()), strict=True))
    model.model.embeddings.requires_grad_(False)
    model.model.norm.requires_grad_(False)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    first = torch.autograd.grad(mean_nats(model, ids), trained.values(), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first) / 2, trained.values())
    for name, found in zip(trained, second, strict=True):
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item())


def test_without_the_kernel_second_derivatives_are_refused_by_torch_or_right(tiny_model, random_ids):
    model = tiny_model(hidden_size=144, num_hidden_layers=1)  # too large for the kernel
    ids = random_ids(model.config, n=2)
    assert not are_blocks_usable(model.model, ids)
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product.* is not implemented"):
        penalty_gradients(model, ids)
    model.set_attn_implementation("eager")
    _, found = penalty_gradients(model, ids)
    _, expected = penalty_gradients(model.double(), ids)
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name].float(), rtol=1e-3, atol=1e-4 * scale)


def test_transformations_of_torch_func_give_what_backward_gives(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=2)
    parameters = dict(model.named_parameters())

    def loss(parameters, ids):
        arguments = {"input_ids": ids, "labels": ids.where(ids < 16, -100)}
        return functional_call(model, parameters, (), arguments).loss

    whole = torch.func.grad(loss)(parameters, ids)
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids[:, None])
    loss(parameters, ids).backward()
    for name, parameter in parameters.items():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(whole[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(each[name].mean(dim=0), parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_a_table_that_does_not_fit_the_configuration_is_not_read_beyond_its_end(tiny_model):
    model = tiny_model()
    model.config.num_labels = 9  # but the table has rows for three
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[24, 1, 2]]))
    with pytest.raises(IndexError):
        model.generate(torch.tensor([[24]]))


@pytest.mark.parametrize("act", ["quick_gelu", "silu"])
def test_large_inputs_of_the_activation_give_what_the_modules_give(tiny_model, random_ids, monkeypatch, act):
    model = tiny_model(hidden_act=act)
    ids = random_ids(model.config)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.bias.copy_(torch.linspace(-300, 90, model.config.intermediate_size))
    logits, gradients = loss_and_gradients(model, ids)
    monkeypatch.setattr(modeling_igpt, "are_blocks_usable", lambda *_: False)
    expected, expected_gradients = loss_and_gradients(model, ids)
    assert torch.allclose(logits, expected, atol=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-3, atol=1e-3), name


def test_to_have_asked_for_hidden_states_does_not_turn_the_kernel_off(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    outputs = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    assert len(outputs.hidden_states) == 3
    assert are_blocks_usable(model.model, ids)
    assert len(model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states) == 3
    assert model(input_ids=ids, use_cache=False).hidden_states is None


def test_training_with_a_large_vocabulary_is_left_to_the_modules(random_ids):
    config = IGPTConfig(image_size=8, patch_size=4, neighborhood_radius=1, num_labels=3, num_hidden_layers=1)
    model = IGPTForCausalImageModeling(config)
    ids = random_ids(model.config)
    assert not are_blocks_usable(model.model, ids)
    with torch.no_grad():
        assert are_blocks_usable(model.model, ids)


def test_only_whole_plain_float32_sequences_on_the_cpu_are_taken(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    assert are_blocks_usable(model.model, ids)
    for wrong in (ids.int(), ids[:, 1:], ids + 11, torch.cat([ids, ids[:, 1:]], dim=1), ids.to("meta")):
        assert not are_blocks_usable(model.model, wrong)
    assert not are_blocks_usable(tiny_model(attention_dropout=0.1).train().model, ids)
    assert are_blocks_usable(tiny_model(attention_dropout=0.1).model, ids)
    assert not are_blocks_usable(tiny_model(hidden_act="relu").model, ids)
    assert not are_blocks_usable(tiny_model(num_attention_heads=4).model, ids)
    assert not are_blocks_usable(tiny_model().bfloat16().model, ids)
    hooked = tiny_model().model
    handle = hooked.layers[0].register_forward_hook(lambda *_: None)
    assert not are_blocks_usable(hooked, ids)
    handle.remove()
    for register in (hooked.register_full_backward_hook, hooked.register_full_backward_pre_hook):
        handle = register(lambda *_: None)
        assert not are_blocks_usable(hooked, ids)
        handle.remove()
    assert are_blocks_usable(hooked, ids)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not are_blocks_usable(hooked, ids)
    handle.remove()
    hooked.layers[0].mlp.act = nn.ReLU()
    assert not are_blocks_usable(hooked, ids)
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    assert not are_blocks_usable(eager.model, ids)


def test_operations_are_counted_where_they_are_asked_for(tiny_model, random_ids):
    model, counts = tiny_model(), []
    for use_cache in (False, True):  # the modules compute both ways
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=random_ids(model.config)[:, :-1], use_cache=use_cache)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 3 * 16 * model.num_parameters()


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
def test_another_default_type_of_numbers_changes_no_model(tiny_model, random_ids, dtype, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    ids = random_ids(model.config)
    expected = model.log_likelihood(ids)
    torch.set_default_dtype(torch.float64)
    try:
        loaded = type(model).from_pretrained(tmp_path, **({} if dtype is None else {"dtype": dtype}))
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded.log_likelihood(ids), expected)
        loaded(input_ids=ids, labels=ids).loss.backward()
        assert torch.equal(Decoder(loaded, ids[:, :1]).logits(), Decoder(model, ids[:, :1]).logits())
        assert loaded.generate(ids[:, :1], min_posterior=0.1).shape == ids.shape
        known = {"known_tokens": ids[:, 1:], "known_masks": torch.full_like(ids[:, 1:], 3)}
        assert (loaded.generate(ids[:, :1], **known)[:, 1:] & 3 == ids[:, 1:] & 3).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_that_overlap_leave_torch_its_number_of_threads():
    torch.set_num_threads(2)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first():
        with single_thread_of_torch():
            first_is_in.set()
            second_is_in.wait()
        first_is_out.set()

    def second():
        first_is_in.wait()
        with single_thread_of_torch():
            second_is_in.set()
            first_is_out.wait()

    with ThreadPoolExecutor(3) as pool:
        assert [task.result() for task in (pool.submit(first), pool.submit(second))] == [None, None]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.slow
def test_a_second_process_loads_the_compiled_kernels_from_disk(tiny_model, random_ids):
    loss_and_gradients(tiny_model(), random_ids(tiny_model().config))  # compiles, if no earlier run did
    script = (
        "from igpt_hf.model import kernel_blocks as b;"
        "print([sum(kernel.stats.cache_hits.values()) for kernel in (b.forward_kernel(), b.backward_kernel())])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[1, 1]\n"


@pytest.mark.slow
def test_without_numba_the_model_gives_the_same_likelihoods(tmp_path):
    torch.manual_seed(3)
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=2))
    torch.nn.init.normal_(model.lm_head.weight)
    ids = torch.cat([torch.tensor([[16], [26]]), torch.arange(32).view(2, 16) % 16], dim=1)
    model.save_pretrained(tmp_path)
    script = (
        "import sys; sys.modules['numba'] = None;"  # makes `import numba` raise ImportError
        "import torch; from igpt_hf import IGPTForCausalImageModeling as M;"
        "from igpt_hf.model.kernel_dispatch import are_blocks_usable;"
        f"model = M.from_pretrained({str(tmp_path)!r}); ids = torch.tensor({ids.tolist()});"
        "print(are_blocks_usable(model.model, ids), *model.log_likelihood(ids).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    usable, *nats = run.stdout.split()
    assert usable == "False"
    torch.testing.assert_close(torch.tensor([*map(float, nats)]), model.log_likelihood(ids).float(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_kernel_is_compiled_again_after_an_edit_in_another_file_that_it_calls(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "kernel_simd.py").write_text(Path(kernel_simd.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "kernel_sampling.py").write_text(
        "from .kernel_blocks import helper\nfrom .kernel_simd import compile_kernel, numba\n"
        "def call(x):\n    return helper(x)\n"
        "kernel = compile_kernel(call, (numba.int64,))\n"
        "print(kernel(1), sum(kernel.stats.cache_hits.values()))\n"
    )
    (folder / "kernel_choice.py").write_text("")
    helper = "from .kernel_simd import kernel\n@kernel\ndef helper(x):\n    return x + {}\n"
    printed = []
    for number in (1, 1, 2, 1):
        (folder / "kernel_blocks.py").write_text(helper.format(number))
        command = [sys.executable, "-c", "import kernels.kernel_sampling"]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        printed.append(run.stdout.strip())
    assert printed == ["2 0", "2 1", "3 0", "2 1"]


def test_the_files_with_numba_code_import_neither_torch_nor_transformers():
    folder = Path(kernel_simd.__file__).parent
    for name in kernel_simd.SOURCES:
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not {"torch", "transformers"} & {module.partition(".")[0] for module in names}, name
    with_kernels = {
        path.name for path in folder.glob("*.py") if re.search(r"^@kernel\b", path.read_text("utf-8"), re.M)
    }
    assert with_kernels | {"kernel_simd.py"} == set(kernel_simd.SOURCES)  # what the digest of the cache covers


def test_a_class_of_another_module_that_is_called_like_the_model_s_is_left_to_the_modules(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    assert are_blocks_usable(model.model, ids)
    other = type("IGPTMLP", (type(model.model.layers[0].mlp),), {"__module__": "elsewhere.modeling_igpt"})
    model.model.layers[0].mlp.__class__ = other
    assert not are_blocks_usable(model.model, ids)
