"""An autoencoder as `worldline encode` uses it: pieces of a clip in, stored latents out; and its digest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldline.model.autoencoder import CausalAutoencoder, from_pixels
from worldline.train.checkpoint import weights_key

if TYPE_CHECKING:
    from worldline.train.checkpoint import AnyAutoencoder


class LatentEncoder:
    """A `PieceEncoder` (datasets/latents.py); pieces give what the whole clip gives, to rounding.

    LTX-2's autoencoder takes the clip as a whole.
    """

    def __init__(self, autoencoder: AnyAutoencoder, *, device: str, dtype: str) -> None:
        self._autoencoder = autoencoder.to(device).eval()
        self._device, self._dtype = device, np.dtype(dtype)
        self.time_stride = autoencoder.time_stride

    @torch.no_grad()
    def __call__(self, pieces: Iterable[np.ndarray]) -> np.ndarray:
        found: list[np.ndarray] = []
        tails: list[Tensor] | None = None
        is_by_piece = isinstance(self._autoencoder, CausalAutoencoder) or self.time_stride == 1
        for images in pieces if is_by_piece else [np.concatenate(list(pieces))]:
            video = from_pixels(images[None], self._device)
            if isinstance(self._autoencoder, CausalAutoencoder):
                latents, tails = self._autoencoder.encode_piece(video, tails)
            else:
                latents = self._autoencoder.encode(video)
            found.append(latents[0].cpu().numpy())
        return np.concatenate(found, axis=1).astype(self._dtype)


def autoencoder_key(autoencoder: AnyAutoencoder) -> str:
    """32 hex digits that change with the autoencoder's kind or any weight."""
    return weights_key(autoencoder)
