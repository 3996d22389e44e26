"""The drawn digits: reproducible, strictly black and white, whole, and never twice the same."""

import numpy as np
import pytest

from igpt_hf.data.synthetic import CLASS_NAMES, _fit, draw_digit, synthetic_digits


@pytest.fixture(scope="module")
def digits():
    return synthetic_digits(1000, seed=7)


def test_the_same_seed_draws_the_same_digits(digits):
    images, labels = synthetic_digits(1000, seed=7)
    np.testing.assert_array_equal(images, digits[0])
    np.testing.assert_array_equal(labels, digits[1])


def test_fewer_digits_are_the_beginning_of_more(digits):
    images, labels = synthetic_digits(33, seed=7)
    np.testing.assert_array_equal(images, digits[0][:33])
    np.testing.assert_array_equal(labels, digits[1][:33])


def test_another_seed_draws_other_digits(digits):
    images, labels = synthetic_digits(100, seed=8)
    assert (images != digits[0][:100]).any(axis=(1, 2)).all()
    assert (labels != digits[1][:100]).any()


def test_images_are_white_strokes_on_black(digits):
    images, labels = digits
    assert images.shape == (1000, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (1000,) and labels.dtype == np.uint8
    assert np.unique(images).tolist() == [0, 255]
    share = (images == 255).mean(axis=(1, 2))
    assert share.min() > 0.01 and share.max() < 0.6
    assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).mean() > 0.9  # the corners are paper


def test_every_ten_images_show_every_digit_in_shuffled_order(digits):
    tens = digits[1].reshape(-1, 10)
    assert (np.sort(tens, axis=1) == np.arange(10)).all()
    assert len(np.unique(tens, axis=0)) > 90
    assert CLASS_NAMES == [str(label) for label in range(10)]


def test_no_two_digits_are_equal(digits):
    assert len(np.unique(digits[0].reshape(1000, -1), axis=0)) == 1000


@pytest.mark.parametrize("label", range(10))
def test_drawings_of_a_digit_differ_clearly_but_share_a_shape(digits, label):
    ink = digits[0][digits[1] == label] == 255
    both = np.einsum("ahw,bhw->ab", ink, ink, dtype=float)
    overlap = both / (ink.sum(axis=(1, 2)) + ink.sum(axis=(1, 2))[:, None] - both)
    pairs = overlap[np.triu_indices(len(ink), 1)]
    assert pairs.max() < 1
    assert 0.15 < np.median(pairs) < 0.7


def test_digits_are_centerd_and_fill_the_image_except_zero(digits):
    images, labels = digits
    for image, label in zip(images, labels, strict=True):
        rows, columns = np.nonzero(image)
        assert abs(rows.min() + rows.max() - 27) <= 2 and abs(columns.min() + columns.max() - 27) <= 2
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert side < 24 if label == 0 else side > 16


def test_ink_that_outgrows_the_image_is_shrunk_and_not_clipped():
    path, radius = np.array([[0.0, 0.0], [0.5, 3.0]]), np.array([0.1, 0.2])
    fitted, fitted_radius = _fit(path, radius, shift=np.array([0.1, 0.1]))
    assert (fitted - fitted_radius[:, None]).min() > -1e-9 and (fitted + fitted_radius[:, None]).max() < 1 + 1e-9
    np.testing.assert_allclose((fitted[1] - fitted[0])[1] / (fitted[1] - fitted[0])[0], 6)  # aspect ratio kept


def test_a_digit_keeps_its_shape_at_another_size():
    small, large = (draw_digit(4, np.random.default_rng(3), image_size) for image_size in (14, 56))
    assert small.shape == (14, 14) and large.shape == (56, 56)
    assert (small == large[2::4, 2::4]).mean() > 0.85


def test_the_generator_alone_decides_the_drawing():
    first, again, other = (draw_digit(9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_digit_is_refused(label):
    with pytest.raises(ValueError, match=f"label is {label}; choose one of the digits 0 to 9"):
        draw_digit(label, np.random.default_rng(0))


@pytest.mark.parametrize("num_images", [0, -5])
def test_an_empty_data_set_is_refused(num_images):
    with pytest.raises(ValueError, match=f"num_images is {num_images}; ask for at least 1"):
        synthetic_digits(num_images)


def test_an_image_too_small_for_a_digit_is_refused():
    with pytest.raises(ValueError, match="image_size is 8; a digit needs at least 14 pixels"):
        synthetic_digits(10, image_size=8)
    with pytest.raises(ValueError, match="image_size is 8; a digit needs at least 14 pixels"):
        draw_digit(1, np.random.default_rng(0), image_size=8)
