"""Context parallelism on gloo ranks against one process, forward and gradients."""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from worldline.model.context_parallel import gather_frames, halo
from worldline.model.gated_delta import delta_chunked

torch.set_num_threads(1)
NUM_FRAMES = 12


def run_on_ranks(worker, num_ranks: int) -> list:
    """Results of worker(rank, group) on forked gloo ranks, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_entry, args=(num_ranks, worker, folder), nprocs=num_ranks, start_method="fork")
        return [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(num_ranks)]


def _entry(rank: int, num_ranks: int, worker, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks
    )
    torch.save(worker(rank, dist.group.WORLD), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def random_tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, NUM_FRAMES, 5, 2, 6)] * 3 + [(2, NUM_FRAMES, 5, 2), (2, NUM_FRAMES, 2)]
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[1] /= 30**0.5
    return [*tensors[:3], tensors[3].sigmoid(), tensors[4].sigmoid()]


def attend(tensors: list[Tensor], chunks, group=None) -> list[Tensor]:
    """Output, final state and gradients of a loss over the outputs and the final state."""
    q, k, v, beta, gamma = leaves = [x.detach().requires_grad_() for x in tensors]
    out, state = delta_chunked(q, k, v, beta=beta, gamma=gamma, chunks=chunks, group=group)
    loss = out.square().sum()
    if group is None or group.rank() == 0:
        loss = loss + state.square().sum()
    return [x.detach() for x in (out, state, *torch.autograd.grad(loss, leaves))]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("chunks", [None, [0] * NUM_FRAMES, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]])
def test_gated_delta_over_ranks_equals_one_process(num_ranks, chunks):
    tensors = random_tensors()
    expected = attend(tensors, chunks)

    def worker(rank: int, group: dist.ProcessGroup) -> list[Tensor]:
        return attend([x.chunk(num_ranks, dim=1)[rank] for x in tensors], chunks, group)

    per_rank = run_on_ranks(worker, num_ranks)
    for index, value in enumerate(expected):
        if index == 1:
            assert all(relative(results[index], value) < 1e-12 for results in per_rank)
        else:
            assert relative(torch.cat([results[index] for results in per_rank], dim=1), value) < 1e-12


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_halo_and_gather_equal_padding_and_the_whole(num_ranks):
    x = torch.randn(2, NUM_FRAMES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.arange(NUM_FRAMES, dtype=torch.float64)[:, None]

    def loss_of(padded: Tensor, gathered: Tensor, rank: int) -> Tensor:
        length = padded.shape[1] - 3
        local = weights[rank * length : (rank + 1) * length]
        window = padded[:, 0:length] - 2 * padded[:, 2 : length + 2] + padded[:, 3:] ** 2
        return (local * window).sum() + (rank + 1) * (weights * gathered**2).sum()

    whole = x.clone().requires_grad_()
    padded = torch.cat([whole.new_zeros(2, 2, 3), whole, whole.new_zeros(2, 1, 3)], dim=1)
    length = NUM_FRAMES // num_ranks
    total = sum(
        loss_of(padded[:, rank * length : (rank + 1) * length + 3], whole, rank) for rank in range(num_ranks)
    )
    (expected,) = torch.autograd.grad(total, whole)

    def worker(rank: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        local = x.chunk(num_ranks, dim=1)[rank].clone().requires_grad_()
        before, after = halo(local, group, before=2, after=1)
        joined = torch.cat([before, local, after], dim=1)
        (grad,) = torch.autograd.grad(loss_of(joined, gather_frames(local, group), rank), local)
        return joined.detach(), grad

    for rank, (joined, grad) in enumerate(run_on_ranks(worker, num_ranks)):
        assert torch.equal(joined, padded.detach()[:, rank * length : (rank + 1) * length + 3])
        assert relative(grad, expected[:, rank * length : (rank + 1) * length]) < 1e-14


def test_a_slice_shorter_than_the_halo_is_refused():
    def worker(rank: int, group: dist.ProcessGroup) -> str:
        try:
            halo(torch.zeros(1, 2, 1), group, before=3, after=0)
        except ValueError as error:
            return str(error)
        return ""

    assert run_on_ranks(worker, 2) == ["a rank holds 2 frames, fewer than the halo of 3"] * 2
