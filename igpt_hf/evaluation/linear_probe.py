"""Linear probes: how much a frozen model's layers know about the classes (section 3.3 of the paper)."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from ..model.neighborhood import with_start_token


@torch.no_grad()
def layer_features(model, input_ids: torch.Tensor, batch_size: int = 128) -> np.ndarray:
    """Average the hidden states of each layer over the sequence: (n, 1 + N) -> (layers + 1, n, C), float32.

    Layer 0 is the embeddings, layer l the output of block l, the last one after the final norm. The prompt is replaced
    by the start token, so that no class can leak in; the last token, which is predicted and not read, is left out.

    Args:
        model: With a base model `model.model`, an `IGPTModel`.
        input_ids: Whole images; their prompts do not matter.
        batch_size: Images at a time.
    """
    features = []
    for chunk in tqdm(input_ids.split(batch_size), desc="Hidden states", unit="batch", delay=2, disable=None):
        chunk = with_start_token(chunk[:, :-1].to(model.device, torch.long), model.config)
        hidden = model.model(input_ids=chunk, use_cache=False, output_hidden_states=True).hidden_states
        features.append(torch.stack([states.float().mean(dim=1) for states in hidden]).cpu())
    return torch.cat(features, dim=1).numpy()


def probe_layers(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> list[dict]:
    """Fit logistic regression (L-BFGS) on the standardized features of each layer of the training split.

    Args:
        features: By split (`train`, `validation`, `test`), (layers + 1, n, C).
        labels: By split, (n,).

    Returns:
        For each layer its number and the accuracy on each split.
    """
    results = []
    for layer in tqdm(range(len(features["train"])), desc="Probes", unit="layer", delay=2, disable=None):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(features["train"][layer], labels["train"])
        scores = {f"{name}_accuracy": float(probe.score(features[name][layer], labels[name])) for name in features}
        results.append({"layer": layer, **scores})
    return results
