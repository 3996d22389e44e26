"""Any part of an image given: the answers' distribution and the likelihood of the part against exact sums."""

import re

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import set_seed

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.model.completion import Particles, effective_size, systematic_resampling
from igpt_hf.model.masks import read_masks, transparent_pixels


MASKS = {  # true where a pixel of 4x4 is unknown
    "right half known": np.tile([True, True, False, False], (4, 1)),
    "lower half known": np.repeat([True, True, False, False], 4).reshape(4, 4),
    "a hole": np.pad(np.ones((2, 2), bool), 1),
    "scattered": np.array([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool),
}
PICTURE = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 0, 0]], bool)


@pytest.fixture(scope="module")
def processor():
    return IGPTImageProcessor(image_size=4, num_labels=3)


@pytest.fixture(scope="module")
def all_pictures(tiny_model, processor):
    """A model of 4x4 images with random weights, all 65,536 images, and their probabilities given class 1."""
    model = tiny_model(image_size=4, num_hidden_layers=1, neighborhood_radius=1)
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(3))  # far from uniform
    tokens = torch.cartesian_prod(*[torch.arange(16)] * 4)
    ids = torch.cat([torch.full((len(tokens), 1), 17), tokens], dim=1)
    return model, processor.decode_pixels(ids).astype(bool), model.log_likelihood(ids, batch_size=8192).exp()


def agreeing(pictures, mask):
    """Which images have the known pixels of PICTURE."""
    return torch.from_numpy((pictures == PICTURE)[:, ~mask].all(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_answers_are_distributed_as_the_exact_conditional(all_pictures, processor, name):
    model, pictures, p = all_pictures
    agrees = agreeing(pictures, MASKS[name])
    exact = torch.where(agrees, p, 0.0) / p[agrees].sum()
    set_seed(0)
    prompt = processor.prompt(class_labels=[1], images=PICTURE, mask=MASKS[name])
    ids = model.generate(**prompt, num_return_sequences=4096, num_particles=64)
    counts = torch.bincount((ids[:, 1:] * torch.tensor([16**3, 16**2, 16, 1])).sum(1), minlength=16**4)
    assert counts[~agrees].sum() == 0  # every known pixel is kept
    draws = torch.multinomial(exact.expand(20, -1), 4096, replacement=True)
    samples = [counts, *(torch.bincount(ids, minlength=16**4) for ids in draws)]
    distance, *of_draws = ((sample / 4096 - exact).abs().sum() / 2 for sample in samples)
    assert distance < 1.5 * sum(of_draws) / len(of_draws)


@pytest.mark.parametrize("name", MASKS)
def test_the_mean_of_estimates_is_the_probability_of_the_known_pixels(all_pictures, processor, name):
    model, pictures, p = all_pictures
    exact = p[agreeing(pictures, MASKS[name])].sum()
    ids = processor(PICTURE, class_labels=[1])["input_ids"].expand(1000, -1)
    set_seed(0)
    estimates = model.log_likelihood(ids, mask=MASKS[name], num_particles=8).exp()
    assert estimates.std() > 0
    assert abs(estimates.mean() - exact) < 3 * estimates.std() / 1000**0.5


def test_the_class_of_a_part_follows_by_bayes_rule(all_pictures, processor):
    model, pictures, _ = all_pictures
    mask = MASKS["right half known"]
    some = processor(pictures[agreeing(pictures, mask)], class_labels=[0])["input_ids"]
    exact = model.class_log_likelihoods(some, batch_size=8192).logsumexp(0).softmax(0)
    ids = processor(PICTURE)["input_ids"]
    posterior = model.class_posterior(ids.expand(2, -1), mask=mask, num_particles=2000)
    torch.testing.assert_close(posterior, exact.expand(2, -1), rtol=0, atol=0.02)


def test_few_ancestors_are_reported_where_the_known_pixels_hardly_fit(all_pictures, processor, caplog):
    model, pictures, p = all_pictures
    mask = MASKS["lower half known"]
    prompt = processor.prompt(class_labels=[1], images=PICTURE, mask=mask)
    model.generate(**prompt, num_return_sequences=64, num_particles=50)
    assert not caplog.records
    ids = processor(PICTURE, class_labels=[1])["input_ids"].expand(64, -1)
    head = model.lm_head.weight.data.clone()
    model.lm_head.weight.data *= 6  # now most of what the particles sample does not fit
    try:
        model.generate(**prompt, num_return_sequences=64, num_particles=50)
        model.log_likelihood(ids, mask=mask, num_particles=50)
        model.class_posterior(ids, mask=mask, num_particles=50)  # of a wrong class this is no news
    finally:
        model.lm_head.weight.data = head
    expected = r"\d+ of 64 runs: the particles at the end descend from effectively 1\.\d of 50"
    assert [bool(re.match(expected, record.message)) for record in caplog.records] == [True, True]


# --- known exactly --------------------------------------------------------------------------------------------------


def test_known_upper_rows_have_an_exact_likelihood_and_are_completed_as_with_keep_rows(tiny_model, tiny_processor):
    model = tiny_model()
    picture = np.random.default_rng(0).random((8, 8)) < 0.5
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    samples = []
    for given in ({"mask": mask}, {"keep_rows": 4}):
        set_seed(0)
        prompt = tiny_processor.prompt(class_labels=[1], images=picture, **given)
        samples.append(model.generate(**prompt, num_return_sequences=5))
    assert torch.equal(*samples)
    ids = tiny_processor(picture, class_labels=[1])["input_ids"]
    expected = model.token_log_likelihoods(ids)[:, :8].double().sum(1)
    torch.testing.assert_close(model.log_likelihood(ids, mask=mask), expected, rtol=0, atol=1e-4)


def test_of_a_whole_image_and_of_nothing_the_likelihood_is_exact(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    everything, nothing = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    expected = model.log_likelihood(ids)
    torch.testing.assert_close(model.log_likelihood(ids, mask=everything), expected, rtol=0, atol=1e-4)
    assert torch.equal(model.log_likelihood(ids, mask=nothing), torch.zeros(3, dtype=torch.float64))


def test_where_nothing_is_known_images_are_sampled_as_without_a_mask(tiny_model, tiny_processor):
    model = tiny_model()
    samples = []
    for given in ({}, {"images": np.ones((8, 8), bool), "mask": np.ones((8, 8), bool)}):
        set_seed(0)
        samples.append(model.generate(**tiny_processor.prompt(class_labels=[0, 2], **given)))
    assert torch.equal(*samples)


# --- the prompt -----------------------------------------------------------------------------------------------------


def test_a_mask_says_which_bits_of_each_token_are_known(tiny_processor):
    picture, mask = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    mask[0, 1] = mask[3, 6] = mask[6:, 6:] = True
    prompt = tiny_processor.prompt(class_labels=[2, 0], images=picture, mask=mask)
    expected = torch.full((16,), 15)
    expected[0], expected[7], expected[15] = 15 - 2, 15 - 4, 0
    assert prompt["input_ids"].tolist() == [[18], [16]]
    assert torch.equal(prompt["known_masks"], expected.expand(2, -1))
    assert torch.equal(prompt["known_tokens"], expected.expand(2, -1))


def test_a_mask_may_be_an_image_a_tensor_or_a_list_and_is_fitted_with_its_image(tiny_processor):
    picture = Image.new("L", (16, 32), 255)
    unknown = np.zeros((32, 16), bool)
    unknown[:8] = True
    prompts = [
        tiny_processor.prompt(images=picture, mask=mask)
        for mask in (
            Image.fromarray(unknown),
            Image.fromarray(unknown.astype(np.uint8)),  # zeros and ones
            Image.fromarray(unknown.astype(np.float32)),
            torch.from_numpy(unknown),
            [unknown],
            unknown[None],
        )
    ]
    bits = prompts[0]["known_masks"].view(4, 4)
    # The image takes the columns 2 to 5 of the canvas, and its pixels next to the unknown ones shrink with them.
    assert bits.tolist() == [[15, 0, 0, 15], [15, 12, 12, 15], [15] * 4, [15] * 4]
    for prompt in prompts[1:]:
        assert torch.equal(prompt["known_masks"].view(4, 4), bits)


def test_gray_levels_from_128_on_are_white_in_a_mask_and_opaque_in_an_image():
    levels = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    assert read_masks(levels)[0].tolist() == [[False, False, True, True]]
    image = Image.new("RGBA", (4, 1))
    image.putalpha(levels)
    assert transparent_pixels(image).tolist() == [[True, True, False, False]]
    white = Image.new("RGBA", (4, 1), "white")
    white.putalpha(levels)  # what is transparent marks nothing, though it is white
    assert read_masks(white)[0].tolist() == [[False, False, True, True]]


def test_a_pixel_is_unknown_where_any_unknown_pixel_has_a_part_in_it(tiny_processor):
    unknown = np.zeros((32, 32), bool)
    unknown[13, 22] = True
    known = tiny_processor.prompt(images=np.zeros((32, 32), np.uint8), mask=unknown)["known_masks"]
    assert known[0, 4 * (13 // 8) + 22 // 8] != 15
    unknown = np.zeros((1400, 1400), bool)  # a spot on a large scan
    unknown[700:703, 700:703] = True
    known = tiny_processor.prompt(images=np.zeros((1400, 1400), np.uint8), mask=unknown)["known_masks"]
    assert (known != 15).sum() in (1, 2, 4)


def test_a_mask_that_was_taken_sideways_is_turned_like_its_image(tiny_processor, tmp_path):
    unknown = np.zeros((8, 8), bool)
    unknown[:2] = True
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held upright: turn by 90 degrees
    Image.fromarray(unknown).convert("L").save(tmp_path / "mask.png", exif=exif)
    known = tiny_processor.prompt(images=np.zeros((8, 8), bool), mask=Image.open(tmp_path / "mask.png"))["known_masks"]
    assert known.view(4, 4).tolist() == [[15, 15, 15, 0]] * 4


def test_the_known_pixels_of_gray_images_are_the_same_at_each_call(tiny_processor):
    gray = np.random.default_rng(0).integers(0, 255, (1, 8, 8)).astype(np.uint8)
    processor = tiny_processor.replace(binarize="stochastic", ink="light", levels=(0, 255), widen_strokes=False)
    for kept in ({"mask": np.eye(8, dtype=bool)}, {"keep_rows": 4}):
        first, again = (processor.prompt(images=gray, **kept) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_each_image_keeps_its_own_known_pixels(tiny_model, tiny_processor):
    rng = np.random.default_rng(0)
    pictures, masks = rng.random((3, 8, 8)) < 0.5, rng.random((3, 8, 8)) < 0.5
    prompt = tiny_processor.prompt(class_labels=[0, 1, 2], images=pictures, mask=masks)
    ids = tiny_model().generate(**prompt, num_return_sequences=2, num_particles=5)
    assert ids[:, 0].tolist() == [16, 16, 17, 17, 18, 18]
    answers = tiny_processor.decode_pixels(ids).reshape(3, 2, 8, 8)
    assert ((answers == pictures[:, None]) | masks[:, None]).all()


REFUSED = {
    "another size": ({"mask": np.ones((7, 8), bool)}, "mask 0 has 8x7 pixels and its image 8x8"),
    "another type": ({"mask": np.ones((8, 8), np.uint8)}, "mask 0 is uint8 of shape"),
    "no mask": ({"mask": "half"}, "a mask is a PIL image or a boolean array"),
    "everything known": ({"mask": np.zeros((8, 8), bool)}, "mask 0 has no unknown pixel"),
    "rows too": ({"mask": np.ones((8, 8), bool), "keep_rows": 4}, "leave out one of the two"),
    "no image": ({"mask": np.ones((8, 8), bool), "images": None}, "pass images too"),
    "labels": ({"mask": np.ones((2, 8, 8), bool), "class_labels": [0, 1, 2]}, "2 images and 3 class labels"),
    "images": ({"mask": np.ones((2, 8, 8), bool), "images": np.ones((3, 8, 8), bool)}, "3 images and 2 masks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_does_not_fit_is_refused(tiny_processor, name):
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        tiny_processor.prompt(**{"images": np.ones((8, 8), bool)} | arguments)


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.5}, {"top_p": 0.9}, {"guidance_scale": 2.0}, {"do_sample": False}, {"num_beams": 2}]
)
def test_what_would_change_the_distribution_is_refused_with_a_mask(tiny_model, tiny_processor, setting):
    prompt = tiny_processor.prompt(images=np.ones((8, 8), bool), mask=np.eye(8, dtype=bool))
    with pytest.raises(ValueError, match=rf"{next(iter(setting))}=\S+ does not go with a mask"):
        tiny_model().generate(**prompt, **setting)


def test_answers_are_those_of_the_call_and_not_of_the_saved_settings(tiny_model, tiny_processor):
    model, unknown = tiny_model(), np.repeat([False, True], 32).reshape(8, 8)
    prompt = tiny_processor.prompt(class_labels=[0, 1], images=np.ones((8, 8), bool), mask=unknown)
    expected = (set_seed(0), model.generate(**prompt))[1]
    model.generation_config.update(num_return_sequences=3, temperature=0.01, guidance_scale=3.0)
    neutral = {"num_return_sequences": 1, "temperature": 1.0, "guidance_scale": 1.0}
    assert torch.equal((set_seed(0), model.generate(**prompt, **neutral))[1], expected)
    with pytest.raises(ValueError, match="temperature=0.01 does not go with a mask"):
        model.generate(**prompt)


def test_prompts_of_one_image_share_no_memory(tiny_processor):
    labels, picture = [0, 1], np.ones((8, 8), bool)
    for kept in ({"mask": np.eye(8, dtype=bool)}, {"keep_rows": 4}):
        for ids in tiny_processor.prompt(class_labels=labels, images=picture, **kept).values():
            ids[0] = 3
            assert (ids[1] != 3).any()


def test_known_pixels_that_are_none_are_refused(tiny_model, tiny_processor, random_ids):
    model = tiny_model()
    prompt = tiny_processor.prompt(class_labels=[0], images=np.ones((8, 8), bool), mask=np.eye(8, dtype=bool))
    with pytest.raises(ValueError, match="num_particles goes with a mask"):
        model.generate(num_particles=10)
    with pytest.raises(ValueError, match="num_particles must be a whole number from 1 on, got 0"):
        model.generate(**prompt, num_particles=0)
    with pytest.raises(ValueError, match="known_tokens and known_masks go together"):
        model.generate(prompt["input_ids"], known_tokens=prompt["known_tokens"])
    with pytest.raises(ValueError, match=r"known_masks has shape \(1, 15\)"):
        model.generate(**prompt | {"known_masks": prompt["known_masks"][:, 1:]})
    with pytest.raises(ValueError, match="known_tokens must hold whole numbers from 0 to 15"):
        model.generate(**prompt | {"known_tokens": prompt["known_tokens"] + 9})
    with pytest.raises(ValueError, match="input_ids are prompts alone"):
        model.generate(**prompt | {"input_ids": torch.tensor([[16, 3]])})
    with pytest.raises(ValueError, match="3 prompts and 2 masked images"):
        model.generate(**{name: ids.expand(3 if name == "input_ids" else 2, -1) for name, ids in prompt.items()})
    ids = random_ids(model.config)
    with pytest.raises(ValueError, match="mask 0 has 4x4 pixels: the images have 8x8"):
        model.log_likelihood(ids, mask=np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="3 images and 2 masks"):
        model.class_posterior(ids, mask=np.ones((2, 8, 8), bool))


# --- resampling -----------------------------------------------------------------------------------------------------


def test_systematic_resampling_keeps_each_particle_as_often_as_its_weight_says():
    log_weights = torch.randn(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    expected = log_weights.softmax(1) * 7
    torch.manual_seed(0)
    counts = torch.stack([systematic_resampling(log_weights) for _ in range(200)]).double()
    assert (counts.sum(2) == 7).all()
    assert ((counts - expected).abs() < 1 + 1e-9).all()
    assert abs(counts.mean(0) - expected).max() < 6 * 0.5 / 200**0.5


class TwoBeginnings:
    """A decoder of two sequences: the first goes on with token 0 or 1, the second with 2 or, hardly ever, with 3."""

    def logits(self):
        return torch.tensor([[0.5, 0.5, 1e-9, 1e-9], [1e-9, 1e-9, 1 - 1e-4, 1e-4]]).log()

    def reorder(self, index):
        self.index = index

    def push(self, tokens):
        self.sampled = set(zip(self.index.tolist(), tokens.tolist(), strict=True))


def test_after_a_resampling_each_particle_goes_on_by_its_own_probabilities():
    set_seed(0)
    particles = object.__new__(Particles)
    particles.decoder, particles.rows = TwoBeginnings(), torch.tensor([[0] * 16 + [1] * 48])
    particles.log_weights, particles.log_evidence = torch.zeros(1, 64).double(), torch.zeros(1).double()
    particles.ancestors = torch.arange(64)[None]
    particles.step(torch.tensor([[True, True, False, True]]))  # what the second would take is not allowed
    assert particles.decoder.sampled == {(0, 0), (0, 1)}


def test_particles_with_the_same_tokens_are_one_sequence(all_pictures):
    model, _, _ = all_pictures
    prompts = torch.tensor([[16], [17], [16]])
    torch.manual_seed(0)
    particles = Particles(model, prompts, num_particles=50)
    assert len(particles.decoder.input_ids) == 2  # of two prompts
    for _ in range(3):
        particles.step(torch.ones(3, 16, dtype=torch.bool))
    sequences = particles.decoder.input_ids
    assert len(sequences.unique(dim=0)) == len(sequences) < 150
    assert (sequences[particles.rows][..., 0] == prompts).all()  # each particle still has its run's prompt
    expected = model(input_ids=sequences).logits[:, -1]
    torch.testing.assert_close(particles.decoder.logits(), expected, rtol=0, atol=1e-5)


def test_the_effective_size_is_that_of_equal_weights_or_of_one():
    log_weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -900.0, -900.0, -900.0], [-2e3, -2e3, -9e3, -9e3]])
    assert effective_size(log_weights).tolist() == [4, 1, 2]


def test_with_its_initial_weights_a_model_finds_every_part_equally_likely():
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=1)).eval()
    mask = np.random.default_rng(0).random((8, 8)) < 0.5
    ids = torch.cat([torch.full((1, 1), 16), torch.randint(16, (1, 16))], dim=1)
    expected = torch.tensor([-np.log(2) * (~mask).sum()])
    torch.testing.assert_close(model.log_likelihood(ids, mask=mask), expected, rtol=0, atol=1e-4)
