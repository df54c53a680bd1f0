"""Video autoencoder: frames in, latents out, and back; our own small causal one, and the table of the others.

8 k + 1 frames become k + 1 latent frames, the first of them the first frame alone. Every convolution over
time is causal, so a long video is encoded and decoded piece by piece with the last frames of each layer
carried over, and equals the whole clip to rounding. Norms are per pixel, because a statistic over time
would break that.

Letters: B batch, F frames, T latent frames, H, W pixels, h, w latent size, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = {
    "own": "worldline.model.autoencoder:CausalAutoencoder",
    "ltx2": "worldline.model.ltx2_autoencoder:Ltx2Autoencoder",
}
HOW_TO_INSTALL = {"ltx2": "pip install 'worldline[diffusers]'"}


class Autoencoder(Protocol):
    """What training and generation need of an autoencoder."""

    latent_channels: int
    time_stride: int
    space_stride: int

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> normalised latents [B, c, T, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, T, h, w] -> [B, 3, F, H, W]."""
        ...


def from_pixels(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Frames [..., F, H, W, 3] uint8 as the video [..., 3, F, H, W] in [-1, 1] that autoencoders read."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return (pixels.float() / 127.5 - 1).movedim(-1, -4)


def to_pixels(video: Tensor) -> np.ndarray:
    """Video [..., 3, F, H, W] about in [-1, 1] as frames [..., F, H, W, 3] uint8."""
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.movedim(-4, -1).cpu().numpy()


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """The causal autoencoder's size."""

    latent_channels: int = 16
    patch: int = 1
    """Pixels a side folded into channels before the first convolution; the stride in space is 8 times this.
    """
    channels: tuple[int, int, int] = (32, 64, 96)
    """Per level; each level halves space and time."""
    num_layers: int = 1
    """Residual layers a level."""

    def __post_init__(self) -> None:
        if min(self.latent_channels, self.patch, self.num_layers, *self.channels) < 1:
            raise ValueError("sizes of the autoencoder must be positive")

    @property
    def time_stride(self) -> int:
        """Frames a latent frame: three levels, each of which halves time."""
        return 8

    @property
    def space_stride(self) -> int:
        """Pixels a latent's side."""
        return 8 * self.patch


RELEASED_WEIGHTS = "Efficient-Large-Model/SANA-WM_bidirectional-diffusers"
"""The repository of SANA-WM's released weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ltx2Config:
    """LTX-2's autoencoder, whose weights are read and not trained (model/ltx2_autoencoder.py)."""

    path: str = RELEASED_WEIGHTS
    """diffusers folder or repository with a `vae`."""
    latent_channels: int = 128

    @property
    def time_stride(self) -> int:
        """Frames a latent frame."""
        return 8

    @property
    def space_stride(self) -> int:
        """Pixels a latent's side."""
        return 32


class Tails:
    """The last input frames of each temporal convolution, in the order the network meets them."""

    def __init__(self, old: list[Tensor] | None = None) -> None:
        self.old: Iterator[Tensor] | None = None if old is None else iter(old)
        self.new: list[Tensor] = []

    @property
    def starts_clip(self) -> bool:
        return self.old is None

    def joined(self, x: Tensor, num_frames: int) -> Tensor:
        """x [B, C, F, H, W] with the `num_frames` before it; before the clip its first frame is repeated."""
        before = x[:, :, :1].expand(-1, -1, num_frames, -1, -1) if self.old is None else next(self.old)
        y = torch.cat([before, x], dim=2)
        self.new.append(y[:, :, y.shape[2] - num_frames :].detach())
        return y


class CausalConv(nn.Module):
    """3 x 3 x 3 convolution that reads the frame and the two before it."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=(0, 1, 1))

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        # A strided convolution reads frames (2 j - 2, 2 j - 1, 2 j). A later piece starts at an odd frame,
        # which one earlier frame completes; the clip's start needs two.
        if self.conv.stride[0] == 1:
            return self.conv(tails.joined(x, 2))
        if tails.starts_clip:
            x = torch.cat([x[:, :, :1], x], dim=2)
        return self.conv(tails.joined(x, 1))


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(channels, eps=1e-6) for _ in range(2))
        self.convs = nn.ModuleList(CausalConv(channels, channels) for _ in range(2))

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(_over_channels(norm, y)), tails)
        return x + y


class Upsample(nn.Module):
    """Doubles space and time; the clip's first frame becomes one frame, not two."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv(in_channels, 8 * out_channels)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        starts_clip = tails.starts_clip
        y = self.conv(x, tails).unflatten(1, (-1, 2, 2, 2))  # [B, C, 2, 2, 2, F, H, W]
        y = y.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return y[:, :, 1:] if starts_clip else y


class CausalAutoencoder(nn.Module):
    """Our own autoencoder, without a download: deterministic, trained by `reconstruction_loss`."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        config = AutoencoderConfig() if config is None else config
        self.config = config
        self.latent_channels, self.time_stride, self.space_stride = (
            config.latent_channels,
            config.time_stride,
            8 * config.patch,
        )
        low, middle, high = config.channels
        pixels = 3 * config.patch**2
        self.encoder = nn.ModuleList([CausalConv(pixels, low)])
        for now, after in ((low, middle), (middle, high), (high, high)):
            self.encoder.extend(Residual(now) for _ in range(config.num_layers))
            self.encoder.append(CausalConv(now, after, stride=2))
        self.encoder.extend([Residual(high), CausalConv(high, config.latent_channels)])
        self.decoder = nn.ModuleList([CausalConv(config.latent_channels, high), Residual(high)])
        for now, after in ((high, high), (high, middle), (middle, low)):
            self.decoder.append(Upsample(now, after))
            self.decoder.extend(Residual(after) for _ in range(config.num_layers))
        self.decoder.append(CausalConv(low, pixels))
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 8 k + 1, H, W] in [-1, 1] -> normalised latents [B, c, k + 1, h, w]."""
        return self.encode_piece(video, None)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, T, h, w] -> [B, 3, 8 (T - 1) + 1, H, W], about in [-1, 1]."""
        return self.decode_piece(latents, None)[0]

    def encode_piece(self, video: Tensor, tails: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Latents of the next frames, 8 k + 1 at the start of a clip and 8 k later, and what the next call
        needs.
        """
        frames = video.shape[2]
        if frames % 8 != (1 if tails is None else 0) or frames == 0:
            raise ValueError(f"{frames} frames: a clip starts with 8 k + 1 and goes on with 8 k")
        if video.shape[3] % self.space_stride or video.shape[4] % self.space_stride:
            raise ValueError(f"{tuple(video.shape[3:])} pixels do not divide by {self.space_stride}")
        x, state = F.pixel_unshuffle(video.transpose(1, 2), self.config.patch).transpose(1, 2), Tails(tails)
        for layer in self.encoder:
            x = layer(x, state)
        return (x - _channels(self.latent_mean)) / _channels(self.latent_std), state.new

    def decode_piece(self, latents: Tensor, tails: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Frames of the next latent frames, and what the next call needs."""
        state = Tails(tails)
        x = latents * _channels(self.latent_std) + _channels(self.latent_mean)
        for layer in self.decoder:
            x = layer(x, state)
        return F.pixel_shuffle(x.transpose(1, 2), self.config.patch).transpose(1, 2), state.new

    @torch.no_grad()
    def fit_normalisation(self, latents: Tensor) -> None:
        """Makes latents of this kind [B, c, T, h, w], as `encode` gives them now, zero mean and unit
        variance.
        """
        mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-6)
        self.latent_mean += self.latent_std * mean
        self.latent_std *= std


def reconstruction_loss(model: CausalAutoencoder, video: Tensor, *, latent_weight: float = 1e-3) -> Tensor:
    """Mean absolute error of the frames and of their differences to the next pixel and frame, a scalar.

    The differences keep edges sharp, which the error alone blurs. The latents' mean square, weighted, keeps
    their scale from drifting.
    """
    latents = model.encode(video)
    error = model.decode(latents) - video
    loss = error.abs().mean() + latent_weight * latents.square().mean()
    for dim in (2, 3, 4):
        if error.shape[dim] > 1:
            loss = loss + error.diff(dim=dim).abs().mean()
    return loss


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


def _channels(x: Tensor) -> Tensor:
    return x[:, None, None, None]
