"""The trainer on a Ray cluster: Ray Train starts the processes, and starts them again where one dies.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python -m worldline.ray_jobs.train --ranks 8 --device cuda --shards s3://... --out /shared/run ...

Each attempt goes on from the newest checkpoint of the run folder, which all nodes must see.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from worldline.ray_jobs import annotate
from worldline.train.config import TrainConfig
from worldline.train.trainer import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTrainConfig:
    """One stage of training on several processes of a Ray cluster."""

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    ranks: int = 1
    """Processes; with `--device cuda` each has a GPU of its own. They must divide the global batch."""
    max_failures: int = 3
    """Times that the processes are started again after one died."""
    address: str | None = None
    """Ray cluster to join ("auto": the one running here); default: RAY_ADDRESS, else a private local one."""
    storage: Path | None = None
    """Folder of Ray Train's own records, seen by all nodes; default: `ray_train` in the run folder."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.max_failures < 0:
            raise ValueError("ranks must be at least 1, max_failures not negative")
        if self.train.global_batch % (self.ranks * self.train.accumulation):
            raise ValueError(
                f"global_batch {self.train.global_batch} does not divide into {self.ranks} ranks"
            )


def main(config: RayTrainConfig) -> int:
    """Exit status 0, or 1 where the processes died too often or the config does not fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = annotate.start_ray(annotate.RunConfig(address=config.address))
    try:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"config": config.train},
            scaling_config=ScalingConfig(
                num_workers=config.ranks, use_gpu=config.train.device.startswith("cuda")
            ),
            run_config=RunConfig(
                name="stage",
                storage_path=str((config.storage or config.train.out / "ray_train").absolute()),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        trainer.fit()
    except Exception as error:
        logger.error("worldline.ray_jobs.train: %s", error)
        return 1
    finally:
        if started:
            ray.shutdown()
    return 0


def _work(settings: dict[str, TrainConfig]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(settings["config"])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(RayTrainConfig)))
