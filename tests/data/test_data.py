"""Every source gives the same kind of splits; every bad input gives a DataError that names it."""

import io
import logging
import os
import re
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.hub import HubStandIn
from helpers.paths import MNIST, ROOT
from helpers.scripts import run_python
from igpt_hf.data.decoding import MAX_PIXELS
from igpt_hf.data.splits import load_splits
from igpt_hf.data.tokenized import tokenize
from igpt_hf.errors import DataError, IGPTError


MNIST_FILE = MNIST / "train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def small_image(value: int, mode: str = "L") -> PIL.Image.Image:
    """A small image with a value of its own, to recognize it by; no two sizes are alike."""
    array = np.full((5 + value % 7, 4 + value % 5), value, dtype=np.uint8)
    return PIL.Image.fromarray(array).convert(mode)


def encoded(value: int, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    small_image(value).save(buffer, format=image_format)
    return buffer.getvalue()


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of class folders; all images are different."""
    value = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            small_image(value).save(folder / name / f"{value}.png")
            value += 1
    return folder


def write_parquet(path: Path, labels: list, image_column="image", label_column="label") -> Path:
    images = [{"bytes": encoded(value), "path": None} for value in range(len(labels))]
    pq.write_table(pa.table({image_column: images, label_column: labels}), path)
    return path


def write_gray_cdb(path: Path, labels: list[int]) -> Path:
    """A file of 2x2 images, each filled with its index."""
    header = bytearray(1024)
    struct.pack_into("<BBI", header, 4, 2, 2, len(labels))
    header[522] = 1
    path.write_bytes(header + b"".join(struct.pack("<BBH4B", 255, y, 4, *[i] * 4) for i, y in enumerate(labels)))
    return path


def label_names(splits) -> list[str]:
    return splits["train"].features["label"].names


def contents(splits) -> dict[str, list[tuple[bytes, int]]]:
    """What is in each split, in order."""
    return {name: [(row["image"].tobytes(), row["label"]) for row in split] for name, split in splits.items()}


def all_rows(splits) -> list[tuple[bytes, int]]:
    return sorted(row for rows in contents(splits).values() for row in rows)


# The split


def test_splits_are_85_10_5_in_each_class_and_share_no_image(tmp_path):
    splits = load_splits(write_folder(tmp_path / "data", {"a": 40, "b": 100}))
    assert {name: Counter(split["label"]) for name, split in splits.items()} == {
        "train": {0: 34, 1: 85},
        "validation": {0: 4, 1: 10},
        "test": {0: 2, 1: 5},
    }
    assert list(splits) == ["train", "validation", "test"]
    assert len(set(all_rows(splits))) == 140


def test_the_seed_alone_decides_the_split(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 20, "b": 20})
    first = contents(load_splits(folder, seed=1))
    np.random.seed(0)
    assert contents(load_splits(folder, seed=1)) == first
    other = contents(load_splits(folder, seed=2))
    assert all(set(other[name]) != set(first[name]) for name in first)


def test_images_are_shuffled_over_the_classes(tmp_path):
    labels = load_splits(write_folder(tmp_path / "data", {"a": 50, "b": 50}))["train"]["label"]
    assert labels != sorted(labels)


@pytest.mark.parametrize(("count", "sizes"), [(7, [5, 1, 1]), (15, [12, 2, 1]), (16, [13, 2, 1]), (35, [29, 4, 2])])
def test_parts_of_a_split_are_rounded_to_the_nearest(tmp_path, count, sizes):
    splits = load_splits(write_folder(tmp_path / "data", {"a": count}))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == sizes


def test_three_images_of_a_class_are_enough_for_one_in_each_split(tmp_path):
    splits = load_splits(write_folder(tmp_path / "data", {"a": 3, "b": 30}))
    assert [list(split["label"]).count(0) for split in splits.values()] == [1, 1, 1]


def test_a_class_with_too_few_images_is_named_with_its_count(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 9, "b": 2, "c": 1})
    with pytest.raises(DataError, match="at least 3 images.* class 'b' has 2, 'c' has 1"):
        load_splits(folder)


def test_max_images_keeps_the_proportions_of_the_classes(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 80, "b": 40, "c": 4})
    splits = load_splits(folder, max_images=33)
    assert Counter(label for split in splits.values() for label in split["label"]) == {0: 20, 1: 10, 2: 3}
    assert set(all_rows(splits)) < set(all_rows(load_splits(folder, max_images=60)))
    assert len(all_rows(load_splits(folder, max_images=1000))) == 124
    others = load_splits(folder, max_images=33, seed=1)
    assert set(all_rows(others)) != set(all_rows(splits))


def test_max_images_must_leave_three_of_each_class(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 8, "b": 8})
    assert len(all_rows(load_splits(folder, max_images=6))) == 6
    with pytest.raises(IGPTError, match="max_images=5 .* 2 classes need at least 6"):
        load_splits(folder, max_images=5)


def test_loading_leaves_global_state_alone(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 5})
    before = (np.random.get_state()[1].tolist(), dict(os.environ), PIL.Image.MAX_IMAGE_PIXELS, Path.cwd())
    load_splits(folder)
    after = (np.random.get_state()[1].tolist(), dict(os.environ), PIL.Image.MAX_IMAGE_PIXELS, Path.cwd())
    assert before == after


# Synthetic and HODA


def test_synthetic_digits_are_drawn_by_the_package():
    splits = load_splits("synthetic", num_synthetic=60, seed=3)
    assert label_names(splits) == [str(digit) for digit in range(10)]
    assert len(all_rows(splits)) == 60
    image = splits["train"][0]["image"]
    assert image.size == (28, 28) and set(np.unique(image)) == {0, 255}
    assert contents(load_splits("synthetic", num_synthetic=60, seed=3)) == contents(splits)


def test_a_folder_called_synthetic_needs_its_path(tmp_path, monkeypatch):
    write_folder(tmp_path / "synthetic", {"a": 3})
    monkeypatch.chdir(tmp_path)
    assert label_names(load_splits("./synthetic")) == ["a"]


def test_cdb_files_are_joined_and_their_classes_are_in_numeric_order(tmp_path):
    first = write_gray_cdb(tmp_path / "first.cdb", [10, 10, 10, 2])
    second = write_gray_cdb(tmp_path / "second.CDB", [2, 2, 0, 0, 0])
    splits = load_splits(f"{first}, {second}")
    assert label_names(splits) == ["0", "2", "10"]
    expected = [(2, 0), (3, 0), (4, 0), (3, 1), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    assert all_rows(splits) == sorted((bytes([value] * 4), label) for value, label in expected)


def test_a_damaged_or_missing_cdb_file_is_named(tmp_path):
    good = write_gray_cdb(tmp_path / "good.cdb", [1, 1, 1])
    (tmp_path / "bad.cdb").write_bytes(good.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"bad\.cdb: .*byte 1047"):
        load_splits(f"{good},{tmp_path / 'bad.cdb'}")
    with pytest.raises(DataError, match=r"absent\.cdb: no such file"):
        load_splits(f"{good},{tmp_path / 'absent.cdb'}")


def test_a_cdb_file_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.cdb holds no images"):
        load_splits(write_gray_cdb(tmp_path / "none.cdb", []))


# Folders


def test_a_folder_of_any_sizes_modes_and_formats_is_loaded_as_it_is(tmp_path):
    folder = write_folder(tmp_path / "data", {"9": 3, "10": 3, "x2": 3, "x10": 3})
    (folder / "9" / "deep" / "er").mkdir(parents=True)
    small_image(200, "RGBA").save(folder / "9" / "deep" / "er" / "color.PNG")
    small_image(201, "1").save(folder / "9" / "bits.tiff")
    small_image(202).resize((99, 7)).save(folder / "9" / "wide.JPeG")
    splits = load_splits(str(folder), labels_from="top")
    assert label_names(splits) == ["9", "10", "x2", "x10"]
    images = [row["image"] for split in splits.values() for row in split if row["label"] == 0]
    assert len(images) == 6
    assert {image.mode for image in images} == {"L", "RGBA", "1"}
    assert (99, 7) in {image.size for image in images}


def test_files_stay_on_disk_and_are_found_from_another_working_directory(tmp_path, monkeypatch):
    write_folder(tmp_path / "data", {"a": 3})
    monkeypatch.chdir(tmp_path)
    splits = load_splits("data")
    monkeypatch.chdir("/")
    stored = splits["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"] is None and Path(stored["path"]).parent == tmp_path / "data" / "a"
    assert splits["train"][0]["image"].size == PIL.Image.open(stored["path"]).size


def test_hidden_files_are_ignored_and_other_files_are_ignored_with_a_warning(tmp_path, caplog):
    folder = write_folder(tmp_path / "data", {"a": 3, ".cache": 3})
    (folder / "a" / "._0.png").write_bytes(b"not an image")
    assert load_splits(folder)["train"].num_rows == 1 and not caplog.records
    (folder / "a" / "notes.txt").write_text("not an image")
    small_image(9).save(folder / "loose.png")
    assert load_splits(folder)["train"].num_rows == 1
    assert "which have no class: 1, such as" in caplog.text and "loose.png" in caplog.text
    assert "Ignored 1 files that are not images" in caplog.text and "notes.txt" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 3})
    Path(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png")).write_bytes(encoded(9))
    with pytest.raises(DataError, match=r"udcff\.png' is not UTF-8: rename it"):
        load_splits(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))} holds no images"):
        load_splits(tmp_path)


# Bad images


def damaged_png() -> bytes:
    return encoded(0)[:-20]


def bomb(width: int, height: int) -> bytes:
    """A tiny PNG file that claims a huge size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BAD_FILES = {
    "text": b"this is not an image",
    "empty": b"",
    "truncated": damaged_png(),
    "bomb": bomb(8000, 8000),
    "great bomb": bomb(60_000, 60_000),
}


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_image_file_is_named(tmp_path, bad):
    folder = write_folder(tmp_path / "data", {"a": 40, "b": 40})
    (folder / "a" / "bad.png").write_bytes(bad)
    with pytest.raises(DataError, match=r"bad\.png .*skip_bad_images"):
        load_splits(folder)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", {"a": 0})
    (folder / "a" / "huge.png").write_bytes(bomb(MAX_PIXELS // 1000, 1001))
    monkeypatch.setattr(datasets.Image, "decode_example", lambda self, value: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="huge.png has 50000x1001 pixels, more than 50,000,000"):
        load_splits(folder)


def test_skip_bad_images_goes_on_and_logs_how_many(tmp_path, caplog):
    folder = write_folder(tmp_path / "data", {"a": 40, "b": 40})
    good = all_rows(load_splits(folder))
    for name, bad in BAD_FILES.items():
        (folder / "b" / f"{name}.png").write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        splits = load_splits(folder, skip_bad_images=True)
    assert all_rows(splits) == good
    assert "Skipped 5 of 85 images" in caplog.text and "bomb.png" in caplog.text


def test_a_class_of_bad_images_only_is_too_small(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 4, "b": 2})
    (folder / "b" / "bad.png").write_bytes(damaged_png())
    with pytest.raises(DataError, match="'b' has 2"):
        load_splits(folder, skip_bad_images=True)


def test_a_source_of_bad_images_only_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 0})
    for index in range(4):
        (folder / "a" / f"{index}.png").write_bytes(damaged_png())
    with pytest.raises(DataError, match="'a' has 0"):
        load_splits(folder, skip_bad_images=True)


@pytest.mark.filterwarnings("ignore")  # Pillow's, on damaged TIFF
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"])
def test_random_damage_to_an_image_is_skipped_or_decoded_but_never_crashes(tmp_path, image_format):
    folder = write_folder(tmp_path / "data", {"a": 3})
    rng = np.random.default_rng(0)
    for index in range(100):
        data = bytearray(encoded(100, image_format))
        for position in rng.integers(len(data), size=3):
            data[position] = rng.integers(256)
        (folder / "a" / f"damaged{index}.{image_format}").write_bytes(data[: rng.integers(len(data) // 2, len(data))])
    splits = load_splits(folder, skip_bad_images=True)
    assert len(all_rows(splits)) >= 3  # all that is left can be read


# Parquet


def test_parquet_of_numbers_is_loaded_with_classes_in_numeric_order(tmp_path):
    labels = [9, 10, 2] * 4
    splits = load_splits(write_parquet(tmp_path / "data.parquet", labels))
    assert label_names(splits) == ["2", "9", "10"]
    expected = [(small_image(value).tobytes(), [2, 9, 10].index(label)) for value, label in enumerate(labels)]
    assert all_rows(splits) == sorted(expected)


def test_parquet_of_text_labels_in_other_columns_is_loaded(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", ["b", "a"] * 4, image_column="scan", label_column="image")
    splits = load_splits(path, image_column="scan", label_column="image")
    assert label_names(splits) == ["a", "b"]
    assert splits["train"].column_names == ["image", "label"]
    assert (small_image(0).tobytes(), 1) in all_rows(splits)


def test_parquet_that_knows_its_class_names_keeps_them(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["two", "one"]))
    columns = {"image": [small_image(value) for value in range(6)], "label": [0, 1] * 3}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data.parquet")
    splits = load_splits(tmp_path / "data.parquet")
    assert label_names(splits) == ["two", "one"]
    assert (small_image(0).tobytes(), 0) in all_rows(splits)


def test_a_class_label_of_minus_one_means_no_label(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    columns = {"image": [small_image(value) for value in range(4)], "label": [0, 0, 0, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"1 rows .* no valid label .* row 3 \(-1\)"):
        load_splits(tmp_path / "data.parquet")


def test_a_class_name_without_an_image_is_left_out_and_said(tmp_path, caplog):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c", "d"]))
    columns = {"image": [small_image(value) for value in range(8)], "label": [3, 1] * 4}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data.parquet")
    splits = load_splits(tmp_path / "data.parquet")
    assert label_names(splits) == ["b", "d"]
    assert sorted(label for split in splits.values() for label in split["label"]) == [0] * 4 + [1] * 4
    assert "has no images of a, c: these classes are left out" in caplog.text


def test_flat_lists_of_numbers_are_no_images(tmp_path):
    rows = {"image": [[0] * 64] * 9, "label": [1, 2, 3] * 3}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match="'image' of .* holds flat lists of numbers, not images"):
        load_splits(tmp_path / "data.parquet")


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path):
    folder = tmp_path / "odd [name]*" / "data"
    folder.mkdir(parents=True)
    write_parquet(folder / "train-0.parquet", [1, 2, 3])
    write_parquet(folder / ".hidden.parquet", [4, 5, 6])
    pq.write_table(pq.read_table(folder / "train-0.parquet")[:0], folder / "train-9.parquet")
    write_parquet(folder / "train-1.PARQUET", [1, 2, 3] * 2)
    assert len(all_rows(load_splits(folder.parent))) == 9


def test_raw_bytes_are_images_too(tmp_path):
    pq.write_table(pa.table({"image": [encoded(v) for v in range(3)], "label": [True] * 3}), tmp_path / "a.parquet")
    assert label_names(load_splits(tmp_path / "a.parquet")) == ["True"]


def test_an_unknown_column_is_answered_with_those_there_are(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", [1, 1, 1], image_column="img")
    with pytest.raises(DataError, match=r"no column 'image'\. Set image_column to one of \['img', 'label'\]"):
        load_splits(path)
    with pytest.raises(DataError, match="no column 'digit'. Set label_column"):
        load_splits(path, image_column="img", label_column="digit")


@pytest.mark.parametrize("values", [[1, 2, 3], [0.5] * 3, ["a", "b", "c"]])
def test_a_column_that_holds_no_images_is_refused(tmp_path, values):
    pq.write_table(pa.table({"image": values, "label": [1, 1, 1]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="image"):
        load_splits(tmp_path / "data.parquet")


def test_labels_must_be_text_or_whole_numbers(tmp_path):
    with pytest.raises(DataError, match="Column 'label' .* is not a label.*float"):
        load_splits(write_parquet(tmp_path / "data.parquet", [0.5, 1.5, 2.5]))


def test_a_missing_label_is_refused_with_its_row(tmp_path):
    with pytest.raises(DataError, match=r"2 rows of .*data\.parquet have no valid label.* row 1"):
        load_splits(write_parquet(tmp_path / "data.parquet", ["a", None, "a", None]))


def test_a_missing_or_bad_image_is_refused_with_its_row(tmp_path):
    images = [{"bytes": encoded(value), "path": f"{value}.png"} for value in range(4)]
    for index, bad in enumerate([None, {"bytes": None, "path": None}, {"bytes": damaged_png(), "path": "4.png"}]):
        path = tmp_path / f"{index}.parquet"
        pq.write_table(pa.table({"image": [*images, bad], "label": [1] * 5}), path)
        with pytest.raises(DataError, match=rf"row 4 of .*{index}\.parquet (is null|cannot be decoded)"):
            load_splits(path)
        assert len(all_rows(load_splits(path, skip_bad_images=True))) == 4


def test_the_row_of_a_bad_image_is_that_of_the_whole_data_set(tmp_path):
    images = [{"bytes": encoded(value), "path": None} for value in range(30)] + [{"bytes": b"", "path": None}] * 3
    pq.write_table(pa.table({"image": images, "label": ["a"] * 30 + ["b"] * 3}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="row 30 of"):  # the three of class b are always kept
        load_splits(tmp_path / "data.parquet", max_images=6)


def test_an_image_in_parquet_that_is_only_a_web_address_is_not_fetched(tmp_path):
    images = [{"bytes": None, "path": "http://127.0.0.1:9/image.png"}] * 3
    pq.write_table(pa.table({"image": images, "label": [1] * 3}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/image.png cannot be decoded .*No such file"):
        load_splits(tmp_path / "data.parquet")


def test_parquet_files_that_do_not_fit_together_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1, 2, 3])
    write_parquet(tmp_path / "b.parquet", [1, 2, 3], image_column="other")
    with pytest.raises(DataError, match=f"(?s){re.escape(str(tmp_path))} cannot be loaded: .*alike"):
        load_splits(tmp_path)


BROKEN = {
    "broken.parquet": "damaged or not a parquet file",
    "drawing.png": "of a kind that is not read. A source is",
    "noise": "of a kind that is not read",
    "archive.zip": "cannot be unpacked",
    "archive.tgz": "cannot be unpacked",
    "digits.npy": "damaged or not a numpy file",
    "digits.npz": "damaged or not a numpy file",
    "digits.mat": "damaged or not a .mat file",
    "digits.idx": "damaged or not an idx file",
    "digits.idx.gz": "cannot be unpacked",
    "digits.csv": "not a CSV file of UTF-8 text",
    "digits.amat": "not a table of numbers",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_of_its_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(encoded(0))
    with pytest.raises(DataError, match=f"{name}.* {BROKEN[name]}"):
        load_splits(tmp_path / name)


def test_parquet_without_rows_is_refused(tmp_path):
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(DataError, match="holds no images"):
        load_splits(tmp_path / "data.parquet")


@pytest.mark.skipif(not MNIST_FILE.exists(), reason=f"MNIST is not here: {MNIST_FILE}")
def test_mnist_is_loaded():
    splits = load_splits(MNIST_FILE, max_images=1000)
    assert label_names(splits) == [str(digit) for digit in range(10)]
    assert len(all_rows(splits)) == 1000
    assert splits["test"][0]["image"].size == (28, 28)


# Paths and the Hub


@pytest.mark.parametrize("source", ["./absent", "/absent", "../a/b", "absent", "a/b.png", "a/b/c", "", "a b/c", "a,b"])
def test_a_missing_path_is_not_taken_for_a_hub_id(source, monkeypatch):
    monkeypatch.setattr(
        "igpt_hf.data.sources.hub.load_dataset", lambda *source: pytest.fail(f"asked the Hub for {source}")
    )
    with pytest.raises(DataError, match=f"'{source}' does not exist. A source is"):
        load_splits(source)


def test_a_very_long_list_of_cdb_files_is_no_problem(tmp_path):
    paths = [write_gray_cdb(tmp_path / f"{'x' * 100}{index}.cdb", [1, 1]) for index in range(30)]
    assert len(all_rows(load_splits(",".join(map(str, paths))))) == 60


@pytest.fixture
def hub(tmp_path):
    """Run Python code in a process of its own that has a stand-in for the Hub; returns what it prints."""
    with HubStandIn() as hub:
        parquet = write_parquet(tmp_path / "data.parquet", ["9", "10"] * 6).read_bytes()
        hub.files["datasets/user/digits"] = {"train.parquet": parquet, "test.parquet": parquet}
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        yield lambda code: run_python("-c", code, env=environment, cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_hub_data_set_keeps_its_splits_and_an_absent_one_is_named(hub):
    output = hub("""
from igpt_hf.data.splits import load_splits
from igpt_hf.errors import IGPTError
splits = load_splits("user/digits")
print([len(split) for split in splits.values()], splits.given, splits["train"].features["label"].names)
print([len(split) for split in load_splits("user/digits:default", splits="random").values()])
try:
    load_splits("user/absent")
except IGPTError as error:
    print(error)
""")
    given, random, absent, *_ = output.splitlines()
    assert (given, random) == ("[10, 2, 12] ('test',) ['9', '10']", "[20, 2, 2]")
    assert absent.startswith("'user/absent' was not found here and could not be loaded")


def test_an_unreachable_hub_gives_an_error_that_names_the_id(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(IGPTError, match="'user/digits' was not found here.* Check the id, the connection"):
        load_splits("user/digits")


# Tokens


class Tokenizer:
    """Stands in for the image processor: three tokens, the width, height and first pixel; refuses pixels of 13."""

    binarize = "threshold"
    is_decided = True

    def tokenize(self, images):
        if any(image.getpixel((0, 0)) == 13 for image in images):
            raise ValueError("thirteen brings bad luck")
        return np.array([[*image.size, image.getpixel((0, 0))] for image in images], dtype=np.uint8)


def test_tokenize_replaces_the_images_by_tokens(tmp_path):
    splits = load_splits(write_parquet(tmp_path / "data.parquet", ["b", "a"] * 6))
    tokenized = tokenize(splits, Tokenizer())
    assert list(tokenized) == ["train", "validation", "test"]
    for name, split in tokenized.items():
        assert split.features == datasets.Features(
            tokens=datasets.List(datasets.Value("uint8"), length=3), label=datasets.ClassLabel(names=["a", "b"])
        )
        assert split["label"][:] == splits[name]["label"][:]
        for tokens, row in zip(split["tokens"], splits[name], strict=True):
            assert tokens == [*row["image"].size, row["image"].getpixel((0, 0))]


def test_tokens_are_made_anew_each_time(tmp_path):
    splits = load_splits(write_parquet(tmp_path / "data.parquet", ["a"] * 6))
    tokenize(splits, Tokenizer())
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("cache-*"))


def test_an_image_that_the_processor_refuses_is_named_by_its_index(tmp_path):
    splits = load_splits(write_parquet(tmp_path / "data.parquet", ["a"] * 40))
    values = {name: [image.getpixel((0, 0)) for image in split["image"]] for name, split in splits.items()}
    name = next(name for name in values if 13 in values[name])
    index = values[name].index(13)
    with pytest.raises(DataError, match=f"{name} image {index} cannot be tokenized: thirteen brings bad luck"):
        tokenize(splits, Tokenizer())
