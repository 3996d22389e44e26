"""Exact likelihoods and what follows from them."""

import io
import json
import math

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure

from igpt_hf import DataError, IGPTError, IGPTImageProcessor
from igpt_hf.evaluation import report_figure
from igpt_hf.evaluation.codecs import CODECS, codec_bits, codec_sizes
from igpt_hf.evaluation.compatibility import check_data, check_image_size, check_two_classes
from igpt_hf.evaluation.likelihood import accuracy_stderr, likelihood_report, log_likelihoods, standard_error
from igpt_hf.evaluation.report import _examples, evaluate_model, format_table
from igpt_hf.evaluation.surprise import calibration, pixel_log_likelihoods, surprise_maps
from igpt_hf.plots import figure_style


@pytest.fixture
def every_picture(tiny_model):
    """A model of 2x2 pixels and all 16 pictures that there are, with a start token: (16, 5)."""
    model = tiny_model(image_size=2, patch_size=1, neighborhood_radius=1)
    pictures = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    return model, torch.cat([torch.full((16, 1), model.config.start_token_id), pictures], dim=1)


def test_the_probabilities_of_all_pictures_sum_to_one_for_each_prompt_and_their_mixture(every_picture):
    model, ids = every_picture
    scores = log_likelihoods(model, ids, batch_size=7)
    assert scores["classes"].shape == (16, model.config.num_labels)
    assert torch.allclose(scores["classes"].exp().sum(0), torch.ones(model.config.num_labels).double(), atol=1e-6)
    assert math.isclose(scores["start"].exp().sum(), 1, abs_tol=1e-6)
    prior = torch.softmax(torch.arange(float(model.config.num_labels)), 0)
    one = [
        likelihood_report({name: score[i : i + 1] for name, score in scores.items()}, torch.tensor([0]), prior, 4)
        for i in range(16)
    ]
    assert math.isclose(sum(math.exp(-report["nats_per_image_marginal"]) for report in one), 1, abs_tol=1e-6)


def test_the_report_is_what_its_formulas_say(every_picture):
    model, ids = every_picture
    scores, labels = log_likelihoods(model, ids), torch.arange(16) % model.config.num_labels
    prior = torch.full((model.config.num_labels,), 1 / model.config.num_labels)
    report = likelihood_report(scores, labels, prior, num_pixels=4)
    told = torch.cat([model.config.vocab_size + labels[:, None], ids[:, 1:]], dim=1)
    nats = -model.log_likelihood(told)
    assert report["num_images"] == 16
    assert math.isclose(report["nats_per_image"], nats.mean(), rel_tol=1e-6)
    assert math.isclose(report["nats_per_image_stderr"], nats.std() / 4, rel_tol=1e-6)
    assert math.isclose(report["nats_per_image_unconditional"], -model.log_likelihood(ids).mean(), rel_tol=1e-6)
    assert math.isclose(report["bits_per_pixel"], nats.mean() / (4 * math.log(2)), rel_tol=1e-6)
    posterior = model.class_posterior(ids)
    assert math.isclose(report["bayes_accuracy"], (posterior.argmax(1) == labels).double().mean())
    expected = torch.zeros(3, 3, dtype=torch.long)
    for label, guess in zip(labels, posterior.argmax(1), strict=True):
        expected[label, guess] += 1
    assert report["confusion_matrix"] == expected.tolist()
    mixture = -(scores["classes"].exp().mean(1)).log()
    assert math.isclose(report["nats_per_image_marginal"], mixture.mean(), rel_tol=1e-6)
    assert report["nats_per_image_marginal"] <= report["nats_per_image"] + math.log(model.config.num_labels)


def test_classes_are_matched_by_name(tiny_model):
    config = tiny_model(id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2}).config

    def of_classes(*names):
        return datasets.Dataset.from_dict(
            {"label": []}, datasets.Features({"label": datasets.ClassLabel(names=list(names))})
        )

    assert check_data(of_classes("eel", "cat"), config, allow_resize=True) == [2, 0]
    with pytest.raises(DataError, match=r"does not know: \'fox\' is not a class of this model \(cat, dog, eel\)"):
        check_data(of_classes("cat", "fox"), config, allow_resize=True)


def test_reports_can_be_written_as_json(every_picture):
    model, ids = every_picture
    prior = torch.full((model.config.num_labels,), 1 / model.config.num_labels)
    report = likelihood_report(log_likelihoods(model, ids), torch.zeros(16, dtype=torch.long), prior, 4)
    assert json.loads(json.dumps(report))["nats_per_class"].keys() == {"0"}


# --- surprise -------------------------------------------------------------------------------------------------------


def test_a_pixels_probability_is_the_share_of_tokens_that_agree_so_far():
    probabilities = torch.rand(16, generator=torch.Generator().manual_seed(0)).double()
    probabilities /= probabilities.sum()
    for token in range(16):
        bits = [token >> k & 1 for k in range(4)]
        agree = [sum(p for v, p in enumerate(probabilities.tolist())
                     if [v >> k & 1 for k in range(seen)] == bits[:seen]) for seen in range(5)]  # fmt: skip
        expected = torch.tensor([agree[k + 1] / agree[k] for k in range(4)]).double()
        found = pixel_log_likelihoods(probabilities.log(), torch.tensor(token))
        assert torch.allclose(found.exp(), expected, atol=1e-12)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_surprise_of_all_pixels_and_of_all_tokens_sums_to_the_nats_of_the_image(
    tiny_model, random_ids, patch_size
):
    model = tiny_model(patch_size=patch_size, neighborhood_radius=1)
    ids = random_ids(model.config, n=5)
    maps = surprise_maps(model, ids, batch_size=2)
    nats = -model.log_likelihood(ids).numpy()
    grid = model.config.grid_size
    assert maps["pixels"].shape == maps["white"].shape == (5, 8, 8)
    assert maps["tokens"].shape == (5, grid, grid)
    assert np.allclose(maps["pixels"].sum((1, 2)), nats, rtol=1e-6)
    blocks = maps["pixels"].reshape(5, grid, patch_size, grid, patch_size).sum((2, 4))
    assert np.allclose(blocks, maps["tokens"])  # each pixel lies in its block


def test_the_probability_of_white_is_that_of_the_pixel_at_its_place(tiny_model, tiny_processor, random_ids):
    model = tiny_model()
    ids = random_ids(model.config)
    maps, pixels = surprise_maps(model, ids), tiny_processor.decode_pixels(ids)
    of_pixel = np.where(pixels == 1, maps["white"], 1 - maps["white"])
    assert np.allclose(-np.log(of_pixel), maps["pixels"], atol=1e-6)
    probabilities = (
        model(input_ids=ids[:, :-1], use_cache=False).logits.detach().double().softmax(-1).view(3, 4, 4, 16)
    )
    first = probabilities[..., 1::2].sum(-1)  # the first pixel of a block is white in the odd tokens
    assert np.allclose(maps["white"][:, 0::2, 0::2], first, atol=1e-6)
    second = torch.where(
        torch.from_numpy(pixels[:, 0::2, 0::2]) == 1,
        probabilities[..., 3::4].sum(-1) / first,
        probabilities[..., 2::4].sum(-1) / (1 - first),
    )
    assert np.allclose(maps["white"][:, 0::2, 1::2], second, atol=1e-6)  # the second one is to its right


def test_calibration_is_the_distance_between_what_was_said_and_what_came():
    white = np.array([0.1] * 10 + [0.9] * 10)
    pixels = np.array([1] + [0] * 9 + [1] * 7 + [0] * 3)  # one of ten, as said; seven of ten instead of nine
    result = calibration(white, pixels, num_bins=5)
    assert np.allclose(result["predicted"], [0.1, 0.9])
    assert np.allclose(result["observed"], [0.1, 0.7])
    assert result["count"] == [10, 10]
    assert math.isclose(result["calibration_error"], 0.1)
    many = calibration(np.append(white, [0.1] * 20), np.append(pixels, [1] * 2 + [0] * 18), num_bins=5)
    assert many["count"] == [30, 10] and math.isclose(many["calibration_error"], 0.05)  # of all pixels
    assert calibration(np.array([1.0]), np.array([1]))["calibration_error"] == 0


# --- codecs and checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_lose_nothing_and_are_counted_in_bits_of_a_file(codec):
    images = np.random.default_rng(0).integers(0, 2, (3, 28, 28)).astype(np.uint8)
    sizes = codec_sizes(images, codec)
    for image, size in zip(images, sizes, strict=True):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image.astype(bool)).save(buffer, **CODECS[codec])
        assert size == len(buffer.getvalue())
        assert np.array_equal(np.asarray(PIL.Image.open(buffer).convert("1")), image)
    bits = codec_bits(images)[codec]
    assert math.isclose(bits["alone"], 8 * sizes.sum() / 3)
    assert codec_bits(np.zeros((300, 56, 56), np.uint8))[codec]["in_sheets"] > 0  # 16,800 rows, more than WebP allows
    assert 28 * 28 / 2 < bits["in_sheets"] < bits["alone"]  # noise cannot be compressed, but headers are shared


def test_where_one_class_alone_is_possible_nothing_is_told_apart():
    scores = {"classes": torch.tensor([[-3.0, -1.0], [-5.0, -2.0]]).double(), "start": torch.tensor([-4.0, -4.0])}
    labels = torch.tensor([0, 0])
    report = likelihood_report(scores, labels, torch.tensor([1.0, 0.0]), num_pixels=4)
    assert (report["bayes_accuracy"], report["confusion_matrix"]) == (None, None)
    assert report["nats_per_image"] == report["nats_per_image_marginal"] == 4
    assert report["nats_per_class"] == {0: 4}
    report = likelihood_report(scores, labels, torch.tensor([0.5, 0.5]), num_pixels=4)
    assert (report["bayes_accuracy"], report["confusion_matrix"]) == (0, [[0, 2], [0, 0]])


def test_no_images_are_refused(every_picture):
    model, _ = every_picture
    nothing = {"classes": torch.empty(0, 3), "start": torch.empty(0)}
    with pytest.raises(DataError, match="no images to evaluate"):
        likelihood_report(nothing, torch.empty(0, dtype=torch.long), torch.full((3,), 1 / 3), 4)


def test_one_class_or_none_is_refused():
    features = datasets.Features(label=datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match=r"one class only \(dog\)"):
        check_two_classes(datasets.Dataset.from_dict({"label": [1, 1]}, features=features))
    with pytest.raises(DataError, match="empty"):
        check_two_classes(datasets.Dataset.from_dict({"label": []}, features=features))
    check_two_classes(datasets.Dataset.from_dict({"label": [1, 0]}, features=features))


def test_pictures_that_all_have_another_size_than_the_models_are_refused():
    small, large = PIL.Image.new("L", (12, 12)), PIL.Image.new("L", (20, 16))
    check_image_size([small] * 3, 12)
    check_image_size([small, large], 28)  # of any size: they are fitted
    with pytest.raises(DataError, match=r"images are 20x16, the model's are 28x28.*--resize"):
        check_image_size([large] * 3, 28)


def test_a_standard_error_is_that_of_the_mean():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert math.isclose(standard_error(torch.from_numpy(values)), values.std(ddof=1) / 2, rel_tol=1e-12)
    assert standard_error(torch.ones(1)) == 0
    assert math.isclose(accuracy_stderr(0.9, 100), 0.03)


def test_a_model_is_evaluated_in_python_with_its_classes_matched_by_name(tiny_model, tiny_processor):
    model = tiny_model(id2label={0: "cat", 1: "dog", 2: "eel"})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["eel", "cat"]))
    pixels = np.random.default_rng(0).integers(0, 2, (6, 8, 8), dtype=np.uint8)
    rows = {"image": [PIL.Image.fromarray(image * 255) for image in pixels], "label": [0, 1, 0, 1, 1, 1]}
    split = datasets.Dataset.from_dict(rows, features=features)
    splits = datasets.DatasetDict(train=split, validation=split, test=split)
    evaluation = evaluate_model(model, tiny_processor, splits, max_images=4)
    tokens = tiny_processor.tokenize(split["image"][:4])
    labels = torch.tensor([2, 0, 2, 0])  # eel, cat, eel, cat in the model
    ids = torch.cat([model.config.vocab_size + labels[:, None], torch.as_tensor(tokens).long()], dim=1)
    assert math.isclose(evaluation.report["nats_per_image"], -model.log_likelihood(ids).mean(), rel_tol=1e-6)
    joint = model.class_log_likelihoods(ids) + torch.tensor([4 / 6, 0, 2 / 6]).log()  # p(class) of the training split
    assert math.isclose(evaluation.report["nats_per_image_marginal"], -joint.logsumexp(1).mean(), rel_tol=1e-6)
    assert evaluation.report["num_images"] == 4 and list(evaluation.report["nats_per_class"]) == ["cat", "eel"]
    assert f"{evaluation.report['nats_per_image']:.3f}" in format_table(evaluation.report)
    json.dumps(evaluation.report)


def gray_splits(n: int = 6) -> datasets.DatasetDict:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=3))
    levels = np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    rows = {"image": [PIL.Image.fromarray(level) for level in levels], "label": [i % 3 for i in range(n)]}
    split = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(train=split, validation=split, test=split)


def test_several_draws_of_the_pixels_give_their_mean_and_spread_and_the_first_is_that_of_one_draw(tiny_model):
    processor = IGPTImageProcessor(image_size=8, num_labels=3, binarize="stochastic", invert="never")
    model, splits = tiny_model(id2label={0: "0", 1: "1", 2: "2"}), gray_splits()
    one, three = (evaluate_model(model, processor, splits, num_draws=num).report for num in (1, 3))
    values = three["nats_per_image_marginal_draws"]
    assert len(set(values)) == 3 and values[0] == one["nats_per_image_marginal"]
    assert math.isclose(three["nats_per_image_marginal"], np.mean(values), rel_tol=1e-12)
    assert math.isclose(three["nats_per_image_marginal_draws_std"], np.std(values, ddof=1), rel_tol=1e-9)
    assert math.isclose(three["bits_per_pixel"] * 64 * math.log(2), three["nats_per_image"], rel_tol=1e-12)
    assert math.isclose(np.mean(list(three["nats_per_class"].values())), three["nats_per_image"], rel_tol=1e-9)
    assert three["bits_per_image_marginal"] == three["nats_per_image_marginal"] / math.log(2)
    assert (one["num_draws"], three["num_draws"], three["num_images"]) == (1, 3, 6)
    assert "3 draws" in format_table(three) and "draws" not in format_table(one)
    json.dumps(three)


def test_pixels_that_a_threshold_decides_are_not_drawn_several_times(tiny_model, tiny_processor):
    with pytest.raises(IGPTError, match="--draws 5 .*threshold"):
        evaluate_model(tiny_model(id2label={0: "0", 1: "1", 2: "2"}), tiny_processor, gray_splits(), num_draws=5)


def test_the_axes_of_the_figure_have_plain_numbers_and_bars_begin_at_zero():
    codec = {"in_sheets": 222.0, "alone": 1075.0}
    report = {
        "bits_per_image": 74.0,
        "bits_per_image_marginal": 77.0,
        "codecs": {"png": codec},
        "calibration": {"predicted": [0.1, 0.9], "observed": [0.1, 0.9], "count": [212, 87], "calibration_error": 0.0},
    }
    with figure_style():
        figure = Figure()
        calibration, codecs = figure.subplots(1, 2)
        report_figure._plot_calibration(calibration, report)
        report_figure._plot_codecs(codecs, report)
        figure.canvas.draw()
    labels = [label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(which="both"),
              *axes.get_yticklabels(which="both"))]  # fmt: skip
    assert any(label == "100" for label in labels) and not any("$" in label for label in labels)
    assert codecs.get_xlim()[0] == 0


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (14, [14]), (15, [5, 5, 5]), (41, [13] * 3), (90, [14] * 3)])
def test_no_image_is_shown_twice_in_the_figure(count, sizes):
    rng = np.random.default_rng(0)
    maps = {name: rng.random((count, 2, 2)) for name in ("pixels", "tokens")}
    examples = _examples(np.zeros((count, 2, 2), np.uint8), maps)
    nats = [part["nats"] for part in examples.values()]
    assert [len(part) for part in nats] == sizes
    assert len(np.unique(np.concatenate(nats))) == sum(sizes)
    assert nats[0][0] == maps["pixels"].sum((1, 2)).max()
