"""Sources as people have them: what is kept, what is passed over with a warning, and what is refused in words."""

import base64
import gzip
import hashlib
import io
import json
import math
import shutil
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from datasets import Dataset

from helpers.paths import MNIST
from igpt_hf import IGPTImageProcessor
from igpt_hf.data.decoding import FORMATS
from igpt_hf.data.sources import archives
from igpt_hf.data.sources.layouts import Habits, split_images, to_levels
from igpt_hf.data.sources.named_arrays import describe
from igpt_hf.data.sources.parts import ReadOptions
from igpt_hf.data.sources.tables import read_csv
from igpt_hf.data.splits import describe_splits, load_splits, open_images
from igpt_hf.data.tokenized import tokenize
from igpt_hf.errors import DataError, IGPTError


MNIST_FILE = MNIST / "train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def image_of(value: int) -> PIL.Image.Image:
    """A small image that is recognized by its level."""
    return PIL.Image.fromarray(np.full((4, 4), value, dtype=np.uint8))


def write_images(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """So many images in each of these folders, with the levels start, start + 1, ..."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image_of(start).save(folder / name / f"{start}.png")
            start += 1
    return folder


def levels(split) -> list[int]:
    return sorted(image.getpixel((0, 0)) for image in split["image"])


def names(splits) -> list[str]:
    return splits["train"].features["label"].names


def png() -> bytes:
    buffer = io.BytesIO()
    image_of(7).save(buffer, "PNG")
    return buffer.getvalue()


# Given splits


def test_given_splits_never_mix_and_only_what_is_missing_is_cut_from_train(tmp_path):
    write_images(tmp_path, {"train/a": 20, "train/b": 20})
    write_images(tmp_path, {"test/a": 3, "test/b": 1}, start=100)
    for seed in (1, 2):
        splits = load_splits(tmp_path, seed=seed)
        assert splits.given == ("test",)
        assert levels(splits["test"]) == [100, 101, 102, 103]
        assert [len(split) for split in splits.values()] == [36, 4, 4]
        assert sorted(levels(splits["train"]) + levels(splits["validation"])) == list(range(40))
    write_images(tmp_path, {"valid/b": 2}, start=200)
    splits = load_splits(tmp_path)
    assert splits.given == ("validation", "test")
    assert levels(splits["validation"]) == [200, 201] and levels(splits["train"]) == list(range(40))


def test_splits_random_takes_all_images_together_and_given_demands_some(tmp_path):
    write_images(tmp_path / "a", {"train/a": 20, "test/a": 20})
    splits = load_splits(tmp_path / "a", splits="random")
    assert splits.given == () and [len(split) for split in splits.values()] == [34, 4, 2]
    assert load_splits(tmp_path / "a", splits="given").given == ("test",)
    with pytest.raises(DataError, match="comes without splits, and splits='given' needs some. Take auto or random"):
        load_splits(write_images(tmp_path / "b", {"a": 9}), splits="given")
    with pytest.raises(IGPTError, match="splits must be one of auto, given, random, got 'no'"):
        load_splits(tmp_path, splits="no")


def test_a_subset_keeps_the_proportions_of_given_splits(tmp_path):
    write_images(tmp_path, {"train/a": 40, "test/a": 20})
    splits = load_splits(tmp_path, max_images=30)
    assert [len(split) for split in splits.values()] == [18, 2, 10]
    with pytest.raises(IGPTError, match="max_images=2 is too small: 1 classes need at least 3"):
        load_splits(tmp_path, max_images=2)


def test_a_test_split_with_classes_that_train_lacks_is_refused(tmp_path):
    write_images(tmp_path, {"train/a": 5, "test/a": 5, "test/z": 5})
    with pytest.raises(DataError, match="the test split of .* has classes that its train split lacks: z. .*random"):
        load_splits(tmp_path)
    assert names(load_splits(tmp_path, splits="random")) == ["a", "z"]


def test_splits_without_one_for_training_are_refused(tmp_path):
    write_images(tmp_path, {"test/a": 5, "val/a": 5})
    with pytest.raises(DataError, match="has the splits test, validation, but no train split"):
        load_splits(tmp_path)


def test_too_few_images_for_what_is_cut_are_named(tmp_path):
    write_images(tmp_path, {"train/a": 1, "train/b": 9, "test/a": 5})
    with pytest.raises(DataError, match=r"at least 2 images.*\(train, validation\), but class 'a' has 1"):
        load_splits(tmp_path)


def test_a_given_split_of_bad_images_only_is_refused(tmp_path):
    write_images(tmp_path, {"train/a": 9, "test/a": 1})
    next((tmp_path / "test").rglob("*.png")).write_bytes(b"")
    with pytest.raises(DataError, match="the test split of .* has no image that can be read"):
        load_splits(tmp_path, skip_bad_images=True)


def test_no_split_is_guessed_from_test_in_the_name_of_an_image(tmp_path):
    folder = write_images(tmp_path / "data", {"a": 10})
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"{'test' if path.stem < '5' else 'train'}_{path.name}"))
    assert load_splits(folder).given == ()


def test_a_split_of_another_name_is_left_out_with_a_warning(caplog):
    parts = {name: datasets.Dataset.from_dict({"image": [image_of(0)] * 9}) for name in ("train", "test", "extra")}
    splits = load_splits(datasets.DatasetDict(parts))
    assert [len(split) for split in splits.values()] == [8, 1, 9]
    assert "left out extra, which is not train, validation or test" in caplog.text


def test_how_images_were_split_is_said():
    assert describe_splits((), 3) == "split 85/10/5 class by class with seed 3"
    assert describe_splits((), 3, is_streamed=True) == "split 85/10/5 by chance with seed 3"
    expected = "test as given with the data; 10% of train cut off class by class for validation, seed 3"
    assert describe_splits(("test",), 3) == expected
    assert describe_splits(("validation", "test"), 3) == "validation and test as given with the data"


# Folders


def test_folders_without_images_are_passed_over_with_a_warning(tmp_path, caplog):
    folder = write_images(tmp_path / "data", {"a": 3, "b": 3, "docs": 0, "__MACOSX/a": 0})
    (folder / "docs" / "readme.txt").write_text("about the data")
    (folder / "__MACOSX" / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    assert names(load_splits(folder)) == ["a", "b"]
    assert f"Passed over folders without images in {folder}: __MACOSX, docs" in caplog.text
    assert "Ignored" not in caplog.text


def test_nested_folders_are_refused_with_both_readings_unless_said(tmp_path):
    counts = {"Greek/c1": 5, "Greek/c2": 5, "Latin/c1": 5}  # c1 is another character in each
    write_images(tmp_path, counts)
    with pytest.raises(DataError) as error:
        load_splits(tmp_path)
    assert "the top folder (2 classes, 'Greek', 'Latin')" in str(error.value)
    assert "the parent folder of each image (3 classes, 'Greek/c1', 'Greek/c2', 'Latin/c1')" in str(error.value)
    assert names(load_splits(tmp_path, labels_from="top")) == ["Greek", "Latin"]
    assert names(load_splits(tmp_path, labels_from="parent")) == ["Greek/c1", "Greek/c2", "Latin/c1"]
    with pytest.raises(IGPTError, match="labels_from must be one of None, parent, top, got 'both'"):
        load_splits(tmp_path, labels_from="both")


def test_images_without_classes_have_one_class(tmp_path):
    write_images(tmp_path / "flat", {"": 9})
    assert names(load_splits(tmp_path / "flat")) == ["image"]
    write_images(tmp_path / "split", {"train": 9, "test": 3})
    splits = load_splits(tmp_path / "split")
    assert names(splits) == ["image"] and splits.given == ("test",)
    datasets.Dataset.from_dict({"image": [image_of(0)] * 9}).to_parquet(tmp_path / "images.parquet")
    assert names(load_splits(tmp_path / "images.parquet")) == ["image"]
    assert names(load_splits(np.zeros((9, 4, 4)))) == ["image"]
    assert names(load_splits([image_of(0)] * 9)) == ["image"]


def test_a_table_without_a_label_column_says_which_columns_it_has(caplog):
    rows = {"image": [image_of(0)] * 9, "digit": [1, 2, 3] * 3}
    assert names(load_splits(datasets.Dataset.from_dict(rows))) == ["image"]
    assert "has no column 'label': all images are of one class. Or set label_column to one of ['digit']" in caplog.text
    assert names(load_splits(datasets.Dataset.from_dict(rows), label_column="digit")) == ["1", "2", "3"]


def test_bad_metadata_is_refused_with_its_row(tmp_path):
    folder = write_images(tmp_path / "data", {"": 9})
    (tmp_path / "outside.png").write_bytes(png())
    table = folder / "metadata.csv"
    for text, message in {
        "path,label\n0.png,a": r"'file_name'. Set image_column to that of the paths: \['path', 'label'\]",
        "file_name,label\n0.png,a\n99.png,b": "row 1 of .* names '99.png', and there is no such file",
        "file_name,label\n../outside.png,a": "row 0 of .* names '../outside.png', which is outside",
        "file_name,label\n/etc/passwd,a": "which is outside|no such file",
        "file_name,label\n0.png,": "row 0 of .* has no label",
        "file_name,label\n0.png,a\n1.png,b\n0.png,b": "0.png is of class 'b', and an earlier row says 'a'",
    }.items():
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            load_splits(folder)
    table.rename(folder / "metadata.jsonl")
    with pytest.raises(DataError, match="metadata.jsonl is damaged"):
        load_splits(folder)


def test_a_csv_of_file_names_is_metadata_under_any_name(tmp_path):
    folder = write_images(tmp_path / "data", {"": 9})
    rows = "".join(f"{index}.png,{'ab'[index % 2]}\n" for index in range(9))
    (folder / "labels.csv").write_text(f"file_name,label\n{rows}")
    assert names(load_splits(folder / "labels.csv")) == ["a", "b"]
    (folder / "labels.csv").write_text(f"path,kind\n{rows}")
    assert names(load_splits(folder / "labels.csv", image_column="path", label_column="kind")) == ["a", "b"]
    (folder / "labels.csv").write_text(f"path,kind\n{rows}".replace(",", ";"))
    assert names(load_splits(folder / "labels.csv", image_column="path", label_column="kind")) == ["a", "b"]
    with pytest.raises(DataError, match="of a table of image files, set image_column to the column of their paths"):
        load_splits(folder / "labels.csv", label_column="kind")


# Archives


def test_an_archive_is_unpacked_once_and_its_images_stay_on_disk(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "data", {"a": 9})
    with tarfile.open(tmp_path / "data.tgz", "w:gz") as archive:
        archive.add(folder, ".")
    first = load_splits(tmp_path / "data.tgz")
    monkeypatch.setattr(archives, "_unpack_into", lambda *arguments: pytest.fail("it was unpacked again"))
    again = load_splits(tmp_path / "data.tgz")
    path = again["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]["path"]
    assert "data.tgz" in Path(path).parts and str(datasets.config.HF_DATASETS_CACHE) in path
    assert levels(first["train"]) == levels(again["train"])


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "a/../../b.png", "C:\\a.png", "..\\a.png"])
def test_a_path_that_leaves_its_archive_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), png())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(png())
        archive.addfile(member, io.BytesIO(png()))
    for archive in ("a.zip", "a.tar"):
        with pytest.raises(DataError, match=f"{archive} holds the path .*, which leaves the archive"):
            load_splits(tmp_path / archive)
    assert not list(tmp_path.rglob("*.png")) and not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.png"))


def test_a_zip_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**21)
    zeros = bytes(2**23)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", zeros)
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("a/0.png")
        member.size = len(zeros)
        archive.addfile(member, io.BytesIO(zeros))
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((2**13, 32, 32), np.uint8))
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**13, 32, 32)
    (tmp_path / "a.idx.gz").write_bytes(gzip.compress(header + zeros))
    for name in ("a.zip", "a.tar.xz", "a.npz", "a.idx.gz"):
        with pytest.raises(DataError, match=f"{name} has .* bytes and unpacks to more than .*: .* a zip bomb"):
            load_splits(tmp_path / name)
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("0.png"))


def test_links_in_an_archive_are_left_out(tmp_path):
    folder = write_images(tmp_path / "data", {"a": 9})
    (folder / "a" / "link.png").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "data")
    assert sum(map(len, load_splits(tmp_path / "a.tar").values())) == 9


def test_an_encrypted_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/0.png", png())
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # flags of the file, and of the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="a.zip cannot be unpacked: .*encrypted"):
        load_splits(tmp_path / "a.zip")


# Arrays


IMAGES = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8) * 20
LABELS = np.arange(9) % 3


def test_damage_that_a_library_reports_in_a_way_of_its_own_is_a_data_error(tmp_path, monkeypatch):
    saved = tmp_path / "saved"
    Dataset.from_dict({"image": [[[0]]], "label": [0]}).save_to_disk(saved)
    info = json.loads((saved / "dataset_info.json").read_text())
    (saved / "dataset_info.json").write_text(json.dumps({**info, "features": "image"}))
    with pytest.raises(DataError, match="saved cannot be loaded"):  # AttributeError of datasets
        load_splits(saved)

    saved = tmp_path / "arrow"
    Dataset.from_dict({"image": ["a"], "label": [0]}).save_to_disk(saved)
    offsets = pa.py_buffer(np.array([0, 2**20, 1], np.int32).tobytes())
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a")])
    table = pa.table({"image": text, "label": [0, 0]})
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="arrow cannot be loaded"):  # Arrow may end the process, where it trusts them
        load_splits(saved)

    table, path = pa.table({"label": [1]}), tmp_path / "a.parquet"
    pq.write_table(table, path)
    schema = table.schema.serialize().to_pybytes()
    wider = schema.replace(struct.pack("<I", 64), struct.pack("<I", 128))  # bits of a number
    path.write_bytes(path.read_bytes().replace(base64.b64encode(schema), base64.b64encode(wider)))
    with pytest.raises(DataError, match="Integers with more than 64 bits"):  # NotImplementedError of pyarrow
        load_splits(path)

    (tmp_path / "a.tar.xz").touch()
    monkeypatch.setattr(archives.tarfile, "open", Mock(side_effect=MemoryError("Cannot allocate memory")))
    with pytest.raises(DataError, match="a.tar.xz cannot be unpacked: Cannot allocate memory"):  # of lzma
        load_splits(tmp_path / "a.tar.xz")


def test_an_idx_file_whose_count_does_not_fit_its_size_is_refused(tmp_path):
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 9, 4, 4) + IMAGES.tobytes()
    for name, data in {
        "a.idx": content[:-1],
        "b.idx": content + b"\0",
        "c.idx.gz": gzip.compress(content[:-1]),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            DataError, match=f"{name}: its header says 9 x 4 x 4 numbers, 144 bytes, but 14[35] follow"
        ):
            load_splits(tmp_path / name)
    (tmp_path / "d.idx").write_bytes(content[:10])
    with pytest.raises(DataError, match="d.idx ends inside its header of 16 bytes"):
        load_splits(tmp_path / "d.idx")
    for shape in ((1,) * 70, (0, *(2**31,) * 4)):  # numpy has 64 axes, and multiplies sizes beside a 0, too
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (tmp_path / "e.idx").write_bytes(header + bytes(math.prod(shape)))
        with pytest.raises(DataError, match=f"e.idx is damaged: its header says {len(shape)} axes"):
            load_splits(tmp_path / "e.idx")


def test_pickled_objects_are_refused_and_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    objects = np.array([Bomb()] * 3, dtype=object)
    np.savez(tmp_path / "a.npz", image=objects)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(DataError, match=f"{name} holds Python objects, which are refused: .*np.savez"):
            load_splits(tmp_path / name)


def test_two_arrays_of_which_neither_is_clearly_the_images_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", first=IMAGES, second=IMAGES)
    with pytest.raises(DataError, match=r"which array of .*a.npz are the images\? There are first \(9, 4, 4\), s"):
        load_splits(tmp_path / "a.npz")
    splits = load_splits(tmp_path / "a.npz", image_column="second")
    assert sum(map(len, splits.values())) == 9
    with pytest.raises(DataError, match="has no array 'third'. Set image_column to one of first"):
        load_splits(tmp_path / "a.npz", image_column="third")


@pytest.mark.parametrize("labels", [LABELS[:-1], np.append(LABELS, 0)])
def test_labels_of_another_length_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=labels)
    with pytest.raises(DataError, match=f"has 9 images, but {len(labels)} labels. Give one label for each image"):
        load_splits(tmp_path / "a.npz")
    with pytest.raises(DataError, match=f"has 9 images, but {len(labels)} labels"):
        load_splits(([image_of(0)] * 9, labels))


@pytest.mark.parametrize(
    "labels", [LABELS + 0.5, np.ones((9, 3)), [None] * 9, LABELS.astype(complex), np.zeros((2, 0))]
)
def test_what_cannot_be_labels_is_refused(labels):
    with pytest.raises(DataError, match="label"):
        load_splits({"image": IMAGES, "label": np.array(labels)})


@pytest.mark.parametrize(
    "bad", [IMAGES - 1.0, IMAGES * 1e6, np.where(IMAGES == 20, np.nan, IMAGES), IMAGES.astype("U")]
)
def test_numbers_that_are_not_gray_levels_are_refused(bad):
    with pytest.raises(DataError, match="pixels from|not of numbers"):
        load_splits(bad)


def test_floats_a_little_above_1_are_refused_and_not_read_as_nearly_black():
    images = np.random.default_rng(0).random((20, 8, 8))
    images[3, 2, 2] = 1.25
    with pytest.raises(DataError, match="pixels up to 1.25, a little above 1: clip them to 1"):
        load_splits(images)


def test_a_square_table_of_numbers_may_be_one_image_or_many():
    with pytest.raises(
        DataError, match=r"may be one image or 64 of 8x8 pixels. Give labels, or reshape it to \(1, 64"
    ):
        load_splits(np.zeros((64, 64), np.uint8))
    assert len(split_images(np.zeros((64, 64)), "x", 64)) == 64


def test_levels_are_scaled_by_one_rule_for_all_images():
    for top, dtype in (
        (1, bool),
        (1, np.int64),
        (1, np.float32),
        (255, np.uint8),
        (255, np.float64),
        (65535, np.uint16),
    ):
        images = np.array([np.zeros((2, 2)), np.full((2, 2), top)]).astype(dtype)
        assert [image.max() for image in to_levels(images, "x")] == [0, 255]


A = np.arange(2 * 3 * 3).reshape(2, 3, 3)
MATLAB = Habits(images_last=True, by_columns=True)


@pytest.mark.parametrize(
    ("array", "num_labels", "habits"),
    [
        (A, None, Habits()),
        (A, 2, MATLAB),
        (A[..., None], None, Habits()),
        (A[:, None], 2, Habits()),
        (A.reshape(2, 9), None, Habits()),
        (A.reshape(2, 9).T, 2, Habits()),
        (A.transpose(0, 2, 1).reshape(2, 9), None, MATLAB),
        (A.transpose(0, 2, 1).reshape(2, 9).T, 2, MATLAB),
        (A.transpose(1, 2, 0), 2, Habits()),
        (A.transpose(1, 2, 0), None, MATLAB),
        (A.transpose(1, 2, 0)[:, :, None], None, MATLAB),
        (list(A), 2, Habits()),
    ],
)
def test_an_array_of_any_layout_becomes_the_same_images(array, num_labels, habits):
    assert np.array_equal(np.stack(split_images(array, "x", num_labels, habits)), A)


@pytest.mark.parametrize("shape", [(5,), (9, 8), (3, 4, 5, 6, 7), (9, 5, 6, 7), (28, 28, 100), (9, 0, 4)])
def test_an_array_that_cannot_be_images_is_refused_with_its_shape(shape):
    with pytest.raises(DataError, match=r"shape \(|which array"):
        load_splits(np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "split", "kind"),
    [
        ("x_train", "train", "image"),
        ("testY", "test", "label"),
        ("val_images", "validation", "image"),
        ("testdata", "test", "image"),
        ("train-labels-idx1-ubyte", "train", "label"),
        ("t10k-images-idx3-ubyte.gz", "test", "image"),
        ("image_labels", None, "label"),
        ("classnames", None, "names"),
        ("values", None, None),
        ("latest", None, None),
    ],
)
def test_names_of_arrays_say_what_they_hold(name, split, kind):
    assert describe(name) == (split, kind)


def test_in_arrays_of_zeros_and_ones_one_is_ink_whatever_touches_the_border(tmp_path):
    masks = np.zeros((40, 12, 12), np.uint8)
    masks[:, 1:, 2:] = 1  # most of the border
    labels = np.repeat([0, 1], 20)
    np.savez(tmp_path / "masks.npz", images=masks, labels=labels)
    processor = IGPTImageProcessor(image_size=12)
    expected = processor.tokenize(masks[:1])
    for source in (tmp_path / "masks.npz", (masks.astype(bool), labels)):
        images = load_splits(source)["train"]["image"][:]
        assert np.array_equal(processor.decide(images).tokenize(images[0]), expected)
        inverted = processor.replace(invert="always").decide(images)
        assert np.array_equal(inverted.decode_pixels(inverted.tokenize(images[0])), 1 - masks[:1])


def test_matlab_has_10_for_0_and_names_for_other_numbers(tmp_path, caplog):
    images = np.zeros((4, 4, 40), np.uint8)
    scipy.io.savemat(tmp_path / "a.mat", {"X": images, "y": np.arange(40) % 10 + 1})
    assert names(load_splits(tmp_path / "a.mat")) == [str(digit) for digit in range(10)]
    assert "10 is taken for the digit 0" in caplog.text
    letters = np.array(["a", "b", "c", "d"], dtype=object)
    scipy.io.savemat(tmp_path / "b.mat", {"X": images, "y": np.arange(40) % 4 + 1, "classnames": letters})
    assert names(load_splits(tmp_path / "b.mat")) == ["a", "b", "c", "d"]
    scipy.io.savemat(
        tmp_path / "c.mat", {"dataset": {"train": {"images": images.reshape(16, 40).T, "labels": LABELS}}}
    )
    with pytest.raises(DataError, match="has 40 images, but 9 labels"):
        load_splits(tmp_path / "c.mat")


def test_a_table_whose_rows_are_not_images_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    for text, message in {
        "label,p0,p1,p2\n1,0,0,0\n": "has 3 columns of pixels beside the label, which is not a square number",
        "label,a,b,c,d\n1,0,0,0,x\n": "has a row that is not 5 numbers",
        "label,a,b,c,d\n1,0,0,0\n": "a row that is not|pixels from nan",
        "p,q,r,s,t\n1,0,0,0,0\n": "which column is the class",
        "label,a,b,c,d\n": "holds no images",
        "": "not a table of numbers|holds no images|columns",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_splits(path)


def test_images_and_labels_are_two_tables(tmp_path):
    pd.DataFrame(IMAGES.reshape(9, -1)).to_csv(tmp_path / "digitsImages.csv", index=False, header=False)
    pd.DataFrame(LABELS).to_csv(tmp_path / "digitsLabels.csv", index=False, header=False)
    (tmp_path / "names.txt").write_text("\n".join("abc"[label] for label in LABELS))
    images = tmp_path / "digitsImages.csv"
    assert names(load_splits(f"{images},{tmp_path / 'digitsLabels.csv'}")) == ["0", "1", "2"]
    assert names(load_splits(f"{images},{tmp_path / 'names.txt'}")) == ["a", "b", "c"]


def test_several_files_of_arrays_need_names_of_splits(tmp_path):
    np.save(tmp_path / "first.npy", IMAGES)
    np.save(tmp_path / "second.npy", IMAGES)
    with pytest.raises(DataError, match="has first.npy, second.npy: which are the images"):
        load_splits(tmp_path)


@pytest.mark.parametrize("data", [3, object(), None, {"x": 3}, {}])
def test_what_is_not_a_source_is_refused(data):
    with pytest.raises(DataError, match="load_splits takes|which array|of shape"):
        load_splits(data)


def test_no_new_image_format_is_decoded():
    assert FORMATS == ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


# Tokens of the data that results are given for: digests made before there were sources of other kinds


def digest(source, **options) -> str:
    value = hashlib.sha256()
    for name, split in tokenize(load_splits(source, seed=42, **options), IGPTImageProcessor(margin=2)).items():
        columns = split.with_format("numpy")
        value.update(name.encode())
        value.update(columns["tokens"][:].astype(np.uint8).tobytes())
        value.update(columns["label"][:].astype(np.int64).tobytes())
    return value.hexdigest()[:16]


def test_synthetic_digits_have_the_tokens_of_before():
    assert digest("synthetic", num_synthetic=500) == "80b73c0feaf22a35"


# --- what people hold, by its details -------------------------------------------------------------------------------


def digits_table(num: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Gray images of 4x4 pixels as rows, with black corners, and the classes 0 to 4 in turn."""
    pixels = np.random.default_rng(0).integers(0, 17, (num, 16))
    pixels[:, [0, -1]] = 0
    return pixels, np.arange(num) % 5


@pytest.mark.parametrize("place", [0, 16])
@pytest.mark.parametrize("header", [False, True])
def test_the_class_of_a_table_without_names_is_its_first_or_its_last_column(tmp_path, place, header):
    """As in the digits of UCI; with `header`, the numbers that pandas names columns by."""
    pixels, classes = digits_table()
    table = pd.DataFrame(np.insert(pixels, place, classes, axis=1))
    table.to_csv(tmp_path / "digits.csv", header=header, index=False)
    arrays = read_csv(tmp_path / "digits.csv", ReadOptions())
    np.testing.assert_array_equal(arrays["image"], pixels)
    assert arrays["label"].tolist() == [str(label) for label in classes]
    pixels[:, [0, -1]] = classes[:, None]  # corners that say nothing
    pd.DataFrame(np.insert(pixels, place, classes, axis=1)).to_csv(tmp_path / "digits.csv", header=header, index=False)
    with pytest.raises(DataError, match="is the class in the first or the last column"):
        read_csv(tmp_path / "digits.csv", ReadOptions())


def test_numbers_that_pandas_names_columns_by_are_no_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16))
    pd.DataFrame(pixels).to_csv(tmp_path / "pixels.csv", index=False)
    splits = load_splits(tmp_path / "pixels.csv")
    assert sum(map(len, splits.values())) == 30
    assert max(np.asarray(image).max() for image in splits["train"]["image"]) > 200
    pd.DataFrame(pixels).to_csv(tmp_path / "pixels.csv")  # with the numbers of its rows
    assert sum(map(len, load_splits(tmp_path / "pixels.csv").values())) == 30


def test_the_column_of_the_class_can_be_named_in_tables_of_pixels_and_of_labels(tmp_path):
    pixels, classes = digits_table()
    table = pd.DataFrame(pixels, columns=[f"pixel{index}" for index in range(16)])
    table.insert(0, "digit", classes)
    table.to_csv(tmp_path / "table.csv", index=False)
    assert names(load_splits(tmp_path / "table.csv", label_column="digit")) == list("01234")
    np.save(tmp_path / "pixels.npy", pixels)
    pd.DataFrame({"id": range(40), "kind": classes}).to_csv(tmp_path / "kinds.csv", index=False)
    source = f"{tmp_path / 'pixels.npy'},{tmp_path / 'kinds.csv'}"
    assert names(load_splits(source, label_column="kind")) == list("01234")
    with pytest.raises(DataError, match="no column 'sort'"):
        load_splits(source, label_column="sort")


def test_splits_below_the_one_folder_of_an_archive_are_kept(tmp_path):
    for split, num in (("train", 8), ("test", 4)):
        folder = write_images(tmp_path / "zip" / "ds" / split, {"": num})
        rows = [f"{index}.png,{'ab'[index % 2]}" for index in range(num)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    shutil.make_archive(str(tmp_path / "ds"), "zip", tmp_path / "zip")
    for source in (tmp_path / "zip" / "ds", tmp_path / "ds.zip"):
        assert open_images(source, ReadOptions()).splits.keys() == {"train", "test"}


def test_parquet_files_are_split_by_their_folders_and_previews_beside_them_are_left_out(tmp_path, caplog):
    for split, num in (("train", 8), ("test", 4)):
        (tmp_path / "ds" / "default" / split).mkdir(parents=True)
        rows = {"image": [image_of(index) for index in range(num)], "label": [index % 2 for index in range(num)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "ds" / "default" / split / "0000.parquet")
    write_images(tmp_path / "ds" / "assets", {"": 2})
    images = open_images(tmp_path / "ds", ReadOptions())
    assert {name: len(rows) for name, rows in images.splits.items()} == {"train": 8, "test": 4}
    assert "2 images beside the parquet files are left out" in caplog.text


def test_folders_that_are_joined_by_commas_are_refused(tmp_path):
    folder = write_images(tmp_path / "a", {"x": 3})
    for other in (folder, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="commas join .cdb files, or a file of images and one of labels"):
            load_splits(f"{folder},{other}")


def test_class_folders_may_be_links(tmp_path):
    kinds = write_images(tmp_path / "kinds", {"a": 5, "b": 5})
    (tmp_path / "linked").mkdir()
    for name in "ab":
        (tmp_path / "linked" / name).symlink_to(kinds / name, target_is_directory=True)
    (tmp_path / "linked" / "a" / "back").symlink_to(tmp_path / "linked", target_is_directory=True)
    images = open_images(tmp_path / "linked", ReadOptions(labels_from="top"))
    assert len(images.dataset) == 10 and images.dataset.features["label"].names == ["a", "b"]


def test_names_in_a_zip_that_are_utf_8_without_saying_so_are_read_as_such(tmp_path, monkeypatch):
    flags = "_encodeFilenameFlags"
    with monkeypatch.context() as patch, zipfile.ZipFile(tmp_path / "mac.zip", "w") as packed:
        patch.setattr(zipfile.ZipInfo, flags, lambda info: (info.filename.encode("utf-8"), info.flag_bits))
        for index in range(6):
            packed.writestr(unicodedata.normalize("NFD", f"{'ab'[index % 2]}é/{index}.png"), png())
    with zipfile.ZipFile(tmp_path / "mac.zip") as packed:
        assert not packed.infolist()[0].flag_bits & 0x800 and "é" not in packed.namelist()[0]
    assert open_images(tmp_path / "mac.zip", ReadOptions()).dataset.features["label"].names == ["aé", "bé"]


def test_tables_of_paths_are_read_with_the_usual_headers_and_images_in_no_row_are_counted(tmp_path, caplog):
    folder = write_images(tmp_path / "ds", {"": 8})
    rows = [f"{index}.png, {'ab'[index % 2]}" for index in range(6)]
    for table, header in (("LABELS.CSV", "image, label"), ("metadata.csv", "file_name, label")):
        (folder / table).write_text("\n".join([header, *rows]))
    for source in (folder / "LABELS.CSV", folder):
        assert names(load_splits(source)) == ["a", "b"]
    assert "2 images are in no row of a table" in caplog.text


def test_an_image_whose_levels_cannot_be_gray_is_named_and_can_be_skipped(tmp_path):
    folder = write_images(tmp_path / "ds", {"a": 10, "b": 10})
    PIL.Image.fromarray(np.full((8, 8), 2550, np.float32)).save(folder / "a" / "bad.tif")
    with pytest.raises(DataError, match="bad.tif cannot be made gray: it has levels up to 2550"):
        load_splits(folder)
    assert sum(map(len, load_splits(folder, skip_bad_images=True).values())) == 20


def test_names_of_classes_are_those_of_their_labels_and_not_of_files():
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    labels = np.arange(30) % 3
    for first, given, expected in (
        (0, ["x", "y", "z"], ["x", "y", "z"]),
        (1, ["w", "x", "y", "z"], ["x", "y", "z"]),  # none is of the class 0
        (1, ["x", "y", "z"], ["x", "y", "z"]),  # counted from 1
        (0, [f"{index}.png" for index in range(30)], ["0", "1", "2"]),
    ):
        data = {"images": images, "labels": labels + first, "class_names": np.array(given)}
        assert names(load_splits(data)) == expected


def test_lists_of_arrays_of_several_sizes_are_images():
    images = [np.zeros((20, 20 + index), np.uint8) for index in range(20)]
    for data in ((images, [0, 1] * 10), {"image": images, "label": [0, 1] * 10}):
        assert sum(map(len, load_splits(data).values())) == 20
