"""The loss of a stage: a batch of clips in, a scalar out, everything random from the generator given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldline.datasets.transforms import ClipView
from worldline.model.autoencoder import Autoencoder, CausalAutoencoder, reconstruction_loss
from worldline.model.chunks import chunk_causal, one_chunk
from worldline.model.diffusion import NoiseLevels, draw_levels, flow_error, noised
from worldline.model.rope import Grid
from worldline.model.text import ByteText
from worldline.model.world_model import conditions
from worldline.train.config import TrainConfig

Loss = Callable[[ClipView, Sequence[torch.Generator]], Tensor]
"""Clips and a source of noise for each in, the mean of their losses out."""


def loss_function(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder) -> Loss:
    """The stage's loss for the network `net`, which is the autoencoder itself in an autoencoder stage."""
    if config.kind == "autoencoder":
        assert isinstance(autoencoder, CausalAutoencoder)
        return _autoencoder_loss(config, autoencoder)
    return _flow_loss(config, net, autoencoder)


def _autoencoder_loss(config: TrainConfig, autoencoder: CausalAutoencoder) -> Loss:
    def loss(clips: ClipView, generators: Sequence[torch.Generator]) -> Tensor:
        with mixed(config):
            return reconstruction_loss(autoencoder, video(clips, config.device))

    return loss


def _flow_loss(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder) -> Loss:
    text_encoder = ByteText(channels=config.model.text_channels)

    def loss(clips: ClipView, generators: Sequence[torch.Generator]) -> Tensor:
        clean = _latents(clips, autoencoder, config.device)
        num_frames, height, width = clean.shape[2:]
        first, rest = config.chunks or (num_frames, 1)
        chunks = chunk_causal(num_frames, first=first, rest=rest) if config.chunks else one_chunk(num_frames)
        drawn = [_draw(generator, clean.shape[1:], chunks, config) for generator in generators]
        captions = [(text or "") if d.keeps else "" for text, d in zip(clips.caption, drawn, strict=True)]
        text, mask = (tensor.to(config.device) for tensor in text_encoder(captions))
        sigmas = torch.cat([d.levels.sigmas for d in drawn]).to(config.device)
        has_loss = torch.cat([d.levels.has_loss for d in drawn]).to(config.device)
        noise = torch.stack([d.noise for d in drawn]).to(config.device)
        grid = Grid(num_frames=num_frames, height=height, width=width)
        cameras = conditions(config.model, clips.first_from_cam.to(config.device), clips.intrinsics(), grid)
        # Camera geometry above stays in float32: bfloat16 has three digits of a metre or a radian.
        with mixed(config):
            velocity = net(noised(clean, noise, sigmas), 1000 * sigmas, text, mask, cameras, chunks=chunks)
        error = flow_error(velocity.float(), clean, noise)
        # Over the frames that bear loss, not over their weights: a clip that is trusted less counts less. And a
        # clip's loss is its own, so that neither processes nor parts of a batch change the sum.
        weight = has_loss.float()
        count = weight.sum(dim=1).clamp_min(1)
        if config.weigh_frames:
            weight = weight * _per_latent(clips.weight, config.autoencoder.time_stride).to(config.device)
        return ((error * weight).sum(dim=1) / count).mean()

    return loss


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What is random about one clip."""

    keeps: bool
    """Its caption."""
    levels: NoiseLevels
    noise: Tensor


def _draw(
    generator: torch.Generator, shape: torch.Size, chunks: Sequence[int], config: TrainConfig
) -> _Drawn:
    keeps = float(torch.rand(1, generator=generator)) >= config.caption_dropout
    levels = draw_levels(1, chunks, config.flow, generator=generator)
    return _Drawn(keeps, levels, torch.randn(shape, generator=generator))


@torch.no_grad()
def _latents(clips: ClipView, autoencoder: Autoencoder, device: str) -> Tensor:
    """[B, c, T, h, w] float32, read or encoded."""
    latents = autoencoder.encode(video(clips, device)) if clips.latent is None else clips.latent.to(device)
    return latents.float()


def _per_latent(weight: Tensor, time_stride: int) -> Tensor:
    """Weights of frames [B, F] as means over the frames of each latent frame [B, 1 + (F - 1) / time_stride]."""
    return torch.cat([weight[:, :1], weight[:, 1:].unflatten(1, (-1, time_stride)).mean(dim=2)], dim=1)


def video(clips: ClipView, device: str) -> Tensor:
    """[B, 3, F, H, W] in [-1, 1]; ValueError where the batch has latents instead."""
    if clips.frames is None:
        raise ValueError("this stage reads frames, the shards gave latents")
    return clips.frames.to(device).float().div(127.5).sub(1).transpose(1, 2)


def mixed(config: TrainConfig) -> torch.autocast:
    """The context in which matrix products may be bfloat16."""
    kind = torch.device(config.device).type
    return torch.autocast(
        kind, torch.bfloat16, enabled=kind == "cuda" if config.bf16 is None else config.bf16
    )
