"""Exports that run without PyTorch: one decoding step as ONNX, and the weights of the page in docs/demo."""

import base64
import copy
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from ..errors import IGPTError
from ..model.kernel_dispatch import BETAS
from ..model.modeling_igpt import IGPTForCausalImageModeling
from ..model.neighborhood import context_ids


# --- ONNX -----------------------------------------------------------------------------------------------------------


class DecodingStep(nn.Module):
    """The model as a function of plain tensors: the logits of one token, and the cache that the next step needs."""

    def __init__(self, model: IGPTForCausalImageModeling):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, keys: torch.Tensor, values: torch.Tensor):
        """Predict the token after `input_ids`; L layers, H heads, D head size.

        Args:
            input_ids: The prompt and all tokens so far, int64 (B, S).
            keys, values: Of the positions before the last, float32 (L, B, H, S - 1, D).

        Returns:
            Logits (B, V), and keys and values with one position more, (L, B, H, S, D).
        """
        cache = DynamicCache()
        for index in range(len(keys)):
            cache.update(keys[index], values[index], index)
        last = input_ids.shape[1] - 1
        position = torch.arange(last, last + 1)
        outputs = self.model(
            input_ids=input_ids[:, -1:],
            position_ids=position[None],
            past_key_values=cache,
            context=context_ids(input_ids, position, self.model.config),
            use_cache=True,
        )
        new_keys, new_values = (torch.stack([getattr(x, name) for x in cache.layers]) for name in ("keys", "values"))
        return outputs.logits[:, -1], new_keys, new_values


def empty_cache(config, batch_size: int) -> torch.Tensor:
    """Keys, or values, before the first step: (L, B, H, 0, D)."""
    heads = config.num_attention_heads
    return torch.zeros(config.num_hidden_layers, batch_size, heads, 0, config.hidden_size // heads)


def export_onnx(model: IGPTForCausalImageModeling, path: str | Path):
    """Write `DecodingStep` as an ONNX file, in which batch size and length are free.

    Raises:
        IGPTError: The extra `onnx` is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise IGPTError(
            "ONNX export needs more packages: pip install 'igpt_hf[onnx]', or in a checkout pip install -e '.[onnx]'."
        )
    config, past, batch = model.config, torch.export.Dim("past"), torch.export.Dim("batch")
    shape = (config.num_hidden_layers, 2, config.num_attention_heads, 5, empty_cache(config, 2).shape[-1])
    cache_shape = {1: batch, 3: past}
    example = (torch.full((2, 6), 1), torch.zeros(shape), torch.zeros(shape))
    program = torch.onnx.export(
        DecodingStep(model).eval(),
        example,
        dynamo=True,
        verbose=False,
        input_names=["input_ids", "keys", "values"],
        output_names=["logits", "new_keys", "new_values"],
        dynamic_shapes={"input_ids": {0: batch, 1: past + 1}, "keys": cache_shape, "values": cache_shape},
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the code each came from: five sixths of the file
    program.save(path)


# --- the page -------------------------------------------------------------------------------------------------------

# What docs/demo/igpt.js reads of the configuration.
PAGE_CONFIG = """image_size patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    neighborhood_radius class_conditional_norm rms_norm_eps num_labels vocab_size id2label""".split()
# The address of the project's pages, once it has one: links into docs/ lead there from the pages of other models.
# Until then they are plain text.
PROJECT: str | None = None


def upper_bytes(weights: torch.Tensor) -> bytes:
    """The upper 3 of the 4 bytes of each float32, rounded to nearest, the most significant first.

    That keeps 15 bits behind the point, a relative error of 2**-16, and is 4 characters of base64.
    """
    bits = weights.float().numpy().ravel().view(np.uint32) + np.uint32(0x80)
    return bits.astype(">u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def copy_page(folder: Path):
    """Copy the page without weights, from inside the installed package or from the repository, into a new folder.

    What it links to in docs/ is on the pages of the project, at `PROJECT`.
    """
    package = Path(__file__).resolve().parents[1]
    page = next(path for path in (package / "demo", package.parent / "docs" / "demo") if path.is_dir())
    shutil.copytree(page, folder, ignore=shutil.ignore_patterns("weights.js"))
    index = folder / "index.html"
    link = rf'<a href="{PROJECT}/\1.html">\2</a>' if PROJECT else r"\2"
    index.write_text(re.sub(r'<a href="\.\./(\w+)\.md">(.*?)</a>', link, index.read_text("utf-8")), "utf-8")


def page_script(model: IGPTForCausalImageModeling, subject: str = "images") -> str:
    """Configuration and weights as the JavaScript that docs/demo/index.html reads, weights.js.

    A script, not a binary file: a page that was opened from a folder may read no other. The page knows the first grid.

    Args:
        subject: What the model draws, in the plural, for the page's first sentence.

    Raises:
        IGPTError: An activation that the page does not know, or NaN or infinite weights.
    """
    if model.config.num_grids > 1:
        model = copy.deepcopy(model)
        model.set_grids(1)
    if model.config.hidden_act not in BETAS:
        known = ", ".join(BETAS)
        raise IGPTError(f"docs/demo/igpt.js knows hidden_act {known}, not {model.config.hidden_act!r}: add it there.")
    tensors = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise IGPTError(f"{name} has NaN or infinite values: the training diverged, export another checkpoint.")
    checkpoint = {
        "subject": subject,
        "config": {name: getattr(model.config, name) for name in PAGE_CONFIG},
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "weights": base64.b64encode(b"".join(map(upper_bytes, tensors.values()))).decode(),
    }
    return f"const CHECKPOINT = {json.dumps(checkpoint, separators=(',', ':'))};\n"
