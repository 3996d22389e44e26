"""Metrics for Hugging Face `evaluate`, offline; those of one input can be combined.

```python
metric = evaluate.combine([Likelihood(), BitsPerPixel(num_pixels=784), BayesAccuracy()])
metric.compute(predictions=log_likelihoods, references=labels)  # (n, num_labels + 1), (n,)
```

`log_likelihoods` are those of each image under every prompt, in the order of the prompts' ids: the classes, then the
start token (`prompt_log_likelihoods`). `SampleQuality` compares features of samples with those of as many real images.
"""

import datasets
import evaluate
import numpy as np
import torch

from .likelihood import accuracy_stderr, likelihood_report, log_likelihoods


CITATION = "Chen et al. 2020, Generative Pretraining from Pixels"


def prompt_log_likelihoods(model, input_ids: torch.Tensor, batch_size: int = 128) -> np.ndarray:
    """ln p(image | prompt) for each class and, last, the start token: (n, 1 + N) -> (n, num_labels + 1), float64."""
    scores = log_likelihoods(model, input_ids, batch_size)
    return torch.cat([scores["classes"], scores["start"][:, None]], dim=1).numpy()


class _OfLikelihoods(evaluate.Metric):
    """Metrics of ln p(image | prompt), `predictions` (n, num_labels + 1), and the classes, `references` (n,).

    Args:
        prior: p(class), (num_labels,); uniform by default.
    """

    def __init__(self, prior=None, **kwargs):
        super().__init__(**kwargs)
        self.prior = prior

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=CITATION,
            inputs_description=_OfLikelihoods.__doc__,
            features=datasets.Features(features),
        )

    def _report(self, predictions, references, num_pixels: int = 1) -> dict:
        table = torch.tensor(np.asarray(predictions), dtype=torch.float64)
        num_labels = table.shape[1] - 1
        prior = torch.full((num_labels,), 1 / num_labels) if self.prior is None else torch.as_tensor(self.prior)
        scores = {"classes": table[:, :-1], "start": table[:, -1]}
        return likelihood_report(scores, torch.as_tensor(np.asarray(references)), prior, num_pixels)


class Likelihood(_OfLikelihoods):
    """Class-conditional, marginal and unconditional nats per image, and their standard errors."""

    def _compute(self, predictions, references) -> dict[str, float]:
        report = self._report(predictions, references)
        return {name: value for name, value in report.items() if name.startswith("nats_per_image")}


class BitsPerPixel(_OfLikelihoods):
    """Bits per pixel given the class.

    Args:
        num_pixels: Of an image (`config.num_pixels`).
    """

    def __init__(self, num_pixels: int, **kwargs):
        super().__init__(**kwargs)
        self.num_pixels = num_pixels

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"bits_per_pixel": self._report(predictions, references, self.num_pixels)["bits_per_pixel"]}


class BayesAccuracy(_OfLikelihoods):
    """Fraction of images whose class has the highest posterior, p(class) p(image | class), and its standard error."""

    def _compute(self, predictions, references) -> dict[str, float]:
        accuracy = self._report(predictions, references)["bayes_accuracy"]
        stderr = None if accuracy is None else accuracy_stderr(accuracy, len(references))  # one class
        return {"bayes_accuracy": accuracy, "bayes_accuracy_stderr": stderr}


class SampleQuality(evaluate.Metric):
    """FID (torchmetrics), precision, recall, density and coverage (prdc) of features, such as those of `LeNet`.

    `predictions` are the features of samples, `references` those of as many real images, (n, d) each. Hold the result
    beside that of two sets of n real images.
    """

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="Heusel et al. 2017 (FID); Naeem et al. 2020 (precision, recall, density, coverage)",
            inputs_description="",
            features=datasets.Features({"predictions": vector, "references": vector}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        fake, real = (
            torch.tensor(np.asarray(features), dtype=torch.float64) for features in (predictions, references)
        )
        from .sample_quality import fidelity  # needs the extra `eval`

        return fidelity(real, fake)
