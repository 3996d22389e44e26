"""Pictures of a run: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image
from transformers import set_seed

from igpt_hf import IGPTImageProcessor, plots
from igpt_hf.plots import completion_sheet, image_grid, loss_curve, parts_sheet, sample_sheet


def tile(level: int, side: int = 8) -> Image.Image:
    return Image.new("L", (side, side), level)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_grid_shows_each_picture_once_at_its_place_and_scale(scale):
    rows = [[tile(10), tile(20), tile(30)], [tile(40), tile(50)]]
    grid = image_grid(rows, scale=scale)
    side, gap = 8 * scale, 2 * scale
    assert grid.mode == "L"
    assert grid.size == (3 * side + 4 * gap, 2 * side + 3 * gap)
    pixels = np.asarray(grid)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * (side + gap), gap + j * (side + gap)
            assert (pixels[top : top + side, left : left + side] == picture.getpixel((0, 0))).all()
    levels, counts = np.unique(pixels, return_counts=True)
    shown = dict(zip(levels.tolist(), counts.tolist(), strict=True))
    assert [shown[level] for level in (10, 20, 30, 40, 50)] == [side * side] * 5


def test_pixels_are_enlarged_without_blur():
    picture = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8))
    pixels = np.asarray(image_grid([[picture]], scale=3))[6:-6, 6:-6]
    assert np.array_equal(pixels, np.asarray(picture).repeat(3, axis=0).repeat(3, axis=1))


def test_names_take_a_margin_that_fits_the_longest():
    rows = [[tile(10)], [tile(20)]]
    plain, short, long = image_grid(rows), image_grid(rows, ["a", "b"]), image_grid(rows, ["a", "b" * 20])
    assert plain.width < short.width < long.width
    assert plain.height == short.height == long.height
    assert np.array_equal(np.asarray(long)[:, -plain.width :], np.asarray(plain))
    margin = np.asarray(long)[:, : long.width - plain.width]
    assert margin.max() > 200
    assert margin[:, -2:].max() == 64  # the name ends before the pictures begin


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_grid_of_nothing_is_refused(rows):
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(rows)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"best": 1, "test": 60.5}, {"best": 0}],
    ids=["curves", "with best and test", "with best"],
)
def test_a_loss_curve_is_written_as_png(tmp_path, arguments):
    path = tmp_path / "loss.png"
    loss_curve([1.0, 2.0, 3.0], [80.0, 62.0, 60.0], [81.0, 61.0, 63.0], path, **arguments)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_a_loss_curve_of_one_evaluation_is_fine(tmp_path):
    loss_curve([1.0], [80.0], [81.0], tmp_path / "loss.png", best=0)
    assert (tmp_path / "loss.png").stat().st_size


def test_a_sheet_has_one_row_of_samples_per_class(tiny_model, tiny_processor):
    model = tiny_model(id2label={0: "a", 1: "b", 2: "c"})
    set_seed(0)
    sheet = sample_sheet(model, tiny_processor, per_class=4)
    assert sheet.size == (8 + 7 + 4 + 4 * (16 + 4), 4 + 3 * (16 + 4))
    set_seed(0)
    ids = model.generate(**tiny_processor.prompt(class_labels=[0] * 4 + [1] * 4 + [2] * 4))
    last = np.asarray(tiny_processor.decode(ids)[-1]).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(np.asarray(sheet)[-20:-4, -20:-4], last)


def test_what_is_given_is_the_same_in_the_picture_and_in_the_answers_where_pixels_are_drawn(tiny_model):
    processor = IGPTImageProcessor(image_size=8, num_labels=3, binarize="stochastic", invert="never")
    gray = Image.fromarray(np.full((8, 8), 128, np.uint8))
    pictures = []

    def grid(rows, names):
        pictures.extend(rows[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "image_grid", grid)
        completion_sheet(tiny_model(), processor, [gray], [0], per_image=2)
    whole, given, *answers = (np.asarray(picture)[:4] for picture in pictures)
    assert 0 < whole.mean() < 255
    assert all(np.array_equal(upper, whole) for upper in (given, *answers))


def test_completions_show_the_picture_what_is_given_of_it_and_answers_that_keep_it(tiny_model, tiny_processor):
    images = np.random.default_rng(0).integers(0, 2, (2, 8, 8), dtype=np.uint8)
    sheet = completion_sheet(tiny_model(), tiny_processor, images, [0, 2], per_image=3)
    left = sheet.width - 5 * 20  # the whole picture, what is given, three answers
    for i, image in enumerate(images):
        row = np.asarray(sheet)[4 + i * 20 :][:16:2]  # one of two pixels, which are alike
        shown = [row[:, left + j * 20 :][:, :16:2] // 255 for j in range(5)]
        assert np.array_equal(shown[0], image)
        assert np.array_equal(shown[1][:4], image[:4])
        assert shown[1][4:].max() == 0
        assert all(np.array_equal(answer[:4], image[:4]) for answer in shown[2:])


def test_four_parts_are_completed_and_what_is_not_gray_is_kept(tiny_model, tiny_processor):
    images = np.random.default_rng(0).integers(0, 2, (3, 8, 8), dtype=np.uint8)
    sheet = np.asarray(parts_sheet(tiny_model(), tiny_processor, images, [0, 1, 2], per_image=3, num_particles=4))
    left = sheet.shape[1] - 5 * 20
    assert sheet.shape[0] == 4 * 20 + 4
    shares = []
    for i in range(4):
        row = sheet[4 + i * 20 :][:16:2]
        whole, given, *answers = (row[:, left + j * 20 :][:, :16:2] for j in range(5))
        assert np.array_equal(whole // 255, images[i % 3])
        is_known = given != 128
        shares.append(is_known.mean())
        assert all(np.array_equal(answer[is_known], whole[is_known]) for answer in (given, *answers))
    assert shares == [0.5, 0.5, 0.75, 0.5]
