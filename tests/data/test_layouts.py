"""What people have, written by the tools that they use: the same images in every layout give the same tokens."""

import csv
import gzip
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import scipy.io
import torch

from helpers.cdb import header, record, run_lengths
from helpers.paths import DOCS
from igpt_hf import IGPTImageProcessor
from igpt_hf.data.splits import load_splits
from igpt_hf.data.tokenized import tokenize


SIDE, CLASSES, PER_CLASS = 12, 10, 4
PROCESSOR = IGPTImageProcessor(image_size=SIDE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def drawings() -> tuple[np.ndarray, np.ndarray]:
    """Binary images that differ from their mirror images and from each other, (40, 12, 12), 0/255, and labels."""
    rng = np.random.default_rng(0)
    images = np.zeros((CLASSES * PER_CLASS, SIDE, SIDE), dtype=np.uint8)
    images[:, 2:-2, 2:-2] = 255 * (rng.random((len(images), SIDE - 4, SIDE - 4)) < 0.4)
    return images, np.arange(len(images)) % CLASSES


X, Y = drawings()
IS_TEST = np.arange(len(X)) >= CLASSES * (PER_CLASS - 1)  # the last of each class
PARTS = {"train": (X[~IS_TEST], Y[~IS_TEST]), "test": (X[IS_TEST], Y[IS_TEST])}


def save_images(folder: Path, suffix: str = ".png", images=X, labels=Y, mode: str = "L", **options) -> Path:
    """One folder per class."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).convert(mode).save(folder / str(label) / f"{index}{suffix}", **options)
    return folder


def save_splits(folder: Path, test: str = "test") -> Path:
    for name, (images, labels) in PARTS.items():
        save_images(folder / (test if name == "test" else name), images=images, labels=labels)
    return folder


def as_dataset(images=X, labels=Y) -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(c) for c in range(10)]))
    encoded = [PIL.Image.fromarray(image) for image in images]
    return datasets.Dataset.from_dict({"image": encoded, "label": labels.tolist()}, features=features)


def as_dataset_dict() -> datasets.DatasetDict:
    return datasets.DatasetDict({name: as_dataset(*part) for name, part in PARTS.items()})


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


# Each writes into a folder of its own and returns what is given as --data.


def class_folders(folder):
    return save_images(folder / "data")


def class_folders_of_pbm(folder):
    return save_images(folder / "data", ".pbm", mode="1")


def class_folders_of_bmp_in_color(folder):
    return save_images(folder / "data", ".bmp", mode="RGB")


def class_folders_of_tiff(folder):
    return save_images(folder / "data", ".tif", mode="1", compression="group4")


def class_folders_of_lossless_webp(folder):
    return save_images(folder / "data", ".webp", mode="RGB", lossless=True)


def class_folders_of_gif(folder):
    return save_images(folder / "data", ".gif")


def folder_around_class_folders(folder):
    save_images(folder / "data" / "digits")
    return folder / "data"


def train_and_test_folders(folder):
    return save_splits(folder / "data")


def train_and_val_folders(folder):
    return save_splits(folder / "data", test="val")


def nested_folders_by_parent(folder):
    save_images(folder / "data" / "even", images=X[Y % 2 == 0], labels=Y[Y % 2 == 0])
    save_images(folder / "data" / "odd", images=X[Y % 2 == 1], labels=Y[Y % 2 == 1])
    return folder / "data"


def zip_of_class_folders(folder):
    return Path(shutil.make_archive(folder / "data", "zip", class_folders(folder)))


def zip_made_on_a_mac(folder):
    save_images(folder / "digits")
    with zipfile.ZipFile(folder / "digits.zip", "w") as archive:
        for path in sorted((folder / "digits").rglob("*.png")):
            archive.write(path, path.relative_to(folder))
            archive.writestr(f"__MACOSX/digits/{path.parent.name}/._{path.name}", b"\0\5\x16\7")
        archive.writestr("digits/.DS_Store", b"\0")
    return folder / "digits.zip"


def tar_gz_of_train_and_test(folder):
    with tarfile.open(folder / "data.tar.gz", "w:gz") as archive:
        archive.add(save_splits(folder / "digits"), "digits")
    return folder / "data.tar.gz"


def metadata_csv(folder):
    save_images(folder / "data")
    with open(folder / "data" / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label"])
        rows.writerows([f"{label}/{index}.png", label] for index, label in enumerate(Y))
    return folder / "data"


def metadata_jsonl_in_train_and_test(folder):
    for name, (images, labels) in PARTS.items():
        (folder / "data" / name).mkdir(parents=True)
        for index, image in enumerate(images):
            PIL.Image.fromarray(image).save(folder / "data" / name / f"{index}.png")
        lines = [json.dumps({"file_name": f"{index}.png", "digit": int(label)}) for index, label in enumerate(labels)]
        (folder / "data" / name / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "data"


def saved_dataset(folder):
    as_dataset().save_to_disk(folder / "data")
    return folder / "data"


def saved_dataset_dict(folder):
    as_dataset_dict().save_to_disk(folder / "data")
    return folder / "data"


def parquet_file(folder):
    as_dataset().to_parquet(folder / "digits.parquet")
    return folder / "digits.parquet"


def parquet_of_the_hub(folder):
    (folder / "data").mkdir()
    for name, part in as_dataset_dict().items():
        part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder / "data"


def hoda_cdb(folder):
    records = [record(run_lengths(x), int(y), SIDE, SIDE) for x, y in zip(X > 0, Y, strict=True)]
    (folder / "digits.cdb").write_bytes(header(len(X)) + b"".join(records))
    return folder / "digits.cdb"


def idx_files(folder):
    (folder / "digits-images-idx3-ubyte").write_bytes(idx_bytes(X))
    (folder / "digits-labels-idx1-ubyte").write_bytes(idx_bytes(Y))
    return folder / "digits-images-idx3-ubyte"


def folder_of_mnist(folder):
    folder = folder / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, (images, labels) in zip(("train", "t10k"), PARTS.values(), strict=True):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


def npy_files(folder):
    np.save(folder / "X.npy", X[:, None])
    np.save(folder / "y.npy", Y)
    return folder / "X.npy"


def npy_files_of_bits(folder):
    np.save(folder / "pixels.npy", (X > 0).reshape(len(X), -1))
    np.save(folder / "classes.npy", np.eye(CLASSES)[Y])
    return f"{folder / 'pixels.npy'},{folder / 'classes.npy'}"


def npz_of_keras(folder):
    arrays = {f"{kind}_{name}": a for name, part in PARTS.items() for kind, a in zip("xy", part, strict=True)}
    np.savez(folder / "mnist.npz", **arrays)
    return folder / "mnist.npz"


def npz_without_names(folder):
    np.savez_compressed(folder / "digits.npz", X[..., None] / 255, Y)
    return folder / "digits.npz"


def npz_files_of_kmnist(folder):
    folder = folder / "kmnist"
    folder.mkdir()
    for name, (images, labels) in PARTS.items():
        np.savez_compressed(folder / f"kmnist-{name}-imgs.npz", images)
        np.savez_compressed(folder / f"kmnist-{name}-labels.npz", labels)
    return folder


def mat_by_columns(folder):
    scipy.io.savemat(folder / "digits.mat", {"X": X.transpose(1, 2, 0), "y": np.where(Y == 0, 10, Y)})
    return folder / "digits.mat"


def mat_of_svhn(folder):
    color = np.repeat(X.transpose(1, 2, 0)[:, :, None], 3, axis=2)  # (h, w, 3, n)
    scipy.io.savemat(folder / "train_32x32.mat", {"X": color, "y": np.where(Y == 0, 10, Y)[:, None]})
    return folder / "train_32x32.mat"


def mat_of_cells(folder):
    cells = np.empty((len(X), 1), dtype=object)
    cells[:, 0] = list(X)
    scipy.io.savemat(folder / "Data_hoda_full.mat", {"Data": cells, "labels": Y[:, None].astype(float)})
    return folder / "Data_hoda_full.mat"


def mat_with_names_of_classes(folder):
    cells = np.empty((CLASSES, PER_CLASS), dtype=object)
    for label in range(CLASSES):
        cells[label] = list(X[Y == label] // 255)
    names = np.array([str(label) for label in range(CLASSES)], dtype=object)
    scipy.io.savemat(folder / "binaryalphadigs.mat", {"dat": cells, "classlabels": names, "numclasses": 10})
    return folder / "binaryalphadigs.mat"


def mat_flattened_by_matlab(folder):
    flat = X.transpose(0, 2, 1).reshape(len(X), -1)  # (n, w*h): MATLAB flattens by columns
    scipy.io.savemat(folder / "digits.mat", {"fea": flat.astype(float), "gnd": Y})
    content = (folder / "digits.mat").read_bytes()
    start = b"MATLAB 5.0 MAT-file, Platform: GLNXA64, Created on: Thu Nov 26"
    (folder / "digits.mat").write_bytes(start.ljust(116) + content[116:])
    return folder / "digits.mat"


def amat_with_labels(folder):
    np.savetxt(folder / "digits.amat", np.column_stack([X.reshape(len(X), -1) / 255, Y]), fmt="   %.7e")
    return folder / "digits.amat"


def csv_of_kaggle(folder):
    table = pd.DataFrame(X.reshape(len(X), -1), columns=[f"pixel{index}" for index in range(SIDE**2)])
    table.insert(0, "label", Y)
    table.to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def csv_without_header(folder):
    np.savetxt(folder / "mnist_train.csv", np.column_stack([Y, X.reshape(len(X), -1)]), fmt="%d", delimiter=",")
    return folder / "mnist_train.csv"


def csv_with_the_class_last(folder):
    table = pd.DataFrame(X.reshape(len(X), -1))
    table["class"] = Y
    table.to_csv(folder / "mnist_784.csv", sep=";")  # with the column of pandas' index
    return folder / "mnist_784.csv"


def dataset_in_memory(folder):
    return as_dataset()


def dataset_dict_in_memory(folder):
    return as_dataset_dict()


def arrays_in_memory(folder):
    return {f"{kind}_{name}": a for name, part in PARTS.items() for kind, a in zip("xy", part, strict=True)}


def images_and_labels_in_memory(folder):
    return [PIL.Image.fromarray(image) for image in X], Y.tolist()


def tensors_in_memory(folder):
    return torch.tensor(X)[:, None] / 255, torch.tensor(Y)


# Layout -> which splits come with it, the test split unless said otherwise.
RANDOM = (
    class_folders,
    class_folders_of_pbm,
    class_folders_of_bmp_in_color,
    class_folders_of_tiff,
    class_folders_of_lossless_webp,
    class_folders_of_gif,
    folder_around_class_folders,
    nested_folders_by_parent,
    zip_of_class_folders,
    zip_made_on_a_mac,
    metadata_csv,
    saved_dataset,
    parquet_file,
    hoda_cdb,
    idx_files,
    npy_files,
    npy_files_of_bits,
    npz_without_names,
    mat_by_columns,
    mat_of_svhn,
    mat_of_cells,
    mat_with_names_of_classes,
    mat_flattened_by_matlab,
    amat_with_labels,
    csv_of_kaggle,
    csv_without_header,
    csv_with_the_class_last,
    dataset_in_memory,
    images_and_labels_in_memory,
    tensors_in_memory,
)
GIVEN = (
    train_and_test_folders,
    train_and_val_folders,
    tar_gz_of_train_and_test,
    metadata_jsonl_in_train_and_test,
    saved_dataset_dict,
    parquet_of_the_hub,
    folder_of_mnist,
    npz_of_keras,
    npz_files_of_kmnist,
    dataset_dict_in_memory,
    arrays_in_memory,
)


def tokens_of(images: np.ndarray, labels: np.ndarray) -> Counter:
    rows = zip(labels, PROCESSOR.tokenize(images // 255), strict=True)
    return Counter((str(label), tokens.tobytes()) for label, tokens in rows)


def tokens_in(split: datasets.Dataset) -> Counter:
    names = split.features["label"].names
    rows = zip(split["label"], split.with_format("numpy")["tokens"][:].astype(np.uint8), strict=True)
    return Counter((names[label], tokens.tobytes()) for label, tokens in rows)


# The rows of the table of docs/data.md: what you have -> how the test writes it.
ROWS = {
    "one folder per class": class_folders,
    "train and test folders of class folders": train_and_test_folders,
    "class folders in folders": nested_folders_by_parent,
    "a zip archive of class folders": zip_of_class_folders,
    "a zip archive made on a Mac": zip_made_on_a_mac,
    "a tar archive of train and test folders": tar_gz_of_train_and_test,
    "a folder with metadata.csv": metadata_csv,
    "train and test folders with metadata.jsonl": metadata_jsonl_in_train_and_test,
    "a saved DatasetDict": saved_dataset_dict,
    "a parquet file": parquet_file,
    "a folder of parquet files": parquet_of_the_hub,
    "HODA's files": hoda_cdb,
    "an idx file with its labels beside it": idx_files,
    "MNIST's four files": folder_of_mnist,
    "a .npy file with its labels beside it": npy_files,
    "flattened bits and one-hot labels": npy_files_of_bits,
    "a .npz file with x_train, y_train, x_test, y_test": npz_of_keras,
    "a .npz file without names": npz_without_names,
    ".npz files of images and labels": npz_files_of_kmnist,
    "a .mat file by columns": mat_by_columns,
    "a .mat file in color": mat_of_svhn,
    "a .mat file of cells": mat_of_cells,
    "a .mat file of cells with names of classes": mat_with_names_of_classes,
    "an .amat file": amat_with_labels,
    "CSV with a header and the label first": csv_of_kaggle,
    "CSV without a header": csv_without_header,
    "CSV with the class last": csv_with_the_class_last,
}


def documented() -> dict[str, dict[str, str]]:
    """The table of docs/data.md: what you have -> the flags that read it."""
    table = (DOCS / "data.md").read_text(encoding="utf-8").split("<!-- begin layouts -->")[1].split("<!-- end")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    words = {row[0]: row[-1].strip("`").replace("--", "").split() for row in rows}
    return {what: dict(zip(flags[::2], flags[1::2], strict=True)) for what, flags in words.items()}


FLAGS = {ROWS.get(what): flags for what, flags in documented().items()}


@pytest.mark.parametrize("layout", [*RANDOM, *GIVEN], ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_classes_and_tokens(layout, tmp_path, monkeypatch):
    source, options = layout(tmp_path), {}
    if layout in FLAGS:
        monkeypatch.chdir(tmp_path)
        options = dict(FLAGS[layout])
        source = options.pop("data")
    splits = load_splits(source, **options)
    tokens = {name: tokens_in(split) for name, split in tokenize(splits, PROCESSOR).items()}
    assert sum(tokens.values(), Counter()) == tokens_of(X, Y)
    if layout in RANDOM:
        assert splits.given == ()
    else:
        (given,) = splits.given
        assert given == ("validation" if layout is train_and_val_folders else "test")
        assert tokens[given] == tokens_of(*PARTS["test"])


def test_each_row_of_the_documentation_is_one_of_these():
    assert list(documented()) == list(ROWS)
