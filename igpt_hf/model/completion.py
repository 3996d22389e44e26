"""Completion of any part of an image, and the likelihood of a part, by sequential Monte Carlo.

An image's tokens are sampled in raster order, so that known pixels that come first are simply given. For those that
come later, many particles grow side by side (Doucet & Johansen 2009, "A tutorial on particle filtering and smoothing",
section 4). At token t, with A the tokens that agree with the known pixels of its block, each particle does:

    weight = weight * p(A | prefix)                      how well the known pixels fit what it has sampled so far
    token ~ p(token | prefix) / p(A | prefix), in A      so that every particle keeps every known pixel

Where few particles hold most of the weight (effective sample size below half of them), particles are resampled: those
with large weights continue as several, those with small ones end. Since p(A | prefix) does not depend on the token
that is sampled next, this happens before the token is sampled, and copies can part at once.

Particles that have sampled the same tokens are one sequence of the decoder. Most tokens of an image are nearly
certain: there are far fewer sequences than particles.

A particle that is chosen by its weight at the end is a sample of p(image | known pixels, prompt), exactly so as the
number of particles grows. The product of the mean weights is an unbiased estimate of p(known pixels | prompt), for any
number of particles. Weights are kept as logarithms.
"""

import contextlib
import logging
import math

import torch

from .decoder import Decoder
from .kernel_dispatch import single_thread_of_torch


NUM_PARTICLES = 128
MAX_BYTES = 2**28  # of keys and values that are kept at a time, but at least those of one run
FEW_ANCESTORS = 2.0
logger = logging.getLogger(__name__)


def systematic_resampling(log_weights: torch.Tensor) -> torch.Tensor:
    """How often each particle continues: (R, P) log-weights -> counts (R, P) that sum to P in each row.

    One random number per row places P evenly spaced points on the cumulative weights: a count differs from
    P * weight by less than 1, and its mean is that.
    """
    num = log_weights.shape[1]
    cumulative = log_weights.softmax(1).cumsum(1) * num
    cumulative[:, -1] = num  # rounding may have missed it
    shift = torch.rand(len(log_weights), 1, dtype=log_weights.dtype, device=log_weights.device)
    return (cumulative - shift).ceil().clamp(0, num).long().diff(dim=1, prepend=torch.zeros_like(shift).long())


def effective_size(log_weights: torch.Tensor) -> torch.Tensor:
    """Effective sample size (sum of weights)**2 / sum of squared weights: (R, P) -> (R,)."""
    return 1 / log_weights.softmax(1).square().sum(1)


def log_mean_exp(log_weights: torch.Tensor) -> torch.Tensor:
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


class Particles:
    """R runs of P particles each, with their weights: float64, or float32 on a device without (Apple's MPS).

    Attributes:
        decoder: The different sequences among the particles of all runs.
        rows: Which of them each particle is, (R, P).
        log_weights: (R, P), since the last resampling.
        log_evidence: ln of the estimates of p(known pixels so far | prompt), (R,), up to the last resampling.
        ancestors: Which of its run's first particles each one descends from, (R, P).
    """

    def __init__(self, model, beginnings: torch.LongTensor, num_particles: int):
        runs, device = len(beginnings), beginnings.device
        sequences, rows = beginnings.unique(dim=0, return_inverse=True)
        self.decoder = Decoder(model, sequences, max_batch=runs * num_particles)
        self.rows = rows[:, None].expand(-1, num_particles)
        dtype = _widest_float(device)
        self.log_weights = torch.zeros(runs, num_particles, dtype=dtype, device=device)
        self.log_evidence = torch.zeros(runs, dtype=dtype, device=device)
        self.ancestors = torch.arange(num_particles, device=device).expand(runs, -1)

    def step(self, is_allowed: torch.Tensor):
        """Weigh, resample where that is needed, and sample the next token among those allowed, (R, V)."""
        runs, num = self.log_weights.shape
        log_probs = self.decoder.logits().to(self.log_weights.dtype).log_softmax(1)[self.rows]  # (R, P, V)
        log_probs = log_probs.masked_fill(~is_allowed[:, None], -math.inf)
        self.log_weights += log_probs.logsumexp(2)
        needs = effective_size(self.log_weights) < num / 2
        if needs.any():
            counts = torch.ones_like(self.rows)
            counts[needs] = systematic_resampling(self.log_weights[needs])
            self.log_evidence[needs] += log_mean_exp(self.log_weights[needs])
            self.log_weights[needs] = 0
            index = torch.arange(runs * num, device=counts.device).repeat_interleave(counts.flatten()).view(runs, num)
            self.ancestors, self.rows = self.ancestors.flatten()[index], self.rows.flatten()[index]
            log_probs = log_probs.flatten(0, 1)[index]
        cumulative = log_probs.softmax(2).cumsum(2)
        noise = torch.rand_like(cumulative[..., -1:]) * cumulative[..., -1:]
        self._push((cumulative <= noise).sum(2))

    def _push(self, tokens: torch.LongTensor):
        """Append a token to each particle, (R, P); those that are still equal stay one sequence."""
        vocab_size = self.decoder.logits().shape[1]
        continued, self.rows = (self.rows * vocab_size + tokens).unique(return_inverse=True)
        self.decoder.reorder(continued // vocab_size)
        self.decoder.push(continued % vocab_size)

    def choose(self) -> torch.Tensor:
        """One particle of each run by its weight: the sequences so far, (R, 1 + tokens)."""
        chosen = torch.multinomial(self.log_weights.softmax(1), 1)
        return self.decoder.input_ids[self.rows.gather(1, chosen)[:, 0]]

    def num_ancestors(self) -> torch.Tensor:
        """Effective number of the first particles that the last ones descend from, (R,)."""
        weights = torch.zeros_like(self.log_weights).scatter_add(1, self.ancestors, self.log_weights.softmax(1))
        return 1 / weights.square().sum(1)


@torch.no_grad()
def run_particles(model, prompts, known_tokens, known_masks, num_particles: int):
    """Run particles up to the last known pixel: an independent run for each row.

    Args:
        prompts: (R, 1).
        known_tokens, known_masks: Tokens, and which of their bits are known, (R, N).
        num_particles: In each run.

    Yields:
        Of several runs at a time: a sequence that one particle has sampled, (r, 1 + tokens); the estimate of
        ln p(known pixels | prompt), (r,); and how many of the run's first particles its last ones descend from, (r,).
    """
    config = model.config
    size = 2 * 4 * config.num_hidden_layers * config.hidden_size * config.num_image_tokens  # bytes of keys and values
    for rows in torch.arange(len(prompts)).split(max(1, MAX_BYTES // (size * num_particles))):
        tokens, masks = known_tokens[rows], known_masks[rows]
        is_given = (masks == config.vocab_size - 1).all(0)  # (N,)
        start = int(is_given.long().cumprod(0).sum())
        end = int((masks.any(0) * torch.arange(1, 1 + masks.shape[1], device=masks.device)).max())
        ids = torch.cat([prompts[rows], tokens[:, :start]], dim=1)
        log_p = _log_likelihood_of_beginnings(model, ids)
        if end <= start:  # nothing is known but the beginning: one particle would do, and ln p is exact
            yield ids, log_p, torch.full_like(log_p, num_particles)
            continue
        particles = Particles(model, ids, num_particles)
        vocabulary = torch.arange(config.vocab_size, device=ids.device)
        # Torch's other threads would keep a core from the kernel's, while they wait for the next small operation.
        with single_thread_of_torch() if particles.decoder.is_compiled else contextlib.nullcontext():
            for place in range(start, end):
                differs = (vocabulary ^ tokens[:, place, None]) & masks[:, place, None]  # (r, V)
                particles.step(differs == 0)
        log_p = log_p + particles.log_evidence + log_mean_exp(particles.log_weights)
        yield particles.choose(), log_p, particles.num_ancestors()


def warn_of_few_ancestors(ancestors: torch.Tensor, num_particles: int):
    """Log a warning where the known pixels hardly fit what the model samples before them.

    Args:
        ancestors: Of several runs, (R,).
    """
    few = int((ancestors < FEW_ANCESTORS).sum())
    if few:
        logger.warning(
            "%d of %d runs: the particles at the end descend from effectively %.1f of %d. The known pixels hardly fit "
            "the class, or come after much that is unknown: pass a larger num_particles.",
            few,
            len(ancestors),
            ancestors.min(),
            num_particles,
        )


def _log_likelihood_of_beginnings(model, ids: torch.LongTensor) -> torch.Tensor:
    """ln p(given tokens | prompt), exact: (R, 1 + tokens) -> (R,), float64."""
    if ids.shape[1] == 1:
        return torch.zeros(len(ids), dtype=_widest_float(ids.device), device=ids.device)
    log_probs = model(input_ids=ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1).to(_widest_float(ids.device)).sum(1)


def _widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
