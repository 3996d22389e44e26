"""Compress images losslessly by a model, and decompress them: token ids -> bytes -> the same ids.

A range coder turns a token of probability p into about -log2 p bits, so that a file has about the bits of the images'
likelihood (on the first grid of a model that knows several). The decoder needs the very probabilities that the encoder
had. Therefore both call `run_batch`, which steps the same `Decoder` through the same images, whether their tokens are
known already or not:

    for each batch:
        for each position:
            probabilities of the next token, rounded to integers, for all images of the batch
            the range coder turns tokens into bits, or bits into tokens
            the tokens are pushed

The compiled kernels compute each image alone, in one order, whatever the batch and the number of threads. torch does
not promise that: there the batch is always of the size in the header, and runs on one thread.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import DataError, IGPTError
from ..model.decoder import Decoder
from ..model.input_checks import as_ids, check_ids, check_whole_images
from ..model.kernel_dispatch import is_sampler_usable, single_thread_of_torch
from .container import ARITHMETICS, COMPILED, MAGIC, MAX_BATCH_SIZE, TORCH, VERSION, Header, pack, unpack
from .rounding import PRECISION, integer_probabilities


BATCH_SIZE = 256  # Python's part of a step is small beside so many; their keys and values take 80 MB
# What of a configuration decides the probabilities, and the names of the classes.
DIGESTED = """
image_size patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
neighborhood_radius class_conditional_norm rms_norm_eps class_names
""".split()
OTHER_SUMS = (
    "the model's sums round differently here from where the file was written: decompress it on the same kind of "
    "processor, with the same versions of torch and numba."
)


def compress(model, input_ids: torch.Tensor, batch_size: int = BATCH_SIZE) -> bytes:
    """Compress images to about -log2 p(image | prompt) bits each, p on the first grid, and log2 of the number of
    classes.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: Prompts and tokens, (n, 1 + N). The prompts are kept: classes, or the start token where none is
            known.
        batch_size: Images that step together; the file keeps the number.

    Returns:
        The bytes of a file, as igpt_hf/codec/container.py describes it.

    Raises:
        ValueError: Ids that are not whole images.
        IGPTError: No images, a batch size out of range, weights that are NaN or infinite, or a device that does not
            compute the same twice.
    """
    config, input_ids = model.config, as_ids(input_ids)
    check_whole_images(input_ids, config)
    check_ids(input_ids, config)
    if model.training and config.attention_dropout:
        raise IGPTError("the model is in training mode, where dropout changes its probabilities: call model.eval().")
    if len(input_ids) == 0:
        raise IGPTError("there are no images to compress.")
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise IGPTError(f"batch_size must be between 1 and {MAX_BATCH_SIZE}, got {batch_size}.")
    ids, batch_size = input_ids.cpu().long(), min(batch_size, len(input_ids))
    classes = ids[:, 0] - config.vocab_size
    payload = _encode(model, ids, batch_size)
    header = Header(
        magic=MAGIC,
        version=VERSION,
        arithmetic=_arithmetic(model),
        precision=PRECISION,
        patch_size=config.patch_size,
        image_size=config.image_size,
        first_class=int(classes.min()),
        last_class=int(classes.max()),
        batch_size=batch_size,
        num_images=len(ids),
        num_bytes=len(payload),
        model_digest=model_digest(model),
        probe=_probe(model, batch_size),
        payload_checksum=zlib.crc32(payload),
        ids_checksum=_checksum(ids),
    )
    data = pack(header, payload)
    if header.arithmetic == TORCH:
        _check_repeatable(model, data)
    return data


def decompress(model, data: bytes, batch_size: int | None = None) -> torch.Tensor:
    """Turn what `compress` returned into the same ids, (n, 1 + N), or raise an error: never into others.

    Args:
        model: The model that it was compressed with.
        data: All bytes of the file.
        batch_size: Images that the compiled kernels take at once, at most the file's. The result does not depend on
            it.

    Raises:
        DataError: Not such a file, or one of another version, model or arithmetic; or it was cut off or changed.
    """
    header, payload = unpack(data)
    if batch_size is not None and batch_size < 1:
        raise IGPTError(f"batch_size must be at least 1, got {batch_size}.")
    _check_model(model, header)
    stream = import_range_coder()
    coder = stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
    num_classes = header.last_class - header.first_class + 1
    classes = np.full(header.num_images, header.first_class)
    if num_classes > 1:
        classes += coder.decode(stream.model.Uniform(num_classes), header.num_images)
    prompts = torch.from_numpy(classes).long()[:, None] + model.config.vocab_size

    def decode(position, probabilities):
        try:
            return coder.decode(stream.model.Categorical(perfect=False), probabilities)
        except AssertionError as error:  # constriction's, for bits that stand for no token
            raise DataError(OTHER_SUMS) from error

    batches = []
    with _reproducible(model), _progress("Decompressing", header.num_images) as progress:
        for part in prompts.split(header.batch_size):
            batches.append(run_batch(model, part, decode, header.batch_size, batch_size))
            progress.update(len(part))
    ids = torch.cat(batches)
    if _checksum(ids) != header.ids_checksum:
        raise DataError(OTHER_SUMS)
    return ids


def _encode(model, ids: torch.Tensor, batch_size: int) -> bytes:
    """The range coder's bits for the classes and then the tokens of all images, (n, 1 + N)."""
    stream = import_range_coder()
    coder, symbols = stream.queue.RangeEncoder(), ids.numpy().astype(np.int32)
    first_class, last_class = symbols[:, 0].min(), symbols[:, 0].max()
    if first_class < last_class:  # one class alone stands in the header
        coder.encode(symbols[:, 0] - first_class, stream.model.Uniform(last_class - first_class + 1))
    with _reproducible(model), _progress("Compressing", len(ids)) as progress:
        for start in range(0, len(ids), batch_size):
            tokens = symbols[start : start + batch_size, 1:]

            def encode(position, probabilities, tokens=tokens):
                coder.encode(tokens[:, position].copy(), stream.model.Categorical(perfect=False), probabilities)
                return tokens[:, position]

            run_batch(model, ids[start : start + batch_size, :1], encode, batch_size)
            progress.update(len(tokens))
    return coder.get_compressed().astype("<u4").tobytes()


@torch.no_grad()
def run_batch(
    model,
    prompts: torch.Tensor,
    code: Callable[[int, np.ndarray], np.ndarray],
    batch_size: int,
    step_size: int | None = None,
) -> torch.Tensor:
    """Step through the images of a batch, position by position: prompts (B, 1) -> ids (B, 1 + N).

    Args:
        code: code(position, probabilities) is called at each position and returns the tokens, (B,). The probabilities
            are in the units of constriction, float64 (B, V): whole numbers that sum to 2**24 - V, because it adds 1 to
            each. With this sum, its own scaling to 2**24 multiplies by exactly 1.
        batch_size: Images of the file's batches. torch always takes as many: the last image is repeated.
        step_size: Images that the compiled kernels take at once.

    Raises:
        IGPTError: Probabilities that are NaN.
    """
    count, num_tokens = len(prompts), model.config.num_image_tokens
    is_padded = _arithmetic(model) == TORCH
    rows = torch.arange(batch_size if is_padded else count).clamp(max=count - 1)
    step_size = len(rows) if is_padded or step_size is None else step_size
    parts = [part.to(model.device) for part in rows.split(step_size)]
    decoders = [Decoder(model, prompts.to(model.device)[part]) for part in parts]
    for position in range(num_tokens):
        logits = torch.cat([decoder.logits() for decoder in decoders])[:count].cpu().numpy()
        if not np.isfinite(logits).all():
            raise IGPTError("the probabilities of the next token are NaN: some weights are NaN or infinite.")
        tokens = torch.from_numpy(code(position, integer_probabilities(logits) - 1.0)).long().to(model.device)
        for decoder, part in zip(decoders, parts, strict=True):
            decoder.push(tokens[part])
    return torch.cat([decoder.input_ids for decoder in decoders])[:count].cpu()


# --- the same arithmetic --------------------------------------------------------------------------------------------


def model_digest(model) -> bytes:
    """16 bytes that two models share only if their weights, their shape and their classes are the same."""
    settings = {name: getattr(model.config, name) for name in DIGESTED}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()[:16]


def _arithmetic(model) -> int:
    """What a `Decoder` of this model computes with, as an index into ARITHMETICS."""
    return COMPILED if is_sampler_usable(model) else TORCH


def _probe(model, batch_size: int) -> int:
    """CRC-32 of the probabilities along one known image: where sums round differently, it differs."""
    config, checksum = model.config, 0
    tokens = np.arange(config.num_image_tokens) ** 2 % config.vocab_size

    def code(position, probabilities):
        nonlocal checksum
        checksum = zlib.crc32(probabilities.astype("<f8").tobytes(), checksum)
        return tokens[position : position + 1]

    with _reproducible(model):
        run_batch(model, torch.tensor([[config.start_token_id]]), code, batch_size)
    return checksum


def _checksum(ids: torch.Tensor) -> int:
    return zlib.crc32(ids.numpy().astype("<i8").tobytes())


def _check_model(model, header: Header):
    """Refuse a model or an arithmetic other than those that wrote the file, before anything is decoded."""
    if model_digest(model) != header.model_digest:
        raise DataError(
            f"the file was written with another model (of {header.image_size}x{header.image_size} images, digest "
            f"{header.model_digest.hex()[:8]}; this one's is {model_digest(model).hex()[:8]}). Name that model."
        )
    if _arithmetic(model) != header.arithmetic:
        remedy = (
            "Set the environment variable NUMBA_DISABLE_JIT=1, and use the device that wrote it"
            if header.arithmetic == TORCH
            else "Install numba, and leave the model as it is loaded: float32, on the CPU"
        )
        raise DataError(
            f"the file was written with the probabilities of {ARITHMETICS[header.arithmetic]}, and here they would be "
            f"those of {ARITHMETICS[_arithmetic(model)]}, which round differently. {remedy}."
        )
    if _probe(model, header.batch_size) != header.probe:
        raise DataError(OTHER_SUMS)


def _check_repeatable(model, data: bytes):
    """Decompress at once what torch has computed, since not every device computes the same twice."""
    try:
        decompress(model, data)
    except DataError as error:
        raise IGPTError(
            f"{model.device} did not compute the same probabilities twice, so that the file could not be read again: "
            "compress on the CPU."
        ) from error


def _reproducible(model) -> contextlib.AbstractContextManager[None]:
    """One thread for torch's sums, whose order may depend on the number of threads; kernels have one order."""
    return single_thread_of_torch() if _arithmetic(model) == TORCH else contextlib.nullcontext()


# --- what both directions need --------------------------------------------------------------------------------------


def import_range_coder():
    """constriction's module of range coders.

    Raises:
        IGPTError: It is not installed.
    """
    try:
        from constriction import stream
    except ModuleNotFoundError as error:
        raise IGPTError(
            "compress and decompress need constriction: pip install 'igpt_hf[codec]' (checkout: '.[codec]')."
        ) from error
    return stream


def _progress(what: str, count: int) -> tqdm:
    return tqdm(total=count, desc=what, unit=" images", delay=2, disable=None)
