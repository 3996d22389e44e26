"""The HODA reader: exact on good files, a DataError with the byte offset on all others."""

import re
import struct

import numpy as np
import pytest

from helpers.cdb import header, record, run_lengths
from helpers.paths import HODA_FILE
from igpt_hf.data.sources.hoda import HEADER_SIZE, read_cdb
from igpt_hf.errors import DataError


# Two rows of four pixels: .##. and #..# (a row that starts white has a background run of 0 first).
IMAGE = np.array([[0, 255, 255, 0], [255, 0, 0, 255]], dtype=np.uint8)
RUNS = [1, 2, 1, 0, 1, 2, 1]
RECORD_START, RUNS_START = HEADER_SIZE, HEADER_SIZE + 6


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and read it."""

    def read_bytes(data: bytes):
        path = tmp_path / "digits.cdb"
        path.write_bytes(data)
        return read_cdb(path)

    return read_bytes


def test_a_binary_record_is_white_on_black(read):
    images, labels = read(header(1) + record(RUNS))
    assert run_lengths(IMAGE) == RUNS
    np.testing.assert_array_equal(images[0], IMAGE)
    assert images[0].dtype == np.uint8
    assert labels.tolist() == [7]


def test_random_images_of_any_size_come_back_exactly(read):
    rng = np.random.default_rng(0)
    originals = [(rng.random(rng.integers(1, 40, 2)) < 0.4).astype(np.uint8) * 255 for _ in range(50)]
    records = [record(run_lengths(i), label % 10, i.shape[1], i.shape[0]) for label, i in enumerate(originals)]
    images, labels = read(header(50) + b"".join(records))
    assert labels.tolist() == [label % 10 for label in range(50)]
    for image, original in zip(images, originals, strict=True):
        np.testing.assert_array_equal(image, original)


def test_images_of_one_size_take_it_from_the_header(read):
    one_record = struct.pack("<BBH", 0xFF, 3, len(RUNS)) + bytes(RUNS)
    images, labels = read(header(2, height=2, width=4) + one_record * 2)
    assert [image.shape for image in images] == [(2, 4)] * 2
    np.testing.assert_array_equal(images[1], IMAGE)
    assert labels.tolist() == [3, 3]


def test_a_row_may_use_runs_of_zero_between_others(read):
    images, _ = read(header(1) + record([1, 1, 0, 1, 1, 0, 1, 2, 1]))
    np.testing.assert_array_equal(images[0], IMAGE)


def test_a_gray_record_holds_pixels_row_by_row(read):
    images, _ = read(header(1, image_type=1) + record([0, 10, 20, 30, 40, 50, 60, 70]))
    assert images[0].tolist() == [[0, 10, 20, 30], [40, 50, 60, 70]]
    images[0][0, 0] = 1  # a copy of its own, not a view of the file


def test_a_file_without_records_is_empty(read):
    images, labels = read(header(0))
    assert images == [] and labels.shape == (0,)


@pytest.mark.parametrize(
    ("data", "problem", "offset"),
    [
        (b"", "inside its 1024-byte header", 0),
        (header(1)[:1000], "inside its 1024-byte header", 1000),
        (header(1, image_type=2) + record(RUNS), "unknown image type 2", 522),
        (header(1), "before record 0 of 1", RECORD_START),
        (header(1) + record(RUNS)[:5], "inside or before record 0", RECORD_START),
        (header(1) + record(RUNS)[:-1], "data bytes of record 0", RUNS_START + 6),
        (header(2) + record(RUNS), "before record 1 of 2", RUNS_START + 7),
        (header(2**32 - 1) + record(RUNS), "before record 1 of 4294967295", RUNS_START + 7),
        (header(1) + record(RUNS) * 2, "13 bytes follow the last of the header's 1 records", RUNS_START + 7),
        (header(1) + record(RUNS) + b"\0", "1 bytes follow", RUNS_START + 7),
        (header(1) + record(RUNS, marker=0xFE), "starts with 0xfe, not 0xff", RECORD_START),
        (header(1) + record(RUNS, width=0), "size of 0x2", RECORD_START),
        (header(1) + record(RUNS, height=0), "size of 4x0", RECORD_START),
        (header(1) + record([1, 2, 2, 0, 1, 2, 1]), "run 2 goes past the end of row 0", RUNS_START),
        (header(1) + record([1, 2, 1, 0, 1, 2, 9]), "run 6 goes past the end of row 1", RUNS_START),
        (header(1) + record([8]), "run 0 goes past the end of row 0", RUNS_START),
        (header(1) + record([]), "make 0 of 4x2 pixels", RUNS_START),
        (header(1) + record(RUNS[:-1]), "make 7 of 4x2 pixels", RUNS_START),
        (header(1) + record([*RUNS, 0, 3]), "2 data bytes are left over", RUNS_START),
        (header(1, image_type=1) + record([9] * 7), "7 pixel bytes for 4x2 pixels", RUNS_START),
        (header(1, image_type=1) + record([9] * 9), "9 pixel bytes for 4x2 pixels", RUNS_START),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_the_byte_offset(read, data, problem, offset):
    with pytest.raises(DataError, match=rf"digits\.cdb: .*{re.escape(problem)}.*\(byte {offset}\)"):
        read(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.cdb: no such file"):
        read_cdb(tmp_path / "absent.cdb")


def test_random_damage_is_read_or_refused_but_never_crashes(read):
    good = header(3) + record(RUNS, 1) + record([4, 4], 2) + record([0, 4, 0, 4], 3)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        start = rng.choice([0, 4, HEADER_SIZE])  # of the damage: anywhere, the header's fields, the records
        stop = {0: len(good), 4: 10, HEADER_SIZE: len(good)}[start]
        for position in rng.integers(start, stop, size=2):
            data[position] = rng.integers(256)
        if rng.random() < 0.3:
            data = data[: rng.integers(len(data))]
        try:
            images, labels = read(bytes(data))
        except DataError:
            refused += 1
        else:
            assert len(images) == len(labels)
            assert all(image.ndim == 2 and image.size > 0 for image in images)
    assert 0 < refused < 500


@pytest.mark.slow
@pytest.mark.skipif(not HODA_FILE.exists(), reason=f"HODA is not here: {HODA_FILE}")
def test_all_of_hoda_is_read():
    images, labels = read_cdb(HODA_FILE)
    assert len(images) == len(labels) == 22_352
    assert np.bincount(labels).tolist() == [2070, 2330, 1923, 2334, 2333, 2110, 2254, 2363, 2264, 2371]
    assert all(set(np.unique(image)) <= {0, 255} for image in images)
    ink = np.mean([np.mean(image) for image in images]) / 255
    assert 0.2 < ink < 0.6
