"""Whatever is in a file: it is read, or refused with a DataError. benchmarks/fuzz.py does the same for longer."""

import io
import json
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from helpers.cdb import header, record, run_lengths
from helpers.paths import BENCHMARKS
from helpers.scripts import run_python
from igpt_hf import DataError, IGPTImageProcessor
from igpt_hf.data.decoding import MAX_PIXELS, decode_image
from igpt_hf.data.sources.hoda import read_cdb
from igpt_hf.data.sources.matlab import read_mat


PROCESSOR = IGPTImageProcessor()
# The folder stays the same from example to example, and the first example is slow.
settings.register_profile("files", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("files")


def written(folder, content: bytes):
    path = folder / "digits.cdb"
    path.write_bytes(content)
    return path


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 3), st.integers(0, 2), st.binary(max_size=200))
def test_any_bytes_after_a_header_are_read_or_refused(tmp_path, height, width, count, kind, records):
    try:
        images, labels = read_cdb(written(tmp_path, header(count, height, width, kind) + records))
    except DataError as error:
        assert "digits.cdb" in str(error)
    else:
        assert len(images) == len(labels) == count


SIDES = array_shapes(min_dims=2, max_dims=2, max_side=24)


@given(st.lists(arrays(np.bool_, SIDES), max_size=4), st.integers(0, 255))
def test_any_images_written_as_run_lengths_come_back(tmp_path, originals, label):
    originals = [original * np.uint8(255) for original in originals]
    records = [record(run_lengths(image), label, image.shape[1], image.shape[0]) for image in originals]
    images, labels = read_cdb(written(tmp_path, header(len(originals)) + b"".join(records)))
    assert labels.tolist() == [label] * len(originals)
    assert all(np.array_equal(image, original) for image, original in zip(images, originals, strict=True))


def encoded(kind: str, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    levels = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9)
    PIL.Image.fromarray(levels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


ENCODED = [
    encoded(*kind) for kind in (("PNG",), ("PNG", "P"), ("JPEG",), ("GIF", "P"), ("BMP",), ("TIFF",), ("WEBP",))
]


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damage that it can live with
@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=5),
)
def test_a_damaged_image_is_read_or_refused(content, damage):
    content = bytearray(content)
    for place, replacement in damage:
        start = int(place * len(content))
        content[start : start + len(replacement)] = replacement
    try:
        image = decode_image({"bytes": bytes(content), "path": None})
    except DataError:
        return
    assert PROCESSOR.tokenize(image).shape == (1, 196)


@pytest.mark.slow
def test_a_mat_file_with_any_damaged_byte_is_read_or_refused(tmp_path):
    cells = np.empty((2, 1), dtype=object)
    cells[:, 0] = [np.eye(2, dtype=np.uint8)] * 2
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"dat": cells, "s": {"y": np.arange(2)}, "classnames": "ab"})
    path, content = tmp_path / "digits.mat", buffer.getvalue()
    path.write_bytes(content)
    arrays, _ = read_mat(path)
    assert arrays.keys() == {"dat", "s_y", "classnames"} and np.array_equal(arrays["dat"][1, 0], np.eye(2))
    for position in range(len(content)):
        for value in (2, 255):
            path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                read_mat(path)
            except DataError as error:
                assert "digits.mat" in str(error)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_huge_images_are_refused_by_their_header(width, height):
    with pytest.raises(DataError, match="more than 50,000,000|DecompressionBomb|decoded"):
        decode_image({"bytes": png_header(width, max(height, MAX_PIXELS // width + 1)), "path": None})


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"8BPS\0\1" + bytes(30)]
)
def test_formats_that_need_an_interpreter_or_are_seldom_used_are_refused(content):
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image({"bytes": content, "path": None})


@pytest.mark.slow
def test_the_fuzzer_runs(tmp_path):
    run_python(
        BENCHMARKS / "fuzz.py", "--minutes", 0, "--inputs", 300, "--work", tmp_path, "--output", tmp_path / "fuzz.json"
    )
    results = json.loads((tmp_path / "fuzz.json").read_text())
    assert results["unexpected"] == 0
    assert results["inputs"] >= 300
    assert min(results[name][key] for name in ("cdb", "image", "mat", "zip") for key in ("read", "refused")) > 0
