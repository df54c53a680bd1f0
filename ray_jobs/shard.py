"""`worldline shard`: a dataset folder in, WebDataset shards with a Parquet index out, on Ray.

    plan -> shards (each cut, encoded and written by one process) -> index

The same command again writes only shards without a commit, and adds shards for clips that are new in the table.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

import worldline
from worldline.datasets.clip_video import EncodeConfig
from worldline.datasets.schema import config_hash
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_plan import (
    PlanConfig,
    clips_of_shard,
    extend_plan,
    planned_shards,
    trajectory_rows,
)
from worldline.datasets.shards import write_shard
from worldline.ray_jobs.shard_pool import PoolConfig, ShardTally, ShardWorker, finish, run_pool

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig(PoolConfig):
    """Cut, resample and encode kept scenes into WebDataset tars with a Parquet index."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    latents: Path | None = None
    """Folder of `<clip_id>.npy` autoencoder latents to put beside the videos."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)


class WriteShard(ShardWorker):
    """Cuts and encodes the clips of a shard."""

    def __init__(self, config: ShardConfig, run_id: str) -> None:
        super().__init__(config, run_id)
        self._job = config

    def _rows(self, number: int) -> list[Row]:
        return write_shard(
            trajectory_rows(self._job.dataset.absolute(), clips_of_shard(self._shards, number)),
            self._shards.tar(number),
            self._job.encode,
            latent_dir=self._job.latents,
            guard=self._guard,
        )

    def _replay(self, clip_id: str) -> str:
        again = shlex.join(["worldline", "shard", str(self._job.dataset), "--out", "NEW_FOLDER"])
        return f"{again} --plan.where \"clip_id = '{clip_id}'\""


def run_shards(config: ShardConfig, check: Callable[[], None] = lambda: None) -> ShardTally:
    """Plans, writes what is missing and brings the index up to date.

    `check` is called between shards and steps and may raise.
    Raises ValueError for a wrong config or query, OSError for a disk that cannot be written.
    """
    shards = ShardDir(config.out.absolute())
    shards.describe(
        {
            "encode": dataclasses.asdict(config.encode),
            "frames_per_shard": config.plan.frames_per_shard,
            "config_hash": config_hash(config.encode),
            "version": worldline.__version__,
        }
    )
    extend_plan(config.dataset.absolute(), shards, config.plan, config.encode.fps)
    tally = ShardTally()
    for _, clips in planned_shards(shards):
        tally.num_shards += 1
        tally.num_clips += clips
    if not tally.num_shards:
        return tally
    run_pool(WriteShard, config, (number for number, _ in planned_shards(shards)), tally, check)
    return tally


def main(config: ShardConfig) -> int:
    """Exit status: 0 all accounted for, 1 stopped early, 2 nothing written, 3 failed share over the limit, 130
    Ctrl-C."""
    return finish("shard", config, functools.partial(run_shards, config))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ShardConfig)))
