"""Figures of a run: every pixel where it belongs, names as they are written, nothing on top of anything else."""

import numpy as np
import pytest
from PIL import Image
from transformers import set_seed

from igpt_hf import IGPTImageProcessor
from igpt_hf.evaluation.report_figure import MAX_NAMES, evaluation_figure
from igpt_hf.plots import (
    FRAME,
    ImageGrid,
    accuracy_curve,
    completion_sheet,
    figure_style,
    font_of,
    loss_curve,
    parts_sheet,
    probe_curve,
    sample_sheet,
    save_figure,
    shown_names,
)


def tile(level: int, side: int = 8) -> Image.Image:
    return Image.new("L", (side, side), level)


def texts(figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def first_frame(pixels: np.ndarray) -> tuple[int, int]:
    """Row and column where the frame of the images begins."""
    rows, columns = np.nonzero(pixels == FRAME)
    return rows.min(), columns[rows == rows.min()].min()


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_grid_shows_each_image_once_at_its_place_and_scale(scale):
    rows = [[tile(10), tile(20), tile(30)], [tile(40), tile(50)]]
    grid = ImageGrid(rows, scale=scale).image()
    side, gap = 8 * scale, 2
    assert grid.mode == "L"
    assert grid.size == (3 * (side + gap) + gap, 2 * (side + gap) + gap)
    pixels = np.asarray(grid)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = gap + i * (side + gap), gap + j * (side + gap)
            assert (pixels[top : top + side, left : left + side] == image.getpixel((0, 0))).all()
    levels, counts = np.unique(pixels, return_counts=True)
    shown = dict(zip(levels.tolist(), counts.tolist(), strict=True))
    assert [shown[level] for level in (10, 20, 30, 40, 50)] == [side * side] * 5


def test_pixels_are_enlarged_without_blur():
    image = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8))
    pixels = np.asarray(ImageGrid([[image]], scale=3).image())[2:-2, 2:-2]
    assert np.array_equal(pixels, np.asarray(image).repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("side, scale", [(8, 10), (28, 3), (64, 1), (200, 1)])
def test_images_are_shown_large_enough_to_be_read_at_half_size(side, scale):
    assert ImageGrid([[tile(0, side)]]).scale == scale


def test_names_take_a_margin_that_fits_the_longest_and_end_before_the_images():
    rows = [[tile(10)], [tile(20)]]
    plain, short, long = (ImageGrid(rows, names).image() for names in (None, ["a", "b"], ["a", "b" * 20]))
    assert plain.width < short.width < long.width
    assert plain.height == short.height == long.height
    margin = np.asarray(long)[:, : long.width - plain.width]
    assert np.array_equal(np.asarray(long)[:, margin.shape[1] :], np.asarray(plain))
    assert margin.min() < 50
    assert margin[:, :5].min() == margin[:, -5:].min() == 255


def test_many_rows_stand_in_blocks_beside_each_other_each_name_once():
    rows, names = [[tile(i)] * 10 for i in range(36)], [f"letter {i}" for i in range(36)]
    grid = ImageGrid(rows, names, "title", {0: "first"}, scale=3)
    figure = grid.figure()
    assert (grid.num_blocks, grid.block_rows) == (2, 18)
    assert ImageGrid(rows, blocks=1).block_rows == 36
    assert sorted(texts(figure)) == sorted([*names, "title", "first", "first"])
    pixels = np.asarray(grid.image())
    whole = [((pixels == i).sum(axis=1) >= 10 * grid.side).sum() for i in (1, 17, 18, 35)]
    assert whole == [grid.side] * 4  # rows of pixels; there are some of each level in the letters, too


def test_a_thousand_classes_fit_into_a_figure():
    figure = ImageGrid([[tile(0, 30)] * 2] * 1000).figure()
    assert max(figure.get_size_inches()) * figure.dpi < 4000


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_grid_of_nothing_is_refused(rows):
    with pytest.raises(ValueError, match="at least one image"):
        ImageGrid(rows)


def test_a_vector_file_stands_beside_the_png_where_it_is_asked_for(tmp_path):
    grid, curve = ImageGrid([[tile(0)]], ["سه"]), loss_curve([1.0], [80.0], [81.0])
    grid.save(tmp_path / "png.png", "png")
    grid.save(tmp_path / "grid.png", "svg")
    grid.save(tmp_path / "only.pdf")
    save_figure(curve, tmp_path / "curve.png", "pdf")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["curve.pdf", "curve.png", "grid.png", "grid.svg", "only.pdf", "png.png"]
    assert b"/CIDFontType2" in (tmp_path / "only.pdf").read_bytes()  # TrueType
    assert "<text" not in (tmp_path / "grid.svg").read_text("utf-8")  # paths: the reader needs no font


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_no_font_has_becomes_the_number_of_its_class_and_long_ones_are_cut():
    assert font_of("a\U0010fffd") is None
    names = ["a rather long name of a class", "\U0010fffd", "سه", "$5 a_b", "two\nlines", "x" * 20]
    assert shown_names(names) == ["a rather long name…", "1", "سه", "$5 a_b", "two lines", "x" * 20]


def test_persian_letters_are_joined_and_none_is_missing(recwarn):
    from matplotlib.figure import Figure

    def width(text: str) -> float:
        return Figure(dpi=100).text(0, 0, text, fontsize=40).get_window_extent().width

    with figure_style(["چهار"]):
        assert font_of("چهار") == "DejaVu Sans"
        assert width("ببب") < 0.8 * 3 * width("ب")  # an inner letter is narrower than one that stands alone
        assert width("ب\u200cب\u200cب") == pytest.approx(3 * width("ب"), rel=0.1)
        ImageGrid([[tile(0)]], ["چهار"]).image()
    assert [str(warning.message) for warning in recwarn if "missing from font" in str(warning.message)] == []


def test_what_looks_like_a_formula_in_a_name_is_text():
    figure = ImageGrid([[tile(0)]], ["$x$"]).figure()
    assert [text.get_parse_math() for text in figure.axes[0].texts] == [False]


# --- curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epochs, ticks",
    [
        ([1.0], [0, 1]),
        ([0.1, 0.2, 0.3], [0, 1]),
        ([1.0, 2.0, 3.0], [0, 1, 2, 3]),
        ([float(i) for i in range(1, 31)], [0, 5, 10, 15, 20, 25, 30]),
    ],
)
def test_the_axis_of_epochs_has_whole_numbers(epochs, ticks):
    losses = [80.0 - i for i in range(len(epochs))]
    figure = loss_curve(epochs, losses, losses, best=0, test=70.0)
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == ticks
    assert axes.get_title() == "Negative log-likelihood" and axes.get_xlabel() == "epoch"


def test_the_legend_covers_no_curve():
    curve = loss_curve([1.0, 2.0], [80.0, 62.0], [81.0, 61.0], best=1, test=60.5)
    layers = [{f"{split}_accuracy": 0.5 for split in ("train", "validation", "test")}] * 3
    results = {"validation_accuracy": 0.9, "test_accuracy": 0.8, "best_epoch": 2.0}
    for figure in (curve, accuracy_curve([1.0, 2.0], [0.5, 0.9], [0.4, 0.8], results), probe_curve(layers, 1, "t")):
        figure.draw_without_rendering()
        legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert legend.y1 < axes.y0
    assert {"kept: 61.00", "test: 60.50", "validation"} <= set(texts(curve))


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_a_sheet_has_one_row_of_samples_per_class(tiny_model, tiny_processor):
    model = tiny_model(id2label={0: "یک", 1: "b" * 30, 2: "c"})
    set_seed(0)
    sheet = sample_sheet(model, tiny_processor, per_class=4)
    assert sheet.names == ["یک", "b" * 19 + "…", "c"]
    set_seed(0)
    ids = model.generate(**tiny_processor.prompt(class_labels=[0] * 4 + [1] * 4 + [2] * 4))
    images = tiny_processor.decode(ids)
    shown = [np.asarray(image) for row in sheet.rows for image in row]
    assert all(np.array_equal(image, wanted) for image, wanted in zip(shown, images, strict=True))
    assert sample_sheet(tiny_model(num_labels=1), tiny_processor, per_class=2).names is None


def test_what_is_given_is_the_same_in_the_image_and_in_the_answers_where_pixels_are_sampled(tiny_model):
    processor = IGPTImageProcessor(image_size=8, num_labels=3, binarize="stochastic", invert="never")
    gray = Image.fromarray(np.full((8, 8), 128, np.uint8))
    sheet = completion_sheet(tiny_model(), processor, [gray], [0], per_image=2)
    whole, given, *answers = (np.asarray(image)[:4] for image in sheet.rows[0])
    assert 0 < whole.mean() < 255
    assert all(np.array_equal(upper, whole) for upper in (given, *answers))


def test_completions_show_the_image_what_is_given_of_it_and_answers_that_keep_it(tiny_model, tiny_processor):
    images = np.random.default_rng(0).integers(0, 2, (2, 8, 8), dtype=np.uint8)
    model = tiny_model(id2label={0: "a", 1: "b", 2: "c"})
    sheet = completion_sheet(model, tiny_processor, images, [0, 2], per_image=3)
    assert sheet.names == ["a", "c"] and sheet.headers == {0: "image", 1: "given", 2: "completions"}
    for image, row in zip(images, sheet.rows, strict=True):
        whole, given, *answers = (np.asarray(shown) for shown in row)
        assert np.array_equal(whole // 255, image)
        assert np.array_equal(given[:4], whole[:4])
        assert (given[4:] == 128).all()
        assert len(answers) == 3 and all(np.array_equal(answer[:4], whole[:4]) for answer in answers)


def test_four_parts_are_completed_and_what_is_not_gray_is_kept(tiny_model, tiny_processor):
    images = np.random.default_rng(0).integers(0, 2, (3, 8, 8), dtype=np.uint8)
    sheet = parts_sheet(tiny_model(), tiny_processor, images, [0, 1, 2], per_image=3, num_particles=4)
    shares = []
    for i, row in enumerate(sheet.rows):
        whole, given, *answers = (np.asarray(shown) for shown in row)
        assert np.array_equal(whole // 255, images[i % 3])
        is_known = given != 128
        shares.append(is_known.mean())
        assert all(np.array_equal(answer[is_known], whole[is_known]) for answer in (given, *answers))
    assert shares == [0.5, 0.5, 0.75, 0.5]


# --- report.png ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 36])
def test_the_names_of_a_report_do_not_overlap(num):
    names = [f"کلاس {i} با نامی دراز" for i in range(num)]
    report = {
        "class_names": names,
        "nats_per_image": 50.0,
        "nats_per_class": {name: 30.0 + i for i, name in enumerate(names)},
        "bayes_accuracy": 0.9,
        "confusion_matrix": np.eye(num, dtype=int).tolist() if num > 1 else None,
        "calibration": {"predicted": [0.1], "observed": [0.1], "count": [5], "calibration_error": 0.01},
        "bits_per_image": 70.0,
        "bits_per_image_marginal": 73.0,
        "codecs": {"png": {"in_sheets": 300.0, "alone": 900.0}},
    }
    maps = {"pixel_nats": np.ones((1, 8, 8)), "token_nats": np.ones((1, 8, 8))}
    images = {"pixels": np.ones((1, 8, 8), np.uint8), "nats": np.ones(1), **maps}
    figure = evaluation_figure(report, "title", {"Hardest images": images}, {})
    figure.draw_without_rendering()
    axes = next(axes for axes in figure.subfigs[0].axes if "class" in axes.get_title())
    labels = axes.get_yticklabels()
    assert len(labels) == min(num, MAX_NAMES)
    assert labels[0].get_text() == ("کلاس 35 با…" if num == 36 else "کلاس 0 با ن…")
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 4 for below, above in zip(boxes[:-1], boxes[1:], strict=True))
