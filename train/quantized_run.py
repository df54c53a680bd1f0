"""A run's model in FP8 or NVFP4 for generation, refused where its output is not its own any more."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from worldline.annotate.camera import Intrinsics
from worldline.model.config import ModelConfig
from worldline.model.quantize import (
    LayerError,
    QuantizeConfig,
    checked,
    layer_errors,
    quantize,
    relative_error,
)
from worldline.model.rope import Grid
from worldline.model.world_model import WorldModel, conditions
from worldline.train.parallel import seeded_generator

MAX_QUANTIZED_ERROR = 0.2
"""Of the norm of a model's output, on noise; NVFP4 costs the recipe's model 0.10 and 0.14 dB, FP8 0.03 and 0.01 dB."""


def quantized_model(model: WorldModel, dtype: str, *, view: dict[str, Any], device: str) -> WorldModel:
    """The model in the format `dtype`. Raises ValueError where its output on noise is off by `MAX_QUANTIZED_ERROR`."""
    config = QuantizeConfig(format=cast(Any, dtype))
    probe = functools.partial(_on_noise, view=view, device=device)
    return checked(model, quantize(model, config), config, probe, limit=MAX_QUANTIZED_ERROR)


def quantized_errors(
    model: WorldModel, dtype: str, *, view: dict[str, Any]
) -> tuple[float, list[LayerError]]:
    """How far the format moves the model's output on noise, relative to its norm, and each layer's part by itself."""
    config = QuantizeConfig(format=cast(Any, dtype))
    probe = functools.partial(_on_noise, view=view, device="cpu")
    return relative_error(probe(quantize(model, config)), probe(model)), layer_errors(model, config, probe)


@torch.no_grad()
def _on_noise(model: nn.Module, *, view: dict[str, Any], device: str) -> Tensor:
    """The output for two clips of pure noise at a middle level, along a path that goes ahead and turns."""
    config = cast(ModelConfig, model.config)
    num_latents, count = 1 + (view["num_frames"] - 1) // view["time_stride"], view["num_frames"]
    generator = seeded_generator(0)
    latents = torch.randn(2, config.latent_channels, num_latents, 4, 6, generator=generator)
    turns = torch.linspace(0, 0.5, count)
    poses = torch.eye(3, 4).repeat(2, count, 1, 1)
    poses[:, :, 0, 0], poses[:, :, 0, 2] = turns.cos(), turns.sin()
    poses[:, :, 2, 0], poses[:, :, 2, 2] = -turns.sin(), turns.cos()
    poses[:, :, 2, 3] = turns
    lens = Intrinsics(fxfycxcy_px=np.array([4.0, 4.0, 3.0, 2.0]), width=6, height=4)
    grid = Grid(num_frames=num_latents, height=4, width=6)
    cameras = conditions(config, poses.to(device), lens, grid)
    text = torch.zeros(2, 1, config.text_channels, device=device)
    mask = torch.ones(2, 1, dtype=torch.bool, device=device)
    levels = torch.full((2, num_latents), 500.0, device=device)
    velocity: Tensor = model(latents.to(device), levels, text, mask, cameras)
    return velocity
