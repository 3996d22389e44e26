"""Likelihoods: of whole images exact, of a part of an image estimated without bias."""

import torch

from .completion import NUM_PARTICLES, log_mean_exp, run_particles, warn_of_few_ancestors
from .configuration_igpt import IGPTConfig
from .input_checks import as_ids, check_ids, check_number, check_whole_images, to_double
from .masks import known_bits, read_masks
from .neighborhood import ids_on_grid
from .tokens import tokens_on_grid


class IGPTLikelihoodMixin:
    """What the model says of images: log-likelihoods, and the class by Bayes' rule."""

    config: IGPTConfig
    device: torch.device

    def token_log_likelihoods(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Log-probability of each image token given those before it and the prompt: (B, 1 + N) -> (B, N), in nats.

        With `num_grids` > 1 these are tokens on the grid of the prompt (`ids_on_grid`).

        Raises:
            ValueError: Ids that are not one prompt and the tokens of one image.
        """
        input_ids = as_ids(input_ids).to(self.device)
        check_whole_images(input_ids, self.config)
        check_ids(input_ids, self.config, any_grid=True)
        logits = self(input_ids=input_ids[:, :-1], use_cache=False).logits
        log_probs = logits.float().log_softmax(-1)  # (B, N, V)
        return log_probs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)

    @torch.no_grad()
    def log_likelihood(
        self, input_ids: torch.LongTensor, batch_size: int = 128, mask=None, num_particles: int = NUM_PARTICLES
    ) -> torch.Tensor:
        """Exact log-likelihood of whole images given their prompt: (n, 1 + N) -> (n,), natural log, float64.

        The chain rule: ln p(x | prompt) = sum over tokens of ln p(token | tokens before, prompt) (equation 1). Nats
        per image are the negative of this; bits per pixel divide them by `num_pixels * ln 2`.

        With `num_grids` > 1, ln of the mean of p on the grids. It is as exact, because moving an image loses nothing.
        Ids are those of the first grid.

        Args:
            mask: True (white) where a pixel is unknown: the result is an estimate of ln p(known pixels | prompt) by
                sequential Monte Carlo (completion.py), whose exponential is unbiased; exact where the known pixels are
                whole tokens at the beginning, and there is one grid. Booleans (h, w) or (n, h, w) of the size of the
                model's images, a PIL image, or a list of those.
            num_particles: For each image. More: less noise.

        Raises:
            ValueError: Ids that are not prompts and whole images, or masks of another size, type or number.
        """
        input_ids = as_ids(input_ids)
        if mask is not None:
            log_p, ancestors = self._log_likelihood_of_part(input_ids, mask, num_particles)
            warn_of_few_ancestors(ancestors, num_particles)
            return log_p
        return self._log_likelihoods(input_ids, input_ids[:, :1], batch_size)[:, 0]

    def _log_likelihoods(self, input_ids: torch.Tensor, prompts: torch.Tensor, batch_size: int) -> torch.Tensor:
        """ln p(image | prompt), the mean over the grids, of several prompts: (n, 1 + N), (n, P) -> (n, P), float64."""
        check_whole_images(input_ids, self.config)
        check_ids(torch.cat([prompts[:, :1], input_ids[:, 1:]], dim=1), self.config)
        on_grids = []
        for grid in range(self.config.num_grids):
            moved = ids_on_grid(input_ids, grid, self.config)
            of_prompts = (prompts + grid * (self.config.num_labels + 1)).unbind(dim=1)
            ids = [torch.cat([prompt[:, None], moved[:, 1:]], dim=1) for prompt in of_prompts]
            on_grids.append(torch.stack([self._log_likelihood_on_grid(x, batch_size) for x in ids], dim=1))
        return log_mean_exp(torch.stack(on_grids, dim=1))

    def _log_likelihood_on_grid(self, input_ids: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Log-likelihoods on the grid of the prompts: (n, 1 + N) -> (n,)."""
        chunks = [chunk.to(self.device, torch.long) for chunk in input_ids.split(batch_size) if len(chunk)]
        sums = [to_double(self.token_log_likelihoods(chunk)).sum(-1) for chunk in chunks]
        return torch.cat(sums) if sums else to_double(torch.empty(0, device=self.device))

    def _log_likelihood_of_part(self, input_ids, mask, num_particles: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The estimates of ln p(known pixels | prompt) and the numbers of ancestors, (n,) each."""
        check_whole_images(input_ids, self.config)
        check_ids(input_ids, self.config)
        check_number("num_particles", num_particles)
        bits = known_bits(read_masks(mask), self.config)
        if len(bits) not in (1, len(input_ids)):
            raise ValueError(f"{len(input_ids)} images and {len(bits)} masks: give as many, or one mask for all.")
        input_ids = input_ids.to(self.device, torch.long)
        log_p: list[torch.Tensor] = []
        ancestors: list[torch.Tensor] = []
        for grid in range(self.config.num_grids):
            ids, masks = ids_on_grid(input_ids, grid, self.config), tokens_on_grid(bits, grid, self.config)
            known = torch.from_numpy(masks).to(ids).expand(len(ids), -1)
            runs = run_particles(self, ids[:, :1], ids[:, 1:] & known, known, num_particles)
            for part, of_runs in zip((log_p, ancestors), zip(*(run[1:] for run in runs), strict=True), strict=True):
                part.append(torch.cat(of_runs))
        return log_mean_exp(torch.stack(log_p, dim=1)), torch.stack(ancestors).amin(dim=0)

    @torch.no_grad()
    def class_log_likelihoods(
        self, input_ids: torch.LongTensor, batch_size: int = 128, mask=None, num_particles: int = NUM_PARTICLES
    ) -> torch.Tensor:
        """Exact log-likelihood of each image under each class prompt: (n, 1 + N) -> (n, num_labels), float64.

        The prompt that `input_ids` comes with does not matter; `mask` and `num_particles` as in `log_likelihood`.
        """
        input_ids = as_ids(input_ids)
        prompts = self.config.vocab_size + torch.arange(self.config.num_labels, device=input_ids.device)
        if mask is None:
            return self._log_likelihoods(input_ids, prompts.expand(len(input_ids), -1), batch_size)
        columns = []
        for prompt in prompts:  # most classes hardly fit the known pixels, and that is the answer: no warning
            ids = torch.cat([prompt.expand(len(input_ids), 1), input_ids[:, 1:]], dim=1)
            columns.append(self._log_likelihood_of_part(ids, mask, num_particles)[0])
        return torch.stack(columns, dim=1)

    def class_posterior(
        self,
        input_ids: torch.LongTensor,
        prior=None,
        batch_size: int = 128,
        mask=None,
        num_particles: int = NUM_PARTICLES,
    ) -> torch.Tensor:
        """Probability of each class given the image, by Bayes' rule: (n, 1 + N) -> (n, num_labels), float64.

        p(y | x) = p(x | y) p(y) / sum over classes of the same.

        Args:
            prior: p(y), (num_labels,); uniform by default.
            mask, num_particles: As in `log_likelihood`: what an image of which only a part is seen could be.

        Raises:
            ValueError: A prior of another length, or one that is not a distribution.
        """
        log_joint = self.class_log_likelihoods(input_ids, batch_size, mask, num_particles)
        if prior is not None:
            prior = torch.as_tensor(prior, dtype=torch.float64, device=log_joint.device)
            is_distribution = prior.shape == (self.config.num_labels,) and bool((prior >= 0).all())
            if not (is_distribution and abs(prior.sum() - 1) <= 1e-6):
                raise ValueError(f"prior must be {self.config.num_labels} probabilities that sum to 1, got {prior}.")
            log_joint = log_joint + prior.log()
        return log_joint.softmax(dim=1)
