"""Throw damaged files at the readers of images and of files of many: a result or a DataError, and nothing else.

    python benchmarks/fuzz.py --minutes 10 --output fuzz.json

Mutates small valid files: flipped bits, odd numbers, parts removed, doubled, joined with other files; checksums of PNG
are fixed half of the time, so that the damage comes through to the decoder. Inputs that reach new lines of the
package's readers are mutated further (coverage-guided, by `sys.settrace`). Every input goes through what training does
with it. A crash of the interpreter or an input that takes longer than ten seconds ends the script with a traceback and
leaves the input in `--work`; memory is limited, so that a blow-up is a MemoryError.
"""

import faulthandler
import gzip
import io
import json
import logging
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io

from harness import benchmark_parser, write_results
from igpt_hf import DataError, IGPTImageProcessor
from igpt_hf.data import decoding, sources, tokenized
from igpt_hf.data.sources import hoda
from igpt_hf.data.sources.dispatch import open_source
from igpt_hf.data.sources.parts import ReadOptions
from igpt_hf.model import image_decision, image_ink, image_processing_igpt, image_reading


READERS = {Path(module.__file__).name for module in (decoding, image_decision, image_ink)}
READERS |= {Path(module.__file__).name for module in (image_processing_igpt, image_reading)}
READERS |= {path.name for path in Path(sources.__file__).parent.glob("*.py")}
SECONDS_PER_INPUT, EXTRA_MEMORY = 10, 2 * 2**30
ODD_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
PROCESSORS = [IGPTImageProcessor(margin=2), IGPTImageProcessor(invert="always", patch_size=4)]


# --- files to begin with ------------------------------------------------------------------------------------------


def cdb_seeds() -> list[bytes]:
    """Binary and gray, with sizes of their own and shared."""
    record = struct.pack("<BBBBH", 0xFF, 7, 4, 2, 7) + bytes([1, 2, 1, 0, 1, 2, 1])
    shared = struct.pack("<BBH", 0xFF, 3, 7) + bytes([1, 2, 1, 0, 1, 2, 1])
    gray = struct.pack("<BBBBH", 0xFF, 1, 3, 2, 6) + bytes([0, 50, 100, 150, 200, 250])

    def file(records: list[bytes], size=(0, 0), kind=0) -> bytes:
        header = bytearray(hoda.HEADER_SIZE)
        struct.pack_into("<BBI", header, 4, *size, len(records))
        header[522] = kind
        return bytes(header) + b"".join(records)

    return [file([record] * 3), file([shared] * 2, (2, 4)), file([gray] * 2, kind=1), file([])]


def image_seeds() -> list[bytes]:
    """A small image in many formats and modes."""
    gray = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # taken sideways
    kinds = [("PNG", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")]
    kinds += [("PNG", "L", {"exif": exif}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"exif": exif})]
    kinds += [("GIF", "P", {}), ("BMP", "RGB", {}), ("BMP", "1", {}), ("PPM", "L", {}), ("PPM", "1", {})]
    kinds += [("TIFF", mode, {}) for mode in ("1", "L", "RGBA", "I;16", "F", "LAB")]
    kinds += [("TIFF", "L", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits")]
    kinds += [("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True})]
    seeds = []
    for format_, mode, options in kinds:
        image = PIL.Image.merge("LAB", [gray] * 3) if mode == "LAB" else gray
        image = image.convert("I").convert("I;16") if mode == "I;16" else image
        image = image if image.mode == mode else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        seeds.append(buffer.getvalue())
    return seeds


IMAGES, LABELS = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4), np.arange(6) % 2


def written(write, *arguments, **options) -> bytes:
    """What a function writes into a file."""
    buffer = io.BytesIO()
    write(buffer, *arguments, **options)
    return buffer.getvalue()


def idx_seeds() -> list[bytes]:
    def file(array: np.ndarray, kind: int) -> bytes:
        return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    return [file(IMAGES, 0x08), file(IMAGES.astype(">f4"), 0x0D), file(IMAGES.astype(">i2"), 0x0B), file(LABELS, 0x0E)]


def gz_seeds() -> list[bytes]:
    return [gzip.compress(seed) for seed in idx_seeds()]


def npy_seeds() -> list[bytes]:
    objects = np.array([None], dtype=object)
    arrays = (
        IMAGES,
        IMAGES.astype(float) / 255,
        IMAGES.astype("S3"),
        IMAGES.reshape(6, 16),
        np.asfortranarray(IMAGES),
    )
    return [written(np.save, array) for array in (*arrays, objects)]


def npz_seeds() -> list[bytes]:
    splits = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}
    return [written(np.savez, IMAGES, LABELS), written(np.savez_compressed, **splits)]


def mat_seeds() -> list[bytes]:
    cells = np.empty((2, 3), dtype=object)
    cells[:] = [list(IMAGES[:3]), list(IMAGES[3:])]
    contents = [
        {"X": IMAGES.transpose(1, 2, 0), "y": LABELS + 1},
        {"dat": cells, "classlabels": np.array(["a", "b"], dtype=object)},
        {"dataset": {"train": {"images": IMAGES.reshape(6, 16), "labels": LABELS}}},
        {"X": scipy.sparse.csr_matrix(IMAGES.reshape(6, 16)), "y": LABELS},
    ]
    return [
        *(written(scipy.io.savemat, content) for content in contents),
        written(scipy.io.savemat, contents[0], do_compression=True),
    ]


def csv_seeds() -> list[bytes]:
    rows = [",".join(map(str, [label, *image.ravel()])) for label, image in zip(LABELS, IMAGES, strict=True)]
    header = ",".join(["label", *(f"pixel{index}" for index in range(16))])
    return ["\n".join(text).encode() for text in (rows, [header, *rows], [row.replace(",", ";") for row in rows])]


def amat_seeds() -> list[bytes]:
    rows = np.column_stack([IMAGES.reshape(6, 16) / 255, LABELS])
    return [written(np.savetxt, rows, fmt="   %.7e"), written(np.savetxt, rows[:, :-1], fmt="%d")]


def parquet_seeds() -> list[bytes]:
    images = [{"bytes": seed, "path": None} for seed in image_seeds()[:3]]
    tables = [pa.table({"image": images, "label": labels}) for labels in ([0, 1, 2], ["a", "b", "c"])]
    return [written(lambda buffer, table=table: pq.write_table(table, buffer)) for table in tables]


def archive_files() -> dict[str, bytes]:
    files = {f"{name}/{index}.png": seed for name in "ab" for index, seed in enumerate(image_seeds()[:2])}
    return {**files, "metadata.csv": b"file_name,label\na/0.png,a\nb/1.png,b\n"}


def zip_seeds() -> list[bytes]:
    def write(buffer, method: int, names: list[str]):
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name in names:
                archive.writestr(name, archive_files()[name])

    names = list(archive_files())
    return [written(write, zipfile.ZIP_STORED, names), written(write, zipfile.ZIP_DEFLATED, names[:-1])]


def tar_seeds() -> list[bytes]:
    def write(buffer, mode: str):
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, content in archive_files().items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    return [written(write, mode) for mode in ("w", "w:gz", "w:xz")]


def metadata_seeds() -> list[bytes]:
    return [b"file_name,label\na/0.png,a\nb/1.png,b\n", b'file_name,"label"\n"a\\0.png",\xc3\xa4\n']


def jsonl_seeds() -> list[bytes]:
    return [b'{"file_name": "a/0.png", "label": "a"}\n{"file_name": "b/1.png", "label": 1}\n']


def saved_files() -> dict[str, bytes]:
    """What `save_to_disk` writes."""
    images = [{"bytes": seed, "path": None} for seed in image_seeds()[:3]]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features).save_to_disk(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --- what is done with an input -----------------------------------------------------------------------------------


def read_cdb(content: bytes, work: Path):
    path = work / "input.cdb"
    path.write_bytes(content)
    images, labels = hoda.read_cdb(path)
    assert len(images) == len(labels)
    assert all(image.ndim == 2 and image.size for image in images)


def read_image(content: bytes, work: Path):
    (work / "input.image").write_bytes(content)
    image = decoding.decode_image({"bytes": content, "path": None})
    for processor in PROCESSORS:
        tokens = tokenized.tokenize_batch({"image": [image]}, [0], "train", processor, "tokens")["tokens"]
        assert tokens.shape == (1, processor.num_image_tokens)
        assert tokens.max() < processor.vocab_size


def reader_of(suffix: str):
    """Open a file of this kind as `load_splits` does."""

    def read(content: bytes, work: Path):
        path = work / f"input.{suffix}"
        path.write_bytes(content)
        open_and_check(path)

    return read


def folder_reader(name: str, make_files: Callable[[], dict[str, bytes]]):
    """Open a folder of files, of which the input is one."""

    def read(content: bytes, work: Path):
        folder = work / f"input-{name}"
        if not folder.exists():
            for other, other_content in make_files().items():
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                (folder / other).write_bytes(other_content)
        (folder / name).unlink(missing_ok=True)  # an earlier input may still be mapped into memory
        (folder / name).write_bytes(content)
        open_and_check(folder)

    return read


def open_and_check(path: Path):
    dataset = open_source(path, ReadOptions()).dataset
    assert set(dataset.column_names) == {"image", "label"}
    assert set(dataset["label"][:]) <= set(range(dataset.features["label"].num_classes))
    for row in dataset.cast_column("image", datasets.Image(decode=False)):
        assert row["image"] is None or set(row["image"]) == {"bytes", "path"}


SUFFIXES = {
    "idx": idx_seeds,
    "idx.gz": gz_seeds,
    "npy": npy_seeds,
    "npz": npz_seeds,
    "mat": mat_seeds,
    "csv": csv_seeds,
    "amat": amat_seeds,
    "parquet": parquet_seeds,
    "zip": zip_seeds,
    "tar": tar_seeds,
}
TARGETS = {"cdb": (cdb_seeds, read_cdb), "image": (image_seeds, read_image)}
TARGETS |= {suffix: (seeds, reader_of(suffix)) for suffix, seeds in SUFFIXES.items()}
IMAGE_FILES = {name: content for name, content in archive_files().items() if name.endswith(".png")}
TARGETS["metadata.csv"] = metadata_seeds, folder_reader("metadata.csv", lambda: IMAGE_FILES)
TARGETS["metadata.jsonl"] = jsonl_seeds, folder_reader("metadata.jsonl", lambda: IMAGE_FILES)
TARGETS |= {
    name: (lambda name=name: [saved_files()[name]], folder_reader(name, saved_files))
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")
}


# --- mutations ----------------------------------------------------------------------------------------------------


def fix_png(content: bytes) -> bytes:
    """Right checksums for the chunks of a PNG."""
    fixed, start = bytearray(content), 8
    while start + 12 <= len(fixed):
        end = start + 8 + int.from_bytes(fixed[start : start + 4], "big")  # of the chunk's data
        if end + 4 <= len(fixed):
            fixed[end : end + 4] = zlib.crc32(fixed[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(fixed)


def mutate(content: bytes, corpus: list[bytes], rng: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        start = rng.randrange(len(mutant) + 1)
        if len(mutant) > 1024 and rng.random() < 0.5:  # not always in the empty header of a .cdb file
            start = rng.choice((rng.randrange(12), 522, 1024 + rng.randrange(len(mutant) - 1024)))
        stop = min(len(mutant), start + rng.choice((1, 2, 4, 16, 64)))
        kind = rng.randrange(7)
        if kind == 0 and start < len(mutant):
            mutant[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            size, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
            mutant[start : start + size] = (rng.choice(ODD_NUMBERS) % 256**size).to_bytes(size, order)
        elif kind == 3:
            del mutant[start:stop]
        elif kind == 4:
            mutant[start:start] = mutant[start:stop] * rng.choice((1, 2, 50))
        elif kind == 5:
            del mutant[rng.randrange(len(mutant) + 1) :]
        else:
            other = rng.choice(corpus)
            mutant[start:] = other[rng.randrange(len(other) + 1) :]
    mutant = bytes(mutant[:20_000])
    return fix_png(mutant) if mutant.startswith(b"\x89PNG") and rng.random() < 0.5 else mutant


# --- the loop -----------------------------------------------------------------------------------------------------


class Coverage:
    """Steps from line to line in the package's readers, of all inputs so far."""

    def __init__(self):
        self.steps: set[tuple[str, int, int]] = set()

    def run(self, function, *arguments):
        """Call a function and note its steps."""
        sys.settrace(self._trace_call)
        try:
            function(*arguments)
        finally:
            sys.settrace(None)

    def _trace_call(self, frame, event, arg):
        name = frame.f_code.co_filename.rpartition("/")[2]
        if name not in READERS:
            return None
        last = frame.f_lineno

        def trace_line(frame, event, arg):
            nonlocal last
            self.steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return trace_line

        return trace_line


def describe(error: Exception) -> str:
    """Its kind, where it was raised, and its message."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"[:200]


def fuzz(name: str, seconds: float, num_inputs: int, work: Path, seed: int) -> dict:
    """Run a target for so long and so many inputs at least."""
    make_seeds, read = TARGETS[name]
    corpus, coverage, rng = make_seeds(), Coverage(), random.Random(seed)
    num_seeds, count, counts, unexpected, slowest = len(corpus), 0, Counter(read=0, refused=0), Counter(), 0.0
    began = time.monotonic()
    while count < num_inputs + num_seeds or time.monotonic() - began < seconds:
        content = corpus[count] if count < num_seeds else mutate(rng.choice(corpus), corpus, rng)
        steps_before, started = len(coverage.steps), time.monotonic()
        faulthandler.dump_traceback_later(SECONDS_PER_INPUT, exit=True)
        try:
            coverage.run(read, content, work)
            counts["read"] += 1
        except DataError:
            counts["refused"] += 1
        except Exception as error:  # everything else is what is looked for
            problem = describe(error)
            if problem not in unexpected:
                (work / f"unexpected-{name}-{len(unexpected)}").write_bytes(content)
                print(name, problem, flush=True)
            unexpected[problem] += 1
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.monotonic() - started)
        if len(coverage.steps) > steps_before and count >= num_seeds:
            corpus.append(content)
        count += 1
    return {
        "inputs": count,
        "seconds": time.monotonic() - began,
        **counts,
        "unexpected": unexpected,
        "corpus": len(corpus),
        "steps_covered": len(coverage.steps),
        "slowest_input_seconds": slowest,
    }


def main():
    parser = benchmark_parser(__doc__, "fuzz.json")
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together, at least")
    parser.add_argument("--inputs", type=int, default=100_000, help="for all targets together, at least")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where inputs are written; default: a temporary folder")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of damage that it can live with
    logging.disable()
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + EXTRA_MEMORY,) * 2)
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    datasets.config.HF_DATASETS_CACHE = work / "cache"  # of what was unpacked
    datasets.disable_progress_bars()
    share = len(args.targets)
    results = {n: fuzz(n, 60 * args.minutes / share, args.inputs // share, work, args.seed) for n in args.targets}
    results["inputs"] = sum(results[name]["inputs"] for name in args.targets)
    results["unexpected"] = sum(sum(results[name]["unexpected"].values()) for name in args.targets)
    results["peak_resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(results, indent=2))
    write_results(results, args.output)
    raise SystemExit(f"error: unexpected exceptions; the inputs are in {work}" if results["unexpected"] else 0)


if __name__ == "__main__":
    main()
