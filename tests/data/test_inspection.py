"""One look at a data set: what is said, what is warned of, what is refused."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from helpers.paths import SCRIPTS
from helpers.scripts import run_python
from igpt_hf import DataError, IGPTImageProcessor, load_splits
from igpt_hf.data import decoding
from igpt_hf.data.inspection import count_images, doubts_of, image_facts, inspect_images, sample_images
from igpt_hf.plots import data_sheet


def square(dark: bool = False, corner: int = 0) -> Image.Image:
    levels = np.zeros((32, 32), np.uint8)
    levels[8:20, 6:24] = 255
    levels[corner, corner] = 255
    return Image.fromarray(255 - levels if dark else levels)


def look(images):
    return inspect_images(images, IGPTImageProcessor(), len(images))


def test_two_lines_say_what_was_found_and_decided():
    inspection = look([square(dark=True)] * 9)
    assert inspection.processor.is_decided
    assert inspection.summary == (
        "9 images, 32x32: dark ink on light, level 0.50\n100% of the ink kept, 0 of 9 images empty"
    )
    assert inspection.warnings == []
    inspection.check()
    assert inspection.sheet.image().size[0] > 1000


def test_the_margin_of_a_crop_costs_no_ink():
    crops = [square().crop((6, 8, 24, 20)).resize((180, 120))] * 3
    corner = Image.new("L", (180, 120))
    corner.paste(255, (40, 0, 60, 120))
    corner.paste(255, (0, 50, 180, 70))
    for images in (crops, [corner] * 3):
        inspection = inspect_images(images, IGPTImageProcessor(margin=4), len(images))
        assert 0.97 <= float(inspection.summary.splitlines()[1].split("%")[0]) / 100 <= 1


def test_images_that_are_nothing_but_ink_are_not_called_empty():
    white = Image.new("L", (32, 32), 255)
    assert look([square()] * 19 + [white]).summary.endswith("0 of 20 images empty, 1 nothing but ink")


@pytest.mark.parametrize("is_dark", [False, True])
def test_an_evaluation_of_images_of_the_other_polarity_is_warned_of(is_dark):
    processor = IGPTImageProcessor().decide([square(dark=is_dark)] * 3)
    features = Features(image=ImageFeature())

    def doubts(images):
        return doubts_of(Dataset.from_dict({"image": images}, features=features), processor)

    assert doubts([square(dark=is_dark)] * 9) == []
    (doubt,) = doubts([square(dark=not is_dark)] * 9)
    assert "9 of 9 images have a background of ink" in doubt
    assert ("it knows dark ink on light" if is_dark else "it knows light ink on dark") in doubt
    told = IGPTImageProcessor(invert="always" if is_dark else "never", levels=(0, 255), widen_strokes=False)
    assert doubts_of(Dataset.from_dict({"image": [square(dark=not is_dark)] * 9}, features=features), told) == [doubt]


def test_inverted_images_are_found_though_they_are_shrunk_with_a_margin():
    def glyph(is_inverted: bool) -> Image.Image:
        image = Image.new("L", (100, 80))
        image.paste(255, (30, 10, 60, 70))
        return ImageOps.invert(image) if is_inverted else image

    images = [glyph(i < 4) for i in range(16)]
    processor = IGPTImageProcessor(margin=2, ink="light")
    (warning,) = inspect_images(images, processor, None).warnings
    assert "4 of 16 images have a background of ink" in warning
    dataset = Dataset.from_dict({"image": images}, features=Features(image=ImageFeature()))
    (doubt,) = doubts_of(dataset, processor.decide(images))
    assert "4 of 16 images have a background of ink" in doubt
    bar = Image.new("L", (40, 90), 255)  # a 1 that is cropped to its ink
    bar.paste(0, (0, 60, 15, 90))
    assert inspect_images([bar] * 8 + [glyph(False)] * 8, processor, None).warnings == []


def test_a_line_a_thousand_times_as_wide_as_high_has_its_place_in_the_figure():
    line = Image.new("L", (2000, 2), 255)
    sheet = data_sheet([line], np.ones((1, 28, 28), bool))
    assert sheet.rows[0][0].size == (112, 112)


def test_a_data_set_that_comes_out_empty_is_refused_with_the_remedy():
    blank = Image.new("L", (32, 32))
    look([square()] * 9 + [blank]).check()
    with pytest.raises(DataError, match=r"2 of 10 images have no ink once they are binary .*--invert"):
        look([square()] * 8 + [blank] * 2).check()


def test_data_of_two_kinds_is_warned_of():
    clear = square().convert("RGBA")
    clear.putalpha(square())
    (warning,) = look([square()] * 8 + [square(dark=True)] * 2).warnings
    assert "2 of 10 images have a background of ink" in warning
    (warning,) = look([square()] * 6 + [clear] * 4).warnings
    assert "4 of 10 images have transparent pixels" in warning


def test_duplicates_are_counted_within_a_split_and_across_splits():
    train, test = [square(), square(corner=1), square()], [square(), square(corner=2)]
    census = count_images({"train": list(map(image_facts, train)), "test": list(map(image_facts, test))})
    assert (census.repeated, census.across) == (1, 1)
    assert census.sizes == {(32, 32): 5}
    assert census.modes == {"L": 5}


def test_images_of_the_same_indices_but_other_palettes_are_no_duplicates():
    images = [square().convert("P") for _ in range(3)]
    images[2].putpalette([255 - level for level in range(256) for _ in "RGB"])
    assert count_images({"train": list(map(image_facts, images))}).repeated == 1


def test_files_of_several_frames_are_counted_since_only_the_first_is_used(tmp_path, caplog):
    for index in range(20):
        square(corner=index).save(tmp_path / f"{index:02}.png")
    square().save(tmp_path / "20.tif", save_all=True, append_images=[square(corner=1)])
    load_splits(tmp_path)
    assert "1 of 21 images have several frames, of which only the first is used; the first: " in caplog.text
    assert "20.tif" in caplog.text


def test_load_splits_describes_each_image_once_in_the_order_of_its_split(monkeypatch):
    images = [square(corner=corner) for corner in range(12)]
    dataset = Dataset.from_dict(
        {"image": images, "label": [0] * 12}, Features(image=ImageFeature(), label=Value("int64"))
    )
    damaged = dataset.cast_column("image", ImageFeature(decode=False)).map(
        lambda row, index: {"image": {**row["image"], "bytes": b"no image" if index == 3 else row["image"]["bytes"]}},
        with_indices=True,
    )
    decoded, decode = [], decoding.first_frame
    monkeypatch.setattr(decoding, "first_frame", lambda image, *flags: decoded.append(image) or decode(image, *flags))
    splits = load_splits(damaged, skip_bad_images=True, describe=image_facts)
    assert len(decoded) == 12
    assert sum(map(len, splits.values())) == 11
    for name, split in splits.items():
        assert splits.descriptions[name] == [image_facts(image) for image in split["image"]]
    assert len(sample_images(splits["train"])) == len(splits["train"])


def test_an_image_is_decoded_to_what_datasets_makes_of_it():
    """Turned ones, too."""
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for exif in (Image.Exif(), sideways):
        buffer = io.BytesIO()
        square().crop((0, 0, 32, 20)).save(buffer, "PNG", exif=exif)
        encoded = {"bytes": buffer.getvalue(), "path": None}
        assert image_facts(decoding.decode_image(encoded)) == image_facts(ImageFeature().decode_example(encoded))


@pytest.mark.slow
def test_the_command_shows_the_data_and_ends_with_an_error_where_training_would(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for corner in range(5):
            square(corner=corner).save(tmp_path / "data" / name / f"{corner}.png")
    command = [SCRIPTS / "data.py", tmp_path / "data", "--output", tmp_path / "data.png"]
    shown = run_python(*command)
    assert "classes    2: a (5), b (5)" in shown.stdout
    assert "light ink on dark, level 0.50" in shown.stdout
    assert Image.open(tmp_path / "data.png").width > 1000
    refused = run_python(*command, "--ink", "dark", "--threshold", "1.0", "--invert", "never", check=False)
    assert refused.returncode == 0
