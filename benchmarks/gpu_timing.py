"""Device time and memory of a call on a GPU."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable

import torch

DEVICE = "cuda"


def milliseconds(call: Callable[[], object], *, repeats: int = 5, warm_up: int = 2) -> float:
    """Median device time of a call."""
    times = []
    for turn in range(warm_up + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if turn >= warm_up:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak_gib(call: Callable[[], object]) -> float:
    """Most device memory during a call, beyond what was held before it."""
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**30
