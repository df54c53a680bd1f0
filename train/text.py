"""The text encoder of a stage or of a run."""

from __future__ import annotations

from typing import Any

from worldline.annotate.backends import load_backend
from worldline.model.text import BACKENDS, HOW_TO_INSTALL, ByteText, TextConfig, TextEncoder
from worldline.train.checkpoint import Run, built


def text_encoder(config: TextConfig, *, channels: int, device: str) -> TextEncoder:
    """The encoder for a model that reads `channels`.

    Raises ValueError where it has others, MissingBackend naming the extra that brings a missing package.
    """
    if config.backend == "bytes":
        return ByteText(channels=channels)
    options: dict[str, Any] = {"device": device}
    if config.path is not None:
        options["path"] = config.path
    if config.backend == "gemma2":
        options["prefix"] = config.prefix
    made: TextEncoder = load_backend(config.backend, BACKENDS, HOW_TO_INSTALL)(**options)
    if made.channels != channels:
        raise ValueError(f"{config.backend} has {made.channels} channels, the model reads {channels}")
    return made


def run_text(run: Run, device: str) -> TextEncoder:
    """The text encoder that the run's model was trained with. Raises as `text_encoder`."""
    assert run.model is not None
    config = built(TextConfig, run.config.get("text", {}))
    return text_encoder(config, channels=run.model.config.text_channels, device=device)
