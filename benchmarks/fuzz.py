"""Throw damaged files at the readers of `.cdb` files and pictures: a result or a DataError, and nothing else.

    python benchmarks/fuzz.py --minutes 10 --output fuzz.json

Mutates small valid files: flipped bits, odd numbers, parts removed, doubled, joined with other files; checksums of PNG
are fixed half of the time, so that the damage comes through to the decoder. Inputs that reach new lines of the
package's readers are mutated further (coverage-guided, by `sys.settrace`). Every input goes through what training does
with it. A crash of the interpreter or an input that takes longer than ten seconds ends the script with a traceback and
leaves the input in `--work`; memory is limited, so that a blow-up is a MemoryError.
"""

import argparse
import faulthandler
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image

from igpt_hf import DataError, IGPTImageProcessor
from igpt_hf.data import decoding, tokenized
from igpt_hf.data.sources import hoda
from igpt_hf.model import image_decision, image_ink, image_processing_igpt, image_reading


READERS = {Path(module.__file__).name for module in (decoding, hoda, image_decision, image_ink)}
READERS |= {Path(module.__file__).name for module in (image_processing_igpt, image_reading)}
SECONDS_PER_INPUT, EXTRA_MEMORY = 10, 3 * 2**30
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
    """A small picture in many formats and modes."""
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
        picture = gray.convert("RGB") if mode == "LAB" else gray
        picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture
        buffer = io.BytesIO()
        (picture if picture.mode == mode or mode == "LAB" else picture.convert(mode)).save(buffer, format_, **options)
        seeds.append(buffer.getvalue())
    return seeds


# --- what is done with an input -----------------------------------------------------------------------------------


def read_cdb(content: bytes, work: Path):
    path = work / "input.cdb"
    path.write_bytes(content)
    images, labels = hoda.read_cdb(path)
    assert len(images) == len(labels)
    assert all(image.ndim == 2 and image.size for image in images)


def read_image(content: bytes, work: Path):
    (work / "input.image").write_bytes(content)
    picture = decoding.decode_image({"bytes": content, "path": None})
    for processor in PROCESSORS:
        tokens = tokenized.tokenize_batch({"image": [picture]}, [0], "train", processor, "tokens")["tokens"]
        assert tokens.shape == (1, processor.num_image_tokens)
        assert tokens.max() < processor.vocab_size


TARGETS = {"cdb": (cdb_seeds, read_cdb), "image": (image_seeds, read_image)}


# --- mutations ----------------------------------------------------------------------------------------------------


def mend_png(content: bytes) -> bytes:
    """Right checksums for the chunks of a PNG."""
    fixed, offset = bytearray(content), 8
    while offset + 12 <= len(fixed):
        length = int.from_bytes(fixed[offset : offset + 4], "big")
        end = offset + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[offset + 4 : end]).to_bytes(4, "big")
        offset = end + 4
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
    return mend_png(mutant) if mutant.startswith(b"\x89PNG") and rng.random() < 0.5 else mutant


# --- the loop -----------------------------------------------------------------------------------------------------


class Coverage:
    """Steps from line to line in the package's readers, of all inputs so far."""

    def __init__(self):
        self.known, self.new = set(), set()

    def run(self, function) -> bool:
        """Whether the function made a step that none made before it."""
        self.new = set()
        sys.settrace(self._trace_call)
        try:
            function()
        finally:
            sys.settrace(None)
            is_new = not self.new <= self.known
            self.known |= self.new
        return is_new

    def _trace_call(self, frame, event, arg):
        name = frame.f_code.co_filename.rpartition("/")[2]
        if name not in READERS:
            return None
        last = frame.f_lineno

        def trace_line(frame, event, arg):
            nonlocal last
            self.new.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return trace_line

        return trace_line


def fuzz(name: str, seconds: float, num_inputs: int, work: Path, seed: int) -> dict:
    """Run a target for so long and so many inputs at least."""
    make_seeds, read = TARGETS[name]
    corpus, coverage, rng = make_seeds(), Coverage(), random.Random(seed)
    seeds, count, counts, unexpected, slowest = len(corpus), 0, {"read": 0, "refused": 0}, {}, 0.0
    began = time.monotonic()
    while count < num_inputs + seeds or time.monotonic() - began < seconds:
        content = corpus[count] if count < seeds else mutate(rng.choice(corpus), corpus, rng)
        size_before, started = len(coverage.known), time.monotonic()
        faulthandler.dump_traceback_later(SECONDS_PER_INPUT, exit=True)
        try:
            coverage.run(lambda content=content: read(content, work))
            counts["read"] += 1
        except DataError:
            counts["refused"] += 1
        except Exception as error:  # everything else is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"[:200]
            if key not in unexpected:
                (work / f"unexpected-{name}-{len(unexpected)}").write_bytes(content)
                print(name, key, flush=True)
            unexpected[key] = unexpected.get(key, 0) + 1
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.monotonic() - started)
        if len(coverage.known) > size_before and count >= seeds:
            corpus.append(content)
        count += 1
    return {
        "inputs": count,
        "seconds": time.monotonic() - began,
        **counts,
        "unexpected": unexpected,
        "corpus": len(corpus),
        "steps_covered": len(coverage.known),
        "slowest_input_seconds": slowest,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for both targets together, at least")
    parser.add_argument("--inputs", type=int, default=100_000, help="for both targets together, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where inputs are written; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("fuzz.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of damage that it can live with
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + EXTRA_MEMORY,) * 2)
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    results = {n: fuzz(n, 30 * args.minutes, args.inputs // 2, work, args.seed) for n in TARGETS}
    results["inputs"] = sum(results[name]["inputs"] for name in TARGETS)
    results["unexpected"] = sum(sum(results[name]["unexpected"].values()) for name in TARGETS)
    results["peak_resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    raise SystemExit(f"error: unexpected exceptions; the inputs are in {work}" if results["unexpected"] else 0)


if __name__ == "__main__":
    main()
