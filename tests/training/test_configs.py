"""The settings in configs/ are ones that train.py knows, and those for MNIST run on MNIST."""

import pytest
import yaml

from helpers.paths import MNIST, ROOT
from helpers.scripts import results_of, run_python
from igpt_hf.training.arguments import parse_arguments


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_line_of_a_config_is_a_flag_with_its_value(path):
    data, config, args = parse_arguments(["--config", str(path), "--bf16", "false"])
    known = vars(data) | vars(config) | vars(args)
    settings = yaml.safe_load(path.read_text())
    assert {name: known[name] for name in settings.keys() - {"bf16"}} == {
        name: value for name, value in settings.items() if name != "bf16"
    }


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not here: {MNIST}")
@pytest.mark.parametrize("preset", ["xs", "s"])
def test_the_configs_for_mnist_train(preset, tmp_path):
    command = [ROOT / "scripts" / "train.py", "--config", ROOT / "configs" / f"mnist-{preset}.yaml", "--data", MNIST]
    command += ["--output_dir", tmp_path / "run", "--bf16", "false", "--max_steps", 1, "--max_images", 60]
    command += ["--per_device_train_batch_size", 8, "--num_hidden_layers", 1, "--image_size", 14]
    run_python(*command)
    assert results_of(tmp_path / "run")["validation_nats_per_image"] < 600
