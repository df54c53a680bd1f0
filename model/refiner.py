"""The second stage: latents of a first one in, latents with their lost detail out (SANA-WM Sec. 3.4, App. A).

A flow that begins not in noise but in a noised first-stage latent, at level s0 = 0.909375:

    x_1 = (1 - s0) x_low + s0 eps,    x_t = (1 - a) x_high + a x_1 with a = sigma / s0,    v = (x_1 - x_high) / s0

so that dx / dsigma = v, and Euler steps from s0 to 0 lead from x_1 to x_high. The first frames are given clean as
reference: keys and values for all others, which they do not read (a chunk of their own), without loss. A whole clip is
refined in one pass, in which blocks read earlier ones at their own level; a stream block by block, in which the
earlier ones are done, in memory that does not grow: the first frame and a window of recent ones stay readable.

Letters: B batch, c latent channels, T latent frames, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from worldline.model.camera_embedding import CameraConditions
from worldline.model.diffusion import REFINER_SIGMA
from worldline.model.sampler import REFINER_SIGMAS, roll_out, sample_euler
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import WorldModel

STREAM_SPAN = AttentionSpan(sink_frames=1, window_frames=11)
"""What a block of a stream reads before it: SANA-WM's."""


def draw_sigmas(
    count: int, *, shift: float, start: float = REFINER_SIGMA, generator: torch.Generator | None = None
) -> Tensor:
    """[count] float32 levels of the shifted logit-normal law, truncated to (0, start]."""
    # The law's quantiles up to `start`: sigma = s l / (1 + (s - 1) l) with l the logistic of a normal.
    unshifted = torch.tensor(start / (shift - (shift - 1) * start), dtype=torch.float64)
    most = torch.special.ndtr(torch.logit(unshifted))
    share = 1 - torch.rand(count, generator=generator, dtype=torch.float64)  # in (0, 1]
    level = torch.special.ndtri(share * most).sigmoid()
    return (shift * level / (1 + (shift - 1) * level)).float()


def beginning(low: Tensor, noise: Tensor, *, start: float = REFINER_SIGMA) -> Tensor:
    """x_1 of first-stage latents."""
    return (1 - start) * low + start * noise


def blocks_of(chunks: Iterable[Tensor], first: int, rest: int) -> Iterator[Tensor]:
    """Latents [B, c, t, h, w] that come in chunks of any sizes, in a block of `first` frames and then blocks of `rest`, the
    last perhaps shorter; each as soon as its frames are there."""
    waiting: Tensor | None = None
    size = first
    for chunk in chunks:
        waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
        while waiting.shape[2] >= size:
            yield waiting[:, :, :size]
            waiting, size = waiting[:, :, size:], rest
    if waiting is not None and waiting.shape[2]:
        yield waiting


@torch.no_grad()
def refine(
    model: WorldModel,
    low: Tensor,
    noise: Tensor,
    reference: Tensor,
    text: Tensor,
    text_mask: Tensor,
    cameras: CameraConditions | None,
    *,
    chunks: Sequence[int],
    sigmas: Sequence[float] = REFINER_SIGMAS,
) -> Tensor:
    """Refined latents [B, c, T, h, w] of a whole clip.

    Args:
        model: the refiner.
        low: [B, c, T, h, w] of the first stage.
        noise: same shape.
        reference: [B, c, R, h, w], the clean first frames, which are kept.
        text: [B, L, text_channels].
        text_mask: [B, L] bool.
        cameras: of all T frames.
        chunks: chunk index of each frame; the reference's frames must be the first chunk.
        sigmas: levels from the beginning's to 0.
    """
    count = reference.shape[2]
    if list(chunks[:count]) != [chunks[0]] * count or (len(chunks) > count and chunks[count] == chunks[0]):
        raise ValueError(
            f"the {count} reference frames must be a chunk of their own, got chunks {list(chunks)}"
        )
    x = torch.cat([reference, beginning(low, noise, start=sigmas[0])[:, :, count:]], dim=2)
    table = torch.tensor(sigmas, dtype=torch.float64)[:, None].repeat(1, x.shape[2])
    table[:, :count] = 0

    def velocity(x: Tensor, levels: Tensor) -> Tensor:
        return model(x, 1000 * levels, text, text_mask, cameras, chunks=chunks).to(x.dtype)

    return sample_euler(velocity, x, table)


def refine_stream(
    model: WorldModel,
    low: Iterable[Tensor],
    noise: Iterable[Tensor],
    reference: Tensor,
    text: Tensor,
    text_mask: Tensor,
    cameras: Iterable[CameraConditions | None],
    *,
    sigmas: Sequence[float] = REFINER_SIGMAS,
) -> Iterator[Tensor]:
    """Refined latents block by block: first the reference [B, c, 1, h, w] itself, then a block for each of `low`.

    Each block [B, c, t, h, w] reads the refined ones before it, within the model's `AttentionSpan`; SANA-WM's has blocks of
    3, a window of 11 and the first frame as sink. `cameras`: the reference's, then each block's.
    """

    def starts() -> Iterator[Tensor]:
        yield reference
        for block, eps in zip(low, noise, strict=True):
            yield beginning(block, eps, start=sigmas[0])

    yield from roll_out(model, starts(), text, text_mask, cameras, sigmas=sigmas, first_frame=reference)
