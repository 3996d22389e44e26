"""Exact likelihoods and what follows from them."""

import json
import math

import pytest
import torch

from igpt_hf import DataError
from igpt_hf.evaluation import labels_as_in_model, likelihood_report, likelihoods


@pytest.fixture
def every_picture(tiny_model):
    """A model of 2x2 pixels and all 16 pictures that there are, with a start token: (16, 5)."""
    model = tiny_model(image_size=2, patch_size=1, neighborhood_radius=1)
    pictures = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    return model, torch.cat([torch.full((16, 1), model.config.start_token_id), pictures], dim=1)


def test_the_probabilities_of_all_pictures_sum_to_one_for_each_prompt_and_their_mixture(every_picture):
    model, ids = every_picture
    scores = likelihoods(model, ids, batch_size=7)
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
    scores, labels = likelihoods(model, ids), torch.arange(16) % model.config.num_labels
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
    mixture = -(scores["classes"].exp().mean(1)).log()
    assert math.isclose(report["nats_per_image_marginal"], mixture.mean(), rel_tol=1e-6)
    assert report["nats_per_image_marginal"] <= report["nats_per_image"] + math.log(model.config.num_labels)


def test_classes_are_matched_by_name(tiny_model):
    config = tiny_model(id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2}).config
    assert labels_as_in_model(["eel", "cat"], config) == [2, 0]
    with pytest.raises(DataError, match=r"does not know \(fox\); it knows cat, dog, eel"):
        labels_as_in_model(["cat", "fox"], config)


def test_reports_can_be_written_as_json(every_picture):
    model, ids = every_picture
    prior = torch.full((model.config.num_labels,), 1 / model.config.num_labels)
    report = likelihood_report(likelihoods(model, ids), torch.zeros(16, dtype=torch.long), prior, 4)
    assert json.loads(json.dumps(report))["nats_per_class"].keys() == {"0"}
