"""Compress images by a model, beside PNG, WebP, TIFF Group 4, zip and xz: bytes, and images per second.

    python benchmarks/codec.py                                               # bundled model, synthetic digits
    python benchmarks/codec.py runs/hoda --data digits.cdb --output codec.json

PNG, WebP and TIFF are measured twice: a file per image, and sheets of 500 images, in which headers weigh nothing and
the codec learns from the images above. zip (Deflate) and xz (LZMA) take the bits of all images at once, 8 pixels to a
byte. The codecs keep no classes, the model's file does: "-log2 p" is what that should take. One thread.
"""

import argparse
import lzma
import math
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from harness import write_results
from igpt_hf.codec.coder import compress, decompress
from igpt_hf.codec.images import read_images
from igpt_hf.evaluation.codecs import codec_bits
from igpt_hf.hub.bundled import DEFAULT_MODEL, bundled
from igpt_hf.hub.loading import load_pretrained


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=bundled(DEFAULT_MODEL), help="default: the bundled persian-digits")
    parser.add_argument("--data", default="synthetic", help="as in igpt train")
    parser.add_argument("--max_images", type=int, help="take only the first")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def ideal_bits(model, input_ids: torch.Tensor) -> float:
    """Sum of -log2 p(image | prompt), and log2 of the number of classes for each prompt."""
    prompts = input_ids[:, 0]
    num_classes = (prompts.max() - prompts.min() + 1).item()
    with torch.no_grad():
        log_p = sum(model.token_log_likelihoods(part).double().sum().item() for part in input_ids.split(256))
    return -log_p / math.log(2) + len(input_ids) * math.log2(num_classes)


def measure_model(model, input_ids: torch.Tensor) -> dict[str, float]:
    """Compress and decompress once, after a warm-up; bytes, bits and seconds."""
    compress(model, input_ids[:2])
    began = time.perf_counter()
    data = compress(model, input_ids)
    compressed = time.perf_counter()
    decoded = decompress(model, data)
    seconds = compressed - began, time.perf_counter() - compressed
    if not torch.equal(decoded, input_ids):
        raise AssertionError("the images are not the same")
    bits = ideal_bits(model, input_ids)
    return {
        "bytes": len(data),
        "ideal_bytes": bits / 8,
        "ratio": 8 * len(data) / bits,
        "compressed_images_per_second": len(input_ids) / seconds[0],
        "decompressed_images_per_second": len(input_ids) / seconds[1],
    }


def other_bytes(pixels: np.ndarray) -> dict[str, float]:
    """Bytes of all images, (n, height, width) of 0/1, by other codecs."""
    raw = np.packbits(pixels.reshape(len(pixels), -1), axis=1).tobytes()
    sizes: dict[str, float] = {"raw bits": len(raw)}
    for codec, bits in codec_bits(pixels).items():
        sizes |= {f"{codec}, {how.replace('_', ' ')}": len(pixels) * bits[how] / 8 for how in bits}
    return sizes | {"zip": len(zlib.compress(raw, 9)), "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    model, processor = load_pretrained(args.model)
    input_ids = read_images(model, processor, [args.data])[: args.max_images]
    own = measure_model(model, input_ids)
    sizes = other_bytes(processor.decode_pixels(input_ids))
    rows = {"igpt compress": own["bytes"], "-log2 p": own["ideal_bytes"], **sizes}
    print(f"{len(input_ids):,} images of {args.data}")
    print(f"{'':24}{'bytes':>12}{'bits/image':>12}{'times':>8}")
    for name, size in rows.items():
        print(f"{name:24}{size:12,.0f}{8 * size / len(input_ids):12.1f}{size / own['bytes']:8.2f}")
    speeds = (own[f"{name}_images_per_second"] for name in ("compressed", "decompressed"))
    print("compressed {:.0f} images/s, decompressed {:.0f} images/s, on one thread".format(*speeds))
    if args.output is not None:
        write_results({"data": args.data, "num_images": len(input_ids), **own, "other_bytes": sizes}, args.output)


if __name__ == "__main__":
    main()
