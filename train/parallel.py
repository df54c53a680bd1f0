"""Several processes that train as one: each takes its share of every batch, of every clip, or of the weights.

    world_size = data ranks x context ranks

Data ranks take different clips; the context ranks of one data rank share its clips' latent frames (model/
context_parallel.py). Gradients are means over all processes, so that a context rank's part of a clip's loss counts
`context_size` times. With `shard` weights, gradients and optimiser state are split over all processes (FSDP2), applied
from outside: the network's code does not know. All of it changes results by rounding only.

Without `shard` the network is not wrapped (an autoencoder's loss calls its `encode` and `decode`, which
DistributedDataParallel would not see): the gradients are added up in one call after the last backward pass.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from worldline.datasets.loader import share_of
from worldline.model.world_model import WorldModel


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1
    context_size: int = 1
    context: dist.ProcessGroup | None = None
    """The processes that share this one's clips, in time order; None where nobody does."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of every batch is this process's."""
        return self.rank // self.context_size

    @property
    def data_size(self) -> int:
        """Shares of a batch."""
        return self.world_size // self.context_size

    def share(self, batch: int) -> range:
        """Places in the global batch that are this process's."""
        return share_of(batch, self.data_rank, self.data_size)

    def frames(self, num_frames: int) -> ClipShare:
        """The latent frames of a clip that are this process's."""
        return ClipShare(num_frames, self.rank % self.context_size, self.context_size)


@dataclass(frozen=True, slots=True)
class ClipShare:
    """One of `count` equal runs of a clip's latent frames, the last filled up with repeated frames.

    The frames that fill up form a chunk of their own behind the clip, which no frame of the clip reads: this is exact.
    """

    num_frames: int
    place: int = 0
    count: int = 1

    @property
    def length(self) -> int:
        """Frames of a run."""
        return -(-self.num_frames // self.count)

    def of(self, x: Tensor, dim: int = 1) -> Tensor:
        """The run of a clip's tensor, whose frames lie along `dim`."""
        if self.count == 1:
            return x
        frames = torch.arange(self.place * self.length, (self.place + 1) * self.length, device=x.device)
        return x.index_select(dim, frames.clamp_max(self.num_frames - 1))

    def mask(self, x: Tensor) -> Tensor:
        """The run of a bool tensor [B, T], False where it is filled up."""
        first = self.place * self.length
        return self.of(x) & (torch.arange(first, first + self.length, device=x.device) < self.num_frames)

    def chunks(self, chunks: list[int]) -> list[int]:
        """Chunk indices of the clip's frames and of those that fill it up."""
        return chunks + [chunks[-1] + 1] * (self.length * self.count - self.num_frames)


def join_ranks(device: str, context_size: int = 1) -> Ranks:
    """Joins the processes that torchrun or Ray Train started; a single one where nobody did.

    Raises ValueError where `context_size` does not divide their number.
    """
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world_size % context_size:
        raise ValueError(f"{context_size} context ranks do not divide {world_size} processes")
    if context_size == 1:
        return Ranks(rank, world_size)
    mesh = init_device_mesh(
        torch.device(device).type,
        (world_size // context_size, context_size),
        mesh_dim_names=("data", "context"),
    )
    return Ranks(rank, world_size, context_size, mesh.get_group("context"))


def leave_ranks() -> None:
    """Ends what `join_ranks` began; nothing for a single process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device "cuda" becomes this process's GPU of its machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def sharded(net: WorldModel, device: str, ranks: Ranks) -> WorldModel:
    """The model with its weights split over all processes, in place: gathered block by block as they are needed.

    Raises ValueError for a single process.
    """
    if ranks.world_size == 1:
        raise ValueError("--parallel.shard splits weights over several processes: start them with torchrun")
    # What blocks return are views of what they computed; nothing writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(torch.device(device).type, (ranks.world_size,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def whole(x: Tensor) -> Tensor:
    """A tensor whose parts are on all processes, on each of them; all must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_weights(weights: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the first process, none on the others; all must ask."""
    kept = {}
    for name, value in weights.items():
        value = whole(value)
        if ranks.is_first:
            kept[name] = value.cpu()
    return kept


def copy_whole(target: Tensor, value: Tensor) -> None:
    """Writes a whole tensor into one whose parts are on all processes, or any other."""
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)


def reduce_on_next_backward(net: nn.Module, is_last: bool) -> None:
    """Of the parts of a batch only the last exchanges gradients; nothing where the weights are not split."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(is_last)


def average_gradients(net: nn.Module, loss: float, ranks: Ranks) -> float:
    """Replaces gradients by their mean over the processes, where FSDP2 did not; the mean loss."""
    if ranks.world_size == 1:
        return loss
    gradients = (
        [] if isinstance(net, FSDPModule) else [p.grad for p in net.parameters() if p.grad is not None]
    )
    device = next(net.parameters()).device
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([loss], device=device)])
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
