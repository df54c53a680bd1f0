"""Samplers: noise and a velocity function in, latents out; schedules of noise levels; streaming roll-out.

A schedule is a table of levels [steps + 1, T], one column a latent frame. A frame that is given clean has a
column of zeros, a chunk that starts later a column that stays at 1 for longer; so plain, image-to-video and
staggered sampling are one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from worldline.model.camera_embedding import CameraConditions
from worldline.model.chunks import chunk_spans
from worldline.model.diffusion import Velocity, clean_from_velocity, guided, noised, shift_sigmas
from worldline.model.world_model import StreamState, WorldModel

DISTILLED_SIGMAS = (1.0, 0.960, 0.889, 0.727, 0.0)
"""Levels of the four-step distilled SANA-WM, and the end."""

REFINER_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""Levels of SANA-WM's three-step refiner, and the end; its sampler is `sample_euler`."""

SAMPLING_SHIFT = 3.0
"""Of the levels our own runs sample at; fewer steps are spent on nearly clean latents."""

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its index and the latents."""


# Schedules


def even_schedule(num_steps: int, num_frames: int, *, shift: float, num_clean: int = 0) -> Tensor:
    """Levels [steps + 1, T] from 1 to 0, evenly spaced before the shift; the first `num_clean` frames stay
    at 0.
    """
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift)
    table = sigmas[:, None].repeat(1, num_frames)
    table[:, :num_clean] = 0
    return table


def staggered_schedule(
    num_steps: int, chunks: Sequence[int], *, shift: float, interval: float | None = None, num_clean: int = 0
) -> Tensor:
    """Levels where each chunk starts `interval` of a full schedule after the one before: earlier chunks are
    always cleaner.

    A chunk takes `num_steps` steps, all together (1 + (chunks - 1) interval) times as many, rounded up. The
    default interval is 1 / chunks.
    """
    spans = chunk_spans(chunks)
    interval = 1 / len(spans) if interval is None else interval
    total = 1 + (len(spans) - 1) * interval
    rows = torch.arange(int(-(-num_steps * total // 1)) + 1, dtype=torch.float64) / num_steps
    table = torch.zeros(len(rows), len(chunks), dtype=torch.float64)
    for index, (start, stop) in enumerate(spans):
        progress = (rows - index * interval).clamp(0, 1)
        table[:, start:stop] = shift_sigmas(1 - progress, shift)[:, None]
    table[-1] = 0
    table[:, :num_clean] = 0
    return table


# Samplers


def sample_euler(velocity: Velocity, x: Tensor, table: Tensor, *, on_step: OnStep | None = None) -> Tensor:
    """Euler steps of the flow from x [B, c, T, h, w] down the schedule [steps + 1, T]."""
    levels = table.to(x.device)
    for i in range(len(levels) - 1):
        change = (levels[i + 1] - levels[i]).to(x.dtype)[:, None, None]
        x = x + change * velocity(x, levels[i].float().expand(x.shape[0], -1))
        if on_step is not None:
            on_step(i, x)
    return x


def sample_few_steps(
    velocity: Velocity, x: Tensor, table: Tensor, *, generator: torch.Generator, on_step: OnStep | None = None
) -> Tensor:
    """For distilled models: jump to the clean latents, then noise them afresh to the next level of [steps +
    1, T].
    """
    levels = table.to(x.device)
    for i in range(len(levels) - 1):
        sigmas = levels[i].float().expand(x.shape[0], -1)
        clean = clean_from_velocity(x, velocity(x, sigmas), sigmas)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = noised(clean, noise, levels[i + 1].expand(x.shape[0], -1))
        if on_step is not None:
            on_step(i, x)
    return x


def with_guidance(conditional: Velocity, unconditional: Velocity, guidance: float) -> Velocity:
    """The velocity with classifier-free guidance; without a second call at guidance 1."""
    if guidance == 1:
        return conditional
    return lambda x, sigmas: guided(conditional(x, sigmas), unconditional(x, sigmas), guidance)


# Roll-out


@torch.no_grad()
def roll_out(
    model: WorldModel,
    noise: Iterable[Tensor],
    text: Tensor,
    text_mask: Tensor,
    cameras: Iterable[CameraConditions | None],
    *,
    sigmas: Sequence[float],
    generator: torch.Generator | None = None,
    first_frame: Tensor | None = None,
) -> Iterator[Tensor]:
    """Latents [B, c, T, h, w] chunk by chunk, for as long as `noise` and `cameras` last.

    All steps of a chunk start from the state before it; a last pass at level 0 makes the state that goes
    on. Memory does not grow with the number of chunks while the model's `AttentionSpan` has a window.

    Args:
        model: the transformer.
        noise: starting noise of each chunk.
        text: [B, L, text_channels].
        text_mask: [B, L] bool.
        cameras: conditions of each chunk; made one at a time, so that they can follow a live control.
        sigmas: levels of a chunk from 1 to 0.
        generator: with it, steps re-noise (distilled models); without it they are Euler steps.
        first_frame: [B, c, 1, h, w] clean latent of the first frame, None to make it too.
    """
    state: StreamState | None = None
    for start, conditions in zip(noise, cameras, strict=False):
        num_frames = start.shape[2]
        table = torch.tensor(sigmas, dtype=torch.float64)[:, None].repeat(1, num_frames)
        x = start
        if state is None and first_frame is not None:
            x = torch.cat([first_frame, start[:, :, 1:]], dim=2)
            table[:, 0] = 0

        def velocity(
            x: Tensor,
            levels: Tensor,
            conditions: CameraConditions | None = conditions,
            state: StreamState | None = state,
        ) -> Tensor:
            return model.stream(x, 1000 * levels, text, text_mask, conditions, state)[0]

        if generator is None:
            if table.any():  # a chunk that is given whole has nowhere to go
                x = sample_euler(velocity, x, table)
        else:
            x = sample_few_steps(velocity, x, table, generator=generator)
        clean = torch.zeros(x.shape[0], num_frames, device=x.device)
        _, state = model.stream(x, clean, text, text_mask, conditions, state)
        yield x
