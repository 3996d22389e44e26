"""What is said of samples is true: of copies, of noise, of another draw of the same."""

import numpy as np
import pytest
import torch

from igpt_hf import IGPTError
from igpt_hf.evaluation import sample_quality
from igpt_hf.evaluation.sample_quality import (
    Images,
    cached_classifier,
    check_sizes,
    draw_samples,
    fidelity,
    nearest_neighbors,
    novelty,
    sample_report,
    train_classifier,
    two_sample_accuracy,
)


def bars(n: int, seed: int = 0, side: int = 8) -> Images:
    """Class 0 is a white row, class 1 a white column, at random places, with a few pixels of noise."""
    rng = np.random.default_rng(seed)
    pixels = (rng.random((n, side, side)) < 0.03).astype(np.uint8)
    labels = rng.integers(0, 2, n)
    for image, label in zip(pixels, labels, strict=True):
        place = rng.integers(side)
        image[(place, slice(None)) if label == 0 else (slice(None), place)] = 1
    return Images(pixels, labels)


# --- the classifier -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_classifier_learns_and_the_seed_decides_it():
    train, test = bars(300), bars(100, seed=1)
    first, again, other = (train_classifier(train, 2, seed) for seed in (1, 1, 2))
    assert first.accuracy(test) > 0.95
    assert torch.equal(first.features(test.pixels), again.features(test.pixels))
    assert not torch.equal(first.features(test.pixels), other.features(test.pixels))
    assert first.features(test.pixels).shape == (100, 84)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    train_classifier(bars(20), 2, seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_the_classifier_is_trained_once_per_data_and_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(sample_quality, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    trained = []

    def count(*args, **kwargs):
        trained.append(1)
        return train_classifier(*args, **kwargs)

    monkeypatch.setattr(sample_quality, "train_classifier", count)
    data = bars(40)
    first, again = cached_classifier(data, 2, seed=0), cached_classifier(data, 2, seed=0)
    assert len(trained) == 1
    assert torch.equal(first.features(data.pixels), again.features(data.pixels))
    cached_classifier(data, 2, seed=1)
    cached_classifier(Images(data.pixels, 1 - data.labels), 2, seed=0)
    cached_classifier(Images(1 - data.pixels, data.labels), 2, seed=0)
    assert len(trained) == 4
    assert len(list(tmp_path.iterdir())) == 4  # no half-written files


def test_a_damaged_file_in_the_cache_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr(sample_quality, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    data = bars(40)
    first = cached_classifier(data, 2, seed=0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"cut off")
    again = cached_classifier(data, 2, seed=0)
    assert torch.equal(first.features(data.pixels), again.features(data.pixels))
    assert path.stat().st_size > 1000


# --- measures -------------------------------------------------------------------------------------------------------


def test_fid_of_gaussians_is_the_frechet_distance():
    """|mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)): here 3 * 1^2 + 3 * (2 - 1)^2."""
    real, noise = torch.randn(2, 3000, 3, generator=torch.Generator().manual_seed(0)).double()
    assert fidelity(real[:50], real[:50])["fid"] == pytest.approx(0, abs=1e-6)
    assert fidelity(real, 2 * noise + 1)["fid"] == pytest.approx(6, rel=0.1)


def test_equal_sets_are_precise_and_complete_and_distant_ones_are_not():
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()
    same, far = fidelity(real, real), fidelity(real, real + 100)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert (far["precision"], far["recall"], far["coverage"], far["density"]) == (0, 0, 0, 0)
    assert far["fid"] == pytest.approx(4 * 100**2, rel=1e-3)


def test_a_mode_that_is_left_out_lowers_recall_but_not_precision():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(40, 4, generator=generator).double() + shift for shift in (0, 50))
    result = fidelity(torch.cat([one, two]), torch.cat([one, one + 1e-3]))
    assert result["precision"] == 1
    assert result["recall"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_the_two_sample_test_tells_noise_from_bars_and_not_bars_from_bars():
    noise = np.random.default_rng(0).integers(0, 2, (200, 8, 8)).astype(np.uint8)
    accuracy, _ = two_sample_accuracy(bars(200).pixels, noise, seed=0)
    assert accuracy > 0.97
    accuracy, stderr = two_sample_accuracy(bars(200).pixels, bars(200, seed=1).pixels, seed=0)
    assert abs(accuracy - 0.5) < 4 * stderr
    assert stderr == pytest.approx(0.5 / 200**0.5, rel=0.05)


def test_nearest_neighbors_differ_in_the_fewest_pixels():
    images, train = bars(300, seed=1).pixels, bars(50).pixels
    index, distance = nearest_neighbors(images, train)
    differences = (images[:, None] != train[None]).sum((2, 3))
    assert np.array_equal(distance, differences.min(1))
    assert np.array_equal(differences[np.arange(300), index], distance)


def test_copies_are_not_new_and_real_images_are_as_new_as_real_images():
    train, test = bars(100).pixels, bars(40, seed=1).pixels
    copies = novelty(train[:30], test, train)
    assert (copies["novelty"], copies["exact_copies"], copies["nearest_training_pixels"]) == (0, 1, 0)
    real = novelty(test, test, train)
    assert real["novelty"] == 1
    assert real["exact_copies"] == real["exact_copies_test"] < 1
    half = novelty(np.concatenate([train[:20], 1 - train[:20]]), test, train)
    assert half["exact_copies"] == 0.5
    assert novelty(test, train[:5], train)["novelty"] is None


def test_samples_have_the_classes_of_the_prior_and_the_seed_decides_them(tiny_model, tiny_processor):
    model, prior = tiny_model(), torch.tensor([0.2, 0.5, 0.3])
    first, again, other = (draw_samples(model, tiny_processor, prior, 20, seed, batch_size=8) for seed in (1, 1, 2))
    assert np.bincount(first.labels).tolist() == [4, 10, 6]
    assert first.labels.tolist() != sorted(first.labels)  # the halves of what is tested are alike
    assert first.pixels.shape == (20, 8, 8)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.pixels, other.pixels)
    assert draw_samples(model, tiny_processor, torch.tensor([0.0, 1.0, 0.0]), 3, 0).labels.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_another_draw_of_the_data_is_a_perfect_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(sample_quality, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    splits = {"train": bars(300), "validation": bars(180, seed=1), "test": bars(150, seed=2)}
    report = sample_report(bars(200, seed=3), splits, 2, seed=0)
    assert (report["num_samples"], report["num_compared"]) == (200, 150)
    assert report["sample_accuracy"] > 0.95
    assert report["classifier_test_accuracy"] > 0.95
    assert report["train_on_samples_accuracy"] > 0.9
    assert 0.3 < report["fid"] / report["fid_real_floor"] < 3
    assert 0.5 < report["novelty"] < 2
    swapped = bars(200, seed=3)
    report = sample_report(Images(swapped.pixels, 1 - swapped.labels), splits, 2, seed=0)
    assert report["sample_accuracy"] < 0.05
    assert report["train_on_samples_accuracy"] < 0.1


@pytest.mark.slow
def test_one_class_has_no_accuracy_of_classes_and_all_else():
    splits = {"train": bars(300), "validation": bars(180, seed=1), "test": bars(150, seed=2), "": bars(200, seed=3)}
    one = {name: Images(images.pixels, 0 * images.labels) for name, images in splits.items()}
    report = sample_report(one.pop(""), one, 1, seed=0)
    unknown = {"classifier_test_accuracy", "sample_accuracy", "sample_accuracy_stderr"}
    unknown |= {"train_on_samples_accuracy", "train_on_real_accuracy"}
    assert {name for name, value in report.items() if value is None} == unknown
    assert 0.3 < report["fid"] / report["fid_real_floor"] < 3  # another draw of the data is a perfect sample
    noise = np.random.default_rng(0).integers(0, 2, (200, 8, 8)).astype(np.uint8)
    other = sample_report(Images(noise, np.zeros(200, int)), one, 1, seed=0)
    assert other["fid"] > 10 * other["fid_real_floor"]
    assert other["precision"] < report["precision"] / 2
    assert sample_report(Images(noise, np.zeros(200, int)), one, 1, seed=0) == other


@pytest.mark.parametrize("sizes", [(9, 10, 10), (10, 9, 10), (10, 10, 9)], ids=str)
def test_too_few_images_are_refused(sizes):
    check_sizes(10, 10, 10)
    with pytest.raises(IGPTError, match="at least 10 of each are needed"):
        check_sizes(*sizes)
