"""The smallest autoencoder: square patches of single frames onto their principal components, and back.

It has no time stride and nothing to train but one singular value decomposition, and its loss is known in
advance (the variance left out). A model small enough for a CPU then spends all its steps on the camera. For
real videos use `CausalAutoencoder` or LTX-2's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchAutoencoderConfig:
    """Size of the patches and of what is kept of them."""

    patch: int = 8
    """Pixels a side; the stride in space."""
    latent_channels: int = 32
    """Principal components kept of the 3 patch^2 values; 32 of 192 leave 29 dB on rendered rooms."""
    whitening: float = 0.5
    """Components are divided by this power of their deviation. 0 weighs errors as pixels do, but then noise
    hides the fine components at once; 1 spends most of the loss on what cannot be foreseen."""

    def __post_init__(self) -> None:
        if not 1 <= self.latent_channels <= 3 * self.patch**2:
            raise ValueError(f"{self.latent_channels} components of patches with {3 * self.patch**2} values")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening must lie in 0 ... 1, got {self.whitening}")

    @property
    def time_stride(self) -> int:
        """Frames a latent frame."""
        return 1

    @property
    def space_stride(self) -> int:
        """Pixels a latent's side."""
        return self.patch


class PatchAutoencoder(nn.Module):
    """An `Autoencoder` (worldline.model.autoencoder); `fit` comes before use."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, config: PatchAutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = PatchAutoencoderConfig() if config is None else config
        self.latent_channels, self.time_stride = self.config.latent_channels, self.config.time_stride
        self.space_stride = self.config.patch
        values = 3 * self.config.patch**2
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.eye(self.latent_channels, values))
        self.register_buffer("scale", torch.ones(self.latent_channels))

    @torch.no_grad()
    def fit(self, video: Tensor) -> None:
        """Takes the components of videos [B, 3, F, H, W] in [-1, 1]; latents of this kind get unit variance."""
        patches = self._patches(video).flatten(0, 3)  # [N, 3 patch^2]
        self.mean.copy_(patches.mean(dim=0))
        centred = patches - self.mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
        self.basis.copy_(vectors.flip(1)[:, : self.latent_channels].T)
        self.scale.copy_((centred @ self.basis.T).std(dim=0).clamp_min(1e-6) ** self.config.whitening)
        self.scale *= (centred @ self.basis.T / self.scale).std()

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> latents [B, c, F, h, w]."""
        latents = (self._patches(video) - self.mean) @ self.basis.T / self.scale  # [B, F, h, w, c]
        return latents.permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, F, h, w] -> [B, 3, F, H, W], about in [-1, 1]."""
        patches = (latents.permute(0, 2, 3, 4, 1) * self.scale) @ self.basis + self.mean
        pixels = patches.unflatten(-1, (3, self.config.patch, self.config.patch))  # [B, F, h, w, 3, p, p]
        return pixels.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _patches(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] -> [B, F, h, w, 3 patch^2]."""
        patch = self.config.patch
        if video.shape[3] % patch or video.shape[4] % patch:
            raise ValueError(f"{tuple(video.shape[3:])} pixels do not divide by {patch}")
        cells = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # [B, 3, F, h, p, w, p]
        return cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
