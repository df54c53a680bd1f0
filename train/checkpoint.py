"""Checkpoints of a training run: a folder a step, written whole or not at all, and read back as a `Run`.

    RUN/config.json   RUN/metrics.jsonl   RUN/checkpoints/step_00001000/{state.pt,config.json,optimizer/}

state.pt holds tensors and plain numbers only and is read with `weights_only`, so that a checkpoint from elsewhere cannot
run code; its weights are whole, however many processes trained. The optimiser's state is in it too, or, where the weights
were split, in `optimizer/`, to which every process wrote its part (torch.distributed.checkpoint); any number of processes
reads either, and only training that goes on does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from worldline.annotate.backends import load_backend
from worldline.model.autoencoder import (
    BACKENDS,
    HOW_TO_INSTALL,
    AutoencoderConfig,
    CausalAutoencoder,
    Ltx2Config,
)
from worldline.model.config import ModelConfig
from worldline.model.lora import merged, with_lora
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.model.world_model import WorldModel

if TYPE_CHECKING:
    from worldline.model.ltx2_autoencoder import Ltx2Autoencoder

    AnyAutoencoder = CausalAutoencoder | PatchAutoencoder | Ltx2Autoencoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What generation and evaluation read of a checkpoint, in eval mode."""

    model: WorldModel | None
    """None in a run of the autoencoder stage."""
    autoencoder: AnyAutoencoder
    config: dict[str, Any]
    """The whole `TrainConfig` as JSON values."""
    step: int
    path: Path


def save(run_dir: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes RUN/checkpoints/step_<step> under a temporary name and renames it; the folder.

    A folder of that step that is there already is replaced. Raises OSError.
    """
    temporary = begin_checkpoint(run_dir, step)
    return finish_checkpoint(run_dir, step, state, temporary)


def begin_checkpoint(run_dir: Path, step: int) -> Path:
    """An empty folder that becomes the checkpoint."""
    temporary = temporary_checkpoint(run_dir, step)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def temporary_checkpoint(run_dir: Path, step: int) -> Path:
    """Where a checkpoint is written before it is whole."""
    return run_dir / "checkpoints" / f".step_{step:08d}.tmp"


def finish_checkpoint(run_dir: Path, step: int, state: dict[str, Any], temporary: Path) -> Path:
    """Adds the state to what is in the folder and gives it its name. Raises OSError."""
    final = run_dir / "checkpoints" / f"step_{step:08d}"
    (temporary / "config.json").write_text(json.dumps(state["config"], indent=2), encoding="utf-8")
    with (temporary / "state.pt").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    return final


def steps_of(run_dir: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    return sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*"))


def config_of(run_dir: Path) -> dict[str, Any]:
    """The config that the newest checkpoint was trained with."""
    path = run_dir / "checkpoints" / f"step_{steps_of(run_dir)[-1]:08d}" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def load_state(run_dir: Path, step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """A checkpoint's folder and state, the newest without `step`; ValueError where there is none."""
    steps = steps_of(run_dir)
    if not steps or (step is not None and step not in steps):
        raise ValueError(f"{run_dir}: no checkpoint of step {step}; there are {steps}")
    path = run_dir / "checkpoints" / f"step_{steps[-1] if step is None else step:08d}"
    return path, torch.load(path / "state.pt", map_location="cpu", weights_only=True)


def load_run(run_dir: Path, step: int | None = None, *, use_ema: bool = True) -> Run:
    """Models of a run's checkpoint, the newest without `step`.

    `use_ema` takes the averaged weights where the run kept them. Raises ValueError where there is none.
    """
    path, state = load_state(run_dir, step)
    config = state["config"]
    kinds = AutoencoderConfig | PatchAutoencoderConfig | Ltx2Config
    autoencoder = new_autoencoder(built(kinds, config["autoencoder"]))
    weights = state["ema"] if use_ema and state["ema"] is not None else state["model"]
    model = None
    if config["kind"] == "autoencoder":
        autoencoder.load_state_dict(weights)
    else:
        model = WorldModel(built(ModelConfig, config["model"]))
        if config["kind"] == "refiner" and (rank := config["refine"]["lora_rank"]):
            with_lora(model, rank).load_state_dict(weights)
            merged(model)
        else:
            model.load_state_dict(weights)
        model.eval()
        take_autoencoder(autoencoder, state["autoencoder"])
    return Run(model=model, autoencoder=autoencoder.eval(), config=config, step=state["step"], path=path)


def weights_key(module: nn.Module) -> str:
    """32 hex digits that change with the module's kind or any weight."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:32]


def new_autoencoder(config: AutoencoderConfig | PatchAutoencoderConfig | Ltx2Config) -> AnyAutoencoder:
    """The autoencoder of this config, not trained; LTX-2's with its weights.

    Raises MissingBackend naming the extra, OSError where LTX-2's weights are not found.
    """
    if isinstance(config, Ltx2Config):
        made: AnyAutoencoder = load_backend("ltx2", BACKENDS, HOW_TO_INSTALL)(config.path)
        return made
    if isinstance(config, PatchAutoencoderConfig):
        return PatchAutoencoder(config)
    return CausalAutoencoder(config)


def autoencoder_weights(autoencoder: AnyAutoencoder) -> dict[str, Tensor] | None:
    """What a checkpoint holds of the autoencoder; None of one whose weights are elsewhere."""
    ours = isinstance(autoencoder, CausalAutoencoder | PatchAutoencoder)
    return autoencoder.state_dict() if ours else None


def take_autoencoder(autoencoder: AnyAutoencoder, weights: dict[str, Tensor] | None) -> None:
    """Loads what `autoencoder_weights` gave."""
    if weights is not None:
        autoencoder.load_state_dict(weights)


def plain(value: Any) -> Any:
    """A config dataclass as values that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def built(kind: Any, value: Any) -> Any:
    """The config of type `kind` that `plain` made `value` of; ValueError for a field it does not have."""
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        fits = [
            choice
            for choice in choices
            if isinstance(value, dict) and set(value) == set(get_type_hints(choice))
        ]
        kind = (fits or choices)[0]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        if unknown := set(value) - set(hints):
            raise ValueError(f"{kind.__name__} has no {sorted(unknown)}")
        return kind(**{name: built(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value
