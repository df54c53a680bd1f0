"""A refiner's run over the latents that generation makes: of a window at once, of a stream block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldline.annotate.camera import Intrinsics
from worldline.model.camera_embedding import CameraConditions
from worldline.model.chunks import chunk_causal
from worldline.model.refiner import STREAM_SPAN, blocks_of, refine, refine_stream
from worldline.model.rope import Grid
from worldline.model.world_model import conditions
from worldline.train.checkpoint import Run
from worldline.train.latent_encoder import autoencoder_key
from worldline.train.parallel import seeded_generator

if TYPE_CHECKING:
    from worldline.train.checkpoint import AnyAutoencoder

TakePoses = Callable[[int, int], Tensor]
"""The first latent frame of a block and their number in, the poses first_from_cam [B, F, 3, 4] of its raw frames out."""


class RunRefiner:
    """The second stage of generation."""

    def __init__(self, run: Run, autoencoder: AnyAutoencoder, *, device: str, streams: bool) -> None:
        """`streams`: blocks come one after the other; a refiner trained without a window then reads `STREAM_SPAN`, so
        that memory does not grow.

        Raises ValueError for a run of another stage, or one whose latents are of another autoencoder.
        """
        if run.model is None or run.config["kind"] != "refiner":
            raise ValueError(f"{run.path} is no run of the refiner stage")
        if autoencoder_key(run.autoencoder) != autoencoder_key(autoencoder):
            raise ValueError(f"{run.path} refines the latents of another autoencoder")
        self.model, self.device = run.model.to(device), device
        self.chunks: tuple[int, int] = (run.config["chunks"][0], run.config["chunks"][1])
        if streams and self.model.config.span.window_frames is None:
            self.model.read_span(STREAM_SPAN)

    def window(
        self,
        low: Tensor,
        poses: Tensor,
        lens: Intrinsics,
        text: Tensor,
        mask: Tensor,
        *,
        seed: int,
        start: int,
    ) -> Tensor:
        """Refined latents of a window [B, c, T, h, w] along poses [B, F, 3, 4]; `start`: its place in the video."""
        first, rest = self.chunks
        cameras = self._cameras(poses, lens, low, 0)
        return refine(
            self.model, low, self._noise(low, seed, start), low[:, :, :first], text, mask, cameras,
            chunks=chunk_causal(low.shape[2], first=first, rest=rest),
        )  # fmt: skip

    def stream(
        self,
        chunks: Iterator[Tensor],
        take_poses: TakePoses,
        lens: Intrinsics,
        text: Tensor,
        mask: Tensor,
        *,
        seed: int,
    ) -> Iterator[Tensor]:
        """Refined latents [B, c, t, h, w] in the refiner's blocks, each as soon as the chunks that hold it are there.

        `take_poses` is asked once for each block, in order.
        """
        blocks = blocks_of(chunks, *self.chunks)
        reference = next(blocks, None)
        if reference is None:
            return
        begin, current, is_over = 0, reference, False

        def low() -> Iterator[Tensor]:
            nonlocal begin, current, is_over
            for block in blocks:
                begin, current = begin + current.shape[2], block
                yield block
            is_over = True

        def noise() -> Iterator[Tensor]:
            while not is_over:
                yield self._noise(current, seed, begin)

        def cameras() -> Iterator[CameraConditions | None]:
            while True:
                yield self._cameras(take_poses(begin, current.shape[2]), lens, current, begin)

        yield from refine_stream(self.model, low(), noise(), reference, text, mask, cameras())

    def _cameras(self, poses: Tensor, lens: Intrinsics, low: Tensor, begin: int) -> CameraConditions | None:
        grid = Grid(num_frames=low.shape[2], height=low.shape[3], width=low.shape[4], first_frame=begin)
        with torch.autocast(torch.device(self.device).type, enabled=False):
            return conditions(self.model.config, poses, lens, grid)

    def _noise(self, low: Tensor, seed: int, start: int) -> Tensor:
        # A place of its own: the noise that the first stage began with is in its latents.
        return torch.randn(low.shape, generator=seeded_generator(seed, start, 1)).to(low)
