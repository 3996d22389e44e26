"""One decision for a data set: polarity, transparency, levels, thin strokes, light; and the same for single images."""

import hashlib

import datasets
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

import photographs
from helpers.paths import HODA_FILE, MNIST
from igpt_hf import IGPTImageProcessor, load_splits
from igpt_hf.data.tokenized import tokenize
from igpt_hf.model.image_ink import count_holes, count_pieces, label_pieces
from igpt_hf.model.image_reading import read_image, to_marked_image
from igpt_hf.model.tokens import pixels_to_tokens


AUTO = IGPTImageProcessor()
FEW = settings(max_examples=15, deadline=None, derandomize=True)
# SHA-256 of the tokens of train, validation and test, made before data sets were decided on as a whole.
DIGESTS = {
    "synthetic": "3552563e629459954a8cac57393af63aa9e8eb2a4c0a342911296dbe507338cf",  # 500 digits
    "hoda": "7db25933e7a209398db39e4f30e032d3680a312a749cf11cfa2094526e98c7f4",
    "mnist": "c8ef867813f4cfb5f445279b6b2218cd32847502c71ae0eef062d302a02c5eb3",
}


def pixels_of(images, processor=AUTO) -> np.ndarray:
    return processor.decode_pixels(processor.tokenize(images))


def disc(side: int) -> np.ndarray:
    """A disc of half the side in the middle: booleans."""
    y, x = np.indices((side, side)) - (side - 1) / 2
    return x**2 + y**2 <= (side / 4) ** 2


def same(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# --- nothing changes where nothing was wrong ------------------------------------------------------------------------


def digest(source, **options) -> str:
    tokens = tokenize(load_splits(source, seed=42, **options), IGPTImageProcessor(margin=2))
    columns = [split.with_format("numpy")["tokens"][:].astype(np.uint8).tobytes() for split in tokens.values()]
    return hashlib.sha256(b"".join(columns)).hexdigest()


def test_the_tokens_of_synthetic_digits_are_those_of_before():
    assert digest("synthetic", num_synthetic=500) == DIGESTS["synthetic"]


@pytest.mark.slow
@pytest.mark.skipif(not HODA_FILE.is_file(), reason=f"no real data at {HODA_FILE}")
def test_the_tokens_of_hoda_are_those_of_before():
    assert digest(HODA_FILE) == DIGESTS["hoda"]


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no real data at {MNIST}")
def test_the_tokens_of_mnist_are_those_of_before():
    assert digest(MNIST) == DIGESTS["mnist"]


# --- transparency ---------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(28, 120), st.integers(0, 255), st.integers(0, 255), st.sampled_from(["RGBA", "LA", "P"]))
def test_ink_of_any_color_on_nothing_is_ink(side, ink, hidden, mode):
    shape = disc(side)
    levels = Image.fromarray(np.where(shape, ink, hidden).astype(np.uint8))  # what is transparent has a color, too
    opacity = Image.fromarray(shape.astype(np.uint8) * 255)
    image = Image.merge("LA", [levels, opacity]).convert("RGBA")
    if mode == "P":
        image = Image.fromarray(shape.astype(np.uint8), "P")
        image.putpalette([hidden] * 3 + [ink] * 3)
        image.info["transparency"] = 0
    elif mode != "RGBA":
        image = Image.merge("LA", [levels, opacity]).convert(mode)
    expected = pixels_of(shape)
    assert np.array_equal(pixels_of(image), expected)
    saved = AUTO.decide([image])
    assert saved.ink == "opacity"
    assert np.array_equal(pixels_of(image, saved), expected)


def test_a_black_disc_on_nothing_is_ink_under_always_too():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(0, 0, 0, 255))
    assert pixels_of(image).sum() == pixels_of(image, IGPTImageProcessor(invert="always")).sum() == 160


# --- levels ---------------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(28, 100), st.integers(0, 255), st.integers(0, 255), st.booleans())
def test_any_two_levels_are_paper_and_ink(side, paper, ink, is_rgb):
    if abs(paper - ink) < 2:
        return
    image = Image.fromarray(np.where(disc(side), ink, paper).astype(np.uint8))
    assert np.array_equal(pixels_of(image.convert("RGB") if is_rgb else image), pixels_of(disc(side)))


def test_ink_on_gray_paper_is_as_good_as_on_white():
    gray, white = Image.new("L", (80, 80), 120), Image.new("L", (80, 80), 255)
    for image, ink in ((gray, 20), (white, 0)):
        ImageDraw.Draw(image).line((20, 20, 60, 60), fill=ink, width=8)
    assert np.array_equal(pixels_of(gray), pixels_of(white))
    assert pixels_of(gray).sum() == 42


@pytest.mark.parametrize("top", [1, 2, 16, 38, 100])
def test_masks_of_few_levels_are_seen(top):
    rng = np.random.default_rng(0)
    shapes = [np.roll(disc(28), rng.integers(-4, 4), axis=1) for _ in range(20)]
    masks = [Image.fromarray((shape * top).astype(np.uint8)) for shape in shapes]
    assert np.array_equal(pixels_of(masks), pixels_of(shapes))
    soft = [(shape * rng.integers(max(1, top * 3 // 4), top + 1, (28, 28))).astype(np.uint8) for shape in shapes]
    assert np.array_equal(pixels_of([Image.fromarray(levels) for levels in soft]), pixels_of(shapes))


@pytest.mark.parametrize("palette", [None, [0, 0, 0, 128, 0, 0], [255, 255, 255, 0, 0, 0], [10, 10, 60, 20, 90, 20]])
def test_a_palette_of_two_is_a_mask(palette):
    image = Image.fromarray(disc(40).astype(np.uint8)).convert("P")
    if palette is not None:
        image.putpalette(palette)
    assert np.array_equal(pixels_of(image), pixels_of(disc(40)))


@FEW
@given(st.integers(28, 60), st.integers(1, 40))
def test_zeros_and_ones_mean_the_same_in_an_image_and_in_an_array(side, diagonal):
    mask = (np.indices((side, side)).sum(0) < diagonal).astype(np.uint8)
    assert np.array_equal(pixels_of(Image.fromarray(mask)), pixels_of(mask))
    assert pixels_of((np.indices((28, 28)).sum(0) < 20).astype(np.uint8)).sum() == 210


# --- one polarity ---------------------------------------------------------------------------------------------------


def test_all_images_of_a_call_have_one_polarity():
    stack = np.ones((2, 28, 28))
    stack[:, 10:18, 10:18] = 0
    stack[1, 0, 0] = 0.9
    assert np.array_equal(pixels_of(stack).mean((1, 2)), [64 / 784, 64 / 784])
    half, square = np.zeros((2, 64, 64), np.uint8)
    half[:, :50] = 255
    square[10:40, 10:40] = 255
    both = pixels_of([Image.fromarray(half), Image.fromarray(square)])
    assert both.mean((1, 2)).round(2).tolist() == [0.79, 0.24]


@FEW
@given(st.integers(2, 6), st.integers(28, 50), st.booleans())
def test_a_stored_decision_gives_each_image_alone_the_tokens_of_the_call(count, side, is_dark):
    rng = np.random.default_rng(count)
    images = []
    for _ in range(count):
        levels = (disc(side) * 255) ^ (rng.integers(0, 40, (side, side)))
        images.append(Image.fromarray((255 - levels if is_dark else levels).astype(np.uint8)))
    expected = AUTO.tokenize(images)
    decided = AUTO.decide(images)
    assert decided.ink == ("dark" if is_dark else "light")
    assert np.array_equal(np.concatenate([decided.tokenize(image) for image in images]), expected)


def test_mapping_a_stored_decision_over_a_data_set_gives_the_tokens_of_one_call(tmp_path):
    datasets.disable_progress_bars()
    half, square = np.zeros((2, 64, 64), np.uint8)
    half[:, :50] = 255
    square[10:40, 10:40] = 255
    images = [Image.fromarray(array) for array in (half, square, half.T, square)]
    AUTO.decide(images).save_pretrained(tmp_path)
    stored = IGPTImageProcessor.from_pretrained(tmp_path)
    rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    for size in (1, 2, 4):
        mapped = rows.map(lambda batch: {"tokens": stored.tokenize(batch["image"])}, batched=True, batch_size=size)
        assert np.array_equal(mapped["tokens"][:], AUTO.tokenize(images))


def test_what_is_decoded_comes_back_whatever_was_decided():
    paper = AUTO.decide([Image.fromarray((255 * ~disc(28)).astype(np.uint8))])
    assert paper.ink == "dark"
    tokens = np.random.default_rng(0).integers(0, 16, (3, 196))
    assert np.array_equal(paper.tokenize(paper.decode(tokens)), tokens)
    assert np.array_equal(paper.tokenize(paper.decode_pixels(tokens)), tokens)


# --- thin strokes and photographs -----------------------------------------------------------------------------------


@FEW
@given(st.integers(100, 900), st.floats(0.1, 0.9), st.integers(0, 89), st.booleans())
def test_a_thin_line_stays_one_line(side, pen, angle, is_dark):
    image = Image.new("L", (side, side), 255 if is_dark else 0)
    along = 0.35 * side * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    ends = (side / 2 - along).tolist() + (side / 2 + along).tolist()
    ImageDraw.Draw(image).line(ends, fill=0 if is_dark else 255, width=max(1, round(pen * side / 28)))
    pixels = pixels_of(image)[0] == 1
    assert count_pieces(pixels) == 1
    assert pixels.sum() >= 14


def test_rings_that_would_open_are_widened():
    rings = []
    for angle in range(8):
        ring = Image.new("L", (160, 160), 255)
        ImageDraw.Draw(ring).arc((20, 20, 140, 140), 0, 360, fill=0, width=8)
        ImageDraw.Draw(ring).arc((20, 20, 140, 140), 45 * angle, 45 * angle + 40, fill=255, width=6)  # thinner there
        rings.append(ring)
    decided = AUTO.decide(rings)
    plain, wide = (
        [decided.replace(widen_strokes=w).fit_binary(read_image(r, 0)) for r in rings] for w in (False, True)
    )
    assert {count_pieces(pixels) for pixels in plain} == {1}
    assert sum(count_holes(pixels) == 0 for pixels in plain) > 1
    assert {count_holes(pixels) for pixels in wide} == {1}
    assert decided.widen_strokes


def test_strokes_that_are_wide_enough_are_not_touched():
    image = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(image).line((50, 60, 200, 230), fill=0, width=25)
    assert AUTO.decide([image]).widen_strokes is False
    assert np.array_equal(*[pixels_of(image, IGPTImageProcessor(widen_strokes=widen)) for widen in (True, False)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [9, 33])
def test_a_photograph_in_a_shadow_is_binarized_like_its_drawing(seed):
    row = photographs.compare(AUTO, seed)
    assert "shadow" in row["light"]
    assert row["iou"] >= photographs.GOOD
    assert row["pieces"] <= row["pieces_drawn"]


# A dark corner, noise in a shadow, thin strokes in it, and strokes just thinner than a pixel.
@pytest.mark.parametrize("seed", [53, 69, 663, 74])
def test_no_stroke_of_a_photograph_or_its_drawing_is_in_pieces(seed):
    row = photographs.compare(AUTO, seed)
    assert max(row["pieces"], row["pieces_expected"]) <= row["pieces_drawn"]
    assert row["iou"] >= 0.8


def test_the_shadow_of_a_round_thing_is_not_ink():
    y, x = np.mgrid[:300, :300]
    light = 1 - 0.5 / (1 + np.exp((np.hypot(x - 90, y - 100) - 60) / 6))
    paper = 230 * light + np.random.default_rng(0).normal(0, 3, (300, 300))
    stroke = np.zeros((300, 300), bool)
    stroke[150:260, 200:206] = True
    pixels = pixels_of(Image.fromarray(np.where(stroke, 40, paper).clip(0, 255).astype(np.uint8)))[0]
    assert count_pieces(pixels == 1) == 1
    assert pixels[:, :16].sum() == 0


@FEW
@given(st.integers(60, 400), st.floats(0.3, 1.2), st.lists(st.floats(0.3, 0.9), min_size=4, max_size=4))
def test_a_line_with_corners_stays_in_one_piece(side, pen, points):
    image, width = Image.new("L", (side, side), 255), max(1, round(pen * side / 28))
    ImageDraw.Draw(image).line([point * side for point in (0.1, 0.1, *points)], 0, width, joint="curve")
    assert count_pieces(pixels_of(image)[0] == 1) == 1


@pytest.mark.parametrize("density", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_pieces_are_labeled_as_scipy_does_it(density):
    mask = np.random.default_rng(0).random((40, 30)) < density
    expected, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    labels = label_pieces(mask)
    assert count_holes(mask) == scipy.ndimage.label(~np.pad(mask, 1))[1] - 1
    assert count_pieces(mask) == count
    assert np.array_equal(labels > 0, mask)
    assert len(set(zip(labels[mask].tolist(), expected[mask].tolist(), strict=True))) == count


# --- one image for a trained model ----------------------------------------------------------------------------------


def photo(side: int = 400) -> Image.Image:
    """A small ring in a corner of a photograph with uneven light."""
    light = 120 + 100 * np.linspace(0, 1, side)[None] + np.random.default_rng(0).normal(0, 3, (side, side))
    ring = Image.new("L", (side, side), 0)
    ImageDraw.Draw(ring).ellipse((30, 40, 150, 160), outline=255, width=18)
    return Image.fromarray((light * (1 - 0.8 * np.asarray(ring) / 255)).clip(0, 255).astype(np.uint8))


def test_a_photograph_is_cropped_to_its_ink_with_the_margin_of_the_data():
    digits = [np.pad(disc(20), 4) * np.uint8(255) for _ in range(3)]
    trained = AUTO.decide(
        [Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 4))] + list(map(Image.fromarray, digits))
    )
    assert (trained.ink, trained.ink_margin) == ("light", 9)
    fitted = np.asarray(trained.replace(ink_margin=4).fit_upload(photo())) // 255
    rows, columns = np.flatnonzero(fitted.any(axis=1)), np.flatnonzero(fitted.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (4, 23, 4, 23)
    assert not fitted[12:16, 12:16].any()  # a ring is hollow


def test_a_large_photograph_and_its_mask_stay_together():
    """Light is evened out in a smaller copy."""
    image, trained = photo(1600), AUTO.replace(threshold="local").decide([photo(1600)])
    unknown = np.zeros((1600, 1600), bool)
    unknown[100:] = True  # of the ring, from row 40 to 160, the upper half is known
    for whole in (image, trained.binarize_upload(image, unknown)):
        prompt = trained.replace(ink_margin=4).prompt(images=whole, mask=unknown)
        known, pixels = (trained.decode_pixels(prompt[name])[0] for name in ("known_masks", "known_tokens"))
        assert known[:1].all() and not known[2:].any()
        assert pixels[:2].any() and not pixels[:, 4:].any()


def test_an_upload_like_the_data_has_its_tokens_and_one_of_the_other_polarity_is_inverted():
    image = Image.fromarray(np.where(disc(60), 255, 0).astype(np.uint8))
    trained = AUTO.decide([image])
    expected = trained.tokenize(image)
    assert np.array_equal(trained.tokenize(trained.fit_upload(image)), expected)
    inverted = Image.fromarray(255 - np.asarray(image))
    assert np.array_equal(trained.tokenize(trained.fit_upload(inverted)), expected)
    clear = Image.new("RGBA", (60, 60))
    clear.paste((0, 0, 0, 255), mask=image)
    assert np.array_equal(trained.tokenize(trained.fit_upload(clear)), expected)


@pytest.mark.parametrize("image", [Image.new("L", (60, 60), 255), Image.new("RGBA", (60, 60)), Image.new("1", (9, 9))])
def test_an_image_of_which_nothing_is_left_is_refused_in_words(image):
    with pytest.raises(ValueError, match="nothing is left of the image once it is binary"):
        AUTO.decide([Image.fromarray(disc(28) * np.uint8(255))]).fit_upload(image)


def page_of_strokes() -> np.ndarray:
    """A bar and a hook of ink (60, 60), true, which leave the border free."""
    ink = np.zeros((60, 60), bool)
    ink[10:50, 14:20] = ink[10:16, 14:44] = True
    return ink


def as_files(ink: np.ndarray) -> dict[str, Image.Image]:
    """The same strokes as people have them."""
    gray = np.where(ink, 0, 255)
    files = {"light": Image.fromarray(255 - gray.astype(np.uint8)), "dark": Image.fromarray(gray.astype(np.uint8))}
    files["bits"] = files["dark"].convert("1")
    files["sixteen bits"] = Image.fromarray((gray * 257).astype(np.uint16))
    files["twelve bits"] = Image.fromarray(np.where(ink, 4095, 0).astype(np.uint16))
    files["transparent"] = Image.new("RGBA", (60, 60))
    files["transparent"].paste((0, 0, 0, 255), mask=files["light"])
    files["pale"] = Image.fromarray(np.where(ink, 110, 235).astype(np.uint8))
    return files


@pytest.mark.parametrize("kind", as_files(page_of_strokes()))
def test_an_upload_of_any_polarity_depth_and_opacity_has_the_tokens_of_one_like_the_data(kind):
    files = as_files(page_of_strokes())
    trained = AUTO.decide([files["light"]])
    assert trained.is_like_data(files[kind]) == (kind == "light")
    assert np.array_equal(trained.tokenize_upload(files[kind]), trained.tokenize(files["light"]))


def test_an_upload_like_the_data_has_the_datas_tokens_and_an_empty_one_of_them_is_empty():
    files = as_files(page_of_strokes())
    trained = AUTO.decide([files["dark"]])
    assert trained.is_like_data(files["dark"]) and not trained.is_like_data(files["light"])
    empty = Image.new("L", (60, 60), 255)
    assert not trained.tokenize_upload(empty).any()
    with pytest.raises(ValueError, match="nothing is left"):
        trained.tokenize_upload(Image.new("L", (60, 60), 0))
    assert not trained.tokenize_upload(to_marked_image(np.zeros((28, 28), np.uint8))).any()


@pytest.mark.parametrize("polarity", [{"ink": "dark"}, {"ink": "light"}, {"invert": "always"}, {"invert": "never"}])
def test_binary_images_are_white_on_black_to_a_processor_of_any_polarity(polarity, tmp_path):
    """Own images in any case, ones and zeros unless `invert` says otherwise."""
    shape = disc(28).astype(np.uint8)
    processor = AUTO.replace(levels=(0.0, 255.0), widen_strokes=False, **polarity)
    own = processor.decode(pixels_to_tokens(shape[None], 2))[0]
    own.save(tmp_path / "own.png")
    for image in (own, Image.open(tmp_path / "own.png"), own.convert("RGB"), processor.fit_upload(own)):
        assert np.array_equal(processor.decode_pixels(processor.tokenize(image))[0], shape)
    for ones in (shape, Image.fromarray(shape)):
        read = processor.decode_pixels(processor.tokenize(ones))[0]
        assert np.array_equal(read, 1 - shape if polarity == {"invert": "always"} else shape)


def test_an_own_image_that_was_inverted_is_black_on_white():
    own = to_marked_image(disc(28).astype(np.uint8) * 255)
    assert np.array_equal(pixels_of(ImageOps.invert(own)), pixels_of(own))
    assert np.array_equal(pixels_of(ImageOps.invert(ImageOps.invert(own))), pixels_of(own))


def test_float_levels_that_are_neither_0_to_1_nor_0_to_255_are_refused():
    for high in (1.5, 4095.0):
        with pytest.raises(ValueError, match=f"it has levels up to {high}: scale or clip them"):
            pixels_of(Image.fromarray(np.full((8, 8), high, np.float32)))


def test_an_upload_to_a_model_of_gray_levels_has_the_same_tokens_at_each_call():
    gray = Image.fromarray(np.pad(np.full((20, 20), 180, np.uint8), 4))
    trained = AUTO.replace(binarize="stochastic", levels=(0.0, 255.0)).decide([gray])
    assert np.array_equal(trained.tokenize_upload(gray), trained.tokenize_upload(gray))
    assert 0 < trained.decode_pixels(trained.tokenize_upload(gray)).mean() < 0.5


@pytest.mark.parametrize("kind", as_files(page_of_strokes()))
def test_the_known_part_of_an_upload_of_any_polarity_is_that_of_one_like_the_data(kind):
    files, mask = as_files(page_of_strokes()), np.zeros((60, 60), bool)
    mask[:, 30:] = True
    trained = AUTO.decide([files["light"]])
    expected = trained.prompt(images=files["light"], mask=mask)
    prompt = trained.prompt(images=trained.binarize_upload(files[kind], mask), mask=mask)
    assert all(np.array_equal(prompt[name], expected[name]) for name in ("known_tokens", "known_masks"))


def test_what_is_cut_out_of_an_upload_says_nothing_of_its_ink():
    files, mask = as_files(page_of_strokes()), np.zeros((60, 60), bool)
    mask[:, 30:] = True
    trained = AUTO.decide([files["light"]])
    erased = files["dark"].convert("RGBA")
    erased.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
    expected = trained.prompt(images=files["light"], mask=mask)
    prompt = trained.prompt(images=trained.binarize_upload(erased, mask), mask=mask)
    assert np.array_equal(prompt["known_tokens"], expected["known_tokens"])
    assert trained.binarize_upload(files["light"], mask) is files["light"]
