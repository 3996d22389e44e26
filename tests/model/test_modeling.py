"""The model: causal, cached as uncached, equal to a plain reference, and a distribution over images."""

import copy
import itertools
import math

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, set_seed
from transformers.cache_utils import DynamicCache

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTForImageClassification, IGPTModel
from igpt_hf.model import classes_igpt, modeling_igpt
from igpt_hf.model.kernel_dispatch import is_numba_usable
from igpt_hf.model.layers_igpt import IGPTRMSNorm
from igpt_hf.model.neighborhood import context_ids, neighborhood_offsets


SHAPES = [
    {"patch_size": 2, "neighborhood_radius": 2},
    {"patch_size": 2, "neighborhood_radius": 0},  # the paper's input: the token before, nothing else
    {"patch_size": 2, "neighborhood_radius": 3},  # as far as the image reaches
    {"patch_size": 1, "neighborhood_radius": 1},
    {"patch_size": 3, "neighborhood_radius": 1, "image_size": 9},
    {"class_conditional_norm": True},
]


@torch.no_grad()
def logits_of(model, ids) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


# --- what each position sees ----------------------------------------------------------------------------------------


def test_the_neighborhood_is_all_that_is_known_within_the_radius():
    assert neighborhood_offsets(0) == [(0, -1)]
    assert neighborhood_offsets(1) == [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
    assert len(neighborhood_offsets(2)) == 12


def test_a_position_is_told_the_tokens_around_the_one_it_predicts_and_the_prompt():
    config = IGPTConfig(image_size=6, neighborhood_radius=1)  # 3 x 3 tokens
    ids = torch.tensor([[20, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    outside = config.vocab_size
    context = context_ids(ids, torch.arange(9), config)[0].tolist()
    assert context[0] == [outside, outside, outside, outside, 20]
    assert context[4] == [0, 1, 2, 3, 20]
    assert context[5] == [1, 2, outside, 4, 20]
    assert context[6] == [outside, 3, 4, 5, 20]  # the token before, at the start of a row too


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_changes_no_logits_before_it_and_some_after_it(tiny_model, random_ids, shape):
    model = tiny_model(**shape)
    config = model.config
    ids = random_ids(config)
    logits = logits_of(model, ids)
    for place in range(config.num_image_tokens + 1):  # place 0 is the prompt
        low, size = (config.vocab_size, config.num_labels) if place == 0 else (0, config.vocab_size)
        other = ids.clone()
        other[:, place] = low + (ids[:, place] - low + 1) % size
        change = (logits_of(model, other) - logits).abs().amax(dim=(0, 2))
        assert (change[:place] <= 1e-6).all(), place
        assert place == config.num_image_tokens or change[place] > 1e-5, place  # the last predicts nothing


def reference_logits(model, ids: list[int]) -> np.ndarray:
    """The model of design.md section 2 once more, position by position, in plain float64 numpy: (T, V)."""
    config, weights = model.config, {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    offsets, grid, width = neighborhood_offsets(config.neighborhood_radius), config.grid_size, config.hidden_size
    heads = config.num_attention_heads

    def norm(x, name):
        gain = weights[f"{name}.weight"]
        if config.class_conditional_norm:
            gain = gain[ids[0] - config.vocab_size]
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps) * gain

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def neighbors(position, wraps):
        """Places in the sequence, None outside the image, of the tokens around the one that this position predicts."""
        row, column = divmod(position, grid)
        for d_row, d_column in offsets:
            is_left = wraps and (d_row, d_column) == (0, -1)  # the token before, in the row above at a row's start
            inside = position > 0 if is_left else row + d_row >= 0 and 0 <= column + d_column < grid
            yield 1 + (row + d_row) * grid + column + d_column if inside else None

    table, hidden = weights["model.embeddings.context.weight"], []
    for position in range(len(ids)):
        row, column = divmod(position, grid)
        h = weights["model.embeddings.row.weight"][row] + weights["model.embeddings.column.weight"][column]
        for k, place in enumerate(neighbors(position, wraps=True)):
            h += table[k * (config.vocab_size + 1) + (config.vocab_size if place is None else ids[place])]
        hidden.append(h + table[len(offsets) * (config.vocab_size + 1) + ids[0] - config.vocab_size])
    hidden = np.stack(hidden)

    def turned(x):
        """Rotary positions, pair by pair of channels as complex numbers: (T, H, D)."""
        x, quarter = x.copy(), width // heads // 4
        for position in range(len(ids)):
            for p in range(2 * quarter):
                step = divmod(position, grid)[p // quarter]
                angle = step * 0.2 ** (p % quarter / max(1, quarter - 1))
                pair = (x[position, :, p] + 1j * x[position, :, 2 * quarter + p]) * np.exp(1j * angle)
                x[position, :, p], x[position, :, 2 * quarter + p] = pair.real, pair.imag
        return x

    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        qkv = linear(norm(hidden, f"{at}.attention_norm"), f"{at}.attention.qkv_proj")
        query, key, value = (part.reshape(len(ids), heads, -1) for part in np.split(qkv, 3, axis=1))
        query, key = turned(query), turned(key)
        mixed = np.zeros((len(ids), width))
        for position in range(len(ids)):
            for head in range(heads):
                scores = key[: position + 1, head] @ query[position, head] / math.sqrt(width // heads)
                share = np.exp(scores - scores.max())
                size = width // heads
                channels = slice(head * size, (head + 1) * size)
                mixed[position, channels] = share / share.sum() @ value[: position + 1, head]
            if config.neighborhood_radius:
                for k, place in enumerate(neighbors(position, wraps=False)):
                    if place is not None:
                        weight = weights[f"{at}.attention.local_mixing.weight"][:, k]
                        mixed[position] += weight * value[place].reshape(-1)
        hidden = hidden + linear(mixed, f"{at}.attention.out_proj")
        up = linear(norm(hidden, f"{at}.mlp_norm"), f"{at}.mlp.up_proj")
        beta = {"silu": 1, "quick_gelu": 1.702}[config.hidden_act]
        hidden = hidden + linear(up / (1 + np.exp(-beta * up)), f"{at}.mlp.down_proj")
    return norm(hidden, "model.norm") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_agree_with_a_plain_reference(tiny_model, random_ids, shape):
    model = tiny_model(**shape)
    ids = random_ids(model.config, n=2)
    expected = np.stack([reference_logits(model, row.tolist()) for row in ids])
    assert np.abs(logits_of(model, ids).numpy() - expected).max() < 1e-4


def test_every_attention_implementation_gives_the_same_logits(tiny_model, random_ids, monkeypatch):
    model = tiny_model()
    ids = random_ids(model.config)
    kernel = logits_of(model, ids)
    monkeypatch.setattr(modeling_igpt, "are_blocks_usable", lambda *_: False)
    sdpa = logits_of(model, ids)
    model.set_attn_implementation("eager")
    eager = logits_of(model, ids)
    assert (kernel - sdpa).abs().max() < 1e-5
    assert (eager - sdpa).abs().max() < 1e-5


def test_hidden_states_and_attentions_can_be_asked_for(tiny_model, random_ids):
    model = tiny_model()
    model.set_attn_implementation("eager")
    ids = random_ids(model.config)
    outputs = model(input_ids=ids, output_hidden_states=True, output_attentions=True, use_cache=False)
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(3, 17, 16)] * 3  # the input and two layers
    for attention in outputs.attentions:
        assert attention.shape == (3, 2, 17, 17)
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
        assert attention.triu(1).abs().max() == 0


def test_a_gain_for_each_prompt_is_read_by_the_images_with_that_prompt_alone(tiny_model, random_ids):
    model = tiny_model(class_conditional_norm=True)
    ids = random_ids(model.config, n=4)
    ids[:, 0] = model.config.vocab_size + torch.tensor([0, 1, 2, 3])  # three classes and the start token
    for norm in (model.model.layers[0].attention_norm, model.model.layers[1].mlp_norm, model.model.norm):
        assert norm.weight.shape == (4, 16)
        for row in range(4):
            before = logits_of(model, ids)
            with torch.no_grad():
                norm.weight[row] += 0.5
            is_changed = (logits_of(model, ids) - before).abs().amax(dim=(1, 2)) > 1e-3
            assert is_changed.tolist() == [prompt == row for prompt in range(4)]


def test_equal_gains_for_all_prompts_are_one_gain(tiny_model, random_ids):
    model, plain = tiny_model(class_conditional_norm=True), tiny_model()
    weights = plain.state_dict()
    model.load_state_dict({n: w.expand(4, -1) if "norm" in n else w for n, w in weights.items()})
    ids = random_ids(model.config)
    torch.testing.assert_close(logits_of(model, ids), logits_of(plain, ids), rtol=0, atol=1e-6)


# --- cache ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", [1, 6])
def test_cached_logits_equal_full_ones_at_every_position(tiny_model, random_ids, shape, first):
    model = tiny_model(**shape)
    ids = random_ids(model.config)
    cache, logits = DynamicCache(config=model.config), []
    ends = [first, *range(first + 1, ids.shape[1] + 1)]  # a prompt, then one by one
    for begin, end in itertools.pairwise([0, *ends]):
        context = context_ids(ids[:, :end], torch.arange(begin, end), model.config)
        with torch.no_grad():
            outputs = model(input_ids=ids[:, begin:end], past_key_values=cache, context=context, use_cache=True)
        logits.append(outputs.logits)
    assert (torch.cat(logits, dim=1) - logits_of(model, ids)).abs().max() <= 1e-4


def test_a_cache_may_grow_by_several_tokens_at_once(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(input_ids=ids[:, :7], past_key_values=cache, use_cache=True).logits
        context = context_ids(ids, torch.arange(7, 17), model.config)
        rest = model(input_ids=ids[:, 7:], past_key_values=cache, context=context, use_cache=True).logits
    assert (torch.cat([first, rest], dim=1) - logits_of(model, ids)).abs().max() <= 1e-4


def test_a_cache_without_the_context_is_refused(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="pass `context`"):
        model(input_ids=ids[:, 5:6], past_key_values=cache)


def test_logits_to_keep_keeps_the_last_ones(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    assert torch.equal(model(input_ids=ids, logits_to_keep=2).logits, model(input_ids=ids).logits[:, -2:])


# --- likelihood -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_the_mean_of_nats_per_token_of_the_exact_likelihood(tiny_model, random_ids, shape):
    model = tiny_model(**shape)
    ids = random_ids(model.config, n=5)
    labels = ids.clone()
    labels[:, 0] = -100
    log_p = model.log_likelihood(ids)
    by_hand = sum(
        math.log(probability)
        for row, tokens in zip(logits_of(model, ids).double().softmax(-1), ids[:, 1:].tolist(), strict=True)
        for probability in (row[t, token].item() for t, token in enumerate(tokens))
    )
    assert log_p.shape == (5,)
    assert log_p.dtype == torch.float64
    assert log_p.sum().item() == pytest.approx(by_hand, rel=1e-5)
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss.item()
    assert loss == pytest.approx(-by_hand / (5 * model.config.num_image_tokens), rel=1e-5)


def test_the_likelihood_of_an_image_does_not_depend_on_the_batch(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=7)
    whole = model.log_likelihood(ids)
    assert torch.allclose(model.log_likelihood(ids, batch_size=3), whole, atol=1e-6)
    assert torch.allclose(torch.cat([model.log_likelihood(row[None]) for row in ids]), whole, atol=1e-6)


@pytest.mark.parametrize("prompt", [0, 1, 2, 3], ids=["class 0", "class 1", "class 2", "any class"])
@pytest.mark.parametrize(
    "shape",
    [
        {"image_size": 4, "patch_size": 2, "neighborhood_radius": 1},
        {"image_size": 3, "patch_size": 1, "neighborhood_radius": 2},
        {"image_size": 3, "patch_size": 3, "neighborhood_radius": 0},
    ],
    ids=["65,536 pictures of 4x4", "512 of 3x3, pixel by pixel", "512 of 3x3, in one token"],
)
def test_the_probabilities_of_all_pictures_sum_to_one(tiny_model, shape, prompt):
    model = tiny_model(num_hidden_layers=1, **shape)
    vocabulary = torch.arange(model.config.vocab_size)
    tokens = torch.cartesian_prod(*[vocabulary] * model.config.num_image_tokens)
    tokens = tokens.view(-1, model.config.num_image_tokens)
    assert len(tokens) == 2**model.config.num_pixels
    ids = torch.cat([torch.full((len(tokens), 1), model.config.vocab_size + prompt), tokens], dim=1)
    log_p = model.log_likelihood(ids, batch_size=8192)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.1  # not the uniform distribution, of which it would be no news


@pytest.mark.parametrize("prior", [None, [0.7, 0.2, 0.1], [0.5, 0.5, 0]])
def test_the_posterior_of_the_class_is_bayes_rule(tiny_model, random_ids, prior):
    model = tiny_model()
    ids = random_ids(model.config, n=4)
    posterior = model.class_posterior(ids, prior=prior)
    log_joint = []
    for label, p in enumerate(prior or [1 / 3] * 3):
        told = torch.cat([torch.full((4, 1), 16 + label), ids[:, 1:]], dim=1)
        log_joint.append(model.log_likelihood(told).numpy() + (math.log(p) if p else -math.inf))
    joint = np.exp(np.stack(log_joint, axis=1))
    assert np.allclose(posterior.numpy(), joint / joint.sum(axis=1, keepdims=True), atol=1e-6)
    assert torch.allclose(posterior.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert posterior.std(dim=0).min() > 0 or prior is not None  # it does look at the image


def test_the_posterior_ignores_the_prompt_that_the_images_come_with(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    any_class = torch.cat([torch.full((3, 1), model.config.start_token_id), ids[:, 1:]], dim=1)
    assert torch.equal(model.class_posterior(ids), model.class_posterior(any_class))


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.5, 0.4, 0.3], [1.2, -0.1, -0.1], [1.0], 0.5, [math.nan, 0.5, 0.5]])
def test_a_prior_that_is_no_distribution_over_the_classes_is_refused(tiny_model, random_ids, prior):
    model = tiny_model()
    with pytest.raises(ValueError, match="prior must be 3 probabilities that sum to 1"):
        model.class_posterior(random_ids(model.config), prior=prior)


@pytest.mark.parametrize("method", ["log_likelihood", "class_log_likelihoods", "class_posterior"])
@pytest.mark.parametrize("length", [1, 16, 18])
def test_the_likelihood_of_anything_but_whole_images_is_refused(tiny_model, method, length):
    with pytest.raises(ValueError, match=rf"shape \(n, 17\).*got \(2, {length}\)"):
        getattr(tiny_model(), method)(torch.zeros(2, length, dtype=torch.long))


@pytest.mark.parametrize("method", ["log_likelihood", "class_log_likelihoods", "class_posterior"])
def test_the_likelihood_of_arrays_is_that_of_tensors_and_of_images_it_is_refused(tiny_model, random_ids, method):
    model = tiny_model()
    ids, ask = random_ids(model.config), getattr(model, method)
    assert torch.equal(ask(ids.numpy()), ask(ids)) and torch.equal(ask(ids.tolist()), ask(ids))
    for images in ([PIL.Image.new("L", (8, 8))], PIL.Image.new("L", (8, 8)), ids.float(), "ids"):
        with pytest.raises(ValueError, match=r"input_ids are .* pass processor\(images\)\['input_ids'\]"):
            ask(images)


@pytest.mark.parametrize("wrong", [[[3, 1, 2]], [[16, -1, 2]], [[18, 18]], [[20]]])
def test_ids_that_are_no_prompt_or_no_token_are_refused(tiny_model, wrong):
    with pytest.raises(ValueError, match="is out of range"):
        tiny_model()(input_ids=torch.tensor(wrong))


@pytest.mark.parametrize(("place", "wrong"), [(0, 2), (0, 20), (5, 16), (5, -1)])
def test_the_likelihood_of_ids_that_are_no_prompt_or_no_token_is_refused(tiny_model, random_ids, place, wrong):
    model = tiny_model()
    ids = random_ids(model.config)
    ids[1, place] = wrong
    with pytest.raises(ValueError, match=f"{wrong} is out of range"):
        model.log_likelihood(ids)


def test_a_sequence_longer_than_an_image_is_refused(tiny_model):
    with pytest.raises(ValueError, match="at most 17 ids"):
        tiny_model()(input_ids=torch.zeros(1, 18, dtype=torch.long))


# --- weights --------------------------------------------------------------------------------------------------------


def test_a_new_model_gives_every_token_the_same_probability(random_ids):
    set_seed(0)
    model = IGPTForCausalImageModeling(IGPTConfig(num_hidden_layers=2))
    ids = random_ids(model.config)
    assert model(input_ids=ids, labels=ids.where(ids < 16, -100)).loss.item() == pytest.approx(math.log(16), rel=1e-6)
    assert torch.allclose(-model.log_likelihood(ids), torch.tensor(784 * math.log(2)).double())


def test_projections_into_the_residual_stream_start_smaller():
    set_seed(0)
    config = IGPTConfig(hidden_size=128, num_hidden_layers=8)
    model = IGPTForCausalImageModeling(config)
    smaller = 1 / math.sqrt(2 * config.num_hidden_layers)
    for layer in model.model.layers:
        assert layer.attention.out_proj.weight.std().item() == pytest.approx(128**-0.5 * smaller, rel=0.05)
        assert layer.mlp.down_proj.weight.std().item() == pytest.approx(640**-0.5 * smaller, rel=0.05)
        assert layer.attention.qkv_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
        assert layer.attention.local_mixing.weight.abs().max() == 0
        assert (layer.attention_norm.weight == 1).all()
    assert model.lm_head.weight.abs().max() == 0
    assert model.model.embeddings.context.weight.std().item() == pytest.approx(config.initializer_range, rel=0.05)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    def weights(seed, make):
        set_seed(seed)
        return torch.cat([p.detach().flatten() for p in make(IGPTConfig(num_hidden_layers=1)).parameters()])

    first = weights(0, IGPTForCausalImageModeling)
    assert torch.equal(first, weights(0, IGPTForCausalImageModeling))
    assert torch.equal(first, weights(0, AutoModelForCausalLM.from_config))
    assert not torch.equal(first, weights(1, IGPTForCausalImageModeling))


def test_all_parameters_get_a_gradient_and_move(tiny_model, random_ids):
    model = tiny_model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = random_ids(model.config, n=8)
    model(input_ids=ids, labels=ids.where(ids < 16, -100), use_cache=False).loss.backward()
    parameters = dict(model.named_parameters())
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert [name for name, p in parameters.items() if torch.equal(p, before[name])] == []


def test_a_new_model_learns_with_all_its_parameters_though_its_head_is_zero(random_ids):
    set_seed(0)
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = random_ids(model.config, n=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    for _ in range(3):  # first the head, then what feeds it, then what feeds that
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids.where(ids < 16, -100), use_cache=False).loss.backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_gradient_checkpointing_computes_twice_and_gives_the_same_gradients(tiny_model, random_ids):
    gradients, calls = {}, {}
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()  # its name in all versions
        counted = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *args, counted=counted: counted.append(1))
        ids = random_ids(model.config)
        model(input_ids=ids, labels=ids.where(ids < 16, -100), use_cache=False).loss.backward()
        gradients[checkpointing] = {name: p.grad for name, p in model.named_parameters()}
        calls[checkpointing] = len(counted)
    assert calls == {False: 1, True: 2}
    for name, gradient in gradients[False].items():
        assert torch.equal(gradient, gradients[True][name]), name


def test_with_gradient_checkpointing_a_call_with_labels_needs_no_word_about_the_cache(tiny_model, random_ids):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert model.model.gradient_checkpointing == checkpointing
        ids = random_ids(model.config)
        model(input_ids=ids, labels=ids.where(ids < 16, -100)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model(input_ids=ids).logits.sum().backward()  # nor does one without labels
        model.model(ids, use_cache=True).last_hidden_state.sum().backward()
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    with pytest.raises(ValueError, match="without a cache"):
        model(input_ids=ids, past_key_values=DynamicCache(config=model.config))


def test_a_call_with_labels_builds_no_cache_unless_asked_and_is_left_to_the_kernel(
    tiny_model, random_ids, monkeypatch
):
    model = tiny_model()
    ids = random_ids(model.config)
    labels = ids.where(ids < 16, -100)
    blocks, calls = modeling_igpt.run_blocks, []
    monkeypatch.setattr(modeling_igpt, "run_blocks", lambda *args: calls.append(1) or blocks(*args))
    assert model(input_ids=ids, labels=labels).past_key_values is None
    assert len(calls) == is_numba_usable()
    assert model(input_ids=ids, labels=labels, use_cache=True).past_key_values.get_seq_length() == ids.shape[1]
    assert model(input_ids=ids).past_key_values.get_seq_length() == ids.shape[1]


# --- adapters and transformers' usual methods -----------------------------------------------------------------------


class Adapted(nn.Module):
    """What an adapter puts in the place of a layer: the layer, frozen, and a change that is trained."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.change = nn.Parameter(torch.full_like(layer.weight, 0.1))

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, ids):
        return self.layer(ids) + nn.functional.embedding(ids, self.change)


def test_an_adapter_of_the_table_counts_and_gets_a_gradient(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(tiny_model().config)
    before = logits_of(model, ids)
    merged = copy.deepcopy(model)
    merged.model.embeddings.context.weight.data += 0.1
    model.model.embeddings.context = Adapted(model.model.embeddings.context)
    assert (logits_of(model, ids) - logits_of(merged, ids)).abs().max() < 1e-4
    assert (logits_of(model, ids) - before).abs().max() > 1e-2
    model(input_ids=ids, labels=ids.where(ids < 16, -100)).loss.backward()
    merged(input_ids=ids, labels=ids.where(ids < 16, -100)).loss.backward()
    change, expected = model.model.embeddings.context.change.grad, merged.model.embeddings.context.weight.grad
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_hook_on_the_table_counts(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(tiny_model().config)
    doubled = copy.deepcopy(model)
    doubled.model.embeddings.context.weight.data *= 2
    model.model.embeddings.context.register_forward_hook(lambda module, args, output: 2 * output)
    assert (logits_of(model, ids) - logits_of(doubled, ids)).abs().max() < 1e-4


def test_low_rank_adapters_of_peft_train_on_the_table(tiny_model, random_ids):
    peft = pytest.importorskip("peft", reason="there is no peft: pip install -e '.[test]'")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["context"]))
    ids = random_ids(model.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, std=0.1)
    model(input_ids=ids, labels=ids.where(ids < 16, -100)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0] == []
    adapted = logits_of(model, ids)
    merged = model.merge_and_unload()
    assert (logits_of(merged, ids) - adapted).abs().max() < 1e-4
    assert (logits_of(tiny_model(), ids) - adapted).abs().max() > 1e-2


def test_prompt_tuning_is_refused_in_words(tiny_model):
    with pytest.raises(ValueError, match="prompt tuning and prefix tuning do not fit"):
        tiny_model().get_submodule("embeddings.word_embeddings")  # peft asks for it
    peft = pytest.importorskip("peft", reason="there is no peft: pip install -e '.[test]'")
    for kind in (peft.PromptTuningConfig, peft.PrefixTuningConfig):
        with pytest.raises(ValueError, match="prompt tuning and prefix tuning do not fit"):
            peft.get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize("kind", [IGPTForCausalImageModeling, IGPTForImageClassification, IGPTModel])
def test_the_dummy_inputs_fit_the_forward_pass(kind):
    model = kind(IGPTConfig(image_size=8, num_hidden_layers=1, num_labels=3))
    assert model.dummy_inputs["input_ids"].tolist() == [[19] + [0] * 16] * 2
    assert len(model(**model.dummy_inputs)[0]) == 2


def test_the_vocabulary_cannot_be_resized(tiny_model):
    with pytest.raises(ValueError, match=r"patch_size=2 and cannot be resized.*set_classes"):
        tiny_model().resize_token_embeddings(30)


def test_the_input_embeddings_can_be_exchanged(tiny_model, random_ids):
    model, other = tiny_model(), tiny_model(seed=1)
    ids = random_ids(model.config)
    model.set_input_embeddings(other.get_input_embeddings())
    assert model.get_input_embeddings() is other.model.embeddings
    other.model.layers, other.model.norm, other.lm_head = model.model.layers, model.model.norm, model.lm_head
    assert torch.equal(logits_of(model, ids), logits_of(other, ids))


# --- other classes --------------------------------------------------------------------------------------------------


ANIMALS = {"id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}
NUM_NEIGHBOR_ROWS = 12 * 17


@pytest.fixture
def animals(tiny_model, tmp_path):
    """A saved model of three animals, and its table."""
    model = tiny_model(**ANIMALS)
    model.generation_config.temperature = 0.7
    model.save_pretrained(tmp_path)
    return tmp_path, model


@pytest.mark.parametrize("loader", [IGPTForCausalImageModeling, AutoModelForCausalLM, IGPTModel, AutoModel,
                                    IGPTForImageClassification])  # fmt: skip
@pytest.mark.parametrize(
    ("classes", "names", "rows"),
    [
        ({"id2label": {0: "eel", 1: "fox", 2: "cat", 3: "gnu"}}, ["eel", "fox", "cat", "gnu"], [2, 3, 0, 3, 3]),
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"], [3, 3, 3]),
        ({"id2label": {0: "Katze", 1: "Hund", 2: "Aal"}}, ["Katze", "Hund", "Aal"], [0, 1, 2, 3]),  # other names
        ({"id2label": {0: "dog", 1: "cat", 2: "eel"}}, ["dog", "cat", "eel"], [1, 0, 2, 3]),  # in another order
        ({"id2label": {0: "cat", 1: "dog", 2: "Aal"}}, ["cat", "dog", "Aal"], [0, 1, 2, 3]),
        ({}, ["cat", "dog", "eel"], [0, 1, 2, 3]),
    ],
)
def test_other_classes_cost_their_prompts_only(animals, loader, classes, names, rows):
    folder, saved = animals
    model = loader.from_pretrained(folder, ignore_mismatched_sizes=True, attention_dropout=0.1, **classes)
    table, expected = model.base_model.embeddings.context.weight, saved.model.embeddings.context.weight
    assert torch.equal(table[:NUM_NEIGHBOR_ROWS], expected[:NUM_NEIGHBOR_ROWS])
    assert torch.equal(table[NUM_NEIGHBOR_ROWS:], expected[NUM_NEIGHBOR_ROWS:][rows])  # row 3 asks for any class
    assert table.requires_grad
    assert torch.equal(model.base_model.norm.weight, saved.model.norm.weight[rows])
    assert list(model.config.id2label.values()) == names
    assert model.config.label2id == {name: label for label, name in enumerate(names)}
    assert model.config.attention_dropout == 0.1
    assert saved.config.num_labels == 3
    if model.can_generate():
        settings = model.generation_config
        assert (settings.bos_token_id, settings.temperature) == (16 + len(names), 0.7)
        for beams in (1, 2):
            assert model.generate(num_beams=beams)[0, 0] == 16 + len(names)
    if loader is IGPTForImageClassification:
        assert model(**model.dummy_inputs).logits.shape == (2, len(names))


def test_the_gains_of_class_conditional_norms_follow_their_classes(tiny_model):
    model = tiny_model(**ANIMALS, class_conditional_norm=True)
    before = [norm.weight.clone() for norm in model.modules() if isinstance(norm, IGPTRMSNorm)]
    assert model.set_classes(["eel", "fox", "cat", "gnu"]) == ["fox", "gnu"]
    after = [norm.weight for norm in model.modules() if isinstance(norm, IGPTRMSNorm)]
    assert all(torch.equal(new, old[[2, 3, 0, 3, 3]]) for new, old in zip(after, before, strict=True))
    assert model.generate(torch.tensor([[19]])).shape == (1, 17)


def test_unnamed_classes_are_known_by_their_numbers(tiny_model, tmp_path):
    saved = tiny_model()
    saved.save_pretrained(tmp_path)
    config = IGPTConfig.from_pretrained(tmp_path, num_labels=4)
    model, info = IGPTForCausalImageModeling.from_pretrained(
        tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert not any(info.values())
    table, expected = model.model.embeddings.context.weight, saved.model.embeddings.context.weight
    assert torch.equal(table[NUM_NEIGHBOR_ROWS:], expected[NUM_NEIGHBOR_ROWS:][[0, 1, 2, 3, 3]])
    assert model.generation_config.bos_token_id == 20


def test_other_classes_are_refused_unless_one_says_so(animals):
    folder, _ = animals
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        IGPTForCausalImageModeling.from_pretrained(folder, num_labels=2)


def test_a_model_with_other_classes_says_which_are_new_and_is_saved_and_loaded_as_any(animals, tmp_path, caplog):
    folder, _ = animals
    labels = {0: "eel", 1: "fox"}
    model = IGPTForCausalImageModeling.from_pretrained(folder, id2label=labels, ignore_mismatched_sizes=True)
    said = [record.getMessage() for record in caplog.records if record.name == classes_igpt.__name__]
    assert said == [f"{folder}: the prompts of these classes are new and need training: fox"]
    model.save_pretrained(tmp_path / "again")
    again = IGPTForCausalImageModeling.from_pretrained(tmp_path / "again")
    assert again.config.id2label == labels
    assert again.generation_config.bos_token_id == 18
    assert torch.equal(again.generate(torch.tensor([[17]]), do_sample=False),
                       model.generate(torch.tensor([[17]]), do_sample=False))  # fmt: skip


def test_a_classifier_keeps_the_rows_of_the_classes_that_it_knows(tmp_path):
    torch.manual_seed(0)
    saved = IGPTForImageClassification(IGPTConfig(image_size=8, num_hidden_layers=1, **ANIMALS))
    torch.nn.init.normal_(saved.classifier.bias)
    saved.save_pretrained(tmp_path)
    labels = {0: "eel", 1: "fox", 2: "gnu", 3: "cat"}
    model = IGPTForImageClassification.from_pretrained(tmp_path, id2label=labels, ignore_mismatched_sizes=True)
    head, expected = model.classifier, saved.classifier
    assert torch.equal(head.weight[[0, 3]], expected.weight[[2, 0]])
    assert torch.equal(head.bias[[0, 3]], expected.bias[[2, 0]])
    assert head.bias[[1, 2]].tolist() == [0, 0]
    assert head.weight[[1, 2]].std().item() == pytest.approx(0.25, rel=0.5)  # 1 / sqrt(16)


@pytest.mark.parametrize("names", [[], ["cat", "cat"]])
def test_classes_without_names_of_their_own_are_refused(tiny_model, names):
    with pytest.raises(ValueError, match="classes need names"):
        tiny_model().set_classes(names)


# --- save and load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_same_when_loaded_by_every_class(tiny_model, random_ids, tmp_path, dtype):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    ids = random_ids(model.config)
    assert type(AutoConfig.from_pretrained(tmp_path)) is IGPTConfig
    for loader in (IGPTForCausalImageModeling, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is IGPTForCausalImageModeling
        assert (loaded.dtype, loaded.training) == (dtype, False)
        assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    for loader in (IGPTModel, AutoModel):
        base = loader.from_pretrained(tmp_path)
        assert type(base) is IGPTModel
        assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_bfloat16_changes_the_likelihood_by_little(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    exact = model.log_likelihood(ids)
    rounded = model.to(torch.bfloat16).log_likelihood(ids)
    assert rounded.dtype == torch.float64
    assert (rounded / exact - 1).abs().max() < 0.05


def test_no_images_have_no_likelihoods_and_small_integers_are_ids_too(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=3)
    assert model.log_likelihood(ids[:0]).shape == (0,)
    assert torch.equal(model.log_likelihood(ids.to(torch.uint8)), model.log_likelihood(ids))
    assert torch.equal(model.class_posterior(ids.to(torch.uint8)), model.class_posterior(ids))


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_is_taken_under_either_of_its_names(tiny_model, random_ids, name):
    model = tiny_model()
    ids = random_ids(model.config)
    cache = DynamicCache(config=model.config)
    positions = torch.arange(7, ids.shape[1])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        model(input_ids=ids[:, :7], use_cache=True, **{name: cache})
        context = context_ids(ids, positions, model.config)
        rest = model(input_ids=ids[:, 7:], context=context, use_cache=True, **{name: cache}).logits
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(rest, whole[:, 7:], rtol=0, atol=1e-5)


def test_of_what_the_model_returns_the_trainer_gathers_all_but_the_cache(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    outputs = model(input_ids=ids, use_cache=True)
    assert outputs.keys() - set(model.config.keys_to_ignore_at_inference) == {"logits"}
    assert len(outputs) == 2
    assert outputs.keys() - {"logits"} <= set(model._skip_keys_device_placement)


def test_padding_is_refused_and_a_mask_of_ones_changes_nothing(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, expected)
    mask[1, 0] = 0
    with pytest.raises(ValueError, match="attention_mask has zeros, but there is no padding"):
        model(input_ids=ids, attention_mask=mask)
    with pytest.raises(ValueError, match="position_ids differ from sequence to sequence, but there is no padding"):
        model(input_ids=ids, position_ids=(mask.cumsum(1) - 1).clamp(min=0))


@pytest.mark.parametrize("kind", [IGPTModel, IGPTForCausalImageModeling, IGPTForImageClassification])
def test_embeddings_in_place_of_ids_are_refused(kind, random_ids):
    model = kind(IGPTConfig(image_size=8, num_hidden_layers=1))
    embeds = torch.zeros(3, 17, 16)
    for given in ({"inputs_embeds": embeds}, {"inputs_embeds": embeds, "input_ids": random_ids(model.config)}, {}):
        with pytest.raises(ValueError, match="pass input_ids: inputs_embeds is not supported"):
            model(**given)
