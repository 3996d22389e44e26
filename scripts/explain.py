"""Explain one prediction of an Image GPT, step by step, with all its numbers.

    python scripts/explain.py                   # the fifth token of a 6x6 image
    python scripts/explain.py --position 7      # another token

The model has random weights and is so small that each vector fits in a line: 6x6 pixels, 9 tokens, embedding dimension
4, one layer, one head. Each step is computed here from the weights and compared with what the model itself computes.
"""

import argparse

import numpy as np
import torch

from igpt_hf import IGPTConfig, IGPTError, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.cli import run_main
from igpt_hf.model.layers_igpt import apply_rotary
from igpt_hf.model.neighborhood import context_ids, neighbor_index, neighborhood_offsets, rotary_angles, rotary_cos_sin


DRAWING = """
..##..
.#..#.
.#..#.
.#..#.
.#..#.
..##..
"""
IMAGE = np.array([[pixel == "#" for pixel in row] for row in DRAWING.split()], np.uint8)
LABEL = 1
CLASSES = torch.tensor(LABEL)  # as norms take it, for one image


def tiny_model() -> IGPTForCausalImageModeling:
    """Two classes, and random weights everywhere, also where training starts from zero."""
    config = IGPTConfig(
        image_size=6, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, neighborhood_radius=1, num_labels=2
    )
    model = IGPTForCausalImageModeling(config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=generator)
    return model


def show(name: str, vector: torch.Tensor):
    print(f"  {name:<34} " + " ".join(f"{x:7.3f}" for x in vector.tolist()))


def heading(text: str):
    print(f"\n{text}\n{'-' * len(text)}")


def explain_tokens(processor, tokens: torch.Tensor):
    heading("1. The image becomes tokens")
    grid = tokens.view(3, 3).tolist()
    for line, pixels in enumerate(DRAWING.split()):
        told = f"     tokens {grid[line // 2]}" if line % 2 == 0 else ""
        print(f"  {pixels[0:2]} {pixels[2:4]} {pixels[4:6]}{told}")
    block = IMAGE[0:2, 2:4].ravel().tolist()
    terms = " + ".join(f"{bit}*{2**k}" for k, bit in enumerate(block))
    print(f"  A token is a block of 2x2 pixels, read as a number: the second is {terms} = {grid[0][1]}.")
    print("  So there are 2**4 = 16 tokens, and none of the image is lost.")
    assert np.array_equal(processor.decode_pixels(tokens[None])[0], IMAGE)


def explain_embedding(model, ids: torch.Tensor, t: int) -> torch.Tensor:
    heading(f"2. What position {t} is told")
    config, embeddings = model.config, model.model.embeddings
    print(f"  The sequence is [prompt] + tokens: {ids.tolist()}; {ids[0].item()} asks for class {LABEL}.")
    print(f"  Position {t} predicts token {t}, which is {ids[t + 1].item()}. It is told the known tokens around it:")
    context = context_ids(ids[None], torch.tensor([t]), config)[0, 0]
    *neighbors, prompt = context.tolist()
    vectors = embeddings.context.weight[context + torch.tensor(embeddings.first_rows)]  # (K + 1, C)
    for (row, column), token, vector in zip(neighborhood_offsets(1), neighbors, vectors[:-1], strict=True):
        what = "outside" if token == config.vocab_size else f"token {token}"
        show(f"row {row:+d}, column {column:+d}: {what}", vector)
    show(f"the prompt, {prompt}", vectors[-1])
    row, column = divmod(t, config.grid_size)
    row_vector, column_vector = embeddings.row.weight[row], embeddings.column.weight[column]
    show(f"row {row}", row_vector)
    show(f"column {column}", column_vector)
    hidden = vectors.sum(0) + row_vector + column_vector
    show("h = their sum", hidden)
    return hidden


def explain_attention(model, hidden: torch.Tensor, t: int) -> torch.Tensor:
    """All positions' hidden states (T, C) go in, since attention reads those before; position t's comes out."""
    heading("3. Attention: the positions up to this one")
    layer = model.model.layers[0]
    normed = layer.attention_norm(hidden, CLASSES)
    show("n = h / rms(h) * gain of the class", normed[t])
    query, key, value = layer.attention.qkv_proj(normed).chunk(3, dim=-1)  # (T, C) each
    show("query = W_q n + b_q", query[t])
    positions = torch.arange(len(hidden))
    angles, cos_sin = rotary_angles(positions, model.config), rotary_cos_sin(positions, model.config)
    query, key = apply_rotary(query[None, None], cos_sin)[0, 0], apply_rotary(key[None, None], cos_sin)[0, 0]
    print(f"  Position {t} rotates channels 0 and 2 by its row, 1 and 3 by its column: {angles[t].tolist()}.")
    show("query, rotated (as are the keys)", query[t])
    scores = key[: t + 1] @ query[t] * layer.attention.scaling
    weights = scores.softmax(0)
    show("scores = keys . query / sqrt(4)", scores)
    show("weights = softmax(scores)", weights)
    print(f"  Positions after {t} have no weight: the mask is causal, or the model could see what it is to predict.")
    attended = weights @ value[: t + 1]
    show("weighted sum of the values", attended)
    places, is_inside = neighbor_index(torch.tensor([t]), model.config)
    near = value[places[0]] * is_inside[0, :, None]  # (K, C)
    mixed = (near * layer.attention.local_mixing.weight.T).sum(0)
    show("local mixing of the neighbors", mixed)
    hidden = hidden[t] + layer.attention.out_proj(attended + mixed)
    show("h = h + W_o (both) + b_o", hidden)
    return hidden


def explain_mlp(model, hidden: torch.Tensor) -> torch.Tensor:
    heading("4. The MLP")
    layer = model.model.layers[0]
    inner = layer.mlp.up_proj(layer.mlp_norm(hidden, CLASSES))
    inner = inner * (1.702 * inner).sigmoid()
    show(f"{len(inner)} numbers: z sigmoid(1.702 z) with z = W_1 n + b_1, first 8", inner[:8])
    hidden = hidden + layer.mlp.down_proj(inner)
    show("h = h + W_2 (...) + b_2", hidden)
    return hidden


def explain_prediction(model, hidden: torch.Tensor, ids: torch.Tensor, t: int):
    heading("5. Logits, probabilities, nats")
    logits = model.lm_head(model.model.norm(hidden, CLASSES))
    probabilities, token = logits.softmax(0), ids[t + 1].item()
    for first in (0, 8):
        show(f"logits of tokens {first} to {first + 7}", logits[first : first + 8])
        show("  their probabilities", probabilities[first : first + 8])
    nats = -probabilities[token].log().item()
    print(f"  Token {token} came: probability {probabilities[token]:.4f}, so -ln p = {nats:.4f} nats.")
    expected = model(input_ids=ids[None]).logits[0, t]
    assert torch.allclose(logits, expected, atol=1e-5), "this page and the model disagree"
    print("  (The model computes the same logits, to 1e-5.)")


def explain_sum(model, ids: torch.Tensor):
    heading("6. The whole image")
    nats = -model.token_log_likelihoods(ids[None])[0]
    for t, value in enumerate(nats.tolist()):
        print(f"  token {t}: {ids[t + 1].item():2d}   probability {np.exp(-value):.4f}   nats {value:.4f}")
    labels = ids.clone()
    labels[0] = -100  # the prompt is given, not predicted
    loss = model(input_ids=ids[None], labels=labels[None]).loss.item()
    total, reported = nats.sum().item(), -model.log_likelihood(ids[None]).item()
    print(f"  Sum: {total:.4f} nats. model.log_likelihood says {-reported:.4f}.")
    print(f"  The loss is their mean, {loss:.4f} nats per token; times {len(nats)} tokens: {loss * len(nats):.4f}.")
    print(f"  Probability of the image given its class: exp(-{total:.4f}) = {np.exp(-total):.3e}.")
    print(f"  In bits per pixel: {total:.4f} / (36 ln 2) = {total / (36 * np.log(2)):.4f}.")
    assert abs(total - reported) < 1e-4 and abs(loss * len(nats) - total) < 1e-4


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--position", type=int, default=4, help="which token is predicted, from 0 to 8")
    t = parser.parse_args().position
    if not 0 <= t <= 8:
        raise IGPTError(f"--position must lie between 0 and 8, got {t}.")
    model = tiny_model()
    processor = IGPTImageProcessor(image_size=6, num_labels=2)
    ids = processor(IMAGE, class_labels=[LABEL])["input_ids"][0]  # (1 + 9,)

    explain_tokens(processor, ids[1:])
    everywhere = model.model.embeddings(context_ids(ids[None], torch.arange(9), model.config), torch.arange(9))[0]
    hidden = explain_embedding(model, ids, t)
    assert torch.allclose(hidden, everywhere[t], atol=1e-6)
    hidden = explain_attention(model, everywhere, t)
    hidden = explain_mlp(model, hidden)
    explain_prediction(model, hidden, ids, t)
    explain_sum(model, ids)


if __name__ == "__main__":
    run_main(main)
