"""`worldline encode`: shards of videos in, shards of their latents out, on Ray.

The result is a shard folder of its own, whose members are `json` and `latent.npy`; `shards.json` says which autoencoder
made it, by a digest of its weights, and the trainer refuses latents of another one. As with `worldline shard`, a shard
is one unit of work, and the same command does only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import worldline
from worldline.datasets.commit_log import CommitLog, replace_file
from worldline.datasets.latents import encode_clip, encode_shard
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_merge import finish_merges
from worldline.datasets.shard_plan import merge_state, planned_shards
from worldline.ray_jobs.shard_pool import PoolConfig, ShardTally, ShardWorker, finish, run_pool

Row = dict[str, Any]

DTYPES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJobConfig(PoolConfig):
    """Encode shards of videos into shards of latents, for training that reads no video."""

    shards: tyro.conf.Positional[Path]
    """Folder that `worldline shard` wrote."""
    autoencoder: Path
    """Run folder of `worldline train`, of the autoencoder's stage or a later one."""
    width: int | None = None
    """Pixels that are encoded; default: what the run was trained with, or else the shards' own size."""
    height: int | None = None
    dtype: str = "float16"
    """float16 or float32 of the stored latents, which have unit variance."""
    device: str = "cpu"
    """torch device of each worker."""
    num_gpus: float = 0.0
    """GPUs a worker takes, with `device` cuda."""
    max_worker_mib: float = 8192.0
    """A worker found above this between two shards is replaced by a fresh one."""

    def __post_init__(self) -> None:
        PoolConfig.__post_init__(self)
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: known are {DTYPES}")


class EncodeShard(ShardWorker):
    """Encodes the clips of a shard."""

    def __init__(self, config: EncodeJobConfig, run_id: str) -> None:
        super().__init__(config, run_id)
        from worldline.train.checkpoint import load_run
        from worldline.train.latent_encoder import LatentEncoder

        self._job = config
        run = load_run(config.autoencoder)
        self._encoder = LatentEncoder(run.autoencoder, device=config.device, dtype=config.dtype)

    def _rows(self, number: int) -> list[Row]:
        facts = self._shards.facts()["latents"]
        encode = functools.partial(
            encode_clip, encoder=self._encoder, width=facts["width"], height=facts["height"]
        )
        source = ShardDir(self._job.shards.absolute()).tar(number)
        try:
            return encode_shard(source, self._shards.tar(number), encode, guard=self._guard)
        except ClipRejected as damage:
            raise ValueError(
                f"{source}: {damage}; run `worldline verify {self._job.shards} --repair`"
            ) from damage

    def _replay(self, clip_id: str) -> str:
        return f"worldline encode {self._job.shards} --autoencoder {self._job.autoencoder} --out NEW_FOLDER"


def run_encode(config: EncodeJobConfig, check: Callable[[], None] = lambda: None) -> ShardTally:
    """Encodes what is missing and brings the index up to date.

    Raises ValueError for a folder that is none or an `out` of another autoencoder or size, OSError.
    """
    _, clips_of = prepare(config)
    tally = ShardTally(num_shards=len(clips_of), num_clips=sum(clips_of.values()))
    if clips_of:
        run_pool(EncodeShard, config, iter(clips_of), tally, check, num_gpus=config.num_gpus)
    return tally


def prepare(config: EncodeJobConfig) -> tuple[ShardDir, dict[int, int]]:
    """The folder of latents, described and with the source's plan, and the source's written shards with their
    numbers of clips. Raises ValueError.
    """
    from worldline.train.checkpoint import load_run
    from worldline.train.latent_encoder import autoencoder_key

    source = ShardDir(config.shards.absolute())
    written = source.facts()
    run = load_run(config.autoencoder)
    view = run.config["view"]
    width = config.width or view["width"] or written["encode"]["width"]
    height = config.height or view["height"] or written["encode"]["height"]
    stride = run.autoencoder.space_stride
    if width % stride or height % stride:
        raise ValueError(
            f"{width} x {height} is no whole number of cells of {stride} pixels; give --width, --height"
        )
    latents = {
        "autoencoder": autoencoder_key(run.autoencoder),
        "width": width,
        "height": height,
        "dtype": config.dtype,
        "time_stride": run.autoencoder.time_stride,
    }
    shards = ShardDir(config.out.absolute())
    shards.describe({"latents": latents, "of": written, "version": worldline.__version__})
    for path in source.plans():
        copy = shards.root / "plan" / path.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            replace_file(copy, path.read_bytes())
    # Shards that the source has merged since are merged here too; what was not encoded then is as a merged shard.
    if merge_state(shards).pending:
        with contextlib.closing(CommitLog(shards.root, "encode")) as log:
            finish_merges(shards, log)
    return shards, {number: clips for number, clips in planned_shards(source) if source.tar(number).exists()}


def main(config: EncodeJobConfig) -> int:
    """Exit status: 0 all accounted for, 1 stopped early, 2 nothing written, 3 failed share over the limit, 130
    Ctrl-C."""
    return finish("encode", config, functools.partial(run_encode, config))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(EncodeJobConfig)))
