"""Several processes that train as one: each takes its share of every batch, and gradients are averaged.

Weights, optimiser and averages are the same in every process, so a checkpoint is that of any of them and loads into
any number of processes. The network is not wrapped (an autoencoder's loss calls its `encode` and `decode`, which
DistributedDataParallel would not see): the gradients are added up in one call after the last backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from worldline.datasets.loader import share_of


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Places in the global batch that are this process's."""
        return share_of(batch, self.rank, self.world_size)


def join_ranks(device: str) -> Ranks:
    """Joins the processes that torchrun or Ray Train started; a single one where nobody did."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """Ends what `join_ranks` began; nothing for a single process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device "cuda" becomes this process's GPU of its machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def average_gradients(parameters: Iterable[nn.Parameter], loss: float, ranks: Ranks) -> float:
    """Replaces gradients by their mean over the processes; the mean loss."""
    if ranks.world_size == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [gradients[0].new_tensor([loss])])
    dist.all_reduce(flat)
    flat /= ranks.world_size
    pieces = flat[:-1].split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return float(flat[-1])


def wait_for_all(ranks: Ranks) -> None:
    """Returns once every process is here."""
    if ranks.world_size > 1:
        dist.barrier()


def seeded_generator(*words: int) -> torch.Generator:
    """Noise that belongs to these numbers of at least 0, in their order, and shares nothing with that of others."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
