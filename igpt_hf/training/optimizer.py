"""The optimizer of the recipe: Muon for the matrices of the blocks, AdamW for everything else."""

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Move the singular values of matrices near 1, by five Newton-Schulz steps: (n, rows, columns) -> the same.

    The quintic x -> a x + b x**3 + c x**5, applied to a matrix, acts on its singular values; these coefficients
    (Jordan 2024, https://kellerjordan.github.io/posts/muon/) bring all but the smallest between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices  # the smaller product x x^T
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is larger than this norm
    for _ in range(5):
        squares = x @ x.mT
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for many small matrices: those of one shape are worked on together.

    The step is that of `torch.optim.Muon`, which goes through the matrices one by one in bfloat16: several times
    slower where a model has many small ones.

    Args:
        matrices: Parameters with two dimensions.
        lr: Learning rate; a matrix with more rows than columns takes sqrt(rows / columns) of it.
        momentum: Of the moving average of gradients (with Nesterov's look ahead).
        weight_decay: Decoupled.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Update the matrices; those without a gradient stay. The closure is not supported."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = [parameter.grad for parameter in parameters]
                for parameter in parameters:
                    if "momentum_buffer" not in self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
                updates = orthogonalize(torch.stack(updates))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                step_size = group["lr"] * max(1, rows / columns) ** 0.5
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-step_size)


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) and AdamW (Loshchilov & Hutter 2019) as one optimizer.

    Muon replaces the gradient of a matrix by the nearest orthogonal matrix, so that a step changes all directions
    alike; embeddings, the head, gains and biases go to AdamW. The parts share their parameter groups and
    state with this object, so that learning-rate schedules and checkpoints see one optimizer.

    Args:
        model: Its weight matrices in `layers` go to Muon.
        lr: Learning rate of AdamW.
        muon_lr: Learning rate of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Of Muon; what AdamW trains is not decayed.
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
        self.parts: list[Optimizer] = []  # what is frozen leaves one of the two nothing to train
        if matrices:
            self.parts.append(Muon(matrices, muon_lr, weight_decay=weight_decay))
        if others:
            self.parts.append(AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True))
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, defaults={"lr": lr})  # which a schedule may ask for
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


def muon_of_run(model: nn.Module, args) -> MuonAdamW:
    """Make the optimizer with the rates and decays of a run's `IGPTTrainingArguments`."""
    return MuonAdamW(
        model,
        args.learning_rate,
        args.muon_learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )


def average_weights(optimizer: Optimizer, decay: float):
    """Keep a moving average of the weights, updated after each step: average += (1 - decay) (weights - average).

    The average is smoother than the weights, which jump about while the learning rate is high (Polyak & Juditsky
    1992). It lives in the optimizer's state, so that checkpoints hold it. In the first steps it forgets faster, with
    decay (1 + n) / (10 + n) after n steps, for it would remember the random start.

    Args:
        optimizer: Of any kind; its `step` is extended.
        decay: Remembers about 1 / (1 - decay) steps.
    """

    @torch.no_grad()
    def update(optimizer, *args):
        group = optimizer.param_groups[0]
        group["averaged_steps"] = group.get("averaged_steps", -1) + 1
        weight = 1 - min(decay, (1 + group["averaged_steps"]) / (10 + group["averaged_steps"]))
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for p in parameters:
            if "average" not in optimizer.state[p]:
                optimizer.state[p]["average"] = p.detach().clone()
        averages = [optimizer.state[p]["average"] for p in parameters]
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], weight)

    optimizer.register_step_post_hook(update)


@torch.no_grad()
def swap_average(optimizer: Optimizer):
    """Exchange the weights and their average, exactly; a second call undoes the first."""
    for parameter, state in optimizer.state.items():
        weights = parameter.detach().clone()
        parameter.copy_(state["average"])
        state["average"].copy_(weights)
