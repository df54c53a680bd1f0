"""Stages of training as functions that return their config.

    tiny_*: autoencoder -> frame-wise GDN -> hybrid -> camera -> SFT -> chunk-causal   small, for trials
    full_*: autoencoder swap -> frame-wise GDN -> hybrid -> minute and camera -> SFT -> chunk-causal   SANA-WM's
    walk_*: what `worldline recipe` and `worldline variants` train

Each stage names the run folder of the one before. Going from frame-wise to hybrid, every 4th block turns to
softmax and keeps its projections; the camera stage adds branches that start without effect.

The full stages have the paper's steps, rates and batches (Sec. 3.1, Tab. 7, App. C); the paper gives no batch for the
first and no steps for the last, which are ours. They are written for GPUs and were not run at this size: tests run a
step of each with a small model in place of the large one. Shards must be at 16 frames a second and at least the stage's
length; the long stages read latents that `worldline encode` made with the run before.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import AutoencoderConfig, Ltx2Config
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig, full_2p6b, tiny
from worldline.model.diffusion import FlowConfig
from worldline.model.patch_autoencoder import PatchAutoencoderConfig
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.text import TextConfig
from worldline.train.config import ParallelConfig, TrainConfig

TINY_VIEW = ViewConfig(num_frames=33, width=96, height=64)
"""Two seconds: 5 x 8 x 12 latents of the causal autoencoder."""


WALK_WIDTH, WALK_HEIGHT = 64, 48
"""Pixels."""
WALK_VIEW = ViewConfig(num_frames=5, time_stride=1, stride=8, width=WALK_WIDTH, height=WALK_HEIGHT)
"""Two seconds, a frame every half second: 5 x 6 x 8 latents of patches. A camera that hardly moves between frames
teaches a small model to repeat the first one."""
WALK_MODEL = ModelConfig(
    width=64,
    num_blocks=3,
    num_heads=2,
    latent_channels=32,
    text_channels=8,
    softmax_every=3,
    camera="ucpe",
    plucker=True,
    camera_grid=CameraGridConfig(time_stride=1),
)


def tiny_autoencoder(shards: str, out: Path, *, steps: int = 500) -> TrainConfig:
    """Our causal autoencoder at 96 x 64."""
    return TrainConfig(
        shards=shards,
        out=out,
        kind="autoencoder",
        view=TINY_VIEW,
        autoencoder=AutoencoderConfig(),
        steps=steps,
        global_batch=4,
        lr=1e-3,
        final_lr_share=0.05,
    )


def tiny_framewise_gdn(shards: str, out: Path, init_from: Path, *, steps: int = 500) -> TrainConfig:
    """Gated delta rule in every block, without camera."""
    return TrainConfig(
        shards=shards,
        out=out,
        init_from=init_from,
        view=TINY_VIEW,
        model=replace(tiny(), softmax_every=0, camera="none", plucker=False),
        flow=FlowConfig(shift=4.0),
        steps=steps,
        global_batch=16,
        lr=1e-3,
        ema_decay=0.99,
    )


def walk_patches(shards: str, out: Path, *, decisions: Path | None = None, steps: int = 30) -> TrainConfig:
    """Principal components of patches, for the model that learns to walk through one place on a CPU."""
    return TrainConfig(
        shards=shards,
        out=out,
        kind="autoencoder",
        decisions=decisions,
        view=WALK_VIEW,
        autoencoder=PatchAutoencoderConfig(),
        model=WALK_MODEL,
        steps=steps,
        global_batch=12,
        cpu_threads=1,
    )


def walk_model(
    shards: str, out: Path, init_from: Path, *, decisions: Path | None = None, steps: int = 2500
) -> TrainConfig:
    """A hybrid of 0.4 M parameters that follows the camera through the place it was trained in."""
    return replace(
        walk_patches(shards, out, decisions=decisions, steps=steps),
        kind="flow",
        init_from=init_from,
        flow=FlowConfig(shift=4.0, clean_first_frame=1.0),
        caption_dropout=1.0,
        lr=2e-3,
        warmup_steps=min(50, steps),
        final_lr_share=0.05,
        betas=(0.9, 0.98),
        clip_norm=1.0,
    )


def walk_chunk_causal(
    shards: str, out: Path, init_from: Path, *, decisions: Path | None = None, steps: int = 800
) -> TrainConfig:
    """`walk_model`'s run taught to go on chunk by chunk: the given frame, then two latent frames at a time, over twice
    its window."""
    return replace(
        walk_model(shards, out, init_from, decisions=decisions, steps=steps),
        view=replace(WALK_VIEW, num_frames=9),
        chunks=(1, 2),
        lr=1e-3,
    )


def walk_refiner(
    shards: str, out: Path, init_from: Path, *, decisions: Path | None = None, steps: int = 600
) -> TrainConfig:
    """Adapters on `walk_model`'s run that bring back what its samples lost; `shards` of videos, not of latents."""
    return replace(
        walk_model(shards, out, init_from, decisions=decisions, steps=steps),
        kind="refiner",
        model=replace(WALK_MODEL, span=AttentionSpan(sink_frames=1, window_frames=11)),
        chunks=(1, 3),
        lr=1e-3,
    )


def tiny_hybrid(shards: str, out: Path, init_from: Path, *, steps: int = 500) -> TrainConfig:
    """Every 4th block becomes softmax, keeping its projections."""
    config = tiny_framewise_gdn(shards, out, init_from, steps=steps)
    return replace(config, model=replace(config.model, softmax_every=4))


def tiny_camera(shards: str, out: Path, init_from: Path, *, steps: int = 2000) -> TrainConfig:
    """Both camera branches are added."""
    config = tiny_hybrid(shards, out, init_from, steps=steps)
    return replace(config, model=replace(config.model, camera="ucpe", plucker=True))


def tiny_sft(
    shards: str, out: Path, init_from: Path, *, where: str = "TRUE", steps: int = 200
) -> TrainConfig:
    """Goes on with the best clips, which `where` names, at a fifth of the rate."""
    return replace(tiny_camera(shards, out, init_from, steps=steps), where=where, lr=2e-4)


def tiny_chunk_causal(shards: str, out: Path, init_from: Path, *, steps: int = 500) -> TrainConfig:
    """Chunks of one latent frame see earlier chunks only."""
    return replace(tiny_camera(shards, out, init_from, steps=steps), chunks=(2, 1), lr=2e-4)


FULL_VIEW = ViewConfig(num_frames=81, width=1280, height=704)
"""Five seconds: 11 x 22 x 40 latents of LTX-2's autoencoder."""
MINUTE_VIEW = replace(FULL_VIEW, num_frames=961)
"""121 x 22 x 40 latents."""


def full_autoencoder_swap(shards: str, out: Path, init_from: Path | None = None) -> TrainConfig:
    """Stage 0: an image or video model learns LTX-2's latents. `init_from`, a run or a diffusers `transformer` folder,
    gives what fits; the embedding of latents and the last layer, whose shapes differ, start anew."""
    return TrainConfig(
        shards=shards,
        out=out,
        init_from=init_from,
        view=FULL_VIEW,
        autoencoder=Ltx2Config(),
        text=TextConfig(backend="gemma2"),
        model=replace(full_2p6b(), softmax_every=0, camera="none", plucker=False),
        steps=50_000,
        global_batch=64,
        lr=5e-5,
        device="cuda",
        parallel=ParallelConfig(shard=True, checkpoint_blocks=True),
        num_workers=4,
    )


def full_framewise_gdn(shards: str, out: Path, init_from: Path) -> TrainConfig:
    """Stage 1: the gated delta rule in every block."""
    return replace(full_autoencoder_swap(shards, out, init_from), steps=30_000)


def full_hybrid(shards: str, out: Path, init_from: Path) -> TrainConfig:
    """Stage 2: every 4th block becomes softmax, keeping its projections."""
    config = full_framewise_gdn(shards, out, init_from)
    return replace(config, model=replace(config.model, softmax_every=4))


def full_minute_camera(latents: str, out: Path, init_from: Path) -> TrainConfig:
    """Stage 3: one minute, both camera branches, from cached latents; two processes share a clip."""
    config = full_hybrid(latents, out, init_from)
    return replace(
        config,
        model=full_2p6b(),
        view=MINUTE_VIEW,
        cached_latents=True,
        steps=31_000,
        global_batch=32,
        lr=1e-5,
        parallel=replace(config.parallel, context_ranks=2),
    )


def full_sft(
    latents: str, out: Path, init_from: Path, *, where: str = "TRUE", decisions: Path | None = None
) -> TrainConfig:
    """Stage 4: the best clips, some 50,000, which `where` or `decisions` name."""
    config = full_minute_camera(latents, out, init_from)
    return replace(config, where=where, decisions=decisions, steps=10_000)


def full_chunk_causal(latents: str, out: Path, init_from: Path, *, steps: int = 10_000) -> TrainConfig:
    """Stage 5: chunks of 4 and then 3 latent frames see earlier chunks only, at noise levels of their own."""
    return replace(full_minute_camera(latents, out, init_from), chunks=(4, 3), steps=steps)
