"""The loss of a stage: a batch of clips in, a scalar out, everything random from the generator given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldline.datasets.transforms import ClipView
from worldline.model.autoencoder import Autoencoder, CausalAutoencoder, reconstruction_loss
from worldline.model.chunks import chunk_causal, one_chunk
from worldline.model.diffusion import draw_levels, flow_loss, noised
from worldline.model.rope import Grid
from worldline.model.text import ByteText
from worldline.model.world_model import conditions
from worldline.train.config import TrainConfig

Loss = Callable[[ClipView, torch.Generator], Tensor]


def loss_function(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder) -> Loss:
    """The stage's loss for the network `net`, which is the autoencoder itself in an autoencoder stage."""
    if config.kind == "autoencoder":
        assert isinstance(autoencoder, CausalAutoencoder)
        return _autoencoder_loss(config, autoencoder)
    return _flow_loss(config, net, autoencoder)


def _autoencoder_loss(config: TrainConfig, autoencoder: CausalAutoencoder) -> Loss:
    def loss(clips: ClipView, generator: torch.Generator) -> Tensor:
        with mixed(config):
            return reconstruction_loss(autoencoder, video(clips, config.device))

    return loss


def _flow_loss(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder) -> Loss:
    text_encoder = ByteText(channels=config.model.text_channels)

    def loss(clips: ClipView, generator: torch.Generator) -> Tensor:
        clean = _latents(clips, autoencoder, config.device)
        batch, _, num_frames, height, width = clean.shape
        kept = torch.rand(batch, generator=generator) >= config.caption_dropout
        captions = [(text or "") if keep else "" for text, keep in zip(clips.caption, kept, strict=True)]
        text, mask = (tensor.to(config.device) for tensor in text_encoder(captions))
        first, rest = config.chunks or (num_frames, 1)
        chunks = chunk_causal(num_frames, first=first, rest=rest) if config.chunks else one_chunk(num_frames)
        levels = draw_levels(batch, chunks, config.flow, generator=generator)
        sigmas, has_loss = levels.sigmas.to(config.device), levels.has_loss.to(config.device)
        noise = torch.randn(clean.shape, generator=generator).to(config.device)
        grid = Grid(num_frames=num_frames, height=height, width=width)
        cameras = conditions(config.model, clips.first_from_cam.to(config.device), clips.intrinsics(), grid)
        # Camera geometry above stays in float32: bfloat16 has three digits of a metre or a radian.
        with mixed(config):
            velocity = net(noised(clean, noise, sigmas), 1000 * sigmas, text, mask, cameras, chunks=chunks)
        weight = has_loss.float()
        if config.weigh_frames:
            weight = weight * _per_latent(clips.weight, config.autoencoder.time_stride).to(config.device)
        return flow_loss(velocity.float(), clean, noise, weight)

    return loss


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
