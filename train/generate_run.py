"""Videos from our own training runs: `RunGenerator` for Python, `RunBackend` for `worldline generate --run`.

A run makes videos of the size, lens handling and frame spacing it was trained with: every `view.stride`-th pose of
a path becomes a frame. A bidirectional model knows one window of frames; a longer path is made window by window,
each beginning with the last frame made, its poses told relative to that frame. A chunk-causal model carries its
state from chunk to chunk instead.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.annotate.camera import Intrinsics, compose, invert
from worldline.datasets.clip_video import cover
from worldline.model.autoencoder import CausalAutoencoder, from_pixels, to_pixels
from worldline.model.camera_embedding import CameraConditions
from worldline.model.chunks import chunk_causal
from worldline.model.quantize import PACK
from worldline.model.rope import Grid
from worldline.model.sampler import (
    DISTILLED_SIGMAS,
    SAMPLING_SHIFT,
    even_schedule,
    roll_out,
    sample_euler,
    staggered_schedule,
    with_guidance,
)
from worldline.model.world_model import conditions
from worldline.train.checkpoint import Run, load_run
from worldline.train.generate import GenerateConfig, Generated
from worldline.train.parallel import seeded_generator
from worldline.train.quantized_run import quantized_model
from worldline.train.refine_run import RunRefiner
from worldline.train.text import run_text

NextPoses = Callable[[int], Sequence[np.ndarray]]
"""Asked for the poses first_from_cam [3, 4] of the next n frames, the first of all the identity; fewer than n end the
video after them."""


class RunGenerator:
    """Makes videos with the model of a run."""

    def __init__(
        self,
        run: Run,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        refiner: Run | None = None,
        staggered: bool = False,
    ) -> None:
        """`dtype` bfloat16: matrix products of the model in it; fp8, nvfp4: its linear layers in that format
        (model/quantize.py). Cameras and autoencoder stay float32, as in training. `refiner` goes over the latents once
        more, of each window or, where a run streams, block by block. `staggered`: a chunk-causal run makes windows too,
        all chunks of one denoised together, the earlier ones always cleaner, in place of one after the other.

        Raises ValueError for a run of the autoencoder stage, which has no model, for a refiner that does not fit, and
        for a format in which the model's output is not its own any more (`MAX_QUANTIZED_ERROR`).
        """
        if run.model is None or run.config["kind"] != "flow":
            raise ValueError(
                f"{run.path} is a run of the {run.config['kind']} stage: it makes no videos by itself"
            )
        self.model, self.autoencoder = run.model.to(device), run.autoencoder.to(device)
        view = run.config["view"]
        if dtype in PACK:
            self.model = quantized_model(self.model, dtype, view=view, device=device)
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.device, self.dtype = device, getattr(torch, dtype)
        self.num_frames, self.frame_step = int(view["num_frames"]), int(view["stride"])
        self.width, self.height = view["width"], view["height"]
        chunks = run.config["chunks"]
        self.chunks: tuple[int, int] | None = None if chunks is None else (chunks[0], chunks[1])
        self.is_distilled = "distilled" in run.config
        self.staggered = staggered
        if staggered and (self.chunks is None or self.is_distilled):
            raise ValueError(f"{run.path} is no chunk-causal run of many steps: nothing to stagger")
        self.text = run_text(run, self.device)
        self.refiner: RunRefiner | None = None
        if refiner is not None:
            self.refiner = RunRefiner(refiner, self.autoencoder, device=device, streams=self.streams)

    @property
    def streams(self) -> bool:
        """Whether chunks come one after the other with carried state, and not windows."""
        return self.chunks is not None and not self.staggered

    def num_evaluations(self, num_frames: int, steps: int) -> int:
        """Of the network, for a window of this many frames in `steps` steps."""
        return len(self._schedule(1 + (num_frames - 1) // self.autoencoder.time_stride, steps)[1]) - 1

    def _schedule(self, num_latents: int, steps: int) -> tuple[list[int] | None, Tensor]:
        """Chunks of a window, None where its frames all see each other, and its levels."""
        if not self.staggered or self.chunks is None:
            return None, even_schedule(steps, num_latents, shift=SAMPLING_SHIFT, num_clean=1)
        chunks = chunk_causal(num_latents, first=self.chunks[0], rest=self.chunks[1])
        return chunks, staggered_schedule(steps, chunks, shift=SAMPLING_SHIFT, num_clean=1)

    @torch.no_grad()
    def videos(
        self,
        first_frames: np.ndarray,
        first_from_cam: np.ndarray,
        intrinsics: Intrinsics,
        *,
        steps: int = 6,
        seed: int = 0,
        start: int = 0,
        prompt: str = "",
        guidance: float = 1.0,
    ) -> np.ndarray:
        """One window: [N, F, H, W, 3] uint8 from first frames [N, H, W, 3] uint8 along paths [N, F, 3, 4].

        `intrinsics`: [4], [1, F, 4] or [N, F, 4] of the frames as given. F must fit the autoencoder's time stride.
        `start`: the window's place in a longer video; together with `seed` it decides the noise.
        """
        first = self._encoded(first_frames)
        num_latents = 1 + (first_from_cam.shape[1] - 1) // self.autoencoder.time_stride
        grid = Grid(num_frames=num_latents, height=first.shape[3], width=first.shape[4])
        paths = torch.as_tensor(first_from_cam, dtype=torch.float32, device=self.device)
        cameras = conditions(self.model.config, paths, intrinsics, grid)
        noise = self._noise((len(first), first.shape[1], num_latents - 1, *first.shape[3:]), seed, start)
        chunks, table = self._schedule(num_latents, steps)
        velocity = with_guidance(
            self._velocity(prompt, len(first), cameras, chunks),
            self._velocity("", len(first), cameras, chunks),
            guidance,
        )
        latents = sample_euler(velocity, torch.cat([first, noise], dim=2), table)
        if self.refiner is not None and num_latents > 1:
            text, mask = self._caption(prompt, len(latents))
            with self._mixed():
                latents = self.refiner.window(latents, paths, intrinsics, text, mask, seed=seed, start=start)
        return to_pixels(self.autoencoder.decode(latents))

    def stream(
        self,
        first_frame: np.ndarray,
        first_from_cam: np.ndarray,
        intrinsics: Intrinsics,
        *,
        steps: int = 6,
        seed: int = 0,
        prompt: str = "",
        guidance: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Frames [H, W, 3] uint8 of a path [F, 3, 4] of any length as they are made, the first as the run sees it.

        intrinsics: fxfycxcy_px [4]. A distilled run takes its own few steps, whatever `steps` says. Raises ValueError
        for guidance with a chunk-causal run, whose state is carried for one caption.
        """
        poses = iter(first_from_cam)

        def next_poses(count: int) -> list[np.ndarray]:
            return list(itertools.islice(poses, count))

        options: dict[str, Any] = {"steps": steps, "seed": seed, "prompt": prompt, "guidance": guidance}
        for frames in self.stream_live(first_frame, intrinsics, next_poses, **options):
            yield from frames

    def stream_live(
        self,
        first_frame: np.ndarray,
        intrinsics: Intrinsics,
        next_poses: NextPoses,
        *,
        steps: int = 6,
        seed: int = 0,
        prompt: str = "",
        guidance: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Frames [n, H, W, 3] uint8, a chunk or window at a time, along a path that is asked for while it is made.

        Arguments and errors otherwise as in `stream`, which is this with a path that is known. Memory does not grow
        with the length, in a chunk-causal run as long as its `AttentionSpan` has a window; but LTX-2's autoencoder
        decodes whole videos, so that a chunk-causal run with it yields its frames at the end.
        """
        if not self.streams:
            return self._windows(first_frame, intrinsics, next_poses, steps, seed, prompt, guidance)
        if guidance != 1:
            raise ValueError("a chunk-causal run streams without guidance: give guidance 1")
        return self._roll_out(first_frame, intrinsics, next_poses, steps, seed, prompt)

    def _windows(
        self,
        first_frame: np.ndarray,
        intrinsics: Intrinsics,
        next_poses: NextPoses,
        steps: int,
        seed: int,
        prompt: str,
        guidance: float,
    ) -> Iterator[np.ndarray]:
        start, frame, window = 0, first_frame, list(next_poses(self.num_frames))
        if self.num_frames == 1 and len(next_poses(1)):
            raise ValueError("a run trained on single frames makes no video: give a path of one pose")
        while len(window) > min(start, 1):  # later windows begin with a pose that has its frame
            known = len(window)
            # The model knows windows of whole latent frames: the last one is filled up by resting.
            path = np.stack(window + window[-1:] * (self.num_frames - known))
            path = compose(invert(path[:1]), path)
            options: dict[str, Any] = {"steps": steps, "prompt": prompt, "guidance": guidance}
            made = self.videos(frame[None], path[None], intrinsics, seed=seed, start=start, **options)[0]
            yield made[:known] if start == 0 else made[1:known]
            if known < self.num_frames or self.num_frames == 1:
                return
            start, frame = start + self.num_frames - 1, made[-1]
            window = [window[-1], *next_poses(self.num_frames - 1)]

    @torch.no_grad()
    def _roll_out(
        self,
        first_frame: np.ndarray,
        intrinsics: Intrinsics,
        next_poses: NextPoses,
        steps: int,
        seed: int,
        prompt: str,
    ) -> Iterator[np.ndarray]:
        assert self.chunks is not None
        first_size, later_size = self.chunks
        stride = self.autoencoder.time_stride
        first = self._encoded(first_frame[None])
        _, channels, _, height, width = first.shape

        waiting: deque[CameraConditions | None] = deque()
        unrefined: deque[np.ndarray] = deque()  # poses of frames that the refiner has not come to
        num_known = 0

        def noises() -> Iterator[Tensor]:
            """Of each chunk; its cameras are put into `waiting` first."""
            nonlocal num_known
            begin, size = 0, first_size
            while True:
                missing = stride - 1 if begin == 0 else 0  # the first latent frame is one frame
                poses = list(next_poses(stride * size - missing))
                if not poses:
                    return
                num_known += len(poses)
                size = math.ceil((len(poses) + missing) / stride)
                poses += poses[-1:] * (stride * size - missing - len(poses))
                if self.refiner is not None:
                    unrefined.extend(poses)
                path = torch.as_tensor(np.stack(poses)[None], dtype=torch.float32, device=self.device)
                grid = Grid(num_frames=size, height=height, width=width, first_frame=begin)
                with torch.autocast(torch.device(self.device).type, enabled=False):
                    waiting.append(conditions(self.model.config, path, intrinsics, grid))
                yield self._noise((1, channels, size, height, width), seed, begin)
                begin, size = begin + size, later_size

        text, mask = self._caption(prompt, 1)
        sigmas = even_schedule(steps, 1, shift=SAMPLING_SHIFT)[:, 0].tolist()
        generator = None
        if self.is_distilled:
            sigmas = list(DISTILLED_SIGMAS)
            generator = torch.Generator(self.device).manual_seed(seeded_generator(seed, 0, 2).initial_seed())
        cameras = (waiting.popleft() for _ in itertools.repeat(None))
        chunks = roll_out(
            self.model, noises(), text, mask, cameras, sigmas=sigmas, generator=generator, first_frame=first
        )
        if self.refiner is not None:

            def take_poses(begin: int, size: int) -> Tensor:
                count = stride * size - (stride - 1 if begin == 0 else 0)
                taken = np.stack([unrefined.popleft() for _ in range(count)])
                return torch.as_tensor(taken[None], dtype=torch.float32, device=self.device)

            chunks = self.refiner.stream(chunks, take_poses, intrinsics, text, mask, seed=seed)
        num_shown = 0
        for frames in self._decoded(chunks):
            shown = frames[: num_known - num_shown]  # without those that fill up the last latent frame
            num_shown += len(shown)
            yield shown

    def _decoded(self, chunks: Iterator[Tensor]) -> Iterator[np.ndarray]:
        tails: list[Tensor] | None = None
        later: list[Tensor] = []
        while True:
            # Around the making of one chunk, so that it is not left switched on in whoever reads the frames.
            with self._mixed():
                latents = next(chunks, None)
            if latents is None:
                break
            latents = latents.float()
            if isinstance(self.autoencoder, CausalAutoencoder):
                video, tails = self.autoencoder.decode_piece(latents, tails)
            elif self.autoencoder.time_stride == 1:
                video = self.autoencoder.decode(latents)
            else:  # looks ahead: decoded as a whole
                later.append(latents)
                continue
            yield to_pixels(video)[0]
        if later:
            sizes = [self.autoencoder.time_stride * latents.shape[2] for latents in later]
            sizes[0] -= self.autoencoder.time_stride - 1  # the first latent frame is one frame
            frames = to_pixels(self.autoencoder.decode(torch.cat(later, dim=2)))[0]
            yield from np.split(frames, np.cumsum(sizes)[:-1])

    def _encoded(self, frames: np.ndarray) -> Tensor:
        return self.autoencoder.encode(from_pixels(frames[:, None], self.device))

    def _noise(self, shape: tuple[int, ...], seed: int, start: int) -> Tensor:
        # Seed and place are mixed, not added: seed 3's first window is not seed 0's window that begins at 3.
        return torch.randn(shape, generator=seeded_generator(seed, start)).to(self.device)

    def _mixed(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)

    def _caption(self, prompt: str, batch: int) -> tuple[Tensor, Tensor]:
        text, mask = self.text([prompt] * batch)
        return text.to(self.device), mask.to(self.device)

    def _velocity(
        self, prompt: str, batch: int, cameras: CameraConditions | None, chunks: list[int] | None
    ) -> Any:
        text, mask = self._caption(prompt, batch)

        def velocity(x: Tensor, sigmas: Tensor) -> Tensor:
            with self._mixed():
                return self.model(x, 1000 * sigmas, text, mask, cameras, chunks=chunks).float()

        return velocity


class RunBackend:
    """Backend "run" of `worldline generate`: `model` is a run folder."""

    def __init__(self, model: str, *, device: str, dtype: str) -> None:
        """Raises ValueError where there is no run."""
        self._run, self._device, self._dtype = load_run(Path(model)), device, dtype

    def __call__(
        self,
        config: GenerateConfig,
        image_rgb: np.ndarray,
        world_from_cam: np.ndarray,
        fxfycxcy_px: np.ndarray,
    ) -> Generated:
        """See `Generator`; size and frame spacing are the run's, and frames are made while they are read."""
        if fxfycxcy_px.ndim != 1:
            raise ValueError("a run takes one lens for the whole video: intrinsics [4]")
        refiner = None if config.refine is None else load_run(config.refine)
        run = RunGenerator(
            self._run,
            device=self._device,
            dtype=self._dtype,
            refiner=refiner,
            staggered=config.staggered,
        )
        poses = world_from_cam[:: run.frame_step][: config.num_frames]
        lens = Intrinsics(fxfycxcy_px=fxfycxcy_px, width=image_rgb.shape[1], height=image_rgb.shape[0])
        images, lens = cover(image_rgb[None], lens, run.width or lens.width, run.height or lens.height)
        how = "one pass"
        if len(poses) > run.num_frames:
            how = f"windows of {run.num_frames} frames, each from the last frame of the one before"
        if run.staggered:
            how += ", staggered chunks"
        elif run.chunks is not None:
            how = "chunks with carried state"
        if run.is_distilled:
            how += f", {len(DISTILLED_SIGMAS) - 1} steps each"
        if run.refiner is not None:
            how += f", refined in blocks of {run.refiner.chunks[1]}" if run.streams else ", refined"
        frames = run.stream(
            images[0],
            compose(invert(poses[:1]), poses),
            lens,
            steps=config.steps,
            seed=config.seed,
            prompt=config.prompt,
            guidance=1.0 if config.guidance is None else config.guidance,
        )
        return Generated(frames=frames, world_from_cam=poses, fps=config.fps / run.frame_step, how=how)
