"""Images that are new in each epoch: determined by seed, epoch and index, and never those of another split."""

import dataclasses
import math
import runpy
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from helpers.paths import SCRIPTS
from igpt_hf import IGPTConfig, IGPTImageProcessor, load_splits, tokenize
from igpt_hf.data.augmentation import NewImages, default_strength, random_affine, random_shape
from igpt_hf.data.tokenized import TokenDataset, collate
from igpt_hf.model.tokens import tokens_to_pixels
from igpt_hf.training.arguments import parse_arguments


@pytest.fixture(scope="module")
def digits():
    return load_splits("synthetic", num_synthetic=100, seed=5)


def crops(n: int = 12) -> datasets.Dataset:
    """Ellipses of 20x29 pixels, cropped tightly, as HODA's digits are."""
    y, x = np.mgrid[-1:1:29j, -1:1:20j]
    image = ((x**2 + y**2 <= 1.01) & (x**2 + y**2 > 0.3)).astype(np.uint8) * 255
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    rows = {"image": [PIL.Image.fromarray(image)] * n, "label": [0] * n}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(params=["digits", "crops", "gray"])
def new_images(request, digits):
    processor = IGPTImageProcessor(margin=2, binarize="stochastic" if request.param == "gray" else "threshold")
    if request.param == "digits":
        return NewImages(digits["train"], processor, seed=1, draws_digits=True)
    return NewImages(crops(), processor, seed=1, strength=0.04)


def test_an_image_depends_on_seed_epoch_and_index_alone(new_images):
    tokens = new_images.tokens(3, [0, 1, 2, 3])
    assert tokens.shape == (4, 196)
    assert np.array_equal(new_images.tokens(3, [2, 0]), tokens[[2, 0]])
    assert len(np.unique(tokens, axis=0)) == 4
    other_seed = dataclasses.replace(new_images, seed=2)
    for other in (new_images.tokens(4, [0, 1, 2, 3]), other_seed.tokens(3, [0, 1, 2, 3])):
        assert (other != tokens).any(axis=1).all()


@pytest.mark.parametrize("room", [0, 3 * 20 * 29, 2**20])
def test_images_are_read_once_as_far_as_there_is_room_for_them(monkeypatch, room):
    new_images = NewImages(crops(), IGPTImageProcessor(margin=2), seed=1, strength=0.04)
    expected = [new_images.tokens(epoch, [5, 0, 2, 9]) for epoch in range(3)]
    monkeypatch.setattr("igpt_hf.data.augmentation.MAX_KEPT_PIXELS", room)
    again, num_read = dataclasses.replace(new_images), []
    read = again.processor.read
    monkeypatch.setattr(again.processor, "read", lambda image: num_read.append(1) or read(image), raising=False)
    np.testing.assert_array_equal([again.tokens(epoch, [5, 0, 2, 9]) for epoch in range(3)], expected)
    assert len(num_read) == {0: 12, 3 * 20 * 29: 6, 2**20: 4}[room]


def test_digits_drawn_anew_are_those_of_no_split_whatever_the_epoch(digits):
    processor = IGPTImageProcessor()
    seen = {row.tobytes() for split in tokenize(digits, processor).values() for row in np.uint8(split["tokens"][:])}
    new = NewImages(digits["train"], processor, seed=5, draws_digits=True)  # the seed of the splits, too
    for epoch in range(3):
        drawn = {row.tobytes() for row in new.tokens(epoch, range(80))}
        assert len(drawn) == 80 and not drawn & seen
        seen |= drawn


def test_without_strength_the_images_are_those_of_the_split():
    processor, split = IGPTImageProcessor(margin=2), crops(2)
    expected = tokenize(datasets.DatasetDict(train=split), processor)["train"]["tokens"][:]
    assert NewImages(split, processor, seed=1).tokens(0, [0, 1]).tolist() == expected


def test_transforms_fade_until_the_images_are_those_of_the_split():
    processor, split = IGPTImageProcessor(margin=2), crops(12)
    images = NewImages(split, processor, seed=1, strength=0.04, num_epochs=20)
    assert [images.strength_in(epoch) for epoch in (0, 12, 15, 18, 19)] == pytest.approx([0.04, 0.04, 0.02, 0, 0])
    early = dataclasses.replace(images, fade_from=0.1)
    assert [early.strength_in(epoch) for epoch in (2, 10, 18)] == pytest.approx([0.04, 0.02, 0])
    as_they_are = NewImages(split, processor, seed=1).tokens(0, range(12))
    changed = [(images.tokens(epoch, range(12)) != as_they_are).sum() for epoch in (12, 15, 18)]
    assert changed[0] > changed[1] > changed[2] == 0


@pytest.mark.parametrize("expand", [False, True])
def test_an_affine_transform_moves_the_ink_by_its_matrix_about_the_center(expand):
    y, x = np.mgrid[-20:20:80j, -20:20:80j]
    blob = np.rint(255 * np.exp(-(x**2 / 60 + (y - 0.5 * x) ** 2 / 20))).astype(np.uint8)
    normals = np.array([1.5, -1.0, 2.0, -1.2])
    moved = random_affine(
        PIL.Image.fromarray(blob), 0.1, SimpleNamespace(standard_normal=lambda n: normals), expand=expand
    )
    angle, shear, width, height = 0.1 * normals
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ [[1, shear], [0, 1]] @ np.diag([math.exp(width), math.exp(height)])
    (center, spread), (new_center, new_spread) = moments(blob), moments(np.asarray(moved))
    np.testing.assert_allclose(center, [0, 0], atol=0.05)
    np.testing.assert_allclose(new_center, [0, 0], atol=0.05)
    np.testing.assert_allclose(new_spread, matrix @ spread @ matrix.T, atol=0.03 * spread.max())
    assert (moved.size == (80, 80)) is not expand


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("size", [(20, 29), (21, 30)])
def test_a_tiny_transform_leaves_the_image_as_it_is(size, expand):
    image = PIL.Image.effect_noise(size, 80)
    moved = random_affine(image, 1e-7, np.random.default_rng(0), expand=expand)
    left, upper = ((new - old) // 2 for new, old in zip(moved.size, size, strict=True))
    inside = np.asarray(moved.crop((left, upper, left + size[0], upper + size[1])))
    assert np.abs(inside.astype(int) - np.asarray(image))[2:-2, 2:-2].max() <= 1


def moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (2,) and covariance (2, 2) of the ink, x before y, from the image's center."""
    weights = image / image.sum()
    y, x = (np.indices(image.shape) - (np.array(image.shape) - 1)[:, None, None] / 2).reshape(2, -1)
    places = np.stack([x, y])
    mean = places @ weights.ravel()
    return mean, (places - mean[:, None]) * weights.ravel() @ (places - mean[:, None]).T


def ellipse(angle: float, side: int = 28) -> PIL.Image.Image:
    """A small gray image as data sets have them: shrunk, with smooth edges."""
    y, x = np.mgrid[-1 : 1 : 16j * side, -1 : 1 : 16j * side]
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    ink = ((u / 0.7) ** 2 + (v / 0.3) ** 2 <= 1) & ((u / 0.5) ** 2 + (v / 0.15) ** 2 > 1)
    return PIL.Image.fromarray((255 * ink).astype(np.uint8)).resize((side, side), PIL.Image.Resampling.HAMMING)


def sides_and_center(image: PIL.Image.Image) -> tuple[float, np.ndarray]:
    """The longest side of the box around the ink, parts of pixels counted, and its center of mass."""
    levels = np.asarray(image) / 255
    return max(levels.max(axis=axis).sum() for axis in (0, 1)), moments(levels)[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_small_shape_keeps_its_size_its_place_and_its_sharp_edges(seed):
    image = ellipse(angle=seed)
    moved = random_shape(image, 0.1, np.random.default_rng(seed))
    assert moved.size == image.size
    assert np.abs(np.asarray(moved).astype(int) - np.asarray(image)).max() > 60  # it is another
    (side, center), (new_side, new_center) = sides_and_center(image), sides_and_center(moved)
    assert new_side == pytest.approx(side, abs=0.7)
    np.testing.assert_allclose(new_center, center, atol=0.15)
    blurred = random_affine(image, 0.1, np.random.default_rng(seed), expand=False)
    num_gray, num_blurred, num_before = (
        ((np.asarray(x) > 20) & (np.asarray(x) < 235)).sum() for x in (moved, blurred, image)
    )
    assert num_gray < 1.15 * num_before < num_blurred


def test_a_small_shape_that_is_hardly_transformed_is_what_it_was():
    image = ellipse(angle=0.4)
    moved = random_shape(image, 1e-7, np.random.default_rng(0))
    difference = np.asarray(moved).astype(float) - np.asarray(image)
    assert np.abs(difference).mean() < 3 and abs(difference.mean()) < 0.5


@pytest.mark.parametrize("ink", [[], [(5, 7)]])
def test_an_image_with_little_or_no_ink_is_no_error(ink):
    levels = np.zeros((28, 28), np.uint8)
    for place in ink:
        levels[place] = 255
    moved = np.asarray(random_shape(PIL.Image.fromarray(levels), 0.1, np.random.default_rng(0)))
    assert moved.argmax() == levels.argmax() and (moved > 0).any() == bool(ink)


def test_gray_images_of_the_models_size_are_transformed_as_shapes():
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    rows = {"image": [ellipse(angle) for angle in range(8)], "label": [0] * 8}
    split = datasets.Dataset.from_dict(rows, features=features)
    processor = IGPTImageProcessor(binarize="stochastic", ink="light", invert="never")
    new_images = NewImages(split, processor, 1, strength=0.1, num_epochs=10)
    num_same = []
    for epoch in (0, 8, 9):
        _, gray = new_images.tokens_and_gray(epoch, range(8))
        num_same.append(0)
        for index, image in enumerate(rows["image"]):
            generator = np.random.default_rng([1, 2, epoch, index])
            generator.random()  # whether it is transformed
            expected = [np.asarray(x) for x in (image, random_shape(image, 0.1, generator))]
            is_same, is_moved = (np.array_equal(gray[index], x) for x in expected)
            assert is_same ^ is_moved  # as it is, or by the full strength
            num_same[-1] += is_same
    assert 0 < num_same[0] < num_same[1] <= num_same[2] == 8


def test_a_crop_stays_a_crop_and_keeps_its_margin():
    processor = IGPTImageProcessor(margin=2)
    tokens = NewImages(crops(), processor, seed=1, strength=0.05).tokens(0, range(12))
    for pixels in tokens_to_pixels(tokens, 2, 28):
        rows = np.flatnonzero(pixels.any(axis=1))
        assert (rows[0], rows[-1]) == (2, 25)


def test_an_image_of_the_models_size_keeps_its_border():
    image = np.zeros((28, 28), np.uint8)
    image[10:18, 4:24] = 255
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    split = datasets.Dataset.from_dict({"image": [PIL.Image.fromarray(image)], "label": [0]}, features=features)
    tokens = [NewImages(split, IGPTImageProcessor(margin=2), 1, strength=0.04).tokens(e, [0]) for e in range(20)]
    counts = tokens_to_pixels(np.concatenate(tokens), 2, 28).sum(axis=(1, 2))
    assert 130 < counts.min() and counts.max() < 190 and len(set(counts)) > 5  # 160, stretched by a few percent


def test_gray_images_that_are_transformed_have_the_probabilities_of_their_tokens():
    split, processor = crops(), IGPTImageProcessor(binarize="stochastic").decide(crops()["image"])
    new_images = NewImages(split, processor, seed=1, strength=0.04)
    labels = datasets.Dataset.from_dict({"label": split["label"]})
    batch = TokenDataset(labels, IGPTConfig(), new_images=new_images, gives_probs=True).__getitems__(range(12))
    sampled = batch["token_probs"].gather(-1, batch["labels"][:, 1:, None])
    assert (sampled > 0).all() and (sampled < 1).any()
    torch.testing.assert_close(batch["token_probs"].sum(-1), torch.ones(12, 196))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_outlive_an_epoch_follow_it(digits, persistent):
    split = tokenize(digits, IGPTImageProcessor())["train"]
    new_images = NewImages(digits["train"], IGPTImageProcessor(), seed=1, draws_digits=True)
    dataset = TokenDataset(split, IGPTConfig(), class_dropout_prob=0.5, seed=1, new_images=new_images)
    options = {"batch_size": 80, "collate_fn": collate, "num_workers": 1, "persistent_workers": persistent}
    loader = torch.utils.data.DataLoader(dataset, **options)
    for epoch in range(2):
        dataset.choose_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["input_ids"], dataset.__getitems__(range(80))["input_ids"])


def test_crops_are_augmented_by_default_and_whole_pages_are_not():
    cropped = crops(12)
    pages = cropped.map(lambda row: {"image": PIL.ImageOps.expand(row["image"], 4)})
    processor = IGPTImageProcessor().decide(cropped["image"])
    assert default_strength(cropped, processor) == 0.04
    assert default_strength(pages, processor) == 0
    mixed = datasets.concatenate_datasets([cropped.select(range(5)), pages.select(range(6))])
    assert default_strength(mixed, processor) == 0


@pytest.mark.parametrize(
    ("flags", "strength"),
    [
        ("--data digits.cdb", 0.04),
        ("--data digits.cdb --augment 0", 0),
        ("--data digits.cdb --augment 0.1", 0.1),
        ("--data digits.cdb --task classification", 0),
        ("--data digits --streaming true", 0),
        ("--data synthetic", 0),
    ],
)
def test_training_augments_crops_unless_it_is_told_otherwise(flags, strength):
    choose = runpy.run_path(str(SCRIPTS / "train.py"))["choose_augmentation"]
    script_args, _, _ = parse_arguments(flags.split())
    images = {"train": crops(12)}
    processor = IGPTImageProcessor().decide(images["train"]["image"])
    assert choose(images, processor, script_args) == strength
