"""What a position is told: where tokens lie on the grid, the known ones around the next one, and the prompt."""

import math

import torch

from .configuration_igpt import IGPTConfig
from .tokens import tokens_on_grid


def neighborhood_offsets(radius: int) -> list[tuple[int, int]]:
    """(row, column) offsets of the tokens known before a token is predicted, within `radius`; nearest, (0, -1), last.

    With radius 0 only the token before, which is the paper's model.
    """
    if radius == 0:
        return [(0, -1)]
    square = [(row, column) for row in range(-radius, 1) for column in range(-radius, radius + 1)]
    return [(row, column) for row, column in square if row < 0 or column < 0]


def neighbor_index(
    position_ids: torch.Tensor, config: IGPTConfig, wraps: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the places in the sequence of each position's neighbors: the known tokens around the one that it predicts.

    Args:
        position_ids: (T,); position t predicts image token t, which is at t + 1 in the sequence.
        wraps: At the start of a row, the last token of the row above takes the place of the left neighbor. Then
            position t knows the token t - 1 in any case, and attention over positions up to t all tokens before t.

    Returns:
        The neighbors' places in the sequence, (T, K), never after t: causal; and whether they are inside the image.
    """
    grid = config.grid_size
    offsets = torch.tensor(neighborhood_offsets(config.neighborhood_radius), device=position_ids.device)  # (K, 2)
    rows = position_ids[:, None] // grid + offsets[:, 0]  # (T, K)
    columns = position_ids[:, None] % grid + offsets[:, 1]
    is_inside = (rows >= 0) & (columns >= 0) & (columns < grid)
    if wraps:
        is_inside[:, -1] = position_ids > 0  # the place of (0, -1) is right already
    return torch.where(is_inside, 1 + rows * grid + columns, 0), is_inside


def prompt_classes(prompts: torch.Tensor, config: IGPTConfig) -> torch.Tensor:
    """The classes that prompts ask for, `num_labels` for any: ids on whatever grid, of any shape -> the same shape."""
    return (prompts - config.vocab_size) % (config.num_labels + 1)


def ids_on_grid(input_ids: torch.Tensor, grid: int, config: IGPTConfig) -> torch.Tensor:
    """Move images from the first grid of blocks to another, and ask for their classes there: (n, 1 + N) -> the same.

    `grid` is from 0 to `num_grids - 1`; see `move_to_grid`.
    """
    if grid == 0:
        return input_ids
    prompts = input_ids[:, :1] + grid * (config.num_labels + 1)
    tokens = torch.from_numpy(tokens_on_grid(input_ids[:, 1:].cpu().numpy(), grid, config).astype("int64"))
    return torch.cat([prompts, tokens.to(prompts.device)], dim=1)


def with_start_token(input_ids: torch.Tensor, config: IGPTConfig) -> torch.Tensor:
    """The same sequences with the prompt of any class, on the same grid, in place of the prompt: (B, T) -> (B, T)."""
    prompts = input_ids[:, :1]
    start = prompts - prompt_classes(prompts, config) + config.num_labels
    return torch.cat([start, input_ids[:, 1:]], dim=1)


def context_ids(input_ids: torch.Tensor, position_ids: torch.Tensor, config: IGPTConfig) -> torch.Tensor:
    """Gather each position's input, the ids of its known neighbors and the prompt: (B, S), (T,) -> (B, T, K + 1).

    Args:
        input_ids: The whole sequence so far, prompt first.
        position_ids: All smaller than S.

    Returns:
        K token ids, `vocab_size` where a neighbor is outside the image, and the prompt's id.
    """
    index, is_inside = neighbor_index(position_ids, config, wraps=True)
    neighbors = torch.where(is_inside, input_ids[:, index], config.vocab_size)  # (B, T, K)
    prompt = input_ids[:, :1, None].expand(-1, len(position_ids), -1)  # (B, T, 1)
    return torch.cat([neighbors, prompt], dim=2)


def rotary_angles(position_ids: torch.Tensor, config: IGPTConfig) -> torch.Tensor:
    """Angles of rotary positions (Su et al. 2021, section 3.2) on the grid, in radians: (T,) -> (T, P).

    Of the P pairs of a head's channels, half rotate with the row of the predicted token and half with its column, by 1
    to 0.2 radians per step: 6 to 31 tokens for a full rotation. P is half the head size, rounded down to an even
    number.
    """
    pairs = config.hidden_size // config.num_attention_heads // 4  # for each direction
    speeds = torch.logspace(0, math.log10(0.2), pairs, dtype=torch.float32, device=position_ids.device)
    rows, columns = position_ids // config.grid_size, position_ids % config.grid_size
    return torch.cat([rows[:, None] * speeds, columns[:, None] * speeds], dim=1)


def rotary_cos_sin(position_ids: torch.Tensor, config: IGPTConfig) -> torch.Tensor:
    """Cosines and sines of `rotary_angles`: (T,) -> (2, T, P)."""
    angles = rotary_angles(position_ids, config)
    return torch.stack([angles.cos(), angles.sin()])
