"""LTX-2's video autoencoder (128 channels, strides 8 x 32 x 32) through diffusers, as SANA-WM uses it.

A module, so that training runs treat it as any other autoencoder; it is given, and never trained here.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor, nn

from worldline.model.autoencoder import RELEASED_WEIGHTS


class Ltx2Autoencoder(nn.Module):
    """The `vae` folder of a diffusers repository; latents are the posterior's mode, normalised by its own
    table.
    """

    def __init__(
        self,
        path: str = RELEASED_WEIGHTS,
        *,
        subfolder: str = "vae",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.vae = AutoencoderKLLTX2Video.from_pretrained(path, subfolder=subfolder, torch_dtype=dtype).to(
            device
        )
        self.vae.eval().requires_grad_(False)
        self.latent_channels: int = self.vae.config.latent_channels
        self.time_stride: int = self.vae.temporal_compression_ratio
        self.space_stride: int = self.vae.spatial_compression_ratio

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> latents [B, c, T, h, w] in float32."""
        latents = self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._normalisation()
        return (latents - mean) * self.vae.config.scaling_factor / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, T, h, w] -> [B, 3, F, H, W] in float32."""
        mean, std = self._normalisation()
        latents = latents.to(mean) / self.vae.config.scaling_factor * std + mean
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        return self.vae.latents_mean.float().view(shape), self.vae.latents_std.float().view(shape)
