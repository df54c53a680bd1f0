"""Time and memory of the attention against the clip's length; called by `benchmarks.attention --lengths`.

CPU seconds of one thread, the median of calls that take turns in one process, after one call of each that
does not count. Peak memory is measured in processes of their own. Beside each form stands the time of its
matrix products alone, as batches over all frames: what no way of writing the form can go below here.
"""

from __future__ import annotations

import functools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.annotate.camera import Intrinsics
from worldline.model.chunks import one_chunk
from worldline.model.config import ModelConfig
from worldline.model.gated_delta import delta_chunked, delta_recurrent
from worldline.model.rope import Grid
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.token_delta import blocked_rule
from worldline.model.world_model import StreamState, WorldModel, conditions

LENGTHS = (8, 16, 32, 64, 121)
TOKENS, HEADS, DIM = 220, 2, 112
RULES = {"chunked": delta_chunked, "recurrence": delta_recurrent}

NOTE = (
    "The frame-wise recurrence is the rule as its equation has it, frame by frame, each frame's 220 tokens in three"
    " matrix products a direction. Both forms spend most of their time in matrix products of the same rate, and"
    " by their FLOP the chunked form can be 1.5 times (forward) and 1.6 times (with gradients) as fast at S = 220 and"
    " D = 112, in one direction not at all; `x at most` is what it would be if the chunked form were its matrix"
    " products and nothing else. Five times is out of reach of a CPU at this S. What the chunked form saves"
    " beyond that, small steps that wait for each other, matters on a GPU: see benchmarks.gpu. Where a"
    " recurrence does go token by token, in the token-wise rule, the table of its own shows what chunks gain."
)

Row = dict[str, Any]


class Products(NamedTuple):
    """Matrix products a frame and head of one form."""

    over_tokens: int
    """[D, S] x [S, D]"""
    of_tokens: int
    """[S, D] x [D, D]; the same work"""
    of_states: int
    """[D, D] x [D, D]"""

    @property
    def flops(self) -> int:
        return 2 * DIM**2 * ((self.over_tokens + self.of_tokens) * TOKENS + self.of_states * DIM)


PRODUCTS = {
    # Transition, update; read; a scan each way. Backward: two for reading, three for transition and update,
    # two for each scan's step.
    ("chunked", False): Products(2, 1, 2),
    ("chunked", True): Products(3, 5, 6),
    # Recall, write and read in each direction, and two for the gradients of each.
    ("recurrence", False): Products(2, 4, 0),
    ("recurrence", True): Products(6, 12, 0),
}


def in_child(function: Callable[[], Row]) -> Row:
    """The row of `function` run in a process of its own, on one thread: a forked process cannot use the
    thread pool its parent has started.
    """

    def run(pipe: Any) -> None:
        torch.set_num_threads(1)
        pipe.send(function())

    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=run, args=(sender,))
    child.start()
    row: Row = receiver.recv()
    child.join()
    return row


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds(calls: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call, the calls taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if turn > 0:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def delta_call(
    kind: str, num_frames: int, *, with_gradients: bool, is_causal: bool = False, device: str = "cpu"
) -> Callable[[], None]:
    """One call of a form of the frame-wise rule on random inputs."""
    shape = (1, num_frames, TOKENS, HEADS, DIM)
    tensors = [torch.randn(shape, device=device) for _ in range(3)]
    tensors[1] *= (TOKENS * DIM) ** -0.5
    tensors += [torch.rand(size, device=device) for size in (shape[:4], (1, num_frames, HEADS))]
    queries, keys, values, beta, gamma = (x.requires_grad_(with_gradients) for x in tensors)
    chunks = None if is_causal else one_chunk(num_frames)
    grad = torch.randn(shape, device=device) if with_gradients else None

    def call() -> None:
        out, _ = RULES[kind](queries, keys, values, beta=beta, gamma=gamma, chunks=chunks)
        if grad is not None:
            torch.autograd.grad(out, tensors, grad)

    return call


def softmax_call(num_frames: int) -> Callable[[], Tensor]:
    q, k, v = (torch.randn(1, num_frames * TOKENS, HEADS, DIM).transpose(1, 2) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v)


def products_call(num_frames: int, products: Products) -> Callable[[], None]:
    """The matrix products of a form and nothing else, each kind as one batch over all frames."""
    num = num_frames * HEADS
    tokens, states = torch.randn(num, TOKENS, DIM), torch.randn(num, DIM, DIM)
    read, state = torch.empty_like(tokens), torch.empty_like(states)

    def call() -> None:
        for _ in range(products.over_tokens):
            torch.bmm(tokens.mT, tokens, out=state)
        for _ in range(products.of_tokens):
            torch.bmm(tokens, states, out=read)
        for _ in range(products.of_states):
            torch.bmm(states, states, out=state)

    return call


def seconds_row(num_frames: int) -> Row:
    """Both forms of the frame-wise rule, and their products alone."""
    calls: dict[str, Callable[[], object]] = {}
    for (kind, with_gradients), products in PRODUCTS.items():
        label = f"{kind} {'with gradients' if with_gradients else 'forward'}"
        calls[label] = delta_call(kind, num_frames, with_gradients=with_gradients)
        calls[f"{label}, products alone"] = products_call(num_frames, products)
        if not with_gradients:
            calls[f"{kind} causal forward"] = delta_call(
                kind, num_frames, with_gradients=False, is_causal=True
            )
    return dict(cpu_seconds(calls, repeats=5))


def memory_row(make_call: Callable[[], Callable[[], object]]) -> Row:
    """Peak memory of a call beyond its inputs, its results among it."""
    call = make_call()
    before = peak_mb()
    call()
    return {"MB": peak_mb() - before}


def length_tables() -> dict[str, list[Row]]:
    times, bounds = [], []
    for num_frames in LENGTHS:
        seconds = in_child(functools.partial(seconds_row, num_frames))
        row: Row = {"latent frames": num_frames, "tokens": TOKENS * num_frames}
        for kind in RULES:
            row |= {f"{kind} {part} s": seconds[f"{kind} {part}"] for part in ("forward", "with gradients")}
            make_call = functools.partial(delta_call, kind, num_frames, with_gradients=True)
            row[f"{kind} MB"] = in_child(functools.partial(memory_row, make_call))["MB"]
        softmax = functools.partial(softmax_call, num_frames)
        row["softmax forward s"] = in_child(lambda f=softmax: cpu_seconds({"s": f()}, repeats=1))["s"]
        row["softmax MB"] = in_child(functools.partial(memory_row, softmax))["MB"]
        times.append(row)
        bounds.append({"latent frames": num_frames} | _bound_row(num_frames, seconds))
    return {
        "Bidirectional attention against length (S = 220, D = 112, 2 heads, CPU seconds of one thread, MB beyond"
        " the inputs with gradients, softmax without)": times,
        "Recurrence over chunked form, and what bounds it": bounds,
    }


def _bound_row(num_frames: int, seconds: Row) -> Row:
    row: Row = {"causal forward x": seconds["recurrence causal forward"] / seconds["chunked causal forward"]}
    for part, with_gradients in (("forward", False), ("with gradients", True)):
        chunked, recurrence = (seconds[f"{kind} {part}"] for kind in RULES)
        bare = {kind: seconds[f"{kind} {part}, products alone"] for kind in RULES}
        flops = {kind: PRODUCTS[kind, with_gradients].flops * num_frames * HEADS for kind in RULES}
        row |= {
            f"{part} x": recurrence / chunked,
            f"{part} x, by FLOP": flops["recurrence"] / flops["chunked"],
            f"{part} x at most": recurrence / bare["chunked"],
            f"chunked {part}, products alone s": bare["chunked"],
            f"recurrence {part}, products alone s": bare["recurrence"],
            f"GFLOP/s of chunked {part}": flops["chunked"] / chunked / 1e9,
        }
    return row


def token_row(num_frames: int) -> Row:
    """The token-wise rule in blocks, and token by token as the frame-wise recurrence at one token a frame."""
    shape = (1, num_frames * TOKENS, HEADS)
    q, k = (F.normalize(torch.randn(*shape, DIM), dim=-1) for _ in range(2))
    leaves = [
        x.requires_grad_()
        for x in (q, k, torch.randn(*shape, DIM), torch.rand(shape), -torch.rand(shape) / 99)
    ]
    queries, keys, values, beta, log_alpha = leaves

    def blocks() -> Tensor:
        return blocked_rule(queries, keys, values, beta=beta, log_alpha=log_alpha)[0]

    def recurrence() -> Tensor:
        frames = (x[:, :, None] for x in (queries, keys, values))
        return delta_recurrent(*frames, beta=beta[:, :, None], gamma=log_alpha.exp())[0]

    row: Row = {"latent frames": num_frames, "tokens": shape[1]}
    for form in (blocks, recurrence):
        with torch.no_grad():
            row[f"{form.__name__} forward s"] = cpu_seconds({"s": form}, repeats=1)["s"]
        backward = functools.partial(lambda f: torch.autograd.grad(f().sum(), leaves), form)
        row[f"{form.__name__} with gradients s"] = cpu_seconds({"s": backward}, repeats=1)["s"]
    for part in ("forward", "with gradients"):
        row[f"{part} x"] = row[f"recurrence {part} s"] / row[f"blocks {part} s"]
    return row


def stream_row(num_latents: int) -> Row:
    """A stream of a small model, one pass a chunk."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=96,
        num_blocks=4,
        num_heads=4,
        latent_channels=8,
        text_channels=8,
        span=AttentionSpan(sink_frames=1, window_frames=6),
    )
    before = peak_mb()
    model = WorldModel(config)
    text, mask = torch.zeros(1, 1, 8), torch.ones(1, 1, dtype=torch.bool)
    lens = Intrinsics(fxfycxcy_px=torch.tensor([100.0, 100, 96, 64]), width=192, height=128)
    state: StreamState | None = None
    started, first = time.process_time(), 0
    with torch.no_grad():
        while first < num_latents:
            count = 4 if first == 0 else 3
            grid = Grid(num_frames=count, height=4, width=6, first_frame=first)
            poses = torch.eye(3, 4).repeat(1, 8 * count - (7 if first == 0 else 0), 1, 1)
            cameras = conditions(config, poses, lens, grid)
            latents = torch.randn(1, 8, count, 4, 6)
            _, state = model.stream(latents, torch.zeros(1), text, mask, cameras, state)
            first += count
    elapsed = time.process_time() - started
    return {
        "video s": num_latents // 2,
        "latent frames": first,
        "CPU s": elapsed,
        "ms a latent": 1000 * elapsed / first,
        "peak MB": peak_mb() - before,
    }


def measure() -> dict[str, list[Row]]:
    """All tables; run while this process is small, since a child's memory counts from its parent's."""
    torch.set_num_threads(1)
    # What the first call of a registered operator loads is loaded before the children are forked.
    delta_call("chunked", 2, with_gradients=True)()
    tables = length_tables()
    tables["Token-wise rule (CPU seconds of one thread)"] = [
        in_child(functools.partial(token_row, num_frames)) for num_frames in (8, 32)
    ]
    tables["Streaming"] = [in_child(functools.partial(stream_row, n)) for n in (120, 1200)]
    return tables
