"""Sampling: one whole image per prompt, repeatable, from exactly the distribution that the likelihood tells."""

import copy
import itertools
import warnings

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.model.generation_igpt import CACHE_NAME
from igpt_hf.model.kernel_dispatch import is_sampler_usable


# The library's own loop, with each kind of cache; `generate` may be faster where nothing is asked for.
CACHES = {
    "dynamic cache": {"cache_implementation": "dynamic"},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
any_cache = pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)


@pytest.fixture(scope="module", params=[False, True], ids=["", "class-conditional norm"])
def model(tiny_model, request):
    return tiny_model(class_conditional_norm=request.param)


def sampled(model, seed=0, **arguments) -> torch.Tensor:
    set_seed(seed)
    return model.generate(**arguments)


@torch.no_grad()
def log_probs(model, ids) -> torch.Tensor:
    """What the model says of the next token at each position: (n, 1 + tokens) -> (n, tokens, V)."""
    return model(input_ids=ids[:, :-1], use_cache=False).logits.log_softmax(-1)


def greedy(model, prompt) -> torch.Tensor:
    """The likeliest token, one after the other, from whole forward passes."""
    ids = prompt
    while ids.shape[1] <= model.config.num_image_tokens:
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def test_without_arguments_one_image_of_any_class_is_sampled():
    model = IGPTForCausalImageModeling(IGPTConfig(num_hidden_layers=1))
    ids = model.generate()
    assert ids.shape == (1, 197)
    assert ids[0, 0] == model.config.start_token_id
    assert len(IGPTImageProcessor().decode(ids)) == 1


def test_class_prompts_give_one_image_each_that_can_be_decoded(model, tiny_processor):
    prompt = tiny_processor.prompt(class_labels=[0, 0, 2])
    ids = sampled(model, **prompt)
    assert ids.shape == (3, 17)
    assert ids[:, 0].tolist() == [16, 16, 18]
    assert ids[:, 1:].max() < 16
    assert [picture.size for picture in tiny_processor.decode(ids)] == [(8, 8)] * 3
    assert not torch.equal(ids[0], ids[1])  # two images of a class are two images


@pytest.mark.parametrize("arguments", [{}, *CACHES.values()], ids=["default", *CACHES])
def test_the_seed_decides_the_samples(model, arguments):
    prompt = torch.tensor([[16], [17], [18]])
    first = sampled(model, inputs=prompt, **arguments)
    assert torch.equal(sampled(model, inputs=prompt, **arguments), first)
    assert not torch.equal(sampled(model, seed=1, inputs=prompt, **arguments), first)


@pytest.mark.parametrize("given", [0, 6])
def test_samples_are_the_same_with_every_cache(model, random_ids, given):
    prompt = random_ids(model.config, n=5)[:, : 1 + given]
    samples = [sampled(model, inputs=prompt, **cache) for cache in CACHES.values()]
    assert samples[0].shape == (5, 17)
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_another_number_of_images_can_follow_without_a_trace_of_the_first(model):
    prompt = torch.tensor([[16], [17]])
    first = sampled(model, inputs=prompt, cache_implementation="static")
    sampled(model, inputs=prompt[:1].expand(5, -1), cache_implementation="static")
    assert torch.equal(sampled(model, inputs=prompt, cache_implementation="static"), first)


@pytest.mark.parametrize("keep_rows", [2, 4, 6])
def test_a_completion_keeps_the_given_rows_to_the_pixel(model, tiny_processor, random_ids, keep_rows):
    images = tiny_processor.decode_pixels(random_ids(model.config, n=3))
    prompt = tiny_processor.prompt(class_labels=[0, 1, 2], images=images, keep_rows=keep_rows)
    answers = tiny_processor.decode_pixels(sampled(model, **prompt, num_return_sequences=4))
    assert answers.shape == (12, 8, 8)
    assert (answers[:, :keep_rows] == images.repeat(4, axis=0)[:, :keep_rows]).all()
    assert len({answer.tobytes() for answer in answers}) > 3  # the rest is not the same each time


def test_num_return_sequences_keeps_the_order_of_the_prompts(model):
    ids = sampled(model, inputs=torch.tensor([[16], [18]]), num_return_sequences=3)
    assert ids[:, 0].tolist() == [16, 16, 16, 18, 18, 18]
    assert sampled(model, num_return_sequences=3)[:, 0].tolist() == [19, 19, 19]


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": False},
        {"generation_config": GenerationConfig(do_sample=False)},
        {"temperature": 1e-4},
        {"top_p": 1e-4},
        {"top_k": 1},
        *({"do_sample": False, **cache} for cache in CACHES.values()),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [0, 5])
def test_the_likeliest_tokens_are_taken_where_nothing_is_left_to_chance(model, random_ids, arguments, given):
    prompt = random_ids(model.config, n=4)[:, : 1 + given]
    assert torch.equal(sampled(model, inputs=prompt, **arguments), greedy(model, prompt))


@pytest.fixture(scope="module")
def all_pictures(tiny_model):
    """A model of 4x4 images, the ids of all 65,536 of them from the start token, and their probabilities."""
    model = tiny_model(image_size=4, num_hidden_layers=1, neighborhood_radius=1)
    tokens = torch.cartesian_prod(*[torch.arange(16)] * 4)
    ids = torch.cat([torch.full((len(tokens), 1), model.config.start_token_id), tokens], dim=1)
    return model, ids, model.log_likelihood(ids, batch_size=8192)


@pytest.mark.parametrize("arguments", [{}, CACHES["dynamic cache"]], ids=["default", "dynamic cache"])
def test_pictures_are_sampled_as_often_as_they_are_likely(all_pictures, arguments):
    model, pictures, log_p = all_pictures
    n = 4000
    ids = sampled(model, num_return_sequences=n, **arguments)
    # The mean of ln p over samples is minus the entropy, up to chance.
    mean = (log_p.exp() * log_p).sum()
    deviation = ((log_p.exp() * log_p**2).sum() - mean**2).sqrt() / n**0.5
    assert abs(model.log_likelihood(ids, batch_size=n).mean() - mean) < 4 * deviation
    # So are the frequencies of each token at each place, by a chi-squared test each (15 degrees of freedom).
    for place in range(1, 5):
        expected = torch.zeros(16, dtype=torch.float64).index_add(0, pictures[:, place], log_p.exp()) * n
        counts = torch.bincount(ids[:, place], minlength=16)
        assert ((counts - expected) ** 2 / expected).sum() < 45  # p = 1e-4


def test_temperature_and_top_p_shape_the_distribution_of_the_first_token(all_pictures):
    model, pictures, log_p = all_pictures
    n = 4000
    p = torch.zeros(16, dtype=torch.float64).index_add(0, pictures[:, 1], log_p.exp())
    cold = sampled(model, num_return_sequences=n, temperature=0.5)[:, 1]
    expected = n * p**2 / (p**2).sum()
    assert ((torch.bincount(cold, minlength=16) - expected) ** 2 / expected).sum() < 45
    order = p.argsort(descending=True)
    kept = order[: int((p[order].cumsum(0) < 0.5).sum()) + 1]  # the fewest tokens that hold half of the mass
    nucleus = sampled(model, num_return_sequences=n, top_p=0.5)[:, 1]
    assert set(nucleus.tolist()) == set(kept.tolist())


@any_cache
def test_the_scores_of_the_samples_are_their_likelihood(model, cache):
    prompt = torch.tensor([[16], [17], [19]])
    outputs = sampled(model, inputs=prompt, return_dict_in_generate=True, output_scores=True, **cache)
    scores = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    assert torch.allclose(scores.sum(dim=1).double(), model.log_likelihood(outputs.sequences), atol=1e-4)


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.values.append("end")


def test_a_streamer_is_given_each_token_as_it_comes(model):
    recorder = Recorder()
    ids = sampled(model, inputs=torch.tensor([[17, 3]]), streamer=recorder)
    assert recorder.values[0].tolist() == [[17, 3]]
    assert [value.item() for value in recorder.values[1:-1]] == ids[0, 2:].tolist()
    assert recorder.values[-1] == "end"


def test_what_is_asked_for_between_steps_has_the_same_results_as_in_the_librarys_loop(model, monkeypatch):
    def prefer_dark_blocks(input_ids, scores):
        return scores - 0.2 * input_ids.shape[1] * (torch.arange(16) > 7)

    def second_token_is_large(input_ids, scores):
        return input_ids[:, 2] > 7 if input_ids.shape[1] > 2 else torch.zeros(len(input_ids), dtype=torch.bool)

    def run(**cache):
        recorder = Recorder()
        for arguments in (
            {"logits_processor": LogitsProcessorList([prefer_dark_blocks]), "guidance_scale": 2.0},
            {"stopping_criteria": StoppingCriteriaList([second_token_is_large])},
            {"streamer": recorder, "num_return_sequences": 1, "inputs": torch.tensor([[17, 3]])},
            {"suppress_tokens": [0, 15], "typical_p": 0.9, "temperature": 0.7},
            {"repetition_penalty": 1.2, "do_sample": False, "num_return_sequences": 1},
        ):
            prompt = {"inputs": torch.tensor([[16, 1], [18, 2]]), "num_return_sequences": 3}
            yield sampled(model, **prompt | arguments | cache)
        yield torch.stack(recorder.values[1:-1])

    expected = list(run(**CACHES["dynamic cache"]))
    if is_sampler_usable(model):  # then no forward is called
        monkeypatch.setattr(type(model.model), "forward", None)
    assert all(torch.equal(first, second) for first, second in zip(run(), expected, strict=True))


@any_cache
def test_the_scores_of_beams_are_the_likelihood_per_token(model, cache):
    arguments = {"num_beams": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    outputs = sampled(model, inputs=torch.tensor([[16], [18]]), **arguments, **cache)
    assert torch.allclose(outputs.sequences_scores.double() * 16, model.log_likelihood(outputs.sequences), atol=1e-3)


def test_with_enough_beams_the_likeliest_image_of_all_is_found(all_pictures):
    model, pictures, log_p = all_pictures
    ids = sampled(model, num_beams=256, do_sample=False)
    assert torch.equal(ids[0], pictures[log_p.argmax()])


def test_a_decoding_loop_of_ones_own_is_run(model):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)

    prompt = torch.tensor([[16, 1], [17, 2]])
    assert torch.equal(
        sampled(model, inputs=prompt, custom_generate=loop), sampled(model, inputs=prompt, **CACHES["dynamic cache"])
    )


def test_generation_goes_on_from_a_cache_that_was_returned(model):
    prompt = torch.tensor([[16], [17]])
    with torch.no_grad():
        first = model(input_ids=torch.cat([prompt, torch.tensor([[1], [2]])], dim=1), use_cache=True)
    longer = torch.tensor([[16, 1, 5], [17, 2, 6]])
    for name in ("past_key_values", CACHE_NAME):
        cache = copy.deepcopy(first[CACHE_NAME])
        ids = sampled(model, inputs=longer, do_sample=False, **{name: cache})
        assert torch.equal(ids, greedy(model, longer))
    with pytest.raises(ValueError, match="generate needs the whole sequence, also with a cache of your own"):
        model.generate(longer[:, 2:] * 0 + 16, **{CACHE_NAME: copy.deepcopy(first[CACHE_NAME])})


# --- guidance -------------------------------------------------------------------------------------------------------


@any_cache
@pytest.mark.parametrize("scale", [0, 0.5, 3.0])
def test_guidance_follows_its_formula_at_every_step(model, random_ids, cache, scale):
    prompt = random_ids(model.config, n=3)[:, :4]
    outputs = sampled(
        model, inputs=prompt, guidance_scale=scale, temperature=0.7, return_dict_in_generate=True, output_scores=True,
        **cache,
    )  # fmt: skip
    ids = outputs.sequences
    told, untold = log_probs(model, ids), log_probs(model, torch.cat([torch.full((3, 1), 19), ids[:, 1:]], dim=1))
    expected = (untold + scale * (told - untold)) / 0.7
    scores = torch.stack(outputs.scores, dim=1)
    assert (scores - expected[:, 3:]).abs().max() < 1e-4
    assert torch.equal(ids[:, :4], prompt)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0])
def test_tokens_that_are_forbidden_stay_so_with_guidance(model, scale):
    samples = sampled(model, inputs=torch.tensor([[17]] * 8), guidance_scale=scale, suppress_tokens=list(range(12)))
    assert (samples[:, 1:] >= 12).all()


def test_guided_samples_are_the_same_with_every_cache(model):
    samples = [sampled(model, inputs=torch.tensor([[16], [18]]), guidance_scale=2.0, **c) for c in CACHES.values()]
    assert all(torch.equal(first, second) for first, second in itertools.pairwise(samples))


@pytest.mark.parametrize("arguments", [{}, *CACHES.values()], ids=["default", *CACHES])
def test_a_guidance_scale_of_one_is_no_guidance(model, arguments):
    prompt = torch.tensor([[16], [18]])
    plain = sampled(model, inputs=prompt, **arguments)
    assert torch.equal(sampled(model, inputs=prompt, guidance_scale=1.0, **arguments), plain)
    assert not torch.equal(sampled(model, inputs=prompt, guidance_scale=5.0, **arguments), plain)


def test_guidance_may_come_with_the_generation_config(model):
    prompt = torch.tensor([[16], [18]])
    config = GenerationConfig(guidance_scale=3.0, do_sample=True, top_k=0)
    by_config = sampled(model, inputs=prompt, generation_config=config)
    assert torch.equal(by_config, sampled(model, inputs=prompt, guidance_scale=3.0))
    assert config.guidance_scale == 3.0


@pytest.mark.parametrize("arguments", [{}, CACHES["dynamic cache"]], ids=["kernel", "library"])
def test_what_the_given_configuration_does_not_say_is_the_models_own(tiny_model, arguments):
    model = tiny_model()
    prompt = torch.tensor([[16], [18]])
    config = GenerationConfig(do_sample=True, top_k=0, temperature=0.9)
    expected = sampled(model, inputs=prompt, temperature=0.9, guidance_scale=4.0, **arguments)
    model.generation_config.guidance_scale = 4.0
    assert torch.equal(sampled(model, inputs=prompt, generation_config=config, **arguments), expected)
    model.generation_config.max_new_tokens = 4
    with pytest.raises(ValueError, match="max_new_tokens=4, but what is sampled is one whole image"):
        model.generate(prompt, **arguments)


@pytest.mark.parametrize("arguments", [{}, CACHES["dynamic cache"]], ids=["kernel", "library"])
def test_the_prompt_may_come_as_bos_token_id(model, arguments):
    assert model.generate(bos_token_id=18, **arguments)[0, 0] == 18
    config = GenerationConfig(do_sample=True, top_k=0, bos_token_id=17)
    assert model.generate(generation_config=config, **arguments)[0, 0] == 17


def test_without_its_generation_config_a_checkpoint_draws_all_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert torch.equal(sampled(IGPTForCausalImageModeling.from_pretrained(tmp_path)), sampled(model))


def test_guidance_from_the_start_token_changes_nothing(model):
    plain = sampled(model, num_return_sequences=3, **CACHES["dynamic cache"])
    assert torch.equal(sampled(model, num_return_sequences=3, guidance_scale=3.0, **CACHES["dynamic cache"]), plain)


# --- min_posterior --------------------------------------------------------------------------------------------------


def own_posterior(model, ids) -> torch.Tensor:
    """What the model gives the classes that samples were asked for, (n,)."""
    return model.class_posterior(ids).gather(1, ids[:, :1] - 16)[:, 0]


def test_samples_whose_class_the_model_does_not_see_are_drawn_again(model):
    prompt = torch.tensor([[16], [17], [18]])
    plain = sampled(model, inputs=prompt, num_return_sequences=20)
    assert own_posterior(model, plain).min() < 0.3
    ids = sampled(model, inputs=prompt, num_return_sequences=20, min_posterior=0.3)
    assert torch.equal(ids[:, 0], plain[:, 0])
    assert own_posterior(model, ids).min() >= 0.3
    is_fine = own_posterior(model, plain) >= 0.3
    assert torch.equal(ids[is_fine], plain[is_fine])  # these stay


def test_a_configuration_alone_is_followed_without_a_warning(model, caplog):
    config = GenerationConfig(max_new_tokens=16, do_sample=False, guidance_scale=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = sampled(model, inputs=torch.tensor([[16]]), generation_config=config)
    assert torch.equal(ids, model.generate(torch.tensor([[16]]), do_sample=False, guidance_scale=2.0))
    assert not torch.equal(ids, model.generate(torch.tensor([[16]]), do_sample=False))
    assert "generation_config" not in caplog.text
    assert config.guidance_scale == 2.0


def test_no_mask_is_none_for_min_posterior_too(model):
    prompt = torch.tensor([[16], [17]])
    plain, none = (
        sampled(model, inputs=prompt, min_posterior=0.3, **known)
        for known in ({}, {"known_tokens": None, "known_masks": None})
    )
    assert torch.equal(plain, none)


def test_what_is_below_min_posterior_in_the_end_is_the_best_and_is_reported(model, caplog):
    prompt = torch.tensor([[16], [19]])
    plain, best = (sampled(model, inputs=prompt, num_return_sequences=8, min_posterior=p) for p in (None, 1.0))
    better, first = own_posterior(model, best[:8]), own_posterior(model, plain[:8])
    assert (better >= first - 1e-6).all() and better.mean() > first.mean()
    assert torch.equal(best[8:], plain[8:])  # of any class
    assert (
        "8 of 16 samples: the model gives their class a probability below min_posterior=1 after 10 tries"
        in (caplog.messages[-1])
    )


def test_min_posterior_that_cannot_be_followed_is_refused(model):
    with pytest.raises(ValueError, match="min_posterior is a probability, got 2"):
        model.generate(min_posterior=2)
    with pytest.raises(ValueError, match="min_posterior compares whole images: leave out what ends them early"):
        model.generate(min_posterior=0.5, max_time=1e-9)
    with pytest.raises(ValueError, match="min_posterior samples again, which changes nothing with do_sample=False"):
        model.generate(min_posterior=0.5, do_sample=False)
    with pytest.raises(ValueError, match="return_dict_in_generate does not go with min_posterior"):
        model.generate(min_posterior=0.5, return_dict_in_generate=True)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([[20]], "prompt id 20 is out of range: 16 to 19"),
        ([[3]], "prompt id 3 is out of range: 16 to 19"),
        ([[-1]], "prompt id -1 is out of range: 16 to 19"),
        ([[16], [3]], "prompt id 3 is out of range: 16 to 19"),
        ([[16, 0, 16]], "token 16 is out of range: 0 to 15"),
        ([[16, -1]], "token -1 is out of range: 0 to 15"),
        ([16], r"shape \(n, 1\)"),
        ([[]], r"shape \(n, 1\)"),
        ([[16] + [0] * 16], r"at most 15 given tokens; got \(1, 17\)"),
    ],
)
@pytest.mark.parametrize("name", ["inputs", "input_ids"])
def test_a_bad_prompt_is_refused(model, prompt, words, name):
    with pytest.raises(ValueError, match=words):
        model.generate(**{name: torch.tensor(prompt)})


def test_what_would_silently_give_other_images_is_refused(model):
    prompt = torch.tensor([[16, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="negative_prompt_ids is not supported"):
        model.generate(prompt, guidance_scale=2.0, negative_prompt_ids=prompt)
    with pytest.raises(ValueError, match="prefill_chunk_size is not supported"):
        model.generate(prompt, prefill_chunk_size=2)
    with pytest.raises(ValueError, match="guidance_scale works with samples, not with num_beams"):
        model.generate(prompt, guidance_scale=2.0, num_beams=2)


REFUSED = {
    "assistant_model": "no model", "prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "use_mtp": True,
    "inputs_embeds": torch.zeros(1, 2, 16), "prefill_chunk_size": 2, "penalty_alpha": 0.6, "dola_layers": "low",
    "force_words_ids": [[3]], "num_beam_groups": 2, "eos_token_id": 3, "pad_token_id": 0, "stop_strings": "a",
    "exponential_decay_length_penalty": (3, 1.1), "token_healing": True, "encoder_repetition_penalty": 1.5,
    "position_ids": torch.tensor([[0, 1]]), "negative_prompt_attention_mask": torch.ones(1, 2),
    "cache_implementation": "paged", "forced_eos_token_id": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_image_model_cannot_follow_is_refused_by_name(model, name):
    with pytest.raises(ValueError, match=rf"{name}\S* is not supported: "):
        model.generate(torch.tensor([[16, 1]]), **{name: REFUSED[name]})


def test_it_is_refused_in_a_generation_config_too(model):
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=3)
    with pytest.raises(ValueError, match="eos_token_id is not supported: all images have the same number of tokens"):
        model.generate(generation_config=config)


@pytest.mark.parametrize("arguments", [{}, *CACHES.values()], ids=["default", *CACHES])
def test_a_mask_of_ones_changes_nothing_and_one_with_zeros_is_refused(model, arguments):
    prompt = torch.tensor([[16, 1], [17, 2]])
    masked = sampled(model, inputs=prompt, attention_mask=torch.ones_like(prompt), **arguments)
    assert torch.equal(masked, sampled(model, inputs=prompt, **arguments))
    with pytest.raises(ValueError, match="attention_mask has zeros, but there is no padding"):
        model.generate(prompt, attention_mask=torch.tensor([[0, 1], [1, 1]]), **arguments)


def test_a_prompt_may_be_an_array_or_lists(model, tiny_processor):
    expected = sampled(model, **tiny_processor.prompt(class_labels=[0, 2]))
    for given in (
        tiny_processor.prompt(class_labels=[0, 2], return_tensors="np"),
        {"inputs": [[16], [18]]},
        {"inputs": expected[:, :1].to(torch.uint8)},
    ):
        assert torch.equal(sampled(model, **given), expected)
    with pytest.raises(ValueError, match="a prompt's ids are whole numbers, got torch.float32"):
        model.generate([[16.0]])
    with pytest.raises(ValueError, match="two names for the prompt"):
        model.generate(expected[:, :1], input_ids=expected[:, :1])


@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"min_posterior": 0.5}], ids=str)
@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_number_of_samples_that_is_none_is_refused(model, arguments, count):
    with pytest.raises(ValueError, match=f"num_return_sequences must be a whole number from 1 on, got {count}"):
        model.generate(torch.tensor([[16]]), num_return_sequences=count, **arguments)


def test_a_prompt_that_was_not_unpacked_is_answered_with_how_to(model, tiny_processor):
    with pytest.raises(ValueError, match=r"write generate\(\*\*prompt\)"):
        model.generate(tiny_processor.prompt(class_labels=[0]))


@pytest.mark.parametrize("length", [{"max_length": 30}, {"max_length": 5}, {"max_new_tokens": 5}], ids=str)
def test_a_part_of_an_image_is_refused_as_is_more_than_one(model, length):
    with pytest.raises(ValueError, match=r"max_\w+=\d+, but what is sampled is one whole image"):
        model.generate(torch.tensor([[16, 1]]), **length)


@pytest.mark.parametrize("length", [{"max_length": 17}, {"max_new_tokens": 15}], ids=str)
def test_the_length_of_an_image_may_be_said(model, length):
    assert model.generate(torch.tensor([[16, 1]]), **length).shape == (1, 17)


def test_the_settings_of_sampling_are_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = IGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert torch.equal(sampled(loaded), sampled(model))
    assert loaded.generate(num_return_sequences=2).shape == (2, 17)
