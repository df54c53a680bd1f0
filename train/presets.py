"""Stages of training as functions that return their config: a small chain for trials, none at full size yet.

    autoencoder -> frame-wise GDN -> hybrid -> camera -> SFT -> chunk-causal

Each stage names the run folder of the one before. Going from frame-wise to hybrid, every 4th block turns to
softmax and keeps its projections; the camera stage adds branches that start without effect.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import AutoencoderConfig
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig, tiny
from worldline.model.diffusion import FlowConfig
from worldline.model.patch_autoencoder import PatchAutoencoderConfig
from worldline.model.softmax_attention import AttentionSpan
from worldline.train.config import TrainConfig

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
