"""Flow matching: noise levels, the noised input, the velocity target and the loss; shared by training and
sampling.

    x_sigma = (1 - sigma) x_0 + sigma eps        velocity v = eps - x_0        x_0 = x_sigma - sigma v

Every latent frame has its own sigma, so that image-to-video (first frame clean), chunk-causal training (one
level a chunk) and plain clips are one case. Timesteps are 1000 sigma.

Letters: B batch, c latent channels, T latent frames, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.model.chunks import chunk_spans

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Noised latents [B, c, T, h, w] and sigmas [B, T] in, velocity [B, c, T, h, w] out."""

REFINER_SIGMA = 0.909375
"""Where SANA-WM's refiner starts: the share of noise in its input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """The distribution of training noise levels."""

    shift: float = 9.95
    """Moves levels towards noise, sigma' = s sigma / (1 + (s - 1) sigma): long clips are redundant, so that
    low levels teach
    little. 9.95 is SANA-WM's, with a mean level of 0.88."""
    clean_first_frame: float = 0.9
    """Share of clips whose first latent frame is given clean and bears no loss (image-to-video)."""
    same: float = 0.1
    """Share of clips with one level for all chunks. The four shares are those of SANA-WM's chunk-causal
    stage.
    """
    incremental: float = 0.4
    """Share whose levels rise from chunk to chunk, as they do in staggered sampling."""
    last_anchor: float = 0.4
    """Share whose last chunk has the drawn level and the earlier ones any lower level."""
    clean_prefix: float = 0.1
    """Share whose first chunks, any number but all, are clean, as in a roll-out."""

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if not 0 <= self.clean_first_frame <= 1:
            raise ValueError(f"clean_first_frame is a probability, got {self.clean_first_frame}")
        if min(self.chunk_shares) < 0 or abs(sum(self.chunk_shares) - 1) > 1e-6:
            raise ValueError(f"the shares of the chunk schedules must add up to 1, got {self.chunk_shares}")

    @property
    def chunk_shares(self) -> tuple[float, float, float, float]:
        """Shares of (same, incremental, last_anchor, clean_prefix)."""
        return (self.same, self.incremental, self.last_anchor, self.clean_prefix)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevels:
    """Noise levels of a batch."""

    sigmas: Tensor
    """[B, T] in [0, 1]"""
    has_loss: Tensor
    """[B, T] bool, False for frames given clean."""


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Moves levels in [0, 1] towards 1 for shift > 1; the ends stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def draw_levels(
    batch: int,
    chunks: Sequence[int],
    config: FlowConfig,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> NoiseLevels:
    """Random levels for clips with these chunks; one chunk gives one level a clip."""
    num_chunks = len(chunk_spans(chunks))

    def logit_normal(count: int) -> Tensor:
        normal = torch.randn(batch, count, generator=generator, device=device)
        return shift_sigmas(normal.sigmoid(), config.shift)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    drawn = logit_normal(num_chunks)  # [B, chunks]
    level, position = drawn[:, :1], torch.arange(num_chunks, device=device)
    schedules = torch.stack(
        [
            level.expand(-1, num_chunks),
            drawn.sort(dim=1).values,
            torch.where(position == num_chunks - 1, level, level * uniform(batch, num_chunks)),
            torch.where(position < (uniform(batch, 1) * num_chunks).floor(), 0.0, level),
        ]
    )  # [4, B, chunks]
    ends = torch.tensor(config.chunk_shares, device=device).cumsum(0)[:-1]
    which = torch.bucketize(uniform(batch), ends)
    per_chunk = schedules[which, torch.arange(batch, device=device)]
    lengths = torch.tensor([stop - start for start, stop in chunk_spans(chunks)], device=device)
    sigmas = per_chunk.repeat_interleave(lengths, dim=1)

    given = torch.zeros_like(sigmas, dtype=torch.bool)
    given[:, 0] = uniform(batch) < config.clean_first_frame
    sigmas = sigmas.masked_fill(given, 0.0)
    return NoiseLevels(sigmas=sigmas, has_loss=sigmas > 0)


def noised(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_sigma of latents [B, c, T, h, w] at levels [B, T]."""
    sigmas = _per_frame(sigmas, clean)
    return (1 - sigmas) * clean + sigmas * noise


def clean_from_velocity(x: Tensor, velocity: Tensor, sigmas: Tensor) -> Tensor:
    """The model's x_0 from its input x_sigma, its velocity and the levels [B, T]."""
    return x - _per_frame(sigmas, x) * velocity


def flow_error(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, [B, T]."""
    return (velocity - (noise - clean)).float().square().mean(dim=(1, 3, 4))


def flow_loss(velocity: Tensor, clean: Tensor, noise: Tensor, has_loss: Tensor) -> Tensor:
    """Mean error over the frames that bear loss, a scalar; 0 where none does."""
    return (flow_error(velocity, clean, noise) * has_loss).sum() / has_loss.sum().clamp_min(1)


def guided(velocity: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance; 1 is no guidance."""
    return unconditional + guidance * (velocity - unconditional)


def refiner_pair(
    low: Tensor, high: Tensor, noise: Tensor, sigmas: Tensor, *, start: float = REFINER_SIGMA
) -> tuple[Tensor, Tensor]:
    """Input and velocity target of the refiner, whose flow runs from a noised first-stage latent to the
    target.

    Args:
        low: first-stage latents [B, c, T, h, w].
        high: target latents, same shape.
        noise: same shape.
        sigmas: [B, T] in (0, start].
        start: level of the flow's beginning, where the state is (1 - start) low + start noise.
    """
    beginning = (1 - start) * low + start * noise
    share = _per_frame(sigmas, low) / start
    return (1 - share) * high + share * beginning, (beginning - high) / start


def _per_frame(sigmas: Tensor, x: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1] in x's dtype."""
    return sigmas.to(x.dtype)[:, None, :, None, None]
