"""The model: causal, cached as uncached, equal to a plain reference, and a distribution over images."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, set_seed
from transformers.cache_utils import DynamicCache

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTModel, modeling_igpt
from igpt_hf.modeling_igpt import context_ids, neighborhood_offsets


SHAPES = [
    {"patch_size": 2, "neighborhood_radius": 2},
    {"patch_size": 2, "neighborhood_radius": 0},  # the paper's input: the token before, nothing else
    {"patch_size": 2, "neighborhood_radius": 3},  # as far as the image reaches
    {"patch_size": 1, "neighborhood_radius": 1},
    {"patch_size": 3, "neighborhood_radius": 1, "image_size": 9},
]


@torch.no_grad()
def logits_of(model, ids) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


# --- what each position sees ----------------------------------------------------------------------------------------


def test_the_neighbourhood_is_all_that_is_known_within_the_radius():
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
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

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
        h = weights["model.embeddings.position.weight"][position].copy()
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
        slope = {"silu": 1, "quick_gelu": 1.702}[config.hidden_act]
        hidden = hidden + linear(up / (1 + np.exp(-slope * up)), f"{at}.mlp.down_proj")
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
        assert layer.mlp.down_proj.weight.std().item() == pytest.approx(512**-0.5 * smaller, rel=0.05)
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
