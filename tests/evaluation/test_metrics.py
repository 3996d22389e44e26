"""The metrics for Hugging Face `evaluate`: equal to the report, combined, fed in parts, offline."""

import math

import evaluate
import numpy as np
import pytest
import torch

from igpt_hf.evaluation.hf_metrics import (
    BayesAccuracy,
    BitsPerPixel,
    Likelihood,
    SampleQuality,
    prompt_log_likelihoods,
)
from igpt_hf.evaluation.likelihood import likelihood_report, log_likelihoods
from igpt_hf.evaluation.sample_quality import fidelity


@pytest.fixture(scope="module")
def scored(tiny_model, random_ids):
    """Log-likelihoods under every prompt (12, 4), classes (12,), and the report of the same."""
    model = tiny_model()
    ids = random_ids(model.config, n=12)
    labels = ids[:, 0] - model.config.vocab_size
    prior = torch.full((3,), 1 / 3)
    report = likelihood_report(log_likelihoods(model, ids), labels, prior, model.config.num_pixels)
    return prompt_log_likelihoods(model, ids), labels.numpy(), report


def metrics():
    return [Likelihood(), BitsPerPixel(num_pixels=64), BayesAccuracy()]


def test_combined_metrics_say_what_the_report_says(scored):
    scores, labels, report = scored
    result = evaluate.combine(metrics()).compute(predictions=scores, references=labels)
    names = [
        f"nats_per_image{kind}{error}" for kind in ("", "_marginal", "_unconditional") for error in ("", "_stderr")
    ]
    assert result.keys() == {*names, "bits_per_pixel", "bayes_accuracy", "bayes_accuracy_stderr"}
    for name in result.keys() & report.keys():
        assert math.isclose(result[name], report[name], rel_tol=1e-9), name
    share = report["bayes_accuracy"]
    assert math.isclose(result["bayes_accuracy_stderr"], math.sqrt(share * (1 - share) / 12))


def test_batches_that_are_added_count_like_all_at_once(scored):
    scores, labels, report = scored
    combined = evaluate.combine(metrics())
    for part in (slice(0, 5), slice(5, 12)):
        combined.add_batch(predictions=scores[part], references=labels[part])
    assert math.isclose(combined.compute()["nats_per_image"], report["nats_per_image"], rel_tol=1e-9)


def test_the_prior_decides_where_the_images_do_not():
    scores, labels = np.zeros((4, 3)), np.array([0, 1, 1, 1])  # two classes, equally likely everywhere
    assert BayesAccuracy(prior=[0.1, 0.9]).compute(predictions=scores, references=labels)["bayes_accuracy"] == 0.75
    one = BayesAccuracy().compute(predictions=[[-3.0, -3.5], [-4.0, -4.5]], references=[0, 0])
    assert one == {"bayes_accuracy": None, "bayes_accuracy_stderr": None}
    assert BayesAccuracy(prior=[0.9, 0.1]).compute(predictions=scores, references=labels)["bayes_accuracy"] == 0.25


def test_sample_quality_is_that_of_the_features():
    real, fake = np.random.default_rng(0).normal(size=(2, 30, 4))
    result = SampleQuality().compute(predictions=fake, references=real)
    expected = fidelity(torch.from_numpy(real), torch.from_numpy(fake))
    assert result.keys() == {"fid", "precision", "recall", "density", "coverage"}
    assert result == pytest.approx(expected)
