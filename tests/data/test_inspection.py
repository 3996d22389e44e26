"""One look at a data set: what is said, what is warned of, what is refused."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from helpers.paths import SCRIPTS
from helpers.scripts import run_python
from igpt_hf import DataError, IGPTImageProcessor
from igpt_hf.data.inspection import count_images, inspect_images, sample_images


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
    assert inspection.sheet.size[0] > 1000


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
    features = Features(image=ImageFeature())
    train, test = [square(), square(corner=1), square()], [square(), square(corner=2)]
    splits = DatasetDict(
        {name: Dataset.from_dict({"image": images}, features) for name, images in (("train", train), ("test", test))}
    )
    census = count_images(splits)
    assert (census.repeated, census.across) == (1, 1)
    assert census.sizes == {(32, 32): 5}
    assert census.modes == {"L": 5}
    assert len(sample_images(splits["train"])) == 3


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
