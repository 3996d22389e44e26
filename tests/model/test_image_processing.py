"""The processor: images of any kind become binary tokens and come back exactly; prompts; errors that say why."""

import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from helpers.paths import HODA_FILE
from igpt_hf import IGPTImageProcessor, read_cdb
from igpt_hf.model.tokens import pixels_to_tokens, tokens_to_pixels


SIZE = 12  # of the binary images in most tests


@pytest.fixture
def processor():
    return IGPTImageProcessor(image_size=SIZE)


def pixels_of(processor, images) -> np.ndarray:
    """What the model will see: (n, size, size), 0/1."""
    return processor.decode_pixels(processor.tokenize(images))


def bar(top=255, dtype=np.uint8) -> np.ndarray:
    """(SIZE, SIZE): a bright bar in the left half; all else, the border too, is dark."""
    array = np.zeros((SIZE, SIZE), dtype)
    array[2:-2, 2 : SIZE // 2] = top
    return array


BAR = bar(top=1)
DECIDED = {"invert": "never", "threshold": 0.5, "levels": (0, 255), "widen_strokes": False}


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_bits_follow_the_raster_order_of_a_block_and_blocks_that_of_the_image():
    pixels = np.array([[[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]]])
    assert pixels_to_tokens(pixels, 2).tolist() == [[1 + 4 + 8, 2, 8, 15]]
    assert pixels_to_tokens(pixels, 1).tolist() == [pixels.ravel().tolist()]
    assert pixels_to_tokens(pixels, 4).tolist() == [[sum(2**k for k, bit in enumerate(pixels.ravel()) if bit)]]


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4])
def test_tokens_are_an_exact_code_of_binary_images(patch_size):
    pixels = np.random.default_rng(0).integers(0, 2, (50, 24, 24), dtype=np.uint8)
    tokens = pixels_to_tokens(pixels, patch_size)
    assert tokens.shape == (50, (24 // patch_size) ** 2)
    assert tokens.max() < 2 ** (patch_size**2)
    assert np.array_equal(tokens_to_pixels(tokens, patch_size, 24), pixels)

    processor = IGPTImageProcessor(image_size=24, patch_size=patch_size)
    assert np.array_equal(processor.tokenize(pixels), tokens)
    assert np.array_equal(processor.decode_pixels(tokens), pixels)
    assert np.array_equal(processor.tokenize(processor.decode(tokens)), tokens)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_token_stands_for_a_picture_of_its_own(patch_size):
    processor = IGPTImageProcessor(image_size=patch_size, patch_size=patch_size)
    tokens = np.arange(processor.vocab_size)[:, None]
    pictures = processor.decode_pixels(tokens)
    assert len({picture.tobytes() for picture in pictures}) == processor.vocab_size
    assert np.array_equal(processor.tokenize(pictures), tokens)


@pytest.mark.slow
@pytest.mark.skipif(not HODA_FILE.is_file(), reason=f"no real data at {HODA_FILE}")
def test_tokens_are_an_exact_code_of_every_image_of_the_hoda_file():
    images, _ = read_cdb(HODA_FILE)
    processor = IGPTImageProcessor(invert="never")
    binary = processor.binarize_gray(processor.to_gray(images))
    tokens = pixels_to_tokens(binary, 2)
    assert len(tokens) == 22_352
    assert np.array_equal(processor.decode_pixels(tokens), binary)
    some = slice(0, len(tokens), 97)
    assert np.array_equal(IGPTImageProcessor().tokenize(processor.decode(tokens[some])), tokens[some])


# --- images of every kind -------------------------------------------------------------------------------------------


def picture(mode: str) -> Image.Image:
    """The bar as a PIL image of this mode."""
    gray = Image.fromarray(bar())
    if mode == "LA":
        return Image.merge("LA", [Image.new("L", gray.size, 255), gray])
    if mode == "RGBA":
        return Image.merge("RGBA", [Image.new("L", gray.size, 255)] * 3 + [gray])
    if mode == "P with transparency":
        palette = Image.fromarray(BAR).convert("P")
        palette.putpalette([255, 0, 0, 255, 255, 255])  # index 0 is red, and transparent
        palette.info["transparency"] = 0
        return palette
    if mode == "L with transparency":
        gray = Image.fromarray(np.where(BAR == 1, 255, 200).astype(np.uint8))
        gray.info["transparency"] = 200
        return gray
    if mode.startswith("I;16"):
        return Image.fromarray(bar(top=60_000, dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(bar(top=60_000, dtype=np.int32))
    if mode == "F":
        return Image.fromarray(bar(top=0.9, dtype=np.float32))
    return gray.convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "P with transparency", "L with transparency", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]
    + ["I;16", "I", "F"],
)
def test_a_picture_of_any_mode_gives_the_same_pixels(processor, mode):
    image = picture(mode)
    assert image.mode == mode.split(" ")[0]
    before = image.tobytes()
    assert np.array_equal(pixels_of(processor, image)[0], BAR)
    assert image.tobytes() == before


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_mask_of_16_or_32_bits_has_0_and_1_or_0_and_255(processor, dtype, values):
    mask = Image.fromarray(np.where(BAR == 1, values[1], values[0]).astype(dtype))
    assert np.array_equal(pixels_of(processor, mask)[0], BAR)


def test_a_16_bit_image_without_ink_stays_empty_beside_others(processor):
    noise = Image.fromarray(np.random.default_rng(0).integers(100, 250, (SIZE, SIZE)).astype(np.uint16))
    assert np.array_equal(pixels_of(processor, [picture("I;16"), noise]), [BAR, np.zeros_like(BAR)])


def test_alpha_is_laid_over_black(processor):
    image = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))  # white, but wholly transparent
    image.paste((255, 255, 255, 100), (2, 2, 6, 10))  # 100 / 255 of white: below the threshold
    image.paste((255, 255, 255, 200), (6, 2, 10, 10))
    expected = np.zeros((SIZE, SIZE))
    expected[2:10, 6:10] = 1
    assert np.array_equal(pixels_of(processor, image)[0], expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bit_levels_are_scaled_and_not_clipped(processor, dtype):
    levels = bar(top=20_000, dtype=dtype) + bar(top=20_000, dtype=dtype)[:, ::-1] * 2
    expected = bar(top=1)[:, ::-1]  # 40,000 of 65,535 is white, 20,000 is not
    assert np.array_equal(pixels_of(processor, Image.fromarray(levels))[0], expected)


@pytest.mark.parametrize(
    "array",
    [
        BAR.astype(bool),
        BAR,
        BAR.astype(np.int64),
        BAR.astype(np.float32),
        BAR * np.uint8(255),
        BAR.astype(np.int64) * 255,
        BAR * 0.7 + 0.1,
        BAR.astype(np.float16),
        torch.from_numpy(BAR),
        torch.from_numpy(BAR).bool(),
        torch.from_numpy(BAR * 0.9).requires_grad_(),
        np.asfortranarray(BAR),
    ],
    ids=lambda array: str(array.dtype),
)
def test_an_array_of_any_type_gives_the_same_pixels_alone_in_a_stack_and_in_a_list(processor, array):
    stack = torch.stack([array, array]) if isinstance(array, torch.Tensor) else np.stack([array, array])
    assert np.array_equal(pixels_of(processor, array), BAR[None])
    assert np.array_equal(pixels_of(processor, stack), np.stack([BAR, BAR]))
    assert np.array_equal(pixels_of(processor, [array, array]), np.stack([BAR, BAR]))


def test_a_list_may_mix_kinds_and_sizes_and_paths_are_read(processor, tmp_path):
    path = tmp_path / "bar.png"
    Image.fromarray(bar()).save(path)
    images = [path, str(path), BAR, Image.open(path), torch.from_numpy(BAR), Image.new("RGB", (30, 7))]
    pixels = pixels_of(processor, images)
    assert np.array_equal(pixels, np.stack([BAR] * 5 + [np.zeros_like(BAR)]))
    assert np.array_equal(pixels_of(processor, path)[0], BAR)


def test_inputs_are_left_as_they_were(processor):
    dark_on_light = 255 - bar()
    arrays = [dark_on_light.copy(), torch.from_numpy(dark_on_light.copy()), Image.fromarray(dark_on_light)]
    info = dict(arrays[2].info)
    pixels_of(processor, arrays)
    assert all(np.array_equal(np.asarray(array), dark_on_light) for array in arrays)
    assert arrays[2].info == info
    ids = torch.randint(16, (2, 36))
    before = ids.clone()
    processor.decode(ids)
    processor.prompt(class_labels=(labels := [1, 2]), images=arrays[:1], keep_rows=2)
    assert torch.equal(ids, before)
    assert labels == [1, 2]


# --- channels -------------------------------------------------------------------------------------------------------


def noise(mode: str, n: int = 2) -> list[Image.Image]:
    """Pictures of 19x17 pixels, all levels and colors."""
    bands, rng = len(Image.new(mode, (1, 1)).getbands()), np.random.default_rng(0)
    levels = rng.integers(0, 256, (n, 19, 17, bands), dtype=np.uint8)
    return [Image.fromarray(level[..., 0] if bands == 1 else level) for level in levels]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda levels: torch.from_numpy(levels) / 255])
def test_channels_may_come_first_or_last_in_a_stack_or_a_list_and_give_the_gray_of_pil(mode, make):
    processor, pictures = IGPTImageProcessor(image_size=SIZE, **DECIDED), noise(mode)
    expected = processor.to_gray(pictures)
    if mode in ("L", "RGB"):
        fitted = processor.to_gray([picture.convert("L") for picture in pictures])
        assert np.array_equal(expected, fitted)
    levels = np.stack([np.asarray(picture).reshape(19, 17, -1) for picture in pictures])  # (2, h, w, channels)
    last, first = make(levels), make(np.moveaxis(levels, 3, 1))
    for images in (last, first, list(last), list(first), (last[0], first[1])):
        assert np.array_equal(processor.to_gray(images), expected)
    for image in (last[0], [first[0]], first[:1]):
        assert np.array_equal(processor.to_gray(image), expected[:1])


def test_one_channel_is_gray_and_one_picture_however_it_is_written(processor):
    for array in (bar(), bar()[None], bar()[..., None], bar()[None, None], bar()[None, ..., None], [bar().tolist()]):
        assert np.array_equal(pixels_of(processor, array), BAR[None])


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("levels", [bar(), bar(top=0.9, dtype=np.float32), bar(top=1, dtype=np.float32)])
def test_three_planes_that_may_be_colors_are_refused_with_both_ways_to_say_it(processor, make, levels):
    planes = make(np.stack([levels, 0 * levels, levels]))  # (3, height, width)
    with pytest.raises(ValueError, match=r"one color image .*pass \[array\] .*list\(array\) for three gray ones"):
        processor(planes)
    color = levels if levels.dtype == np.uint8 else np.rint(levels * 255).astype(np.uint8)
    magenta = Image.merge("RGB", [Image.fromarray(band) for band in (color, 0 * color, color)])
    assert np.array_equal(processor.to_gray([planes]), processor.to_gray(magenta))
    assert np.array_equal(pixels_of(processor, list(planes)), [BAR, 0 * BAR, BAR])


def test_binary_whole_numbers_and_other_counts_of_planes_are_as_many_pictures(processor):
    for stack in (np.stack([BAR] * 3), torch.from_numpy(np.stack([BAR] * 3)).bool(), np.stack([bar()] * 4)):
        assert np.array_equal(pixels_of(processor, stack), np.stack([BAR] * len(stack)))


@pytest.mark.parametrize("shape", [(5, 144), (144, 144), (144,), (1, 144), (4, 1, 144)])
def test_flattened_pictures_are_refused_with_the_remedy(processor, shape):
    for array in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(ValueError, match=r"flattened .*array.reshape\(-1, 12, 12\).*PIL.Image.fromarray"):
            processor(array)
    with pytest.raises(ValueError, match="flattened"):
        processor([np.zeros(144)])
    assert processor([np.zeros((5, 144))])["input_ids"].shape == (1, 37)  # in a list it is one picture


@pytest.mark.parametrize("shape", [(3, 28, 3), (1, 28, 1), (2, 3, 9, 4), (2, 9, 9, 9), (2, 2, 2, 9, 9)])
def test_axes_that_cannot_be_told_apart_are_refused(processor, shape):
    with pytest.raises(ValueError, match=re.escape(f"of shape {shape[-3:]}") + "|" + re.escape(f"got {shape}")):
        processor(np.zeros(shape))


# --- polarity, size, threshold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Image.fromarray, np.asarray, torch.from_numpy])
def test_a_light_border_is_inverted_under_auto_and_not_under_never(make):
    dark_on_light = make(255 - bar())
    assert np.array_equal(pixels_of(IGPTImageProcessor(image_size=SIZE), dark_on_light)[0], BAR)
    never = IGPTImageProcessor(image_size=SIZE, invert="never")
    assert np.array_equal(pixels_of(never, dark_on_light)[0], 1 - BAR)


def test_a_dark_border_is_inverted_under_always_only():
    image = Image.fromarray(bar())
    results = {mode: pixels_of(IGPTImageProcessor(image_size=SIZE, invert=mode), image)[0].mean()
               for mode in ("auto", "never", "always")}  # fmt: skip
    assert results == {"auto": BAR.mean(), "never": BAR.mean(), "always": 1 - BAR.mean()}


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_zeros_and_ones_are_white_on_black_even_when_mostly_white(processor, dtype):
    assert np.array_equal(pixels_of(processor, (1 - BAR).astype(dtype))[0], 1 - BAR)


def test_decoded_pictures_are_not_inverted_even_when_mostly_white(processor):
    tokens = processor.tokenize(1 - BAR)
    for images in (processor.decode(tokens), processor.decode(tokens)[0], [processor.decode(tokens)[0].copy()]):
        assert np.array_equal(processor.tokenize(images), tokens)


def test_decoded_pictures_are_not_inverted_once_they_are_saved_either(processor, tmp_path):
    tokens = processor.tokenize(1 - BAR)
    picture = processor.decode(tokens)[0]
    for name in ("first.png", "again.png"):
        picture.save(tmp_path / name)
        assert np.array_equal(processor.tokenize(tmp_path / name), tokens)
    picture.save(tmp_path / "other.bmp")  # which has no place for it


@pytest.mark.parametrize(
    ("size", "box"),  # (width, height) of a white picture; (left, top, right, bottom) of what becomes of it
    [
        ((48, 24), (0, 3, 12, 9)),
        ((24, 48), (3, 0, 9, 12)),
        ((1200, 1200), (0, 0, 12, 12)),
        ((6, 4), (3, 4, 9, 8)),
        ((5, 1), (3, 5, 8, 6)),
        ((12, 2), (0, 5, 12, 7)),
        ((1000, 1), (0, 5, 12, 6)),
    ],
)
def test_the_aspect_ratio_is_kept_large_shrinks_and_small_is_centerd(size, box):
    processor = IGPTImageProcessor(image_size=SIZE, invert="never")
    left, top, right, bottom = box
    expected = np.zeros((SIZE, SIZE))
    expected[top:bottom, left:right] = 1
    assert np.array_equal(pixels_of(processor, Image.new("L", size, 255))[0], expected)


def test_a_small_picture_is_not_enlarged_but_kept_to_the_pixel(processor):
    pixels = np.random.default_rng(0).integers(0, 2, (7, 5), dtype=np.uint8)
    found = pixels_of(processor, pixels)[0]
    assert np.array_equal(found[2:9, 3:8], pixels)
    assert found.sum() == pixels.sum()


def test_sizes_are_rounded_to_the_nearest(tiny_processor):
    processor = IGPTImageProcessor(image_size=28)
    shrunk = processor._shrink(Image.new("L", (100, 67)), is_crop=False)
    assert shrunk.size == (28, 19)  # 18.76 rows


def test_shrinking_averages_all_pixels_rather_than_picking_some():
    processor = IGPTImageProcessor(image_size=SIZE, **DECIDED)
    stripes = np.zeros((SIZE * 8, SIZE * 8), np.uint8)
    stripes[:, 1::4] = 255  # a quarter of the picture is white, in lines of one pixel
    gray = processor.to_gray(Image.fromarray(stripes))
    assert abs(gray[0, 1:-1, 1:-1].astype(float) - 255 / 4).max() < 10


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
def test_a_pixel_is_white_from_the_threshold_on(threshold):
    processor = IGPTImageProcessor(image_size=16, threshold=threshold, invert="never")
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels_of(processor, levels)[0], levels >= threshold * 255)


def test_stochastic_pixels_are_white_as_often_as_they_are_bright():
    processor = IGPTImageProcessor(image_size=16, binarize="stochastic", invert="never")
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    gray, n = processor.to_gray(levels), 4000
    drawn = processor.binarize_gray(np.repeat(gray, n, axis=0), np.random.default_rng(0))
    probability = levels / 255
    deviation = (drawn.mean(axis=0) - probability) / np.sqrt(probability * (1 - probability) / n + 1e-12)
    assert abs(deviation).max() < 4.5  # the largest of 256 standard normal numbers
    assert drawn[:, 0, 0].max() == 0
    assert drawn[:, 15, 15].min() == 1


def test_stochastic_pixels_repeat_with_the_generator_and_differ_without():
    processor = IGPTImageProcessor(image_size=16, binarize="stochastic")
    gray = Image.new("L", (16, 16), 100)
    first, again, other = (processor.tokenize(gray, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(processor.tokenize(gray), processor.tokenize(gray))


# --- save, load, call -----------------------------------------------------------------------------------------------


CODE = {f"image_{part}.py" for part in ("decision", "ink", "processing_igpt", "reading", "upload")} | {
    "masks.py",
    "tokens.py",
}


def test_a_saved_processor_is_the_same_when_loaded(tmp_path):
    settings = {"image_size": 24, "patch_size": 3, "num_labels": 4, "threshold": 0.3, "invert": "never"}
    processor = IGPTImageProcessor(**settings, binarize="stochastic", margin=3)
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"preprocessor_config.json", *CODE}
    loaded = IGPTImageProcessor.from_pretrained(tmp_path)
    automatic = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(automatic) is IGPTImageProcessor
    assert processor.to_dict() == loaded.to_dict() == automatic.to_dict()
    gray = np.random.default_rng(0).integers(0, 256, (2, 24, 24), dtype=np.uint8)
    tokens = [p.tokenize(gray, np.random.default_rng(1)).tolist() for p in (processor, loaded, automatic)]
    assert tokens[0] == tokens[1] == tokens[2]


def test_calling_the_processor_gives_the_prompt_the_tokens_and_labels_that_leave_out_the_prompt(processor):
    images = np.random.default_rng(0).integers(0, 2, (3, SIZE, SIZE))
    tokens = torch.from_numpy(processor.tokenize(images)).long()
    batch = processor(images, class_labels=[2, 0, 9], return_tensors="pt")
    assert batch["input_ids"][:, 0].tolist() == [18, 16, 25]
    assert torch.equal(batch["input_ids"][:, 1:], tokens)
    assert torch.equal(batch["labels"][:, 1:], tokens)
    assert (batch["labels"][:, 0] == -100).all()
    assert processor(images)["input_ids"][:, 0].tolist() == [26, 26, 26]
    assert processor(images, class_labels=7)["input_ids"][:, 0].tolist() == [23, 23, 23]
    assert isinstance(processor(images, return_tensors="np")["input_ids"], np.ndarray)


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_preprocess_is_the_call(processor, return_tensors):
    wish = {"images": [BAR, 1 - BAR], "class_labels": [2, 0], "return_tensors": return_tensors}
    called, preprocessed = processor(**wish), processor.preprocess(**wish)
    assert called.keys() == preprocessed.keys() == {"input_ids", "labels"}
    for key, value in called.items():
        assert type(preprocessed[key]) is type(value)
        assert preprocessed[key].tolist() == value.tolist()


def test_a_setting_given_to_from_pretrained_is_checked_and_wins(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert IGPTImageProcessor.from_pretrained(tmp_path, image_size=24, num_labels=3).start_token_id == 19
    assert AutoImageProcessor.from_pretrained(tmp_path, image_size=24).num_image_tokens == 144
    with pytest.raises(ValueError, match="multiple of patch_size=2, got 29"):
        IGPTImageProcessor.from_pretrained(tmp_path, image_size=29)


def test_a_data_set_is_mapped_and_transformed(processor):
    datasets.disable_progress_bars()
    columns = {"image": [Image.fromarray(bar())] * 4, "label": [0, 1, 2, 9]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    expected = processor(columns["image"], class_labels=columns["label"])["input_ids"]

    def prepare(batch):
        return processor(batch["image"], class_labels=batch["label"])

    for form in (None, "numpy", "torch"):
        mapped = rows.with_format(form).map(prepare, batched=True, remove_columns=rows.column_names)
        assert np.array_equal(mapped["input_ids"][:], expected)
        assert torch.equal(processor(rows.with_format(form)["image"])["input_ids"][:, 1:], expected[:, 1:])
    assert torch.equal(rows.with_transform(prepare)[:]["input_ids"], expected)
    loader = torch.utils.data.DataLoader(rows.with_transform(prepare), batch_size=4)
    assert torch.equal(next(iter(loader))["input_ids"], expected)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_labels", "ids"),
    [
        (None, [26]),
        (3, [19]),
        ([0, 0, 7], [16, 16, 23]),
        ((9,), [25]),
        (range(2), [16, 17]),
        (np.array([1, 2]), [17, 18]),
        (np.array(4), [20]),
        (torch.tensor([1, 2], dtype=torch.int32), [17, 18]),
        (torch.tensor(4), [20]),
        (np.argmax([0, 0, 1]), [18]),
        ([np.int64(5), torch.tensor(6)], [21, 22]),
        (np.array([1, 2], dtype=np.uint64), [17, 18]),
        (np.array([1, 2], dtype=object), [17, 18]),
        ((label for label in (1, 2)), [17, 18]),
        (map(int, "12"), [17, 18]),
    ],
)
def test_a_prompt_asks_for_classes_or_with_the_start_token_for_any(processor, class_labels, ids):
    prompt = processor.prompt(class_labels=class_labels)
    assert list(prompt) == ["input_ids"]
    assert prompt["input_ids"].dtype == torch.int64
    assert prompt["input_ids"].tolist() == [[i] for i in ids]


@pytest.mark.parametrize(("num_images", "labels"), [(1, [3]), (1, [3, 4, 5]), (3, [3]), (3, [3, 4, 5]), (3, None)])
def test_a_completion_prompt_gives_the_upper_rows_and_one_of_either_serves_all(processor, num_images, labels):
    images = np.random.default_rng(0).integers(0, 2, (num_images, SIZE, SIZE))
    ids = processor.prompt(class_labels=labels, images=images, keep_rows=8)["input_ids"]
    count = max(num_images, len(labels or [None]))
    assert ids.shape == (count, 1 + 4 * 6)  # 4 of 6 rows of tokens
    assert ids[:, 0].tolist() == np.resize([16 + label for label in labels] if labels else [26], count).tolist()
    whole = torch.from_numpy(processor.tokenize(images)).long()
    assert torch.equal(ids[:, 1:], whole[:, : 4 * 6].expand(count, -1))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label",
    [10, -1, [3, 10], True, "3", [2.5], np.array([1.5]), torch.tensor([-1]), 3.0, np.float64(2), np.bool_(True), "12"]
    + [b"1", [None, 1], np.array([[1], [2]]), [torch.tensor([1, 2])], np.array(["cat"])],
)
def test_a_class_label_out_of_range_or_of_another_type_is_refused(processor, label):
    with pytest.raises(ValueError, match="is not one of the 10 classes, 0 to 9"):
        processor.prompt(class_labels=label)


@pytest.mark.parametrize("labels", [[], (), np.array([]), torch.tensor([]), range(0)])
def test_no_labels_at_all_are_refused(processor, labels):
    for ask in (processor.prompt, lambda class_labels: processor([BAR], class_labels=class_labels)):
        with pytest.raises(ValueError, match="no class labels were given: the list is empty; None asks for any class"):
            ask(class_labels=labels)


@pytest.mark.parametrize("keep_rows", [None, 0, -2, 3, SIZE, SIZE + 2])
def test_rows_to_keep_must_be_whole_blocks_and_leave_something_to_draw(processor, keep_rows):
    with pytest.raises(
        ValueError, match=f"keep_rows must be a multiple of patch_size=2 between 2 and 10, got {keep_rows}"
    ):
        processor.prompt(images=BAR, keep_rows=keep_rows)


def test_rows_without_an_image_and_lists_of_different_lengths_are_refused(processor):
    with pytest.raises(ValueError, match="pass images too"):
        processor.prompt(keep_rows=4)
    with pytest.raises(ValueError, match="2 class labels for 3 images"):
        processor.prompt(class_labels=[1, 2], images=[BAR] * 3, keep_rows=4)
    with pytest.raises(ValueError, match="2 images and 3 class labels"):
        processor.prompt(class_labels=[1, 2, 3], images=[BAR] * 2, keep_rows=4)
    with pytest.raises(ValueError, match="2 class labels for 3 images"):
        processor([BAR] * 3, class_labels=[1, 2])


@pytest.mark.parametrize(
    "make", [list, tuple, lambda ids: ids.tolist(), lambda ids: list(ids.numpy()), torch.Tensor.int]
)
def test_ids_may_be_lists_of_rows_of_any_kind(processor, make):
    pixels = np.random.default_rng(0).integers(0, 2, (2, SIZE, SIZE), dtype=np.uint8)
    ids = processor(pixels, class_labels=[1, 2])["input_ids"]
    assert np.array_equal(processor.decode_pixels(make(ids)), pixels)
    assert np.array_equal(np.asarray(processor.decode(make(ids))[1]), 255 * pixels[1])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((1, 35), int), "shape (n, 36), or (n, 37) with the prompt, for 12x12 images; got (1, 35)"),
        (np.zeros((1, 38), int), "got (1, 38)"),
        (np.zeros((1, 1, 36), int), "got (1, 1, 36)"),
        ([[0] * 35 + [16]], "id 16 at token 35 of image 0"),
        (torch.tensor([[0] * 36, [0, -1] + [0] * 34]), "id -1 at token 1 of image 1"),
        ([[0] * 36 + [26]], "id 26 at token 35 of image 0"),
        ([[0] * 36, [26] + [0] * 36], "ids have different lengths: decode images with a prompt and without apart"),
        ({"input_ids": [[0] * 36], "labels": None}, "pass one of input_ids, labels"),
    ],
)
def test_what_is_no_image_is_not_decoded(processor, ids, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        processor.decode(ids)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no images were given"),
        (np.full((4, 4), np.nan), "image 0 has values from nan to nan; float64 pixels lie in [0, 1]"),
        (np.full((4, 4), 1.5), "from 1.5 to 1.5; float64 pixels lie in [0, 1]"),
        (np.full((4, 4), -1), "image 0 has values from -1 to -1; int64 pixels lie in [0, 255]"),
        ([BAR, np.full((4, 4), 256)], "image 1 has values from 256 to 256"),
        (np.full((4, 4), None), "image 0 must be"),
        ([BAR, None], "image 1 must be"),
        ([BAR, np.zeros((0, 4))], "image 1 must be"),
        (np.zeros((2, 3, 4, 4)), "image 0 must be"),
        ([BAR, [Image.new("L", (4, 4))]], "image 1 is itself a list of images"),
        ([[BAR, BAR, BAR]], "image 0 is itself a list of images"),
        ({"image": BAR, "label": 3}, "got dict. Pass one of its values: image, label"),
        (None, "got NoneType"),
        ([np.zeros((4, 4, 3))], "image 0 must be"),
        ([Image.new("L", (0, 4))], "image 0 is empty: 0x4"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_position(processor, images, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        processor.tokenize(images)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"image_size": 29}, "multiple of patch_size=2, got 29. Use 28"),
        ({"image_size": 0}, "image_size must be a positive"),
        ({"patch_size": 5}, "patch_size must be 1, 2, 3 or 4 (a vocabulary of 2**(patch_size**2)), got 5"),
        ({"threshold": 0}, "threshold is a gray level in (0, 1], 'auto' or 'local', got 0"),
        ({"threshold": 128}, "threshold is a gray level in (0, 1], 'auto' or 'local', got 128"),
        ({"invert": "maybe"}, "invert must be 'auto', 'never' or 'always', got 'maybe'"),
        ({"binarize": "otsu"}, "binarize must be 'threshold' or 'stochastic', got 'otsu'"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_what_is_allowed(bad, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        IGPTImageProcessor(**bad)


# --- margins --------------------------------------------------------------------------------------------------------


def ink_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the white pixels; bottom and right are the last ones."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return rows[0], rows[-1], columns[0], columns[-1]


def binary_pixels(processor, array: np.ndarray) -> np.ndarray:
    return processor.decode_pixels(processor.tokenize(array))[0]


def test_a_crop_gets_the_margin_and_a_canvas_keeps_its_own():
    crop = np.ones((56, 42), np.uint8)  # ink at all four edges
    canvas = np.pad(crop, 1)[:, :-1]  # one edge reached
    assert ink_box(binary_pixels(IGPTImageProcessor(), crop)) == (0, 27, 3, 23)
    assert ink_box(binary_pixels(IGPTImageProcessor(margin=2), crop)) == (2, 25, 5, 22)
    same = [binary_pixels(IGPTImageProcessor(margin=margin), canvas) for margin in (0, 2)]
    assert np.array_equal(*same)


def test_a_crop_smaller_than_the_room_is_centerd_and_not_enlarged():
    assert ink_box(binary_pixels(IGPTImageProcessor(margin=2), np.ones((10, 6), np.uint8))) == (9, 18, 11, 16)


def test_a_picture_of_the_right_size_is_never_changed_by_a_margin():
    full = np.ones((28, 28), np.uint8)
    assert np.array_equal(binary_pixels(IGPTImageProcessor(margin=4), full), full)


@pytest.mark.parametrize("margin", [-1, 14])
def test_a_margin_that_leaves_no_room_is_refused(margin):
    with pytest.raises(ValueError, match=f"margin must lie between 0 and half of image_size=28, got {margin}"):
        IGPTImageProcessor(margin=margin)


# --- unusual pictures -----------------------------------------------------------------------------------------------


def test_a_photograph_taken_sideways_is_turned(tmp_path):
    upright = np.zeros((28, 28), np.uint8)
    upright[:5, :9] = 255
    sideways = Image.fromarray(np.rot90(upright))  # a quarter turn against the clock, which orientation 6 undoes
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    assert np.array_equal(binary_pixels(IGPTImageProcessor(), tmp_path / "sideways.png"), upright // 255)


def test_lab_pictures_and_bfloat16_tensors_are_read():
    processor = IGPTImageProcessor(invert="never")
    assert binary_pixels(processor, Image.new("LAB", (28, 28), (255, 128, 128))).all()
    assert binary_pixels(processor, torch.ones(28, 28, dtype=torch.bfloat16)).all()


def test_pixels_that_are_no_numbers_and_modes_that_cannot_be_gray_are_refused_with_their_place():
    black = Image.new("L", (4, 4))
    with pytest.raises(ValueError, match=r"image 1 \(mode F\) cannot be made gray: it has NaN or infinite pixels"):
        IGPTImageProcessor().tokenize([black, Image.fromarray(np.full((4, 4), np.nan, np.float32))])
    with pytest.raises(ValueError, match=r"image 1 \(mode La\) cannot be made gray"):
        IGPTImageProcessor().tokenize([black, Image.new("La", (4, 4))])


def test_fractions_are_no_tokens():
    with pytest.raises(ValueError, match="ids are whole numbers, got float64"):
        IGPTImageProcessor().decode(np.zeros((1, 196)))
