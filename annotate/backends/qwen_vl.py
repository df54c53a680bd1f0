"""Qwen3-VL through transformers (Qwen team, 2025; weights Apache-2.0): pictures and a question in, words out.

The prompt is put together here, token by token as the published chat format has it: the library's own processor needs
torchvision for videos, which nothing else here does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from worldline.annotate.backends.torch_maps import pick_device, weights_or_published
from worldline.annotate.caption import CaptionConfig
from worldline.filters.content import ContentConfig
from worldline.filters.verdict import VERDICT_PROMPT, read_verdict

WEIGHTS = "Qwen/Qwen3-VL-4B-Instruct"


class QwenVl:
    """The model, loaded once."""

    def __init__(self, weights: str | None, device: str | None) -> None:
        """`weights`: folder or hub name, None for WEIGHTS; `device`: None for cuda where there is one."""
        weights = weights_or_published(weights, WEIGHTS)
        self._device = pick_device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(weights)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(weights)
        kind = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._model = Qwen3VLForConditionalGeneration.from_pretrained(weights, dtype=kind).eval()
        torch.nn.Module.to(self._model, self._device)

    @torch.inference_mode()
    def ask(self, frames: Sequence[np.ndarray], prompt: str, *, max_tokens: int) -> str:
        """What it says to pictures [H, W, 3] uint8 RGB and a question; the same words every time."""
        pictures = self._images(images=list(frames), return_tensors="pt").to(self._device)
        merged = self._images.merge_size**2
        shown = "".join(
            f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // merged)}<|vision_end|>"
            for grid in pictures["image_grid_thw"]
        )
        text = f"<|im_start|>user\n{shown}{prompt}<|im_end|>\n<|im_start|>assistant\n"
        tokens = self._tokenizer(text, return_tensors="pt").to(self._device)
        # Which tokens stand for pictures: the model places them in space by it.
        is_picture = (tokens["input_ids"] == self._model.config.image_token_id).to(torch.int)
        said = self._model.generate(
            **tokens,
            mm_token_type_ids=is_picture,
            pixel_values=pictures["pixel_values"].to(self._model.dtype),
            image_grid_thw=pictures["image_grid_thw"],
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        new = said[0, tokens["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(new, skip_special_tokens=True)).strip()


class QwenVlCaptioner:
    """`qwen_vl` of annotate/caption.py."""

    def __init__(self, config: CaptionConfig) -> None:
        self._model = QwenVl(config.weights, config.device)
        self._prompt, self._max_tokens = config.prompt, config.max_tokens

    def __call__(self, frames: Sequence[np.ndarray]) -> str:
        """See `Captioner`."""
        return self._model.ask(frames, self._prompt, max_tokens=self._max_tokens)


class QwenVlJudge:
    """`qwen_vl` of filters/content.py: counts of things, and what makes a clip unfit."""

    def __init__(self, config: ContentConfig) -> None:
        self._model = QwenVl(config.vlm_weights, config.device)

    def __call__(self, images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, Any]:
        """Pictures [H, W, 3] uint8 RGB -> vlm_quality, vlm_flags and the counts; see `read_verdict`."""
        return read_verdict(self._model.ask(images, VERDICT_PROMPT, max_tokens=200))
