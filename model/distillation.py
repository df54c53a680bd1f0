"""Few-step students of many-step teachers: the losses, for any networks.

First the student regresses where the teacher's own path from its noise ends (CausVid, Yin et al. 2025). Then it is trained on
what it makes itself, chunk by chunk with carried state (Self-Forcing, Huang et al. 2025): the distribution of its
videos is moved towards the teacher's by the difference of two denoisers, the teacher's and that of a critic which
keeps learning the student's distribution (distribution matching, Yin et al. 2024).

Letters: B batch, c latent channels, T latent frames, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from worldline.model.camera_embedding import CameraConditions
from worldline.model.chunks import chunk_spans
from worldline.model.diffusion import Velocity, clean_from_velocity, noised, shift_sigmas
from worldline.model.world_model import StreamState, WorldModel


@torch.no_grad()
def teacher_path(
    velocity: Velocity, start: Tensor, levels: Sequence[float], *, steps: int, num_clean: int
) -> Tensor:
    """States [len(levels), B, c, T, h, w] of the teacher's Euler path from noise, at the levels given (1 first, 0 last).

    Between two levels there are so many even steps that all together are about `steps`. The first `num_clean` frames of
    `start` are given clean and stay.
    """
    x, found = start, [start]
    for high, low in pairwise(levels):
        count = max(1, round(steps * (high - low)))
        for k in range(count):
            sigma = high + (low - high) * k / count
            sigmas = torch.full((len(x), x.shape[2]), sigma, device=x.device)
            sigmas[:, :num_clean] = 0
            moved = x + (low - high) / count * velocity(x, sigmas)
            x = torch.cat([start[:, :, :num_clean], moved[:, :, num_clean:]], dim=2)
        found.append(x)
    return torch.stack(found)


def self_forced(
    student: WorldModel,
    noise: Tensor,
    first: Tensor,
    text: Tensor,
    text_mask: Tensor,
    cameras: Sequence[CameraConditions | None],
    *,
    chunks: Sequence[int],
    levels: Sequence[float],
    exit_step: int,
    generator: torch.Generator,
) -> Tensor:
    """The student's own roll-out [B, c, T, h, w], left at step `exit_step` of its few, through which alone gradients go.

    Args:
        student: the chunk-causal model.
        noise: [B, c, T, h, w] that the chunks begin with.
        first: [B, c, 1, h, w] clean first latent frame.
        text: [B, L, text_channels].
        text_mask: [B, L] bool.
        cameras: conditions of each chunk.
        chunks: chunk index of each frame.
        levels: of the few steps, from 1 to 0.
        exit_step: index of the last step that is made, 0 to len(levels) - 2.
        generator: of the noise between steps, on the CPU.
    """
    state: StreamState | None = None
    made = []
    for (begin, end), conditions in zip(chunk_spans(chunks), cameras, strict=True):
        x = noise[:, :, begin:end]
        given = 1 if begin == 0 else 0
        x = torch.cat([first[:, :, :given], x[:, :, given:]], dim=2)
        for k in range(exit_step + 1):
            sigmas = torch.full((len(x), end - begin), levels[k], device=x.device)
            sigmas[:, :given] = 0
            with torch.set_grad_enabled(k == exit_step and torch.is_grad_enabled()):
                velocity, _ = student.stream(x, 1000 * sigmas, text, text_mask, conditions, state)
                clean = clean_from_velocity(x, velocity.to(x.dtype), sigmas)
            if k < exit_step:
                fresh = torch.randn(x.shape, generator=generator).to(x)
                sigmas = torch.full_like(sigmas, levels[k + 1])
                sigmas[:, :given] = 0
                x = noised(clean, fresh, sigmas)
        made.append(clean)
        with torch.no_grad():
            rest = torch.zeros(len(x), end - begin, device=x.device)
            _, state = student.stream(clean.detach(), 1000 * rest, text, text_mask, conditions, state)
    return torch.cat(made, dim=2)


def draw_matching_sigmas(
    count: int, num_frames: int, *, shift: float, num_clean: int, generator: torch.Generator
) -> Tensor:
    """[count, num_frames] levels at which teacher and critic look at a video: one a video, even before the shift, between
    0.02 and 0.98; 0 for given frames."""
    drawn = 0.02 + 0.96 * torch.rand(count, 1, generator=generator)
    sigmas = shift_sigmas(drawn, shift).repeat(1, num_frames)
    sigmas[:, :num_clean] = 0
    return sigmas


def matching_loss(sample: Tensor, teacher_clean: Tensor, critic_clean: Tensor, has_loss: Tensor) -> Tensor:
    """A scalar whose gradient by the sample is (critic - teacher) over the mean distance of sample and teacher.

    Denoised videos [B, c, T, h, w] of the same noised sample; has_loss [B, T] bool.
    """
    shown = has_loss[:, None, :, None, None].expand_as(sample)
    count = shown.sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1)
    distance = ((sample - teacher_clean).abs() * shown).sum(dim=(1, 2, 3, 4), keepdim=True) / count
    gradient = (critic_clean - teacher_clean) / distance.clamp_min(1e-6) * shown
    wanted = (sample - gradient).detach()
    return 0.5 * ((sample - wanted).square() * shown).sum() / count.sum()
