"""Train the package's model with some of its modules replaced: an idea is tried here before it may enter the package.

    python benchmarks/variants.py --model positions swiglu --data digits.cdb --num_train_epochs 2

All other flags are those of scripts/train.py. An idea is a subclass of the module that it changes and a line in
CHANGES. A model with modules that are not its own runs on torch's operations alone, without the compiled kernels:
compare likelihoods, not minutes. Its checkpoints carry no code, and only this script reads them.
"""

import argparse
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from igpt_hf.model.layers_igpt import IGPTMLP, IGPTEmbeddings
from igpt_hf.model.modeling_igpt import IGPTBlock, IGPTForCausalImageModeling, IGPTModel
from igpt_hf.training import initial_model


TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "train.py"


class DenseBlock(IGPTBlock):
    """Hand on a weighted sum of all states so far, at first the block's own alone (Pagliardini et al. 2024)."""

    def __init__(self, config, layer_idx: int, states: list[torch.Tensor]):
        super().__init__(config, layer_idx)
        self.states = states  # shared by all blocks; empty between two passes
        self.is_first, self.is_last = layer_idx == 0, layer_idx == config.num_hidden_layers - 1
        self.depth_weights = nn.Parameter(torch.eye(layer_idx + 2)[-1])

    def forward(self, hidden_states, *args, **kwargs):
        if self.is_first:
            self.states[:] = [hidden_states]
        self.states.append(super().forward(hidden_states, *args, **kwargs))
        mixed = sum(weight * state for weight, state in zip(self.depth_weights, self.states, strict=True))
        if self.is_last:
            self.states.clear()
        return mixed


class PositionEmbeddings(IGPTEmbeddings):
    """An embedding for each position, as in the paper, not of row + column."""

    def __init__(self, config):
        super().__init__(config)
        self.row, self.column = None, None
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, context: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        rows = context + torch.tensor(self.first_rows, device=context.device)
        return self.context(rows).sum(dim=2) + self.position(position_ids)


class GatedMLP(IGPTMLP):
    """SwiGLU (Shazeer 2020), with two thirds of the hidden size: the same number of parameters."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config)
        size = config.intermediate_size * 2 // 3
        self.up_proj = nn.Linear(config.hidden_size, 2 * size)
        self.down_proj = nn.Linear(size, config.hidden_size)
        self.down_proj.is_residual_projection = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


# Name -> which modules are replaced, and by what; whole blocks come before their parts.
CHANGES = {
    "dense": ("layers", DenseBlock),
    "positions": ("embeddings", PositionEmbeddings),
    "swiglu": ("mlp", GatedMLP),
}


def replace_modules(model: IGPTModel, changes: Iterable[str]):
    """Put new modules, with new weights, in the place of the model's own."""
    config, wanted = model.config, set(changes)
    for place, kind in (value for name, value in CHANGES.items() if name in wanted):
        if place == "embeddings":
            model.embeddings = kind(config)
        elif place == "layers":
            states: list[torch.Tensor] = []
            model.layers = nn.ModuleList([kind(config, index, states) for index in range(config.num_hidden_layers)])
        else:
            for index, block in enumerate(model.layers):
                setattr(block, place, kind(config, index))


class VariantForCausalImageModeling(IGPTForCausalImageModeling):
    """The package's model, with the changes that the class attribute names."""

    changes: frozenset[str] = frozenset()

    def __init__(self, config):
        super().__init__(config)
        replace_modules(self.model, self.changes)
        self.model.post_init()  # the new weights begin as all others do

    def save_pretrained(self, *args, **kwargs):
        """Save weights and configuration without code."""
        PreTrainedModel.save_pretrained(self, *args, **kwargs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {kind.__doc__.splitlines()[0]}" for name, (_, kind) in CHANGES.items())
    parser.add_argument("--model", nargs="+", choices=CHANGES, required=True, metavar="CHANGE", help=listed)
    args, flags = parser.parse_known_args()
    VariantForCausalImageModeling.changes = frozenset(args.model)
    initial_model.MODELS["generation"] = VariantForCausalImageModeling
    sys.argv = [str(TRAIN), *flags]
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
