"""Differences of likelihoods are those of the same images."""

import json

import numpy as np
import pytest

from helpers.paths import BENCHMARKS
from helpers.scripts import run_python
from igpt_hf import bundled
from paired import difference


def test_the_error_is_that_of_the_differences():
    tokens, nats = np.zeros((4, 196)), np.array([10.0, 90.0, 40.0, 60.0])
    found = difference({"tokens": tokens, "nats": nats - [1, 1, 2, 0]}, {"tokens": tokens, "nats": nats})
    assert (found["difference"], found["first_is_lower"]) == (-1.0, 0.75)
    assert found["difference_stderr"] == pytest.approx(np.sqrt(2 / 3) / 2)
    with pytest.raises(ValueError, match="other images"):
        difference({"tokens": tokens + 1, "nats": nats}, {"tokens": tokens, "nats": nats})


@pytest.mark.slow
def test_a_model_differs_from_itself_by_nothing_gray_pixels_included(tmp_path):
    model = bundled("mnist-xxs")
    for name in ("a.npz", "b.npz"):
        flags = [model, "--data", "synthetic", "--output", tmp_path / "new" / name]
        run_python(BENCHMARKS / "paired.py", "nats", *flags)
    files = [tmp_path / "new" / "a.npz", tmp_path / "new" / "b.npz"]
    run_python(BENCHMARKS / "paired.py", "difference", *files, "--output", tmp_path / "paired.json")
    found = json.loads((tmp_path / "paired.json").read_text())
    assert (found["num_images"], found["difference"]) == (1000, 0.0)
    assert found["first"] == found["second"] > 0
