"""Training: a shard folder and a config in, a run folder of checkpoints and metrics out.

One process, or several under torchrun or Ray Train (train/parallel.py). All that is random about a clip follows from
(seed, step, its place in the batch), and the data from the loader's position, so a run that was stopped and goes on from
its checkpoint is bit-identical to one that was not, and one on other processes equal to rounding. Frames are
encoded on the fly unless the shards have latents and `cached_latents` is set.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tyro
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.sample_order import OrderConfig
from worldline.datasets.shard_index import select
from worldline.datasets.transforms import ClipView, TrainingView, collate_views
from worldline.model.autoencoder import CausalAutoencoder
from worldline.model.exchange import released_weights
from worldline.model.lora import with_lora
from worldline.model.patch_autoencoder import PatchAutoencoder
from worldline.model.world_model import WorldModel
from worldline.train.checkpoint import (
    autoencoder_weights,
    begin_checkpoint,
    config_of,
    finish_checkpoint,
    load_state,
    new_autoencoder,
    plain,
    save,
    steps_of,
    take_autoencoder,
    temporary_checkpoint,
)
from worldline.train.config import TrainConfig
from worldline.train.latent_encoder import autoencoder_key
from worldline.train.metrics import MetricsLog
from worldline.train.objectives import Loss, loss_function, video
from worldline.train.parallel import (
    Ranks,
    average_gradients,
    copy_whole,
    join_ranks,
    leave_ranks,
    own_device,
    reduce_on_next_backward,
    seeded_generator,
    sharded,
    wait_for_all,
    whole,
    whole_weights,
)

if TYPE_CHECKING:
    from worldline.train.checkpoint import AnyAutoencoder

logger = logging.getLogger(__name__)


class NotFinite(RuntimeError):
    """The loss or its gradient is not finite; names the batch's clips. The last checkpoint is untouched."""


def train(config: TrainConfig) -> None:
    """Trains to `config.steps`, from the newest checkpoint of the run folder where there is one.

    Ctrl-C writes a checkpoint, unless it came amid an update of the weights, and is raised again.
    Raises ValueError for a run folder of another config or where nothing is selected, NotFinite.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    ranks = join_ranks(config.device, config.parallel.context_ranks)
    config = replace(config, device=own_device(config.device))
    if config.global_batch % (ranks.data_size * config.accumulation):
        raise ValueError(
            f"global_batch {config.global_batch} does not divide into {ranks.data_size} processes"
            f" x {config.accumulation} parts"
        )
    if steps_of(config.out)[-1:] == [config.steps]:
        _refuse_other(config, config_of(config.out))
        return
    net, autoencoder = _networks(config)
    if config.kind == "autoencoder" and isinstance(autoencoder, PatchAutoencoder):
        if ranks.is_first:
            _fit_patches(config, autoencoder)
        wait_for_all(ranks)
        return
    if isinstance(net, WorldModel):
        net.checkpoint_blocks = config.parallel.checkpoint_blocks
        if config.parallel.shard:
            net = sharded(net, config.device, ranks)
    optimizer = torch.optim.AdamW(_groups(net, config), lr=config.lr, betas=config.betas)
    ema = None if config.ema_decay is None else {k: v.clone() for k, v in net.state_dict().items()}
    if config.cached_latents:
        _check_latents(config, autoencoder)
    loader = open_loader(config, ranks)
    start = _restore(config, net, optimizer, ema, loader)
    if ranks.is_first:
        _write_config(config)
    loss_of = loss_function(config, net, autoencoder, ranks)

    def write(step: int) -> None:
        _write(config, ranks, net, optimizer, ema, autoencoder, loader, step)

    is_whole = True
    step, saved, batches = start, start, iter(loader)
    log = MetricsLog(config, start, ranks.world_size) if ranks.is_first and start < config.steps else None
    try:
        while step < config.steps:
            clips = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            loss, norm = _gradient(config, net, clips, loss_of, step, ranks)
            is_whole = False
            optimizer.step()
            _average(ema, net, config.ema_decay)
            step += 1
            if step == config.steps and config.kind == "autoencoder":
                assert isinstance(autoencoder, CausalAutoencoder)
                _fit_latents(autoencoder, clips, config)
            is_whole = True
            if log and (step % config.log_every == 0 or step == config.steps):
                log.add(step, loss, norm, learning_rate(step - 1, config), clips)
            if step % config.checkpoint_every == 0 or step == config.steps:
                write(step)
                saved = step
    except KeyboardInterrupt:
        # A batch that was read but not stepped on is read again: the state is that of whole steps. Processes that
        # split the weights may be interrupted at different steps, and fall back to their last checkpoint.
        if is_whole and step > saved and not config.parallel.shard:
            loader.load_state_dict({**loader.state_dict(), "position": step * config.global_batch})
            write(step)
        raise
    wait_for_all(ranks)


def _fit_patches(config: TrainConfig, autoencoder: PatchAutoencoder) -> None:
    """The whole stage where there is nothing to descend: one decomposition of the first `steps` batches."""
    loader = open_loader(config)
    batches = iter(loader)
    autoencoder.fit(torch.cat([video(next(batches), config.device) for _ in range(config.steps)]))
    weights = autoencoder.state_dict()
    state = {
        "model": weights,
        "ema": None,
        "autoencoder": weights,
        "step": config.steps,
        "config": plain(config),
    }
    _write_config(config)
    save(config.out, config.steps, state)
    logger.info("fitted %d components to %d batches", autoencoder.latent_channels, config.steps)


def _write(
    config: TrainConfig,
    ranks: Ranks,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor] | None,
    autoencoder: AnyAutoencoder,
    loader: Loader,
    step: int,
) -> None:
    """A checkpoint; every process calls this where weights are split."""
    if not (ranks.is_first or config.parallel.shard):
        return
    state = {
        "model": whole_weights(net.state_dict(), ranks),
        "ema": None if ema is None else whole_weights(ema, ranks),
        "autoencoder": autoencoder_weights(autoencoder),
        "optimizer": None if config.parallel.shard else get_optimizer_state_dict(net, optimizer),
        "loader": loader.state_dict(),
        "step": step,
        "config": plain(config),
    }
    if not config.parallel.shard:
        save(config.out, step, state)
        return
    if ranks.is_first:
        begin_checkpoint(config.out, step)
    wait_for_all(ranks)
    folder = temporary_checkpoint(config.out, step)
    dcp.save(get_optimizer_state_dict(net, optimizer), checkpoint_id=folder / "optimizer")
    if ranks.is_first:
        finish_checkpoint(config.out, step, state, folder)
    wait_for_all(ranks)


def _write_config(config: TrainConfig) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(json.dumps(plain(config), indent=2), encoding="utf-8")


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step `step`, counted from 0: a linear rise, then a cosine to its final share."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = config.final_lr_share
    return config.lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def take_weights(net: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Copies parameters of equal name and shape; the names of those that keep their start values.

    A block that turns from the gated delta rule to softmax keeps all its projections and drops gates and
    key convolutions, which softmax blocks do not have.
    """
    own = net.state_dict()
    taken = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not taken:
        raise ValueError("the checkpoint shares no parameter with the model")
    net.load_state_dict(taken, strict=False)
    return sorted(set(own) - set(taken))


def _networks(config: TrainConfig) -> tuple[nn.Module, AnyAutoencoder]:
    """The network that is trained, and the autoencoder; the same object in the autoencoder stage."""
    torch.manual_seed(config.seed)
    autoencoder = new_autoencoder(config.autoencoder).to(config.device)
    net: nn.Module = autoencoder
    if config.kind != "autoencoder":
        net = WorldModel(config.model).to(config.device)
    if config.init_from is not None:
        _take_earlier(config, config.init_from, net, autoencoder)
    if isinstance(net, WorldModel):
        autoencoder.eval().requires_grad_(False)
        if config.kind == "refiner" and config.refine.lora_rank:
            net = with_lora(net, config.refine.lora_rank).to(config.device)
    return net, autoencoder


def _take_earlier(config: TrainConfig, earlier: Path, net: nn.Module, autoencoder: AnyAutoencoder) -> None:
    """The weights of an earlier run, or of a released model."""
    if (earlier / "config.json").exists() and not steps_of(earlier):
        if config.kind != "flow":
            raise ValueError(f"{earlier} is no run: only a flow stage begins from released weights")
        logger.info("fresh parameters: %s", take_weights(net, released_weights(earlier)))
        return
    _, state = load_state(earlier)
    weights = state["model"] if state["ema"] is None else state["ema"]
    if state["config"].get("refine", {}).get("lora_rank") and state["config"]["kind"] == "refiner":
        raise ValueError(f"{earlier} is a refiner with adapters: begin from the run it began from")
    if state["config"]["kind"] == "autoencoder":
        autoencoder.load_state_dict(weights)
        return
    take_autoencoder(autoencoder, state["autoencoder"])
    if config.kind != "autoencoder":
        logger.info("fresh parameters: %s", take_weights(net, weights))


def _groups(net: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    tables = ("table", "final_table")
    named = [(name.rsplit(".", 1)[-1], p) for name, p in net.named_parameters() if p.requires_grad]
    decays = [p for name, p in named if p.ndim > 1 and name not in tables]
    others = [p for name, p in named if p.ndim <= 1 or name in tables]
    return [
        {"params": decays, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def open_loader(config: TrainConfig, ranks: Ranks | None = None) -> Loader:
    ranks = ranks or Ranks()
    weight = None if config.decisions is None else "decision_weight"
    loading = LoaderConfig(
        global_batch=config.global_batch,
        order=OrderConfig(seed=config.seed),
        members=("json", "latent.npy" if config.cached_latents else "mp4"),
        num_workers=config.num_workers,
        rank=ranks.data_rank,
        world_size=ranks.data_size,
    )
    loader = Loader(
        select(config.shards, config.where, weight=weight, decisions=config.decisions), loading, collate_views
    )
    return loader.map(TrainingView(config.view))


def _check_latents(config: TrainConfig, autoencoder: AnyAutoencoder) -> None:
    """ValueError where the shards' latents are those of another autoencoder; a warning where nobody knows."""
    with fsspec.open(f"{config.shards}/shards.json", "rb") as file:
        made = json.load(file).get("latents")
    if made is None:
        logger.warning("%s does not say which autoencoder its latents are of", config.shards)
    elif made["autoencoder"] != autoencoder_key(autoencoder):
        raise ValueError(
            f"{config.shards} has latents of another autoencoder than {config.init_from}: "
            "run `worldline encode` with this one into a new folder"
        )


def _restore(
    config: TrainConfig,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor] | None,
    loader: Loader,
) -> int:
    """Step that training goes on from."""
    if not steps_of(config.out):
        return 0
    path, state = load_state(config.out)
    _refuse_other(config, state["config"])
    with torch.no_grad():
        for name, value in net.state_dict().items():
            copy_whole(value, state["model"][name])
        for name, value in (ema or {}).items():
            copy_whole(value, state["ema"][name])
    of_optimizer = state["optimizer"]
    if of_optimizer is None:
        of_optimizer = get_optimizer_state_dict(net, optimizer)  # of the right shapes, to be written into
        dcp.load(of_optimizer, checkpoint_id=path / "optimizer", no_dist=not dist.is_initialized())
    whole_state = StateDictOptions(full_state_dict=state["optimizer"] is not None)
    set_optimizer_state_dict(net, optimizer, of_optimizer, options=whole_state)
    loader.load_state_dict(state["loader"])
    return int(state["step"])


def _refuse_other(config: TrainConfig, then: dict[str, Any]) -> None:
    """ValueError where the checkpoint was trained with another config."""
    now = plain(config)
    free = {"out", "device", "cpu_threads", "num_workers", "checkpoint_every", "log_every", "parallel"}
    if config.kind != "refiner":
        free.add("refine")
    if changed := [name for name in then if name not in free and now.get(name) != then[name]]:
        raise ValueError(f"{config.out} was trained with another {', '.join(changed)}; give another --out")


def _gradient(
    config: TrainConfig, net: nn.Module, clips: ClipView, loss_of: Loss, step: int, ranks: Ranks
) -> tuple[float, float]:
    """Leaves the clipped gradient in the parameters; the loss and the norm before clipping."""
    net.zero_grad(set_to_none=True)
    total, places = 0.0, ranks.share(config.global_batch)
    part = len(places) // config.accumulation
    for k in range(config.accumulation):
        reduce_on_next_backward(net, k == config.accumulation - 1)
        rows = slice(k * part, (k + 1) * part)
        generators = [seeded_generator(config.seed, step, place) for place in places[rows]]
        loss = loss_of(_piece(clips, rows), generators) / config.accumulation
        loss.backward()
        total += loss.item()
    total = average_gradients(net, total, ranks)
    norm = float(whole(nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)))
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NotFinite(f"step {step + 1}: loss {total}, gradient norm {norm}; clips {list(clips.clip_id)}")
    return total, norm


def _piece(clips: ClipView, part: slice) -> ClipView:
    names = ("clip_id", "frames", "latent", "first_from_cam", "fxfycxcy_px", "weight", "is_metric", "caption")
    values = {name: getattr(clips, name) for name in names}
    cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in values.items()}
    return ClipView(**cut, size_px=clips.size_px)


@torch.no_grad()
def _fit_latents(autoencoder: CausalAutoencoder, clips: ClipView, config: TrainConfig) -> None:
    """Gives latents of the last batch unit variance: flow matching mixes them with unit noise."""
    autoencoder.fit_normalisation(autoencoder.encode(video(clips, config.device)))


@torch.no_grad()
def _average(ema: dict[str, Tensor] | None, net: nn.Module, decay: float | None) -> None:
    if ema is not None and decay is not None:
        for name, value in net.state_dict().items():
            ema[name].lerp_(value, 1 - decay)


def main(config: TrainConfig) -> int:
    """Exit status 0, or 2 for a config or run folder that does not fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(config)
    except (ValueError, NotFinite) as error:
        logger.error("%s", error)
        return 2
    finally:
        leave_ranks()
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(TrainConfig)))
