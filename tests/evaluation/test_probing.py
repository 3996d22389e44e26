"""Linear probes see the frozen hidden states of each layer, and no labels."""

import numpy as np
import torch

from igpt_hf.evaluation.linear_probe import layer_features, probe_layers


def test_features_are_the_average_hidden_states_of_each_layer_after_the_start_token(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=5)
    features = layer_features(model, ids, batch_size=2)
    assert features.shape == (model.config.num_hidden_layers + 1, 5, model.config.hidden_size)
    start = ids[:, :-1].clone()
    start[:, 0] = model.config.start_token_id
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(output)) for layer in model.model.layers
    ]
    with torch.no_grad():
        last = model.model(input_ids=start, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    assert np.allclose(features[1], seen[0].mean(1), atol=1e-5)
    assert np.allclose(features[-1], last.mean(1), atol=1e-5)  # after the final norm


def test_features_do_not_depend_on_the_prompt(tiny_model, random_ids):
    model = tiny_model()
    ids = random_ids(model.config, n=3)
    other = ids.clone()
    other[:, 0] = 16 + (ids[:, 0] - 16 + 1) % 3
    before = ids.clone()
    assert np.array_equal(layer_features(model, ids), layer_features(model, other))
    assert torch.equal(ids, before)  # nor are the ids changed


def test_the_probe_finds_the_layer_in_which_the_classes_are_apart():
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 3, n) for name, n in (("train", 300), ("validation", 100), ("test", 100))}
    features = {}
    for name, classes in labels.items():
        noise = rng.normal(size=(3, len(classes), 4))
        noise[1, :, :3] += 6 * np.eye(3)[classes]
        noise[1, :, 0] *= 1e4  # scales do not matter: they are standardized
        features[name] = noise
    layers = probe_layers(features, labels)
    assert [layer["layer"] for layer in layers] == [0, 1, 2]
    accuracies = [layer["test_accuracy"] for layer in layers]
    assert accuracies[1] > 0.97
    assert max(accuracies[0], accuracies[2]) < 0.6
    assert layers[0].keys() == {"layer", "train_accuracy", "validation_accuracy", "test_accuracy"}
