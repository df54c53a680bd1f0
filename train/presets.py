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
from worldline.model.config import tiny
from worldline.model.diffusion import FlowConfig
from worldline.train.config import TrainConfig

TINY_VIEW = ViewConfig(num_frames=33, width=96, height=64)
"""Two seconds: 5 x 8 x 12 latents of the causal autoencoder."""


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
