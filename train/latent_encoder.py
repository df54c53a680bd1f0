"""An autoencoder as `worldline encode` uses it: pieces of a clip in, stored latents out; and its digest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from worldline.model.autoencoder import CausalAutoencoder, from_pixels
from worldline.model.patch_autoencoder import PatchAutoencoder
from worldline.train.checkpoint import weights_key


class LatentEncoder:
    """A `PieceEncoder` (datasets/latents.py); pieces give what the whole clip gives, to rounding."""

    def __init__(self, autoencoder: CausalAutoencoder | PatchAutoencoder, *, device: str, dtype: str) -> None:
        self._autoencoder = autoencoder.to(device).eval()
        self._device, self._dtype = device, np.dtype(dtype)
        self.time_stride = autoencoder.time_stride

    @torch.no_grad()
    def __call__(self, pieces: Iterable[np.ndarray]) -> np.ndarray:
        found: list[np.ndarray] = []
        tails: list[Tensor] | None = None
        for images in pieces:
            video = from_pixels(images[None], self._device)
            if isinstance(self._autoencoder, CausalAutoencoder):
                latents, tails = self._autoencoder.encode_piece(video, tails)
            else:
                latents = self._autoencoder.encode(video)
            found.append(latents[0].cpu().numpy())
        return np.concatenate(found, axis=1).astype(self._dtype)


def autoencoder_key(autoencoder: CausalAutoencoder | PatchAutoencoder) -> str:
    """32 hex digits that change with the autoencoder's kind or any weight."""
    return weights_key(autoencoder)
