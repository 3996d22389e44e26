"""The optimizer of the recipe: Muon for the matrices of the blocks, AdamW for everything else."""

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) and AdamW (Loshchilov & Hutter 2019) as one optimizer.

    Muon replaces the gradient of a matrix by the nearest orthogonal matrix, so that a step changes all directions
    alike; embeddings, the head, gains and biases are no such matrices. The parts share their parameter groups and
    state with this object, so that learning-rate schedules and checkpoints see one optimizer.

    Args:
        model: Its weight matrices in `layers` go to Muon.
        lr: Learning rate of AdamW.
        muon_lr: Learning rate of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Of both, on matrices only.
    """

    def __init__(self, model: nn.Module, lr: float, muon_lr: float, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        modules = dict(model.named_modules())

        def is_block_matrix(name: str) -> bool:
            return (
                ".layers." in f".{name}"
                and isinstance(modules[name.rpartition(".")[0]], nn.Linear)
                and "bias" not in name
            )

        matrices = [parameter for name, parameter in trained if is_block_matrix(name)]
        others = [parameter for name, parameter in trained if not is_block_matrix(name)]
        muon = Muon(matrices, lr=muon_lr, weight_decay=weight_decay)
        adamw = AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True)
        self.parts = (muon, adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self):
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()


__all__ = ["MuonAdamW"]
