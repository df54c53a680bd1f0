"""The loss of a stage: a batch of clips in, a scalar out, everything random from the generator given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldline.datasets.transforms import ClipView
from worldline.model.autoencoder import Autoencoder, CausalAutoencoder, reconstruction_loss
from worldline.model.camera_embedding import CameraConditions
from worldline.model.chunks import chunk_causal, chunk_spans, one_chunk
from worldline.model.diffusion import NoiseLevels, draw_levels, flow_error, noised, refiner_pair
from worldline.model.refiner import draw_sigmas
from worldline.model.rope import Grid
from worldline.model.sampler import SAMPLING_SHIFT, even_schedule, sample_euler
from worldline.model.world_model import WorldModel, conditions
from worldline.train.checkpoint import load_run
from worldline.train.config import TrainConfig
from worldline.train.parallel import ClipShare, Ranks
from worldline.train.text import text_encoder

Loss = Callable[[ClipView, Sequence[torch.Generator]], Tensor]
"""Clips and a source of noise for each in, the mean of their losses out."""


def loss_function(
    config: TrainConfig, net: nn.Module, autoencoder: Autoencoder, ranks: Ranks | None = None
) -> Loss:
    """The stage's loss for the network `net`, which is the autoencoder itself in an autoencoder stage.

    Where context ranks share a clip, each has its part of the clip's loss times their number: the mean is the loss.
    """
    if config.kind == "autoencoder":
        assert isinstance(autoencoder, CausalAutoencoder)
        return _autoencoder_loss(config, autoencoder)
    if config.kind == "refiner":
        return _refiner_loss(config, net, autoencoder)
    return _flow_loss(config, net, autoencoder, ranks or Ranks())


def _autoencoder_loss(config: TrainConfig, autoencoder: CausalAutoencoder) -> Loss:
    def loss(clips: ClipView, generators: Sequence[torch.Generator]) -> Tensor:
        with mixed(config):
            return reconstruction_loss(autoencoder, video(clips, config.device))

    return loss


def _flow_loss(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder, ranks: Ranks) -> Loss:
    encode_text = text_encoder(config.text, channels=config.model.text_channels, device=config.device)

    def loss(clips: ClipView, generators: Sequence[torch.Generator]) -> Tensor:
        clean = latents_of(clips, autoencoder, config.device)
        num_frames, height, width = clean.shape[2:]
        first, rest = config.chunks or (num_frames, 1)
        chunks = chunk_causal(num_frames, first=first, rest=rest) if config.chunks else one_chunk(num_frames)
        drawn = [_draw(generator, clean.shape[1:], chunks, config) for generator in generators]
        captions = [(text or "") if d.keeps else "" for text, d in zip(clips.caption, drawn, strict=True)]
        text, mask = (tensor.to(config.device) for tensor in encode_text(captions))
        sigmas = torch.cat([d.levels.sigmas for d in drawn]).to(config.device)
        has_loss = torch.cat([d.levels.has_loss for d in drawn]).to(config.device)
        noise = torch.stack([d.noise for d in drawn]).to(config.device)
        grid = Grid(num_frames=num_frames, height=height, width=width)
        cameras = conditions(config.model, clips.first_from_cam.to(config.device), clips.intrinsics(), grid)
        # Camera geometry above stays in float32: bfloat16 has three digits of a metre or a radian.
        own = ranks.frames(num_frames)
        clean, noise, sigmas = own.of(clean, 2), own.of(noise, 2), own.of(sigmas)
        with mixed(config):
            velocity = net(
                noised(clean, noise, sigmas),
                1000 * sigmas,
                text,
                mask,
                None if cameras is None else cameras.frames(own.of),
                chunks=own.chunks(chunks),
                group=ranks.context,
            )
        error = flow_error(velocity.float(), clean, noise)
        return weighed(error, has_loss, clips, config, own)

    return loss


def weighed(
    error: Tensor, has_loss: Tensor, clips: ClipView, config: TrainConfig, own: ClipShare | None = None
) -> Tensor:
    """Errors [B, T] of the frames that bear loss (bool [B, T]) as one number, each by its camera's trust.

    With `own` the errors are those of a share of the clips' frames, `has_loss` that of all.
    """
    own = own or ClipShare(has_loss.shape[1])
    # Over the frames that bear loss, not over their weights: a clip that is trusted less counts less. And a
    # clip's loss is its own, so that neither processes nor parts of a batch change the sum.
    weight = has_loss.float()
    count = weight.sum(dim=1).clamp_min(1)
    if config.weigh_frames:
        weight = weight * _per_latent(clips.weight, config.autoencoder.time_stride).to(config.device)
    weight = own.of(weight) * own.mask(has_loss)
    return own.count * ((error * weight).sum(dim=1) / count).mean()


def _refiner_loss(config: TrainConfig, net: nn.Module, autoencoder: Autoencoder) -> Loss:
    """The flow from worse latents to true ones (model/refiner.py); worse ones are made on the fly."""
    assert config.chunks is not None
    assert config.init_from is not None
    first_stage = load_run(config.init_from).model
    if first_stage is None:
        raise ValueError(f"{config.init_from} has no model to refine the samples of")
    first_stage.to(config.device).requires_grad_(False)
    encode_text = text_encoder(config.text, channels=config.model.text_channels, device=config.device)
    refine = config.refine

    def loss(clips: ClipView, generators: Sequence[torch.Generator]) -> Tensor:
        assert config.chunks is not None
        frames = video(clips, config.device)
        with torch.no_grad():
            high = autoencoder.encode(frames).float()
        batch, num_frames, height, width = len(high), *high.shape[2:]
        chunks = chunk_causal(num_frames, first=config.chunks[0], rest=config.chunks[1])
        grid = Grid(num_frames=num_frames, height=height, width=width)
        cameras = conditions(config.model, clips.first_from_cam.to(config.device), clips.intrinsics(), grid)
        text, mask = (tensor.to(config.device) for tensor in encode_text([""] * batch))
        noises, sigmas, lows, given = [], [], [], []
        for k, generator in enumerate(generators):
            noises.append(torch.randn(2, *high.shape[1:], generator=generator))
            sigmas.append(draw_sigmas(1, shift=config.flow.shift, generator=generator))
            is_sample = float(torch.rand(1, generator=generator)) < refine.sample_share
            factor = float(torch.empty(1).uniform_(*refine.factors, generator=generator))
            lows.append(None if is_sample else rescaled(frames[k : k + 1], factor))
            given.append(_frames_given(chunks, refine.streamed_share, generator))
        noise = torch.stack(noises).to(config.device)  # [B, 2, c, T, h, w]
        with torch.no_grad(), mixed(config):
            sampled = _samples(first_stage, high, noise[:, 0], text, mask, cameras, refine.sample_steps)
            low = torch.stack(
                [sampled[k] if x is None else autoencoder.encode(x)[0].float() for k, x in enumerate(lows)]
            )
        is_given = torch.arange(num_frames) < torch.tensor(given)[:, None]
        levels = torch.cat(sigmas)[:, None].masked_fill(is_given, 0.0).to(config.device)
        x, target = refiner_pair(low, high, noise[:, 1], levels)
        with mixed(config):
            velocity = net(x, 1000 * levels, text, mask, cameras, chunks=chunks)
        error = (velocity.float() - target).square().mean(dim=(1, 3, 4))
        return weighed(error, levels > 0, clips, config)

    return loss


def _frames_given(chunks: Sequence[int], streamed_share: float, generator: torch.Generator) -> int:
    """How many first frames are clean: the first block's, or with this probability those of any number of blocks but all."""
    ends = [stop for _, stop in chunk_spans(chunks)][:-1] or [chunks.count(chunks[0])]
    is_streamed = float(torch.rand(1, generator=generator)) < streamed_share
    return ends[int(torch.randint(len(ends), (), generator=generator))] if is_streamed else ends[0]


def rescaled(frames: Tensor, factor: float) -> Tensor:
    """Videos [B, 3, F, H, W] scaled down by a factor and up again."""
    height, width = frames.shape[3:]
    size = (max(1, round(height / factor)), max(1, round(width / factor)))
    pictures = frames.transpose(1, 2).flatten(0, 1)
    small = functional.interpolate(pictures, size, mode="bilinear", antialias=True)
    large = functional.interpolate(small, (height, width), mode="bilinear")
    return large.unflatten(0, (len(frames), -1)).transpose(1, 2)


def _samples(
    model: WorldModel,
    high: Tensor,
    noise: Tensor,
    text: Tensor,
    mask: Tensor,
    cameras: CameraConditions | None,
    steps: int,
) -> Tensor:
    """First-stage latents [B, c, T, h, w] of the clips, each from its clean first frame along its path."""
    table = even_schedule(steps, high.shape[2], shift=SAMPLING_SHIFT, num_clean=1)
    start = torch.cat([high[:, :, :1], noise[:, :, 1:]], dim=2)
    return sample_euler(lambda x, sigmas: model(x, 1000 * sigmas, text, mask, cameras).float(), start, table)


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
def latents_of(clips: ClipView, autoencoder: Autoencoder, device: str) -> Tensor:
    """Latents of a batch [B, c, T, h, w] float32, read or encoded."""
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
