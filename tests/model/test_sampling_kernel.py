"""The numba sampler samples from the model's own distribution, by the rules of transformers' `generate`."""

import subprocess
import sys
from itertools import combinations

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.model import kernel_dispatch, kernel_simd
from igpt_hf.model.generation_igpt import IGPTGuidanceLogitsProcessor
from igpt_hf.model.kernel_dispatch import is_sampler_usable, sample_images
from igpt_hf.model.kernel_sampling import extension_kernel


pytestmark = pytest.mark.skipif(kernel_simd.numba is None, reason="numba is not installed")

DEFAULT = {"image_size": 8, "num_hidden_layers": 2}
PIXELS = {
    "patch_size": 1,
    "image_size": 5,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "neighborhood_radius": 1,
}
LARGE_BLOCKS = {
    "patch_size": 3,
    "image_size": 12,
    "num_hidden_layers": 1,
    "hidden_size": 20,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "quick_gelu",
}
CONDITIONAL = {"class_conditional_norm": True}
PLAIN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "guidance_scale": 1.0}
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"guidance_scale": 2.0},
    {"temperature": 0.7, "top_k": 7, "top_p": 0.9, "min_p": 0.02, "guidance_scale": 2.0},
    {"do_sample": False},
    {"do_sample": False, "guidance_scale": 3.0},
]


@pytest.fixture(autouse=True)
def same_numbers_and_threads():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def make_model(**config):
    """A model with all weights drawn anew, since some start at zero."""
    model = IGPTForCausalImageModeling(IGPTConfig(**config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3, generator=generator)
    return model


def make_prompts(model, batch):
    """Class prompts and start tokens in turn, (batch, 1)."""
    first, last = model.config.vocab_size, model.config.start_token_id
    return first + torch.arange(batch)[:, None] % (last - first + 1)


def make_noise(model, batch, given=0):
    return torch.rand(batch, model.config.num_image_tokens - given, dtype=torch.float64)


def processed_probabilities(model, ids, processors, position):
    """Probabilities (B, V) of the token after `position`, by a full forward and transformers' processors."""
    scores = model(input_ids=ids[:, : position + 1], use_cache=False).logits[:, -1]
    return processors(ids[:, : position + 1], scores).double().softmax(-1)


@torch.no_grad()
def reference(model, input_ids, noise, **settings):
    """What `sample_images` must return: one full forward per token, transformers' processors, the inverse CDF."""
    settings = {**PLAIN, **settings}
    scale = settings.pop("guidance_scale")
    custom = LogitsProcessorList([IGPTGuidanceLogitsProcessor(model, scale)] if scale != 1 else [])
    processors = model._get_logits_processor(GenerationConfig(**settings), logits_processor=custom)
    ids = input_ids
    for step in range(noise.shape[1]):
        probabilities = processed_probabilities(model, ids, processors, ids.shape[1] - 1)
        tokens = probabilities.argmax(-1)
        if settings["do_sample"]:
            cumulative = probabilities.cumsum(-1)
            tokens = (cumulative <= noise[:, step, None] * cumulative[:, -1:]).sum(-1)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
    return ids


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_samples_equal_those_of_a_slow_loop_with_the_librarys_processors_under_the_same_noise(settings):
    model = make_model(**DEFAULT)
    prompts, noise = make_prompts(model, 17), make_noise(model, 17)
    ids = sample_images(model, prompts, noise=noise, **settings)
    assert ids.shape == (17, 17) and ids.dtype == torch.int64
    assert torch.equal(ids, reference(model, prompts, noise, **settings))


@pytest.mark.parametrize("settings", [{}, SETTINGS[6]], ids=str)
@pytest.mark.parametrize(
    "config",
    [PIXELS, LARGE_BLOCKS, {**DEFAULT, "neighborhood_radius": 0}, DEFAULT | CONDITIONAL, LARGE_BLOCKS | CONDITIONAL],
    ids=str,
)
def test_samples_equal_those_of_the_slow_loop_for_other_shapes_of_models(config, settings):
    model = make_model(**config)
    prompts, noise = make_prompts(model, 5), make_noise(model, 5)
    ids = sample_images(model, prompts, noise=noise, **settings)
    assert torch.equal(ids, reference(model, prompts, noise, **settings))


@pytest.mark.parametrize(
    "config",
    [
        {},
        DEFAULT,
        {"image_size": 14, "neighborhood_radius": 1},
        {"image_size": 14, "neighborhood_radius": 0},
        {"image_size": 14, "neighborhood_radius": 3},
        PIXELS,
        LARGE_BLOCKS,
        CONDITIONAL,
        PIXELS | CONDITIONAL,
    ],
    ids=str,
)
def test_every_step_has_the_probabilities_of_the_models_forward(config):
    model = make_model(**config)
    ids, log_probs = sample_images(model, make_prompts(model, 3), return_log_probs=True)
    with torch.no_grad():
        expected = model.token_log_likelihoods(ids)
    assert log_probs.shape == expected.shape
    torch.testing.assert_close(log_probs.float(), expected, rtol=0, atol=1e-4)


def test_each_token_is_where_its_random_number_falls_among_the_probabilities_of_a_whole_image():
    model = make_model()
    noise = make_noise(model, 4)
    ids = sample_images(model, make_prompts(model, 4), noise=noise)
    with torch.no_grad():
        cumulative = model(input_ids=ids[:, :-1], use_cache=False).logits.double().softmax(-1).cumsum(-1)
    tokens = ids[:, 1:, None]
    above = cumulative.gather(-1, tokens).squeeze(-1)
    below = torch.where(tokens > 0, cumulative.gather(-1, (tokens - 1).clamp(min=0)), 0.0).squeeze(-1)
    assert torch.all(noise < above + 1e-5) and torch.all(noise > below - 1e-5)


def test_log_probabilities_are_those_of_the_model_whatever_the_settings():
    model = make_model(**DEFAULT)
    ids, log_probs = sample_images(model, make_prompts(model, 3), return_log_probs=True, **SETTINGS[6])
    with torch.no_grad():
        torch.testing.assert_close(log_probs.float(), model.token_log_likelihoods(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 17, 40])
def test_an_image_has_the_same_bits_alone_and_in_a_batch_for_any_number_of_threads(batch, settings):
    model = make_model(**DEFAULT)
    prompts, noise = make_prompts(model, batch), make_noise(model, batch)

    def sample(rows):
        return sample_images(model, prompts[rows], noise=noise[rows], return_log_probs=True, **settings)

    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(sample(slice(None)))
    alone = [sample(slice(i, i + 1)) for i in range(batch)]
    runs.append([torch.cat(parts) for parts in zip(*alone, strict=True)])
    for ids, log_probs in runs[1:]:
        assert torch.equal(ids, runs[0][0]) and torch.equal(log_probs, runs[0][1])


@pytest.mark.parametrize("given", [1, 5, 15])
def test_given_tokens_are_kept_and_the_others_follow_from_them(given):
    model = make_model(**DEFAULT)
    tokens = torch.randint(16, (6, given))
    prompts, noise = torch.cat([make_prompts(model, 6), tokens], dim=1), make_noise(model, 6, given)
    before = prompts.clone()
    for settings in ({}, {"guidance_scale": 2.0, "top_k": 8}):
        ids = sample_images(model, prompts, noise=noise, **settings)
        assert torch.equal(ids[:, : 1 + given], prompts)
        assert torch.equal(ids, reference(model, prompts, noise, **settings))
    assert torch.equal(prompts, before)


def test_the_seed_repeats_samples_and_the_first_of_a_larger_batch_are_the_same():
    model = make_model(**DEFAULT)
    samples = []
    for batch in (8, 8, 3):
        torch.manual_seed(5)
        samples.append(sample_images(model, make_prompts(model, batch)))
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[0][:3], samples[2])
    assert not torch.equal(samples[0], sample_images(model, make_prompts(model, 8)))


def test_greedy_search_draws_no_random_numbers_and_takes_the_first_of_equal_scores():
    model = make_model(**DEFAULT)
    with torch.no_grad():
        model.lm_head.weight[:] = model.lm_head.weight[:1]
    state = torch.get_rng_state()
    assert torch.all(sample_images(model, make_prompts(model, 2), do_sample=False)[:, 1:] == 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_scores_are_cut_as_the_library_cuts_them():
    model = make_model(**DEFAULT)
    with torch.no_grad():
        model.lm_head.weight[4:] = model.lm_head.weight[4]  # twelve tokens that are always equally likely
    prompts, noise = make_prompts(model, 9), make_noise(model, 9)
    assert torch.equal(sample_images(model, prompts, noise=noise, top_k=3), reference(model, prompts, noise, top_k=3))


@pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"top_k": 1}, {"top_k": 100}, {"min_p": 1.0}, {"top_p": 1e-9}])
def test_extreme_settings_leave_what_the_library_leaves(settings):
    model = make_model(**DEFAULT)
    prompts, noise = make_prompts(model, 9), make_noise(model, 9)
    ids = sample_images(model, prompts, noise=noise, **settings)
    assert torch.equal(ids, reference(model, prompts, noise, **settings))


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_random_numbers_at_the_ends_of_their_range_choose_tokens_that_are_possible(number):
    model = make_model(**DEFAULT)
    prompts = make_prompts(model, 4)
    noise = torch.full_like(make_noise(model, 4), number)
    ids = sample_images(model, prompts, noise=noise, top_k=2)
    assert torch.equal(ids, reference(model, prompts, noise, top_k=2))


def test_frequencies_of_20000_samples_agree_with_the_exact_probabilities():
    model = make_model(image_size=4, num_hidden_layers=2, neighborhood_radius=1)
    prompt = torch.tensor([[20]])
    tokens = torch.cartesian_prod(*[torch.arange(16)] * 4)  # all images there are
    whole = torch.cat([prompt.expand(len(tokens), 1), tokens], dim=1)
    exact = model.log_likelihood(whole, batch_size=8192).exp().view(16, 16, 16, 16)
    assert abs(exact.sum() - 1) < 1e-4

    samples = sample_images(model, prompt.expand(20000, 1))[:, 1:]
    for pair in combinations(range(4), 2):
        expected = 20000 * exact.sum([i for i in range(4) if i not in pair]).flatten()
        counts = torch.bincount(samples[:, pair[0]] * 16 + samples[:, pair[1]], minlength=256)
        cells = expected > 5
        expected = torch.cat([expected[cells], expected[~cells].sum()[None]])
        counts = torch.cat([counts[cells], counts[~cells].sum()[None]])
        chi_square = ((counts - expected) ** 2 / expected.clamp(min=1)).sum()
        freedom = len(expected) - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_an_empty_batch_gives_an_empty_batch():
    model = make_model(**DEFAULT)
    assert sample_images(model, torch.zeros(0, 1, dtype=torch.long)).shape == (0, 17)


def test_changed_weights_are_used_at_once():
    model = make_model(**DEFAULT)
    prompts, noise = make_prompts(model, 4), make_noise(model, 4)
    before = sample_images(model, prompts, noise=noise)
    model.lm_head.weight.data.mul_(-1)
    after = sample_images(model, prompts, noise=noise)
    assert not torch.equal(before, after) and torch.equal(after, reference(model, prompts, noise))


def test_unchanged_weights_are_packed_once(monkeypatch):
    model, calls = make_model(**DEFAULT), []
    pack = kernel_dispatch.packed_weights
    monkeypatch.setattr(kernel_dispatch, "packed_weights", lambda model: calls.append(model) or pack(model))
    prompts, noise = make_prompts(model, 2), make_noise(model, 2)
    first = sample_images(model, prompts, noise=noise)
    assert torch.equal(first, sample_images(model, prompts, noise=noise)) and len(calls) == 1
    for number, weight in enumerate(model.parameters(), start=2):
        weight.data.view(-1)[-1] += 0.01  # leaves no trace in autograd's version counter
        sample_images(model, prompts, noise=noise)
        assert len(calls) == number


def test_wrong_input_is_rejected_with_a_clear_error():
    model = make_model(**DEFAULT)
    for ids in ([[15]], [[27]], [[16, 16]], [[16, -1]], [[16] + [0] * 16]):
        with pytest.raises(ValueError, match="out of range|given tokens"):
            sample_images(model, torch.tensor(ids))
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature must be positive"):
            sample_images(model, make_prompts(model, 1), temperature=temperature)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(RuntimeError, match="are NaN"):
        sample_images(model, make_prompts(model, 3))


def test_models_that_are_not_plain_small_and_float32_on_the_cpu_are_left_to_the_library():
    assert is_sampler_usable(make_model(**DEFAULT))
    assert is_sampler_usable(make_model(**DEFAULT).train())  # has no dropout
    assert not is_sampler_usable(make_model(**DEFAULT, attention_dropout=0.1).train())
    assert not is_sampler_usable(make_model(**DEFAULT).bfloat16())
    assert not is_sampler_usable(make_model(**DEFAULT, hidden_act="relu"))
    assert not is_sampler_usable(make_model(**{**DEFAULT, "hidden_size": 256}))
    assert not is_sampler_usable(make_model(image_size=8, patch_size=4, neighborhood_radius=1))
    assert not is_sampler_usable(IGPTForCausalImageModeling(IGPTConfig(**DEFAULT)).to("meta"))

    hooked = make_model(**DEFAULT)
    handle = hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not is_sampler_usable(hooked)
    handle.remove()
    assert is_sampler_usable(hooked)

    class IGPTMine(IGPTForCausalImageModeling):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    assert not is_sampler_usable(IGPTMine(IGPTConfig(**DEFAULT)))

    biased = make_model(**DEFAULT)
    biased.lm_head = nn.Linear(biased.lm_head.in_features, biased.lm_head.out_features)
    assert not is_sampler_usable(biased)

    class Wrapped(nn.Module):  # as adapters wrap a layer
        def __init__(self, base):
            super().__init__()
            self.base, self.scale = base, nn.Parameter(torch.zeros(1))

    wrapped = make_model(**DEFAULT)
    wrapped.lm_head = Wrapped(wrapped.lm_head)
    assert not is_sampler_usable(wrapped)


@pytest.mark.slow
def test_a_second_process_loads_the_compiled_kernel_from_disk():
    model = make_model(**DEFAULT)
    sample_images(model, make_prompts(model, 1))  # compiles, if no earlier run did
    extension_kernel()
    script = (
        "from igpt_hf.model.kernel_sampling import completion_kernel, extension_kernel;"
        "kernels = completion_kernel(), extension_kernel();"
        "print([sum(kernel.stats.cache_hits.values()) for kernel in kernels])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[1, 1]\n"


@pytest.mark.slow
def test_without_numba_the_module_imports_and_says_that_it_is_not_usable():
    script = (
        "import sys; sys.modules['numba'] = None;"  # makes `import numba` raise ImportError
        "from igpt_hf import IGPTConfig, IGPTForCausalImageModeling;"
        "from igpt_hf.model.kernel_dispatch import is_sampler_usable;"
        "print(is_sampler_usable(IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=1))))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
