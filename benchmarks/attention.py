"""Numerics of the world model, and its attention's time and memory against length.

By default the checks of `make numerics`, some ten seconds of one core: every form of the gated delta rule
against its recurrence, parity with diffusers' SanaWMTransformer3DModel, the key-scale ablation of the
SANA-WM paper (Fig. 6), and the full size's parameters. The exit status is 1 if a limit is passed.
`--lengths` adds time and memory for 8 ... 121 latent frames and a stream of ten minutes, and takes some
minutes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from benchmarks import attention_lengths
from benchmarks.report import RESULTS_DIR, write_report
from worldline.model.accounting import cost
from worldline.model.chunks import chunk_causal, one_chunk
from worldline.model.config import ModelConfig, full_2p6b
from worldline.model.gated_delta import DeltaInputs, DeltaState, delta_recurrent, gated_delta
from worldline.model.rope import Grid
from worldline.model.world_model import WorldModel

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-5}
TESTS_DIR = Path(__file__).resolve().parents[1] / "tests" / "model"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to measure."""

    lengths: bool = False
    """Also time and memory against length, some minutes."""
    threads: int = 1
    """Of torch, for the checks. Their tensors are small, and on a busy machine two threads wait for each other."""
    out: Path = RESULTS_DIR
    """Folder of the report."""


# Equality


def random_inputs(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0) -> DeltaInputs:
    """Inputs [B, T, S, H, D] with a normaliser, scaled as the model scales them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    scale = (shape[2] * shape[4]) ** -0.5
    tensors = {
        "queries": random(*shape),
        "keys": random(*shape) * scale,
        "values": random(*shape),
        "beta": random(*shape[:4]).sigmoid(),
        "gamma": random(*shape[:2], shape[3]).sigmoid(),
        "plain_queries": random(*shape).relu() + 0.1,
        "plain_keys": random(*shape).relu() * scale,
    }
    return DeltaInputs(**{name: x.to(dtype).requires_grad_() for name, x in tensors.items()})


def tensors_of(inputs: DeltaInputs) -> list[Tensor]:
    return [getattr(inputs, field.name) for field in dataclasses.fields(inputs)]


def frames_of(inputs: DeltaInputs, start: int, stop: int) -> DeltaInputs:
    names = [field.name for field in dataclasses.fields(inputs)]
    return DeltaInputs(**{name: getattr(inputs, name)[:, start:stop] for name in names})


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of a fixed random projection of it."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def worst(got: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Relative error of the output, and the largest of the gradients'."""
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
    return errors[0], max(errors[1:])


def streamed(inputs: DeltaInputs, chunks: list[int]) -> Tensor:
    state: DeltaState | None = None
    pieces = []
    for chunk in sorted(set(chunks)):
        start, stop = chunks.index(chunk), len(chunks) - chunks[::-1].index(chunk)
        out, state = gated_delta(frames_of(inputs, start, stop), chunks=one_chunk(stop - start), state=state)
        pieces.append(out)
    return torch.cat(pieces, dim=1)


def mirrored(inputs: DeltaInputs) -> Tensor:
    """Bidirectional by its definition: the recurrence, plus the recurrence of the flipped clip one frame
    late.
    """

    def late(x: Tensor, fill: float) -> Tensor:
        return torch.cat([torch.full_like(x[:, :1], fill), x.flip(1)[:, :-1]], dim=1)

    def both(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        forward, _ = delta_recurrent(queries, keys, values, beta=inputs.beta, gamma=inputs.gamma)
        beta, gamma = late(inputs.beta, 0), late(inputs.gamma, 1)
        backward, _ = delta_recurrent(queries.flip(1), late(keys, 0), late(values, 0), beta=beta, gamma=gamma)
        return forward + backward.flip(1)

    assert inputs.plain_queries is not None
    assert inputs.plain_keys is not None
    numerator = both(inputs.queries, inputs.keys, inputs.values)
    ones = torch.ones_like(inputs.values[..., :1])
    return numerator / (both(inputs.plain_queries, inputs.plain_keys, ones) + 1e-8)


def _rank_main(rank: int, num_ranks: int, dtype: torch.dtype, shape: tuple[int, ...], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    inputs, step = random_inputs(shape, dtype), shape[1] // num_ranks
    part = frames_of(inputs, rank * step, (rank + 1) * step)
    out, _ = gated_delta(part, chunks=chunk_causal(shape[1]), group=dist.group.WORLD)
    weights = torch.randn(
        (*shape[:4], shape[4]), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    weights = weights[:, rank * step : (rank + 1) * step].to(out)
    gradients = torch.autograd.grad((out * weights).sum(), tensors_of(inputs))
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save([out.detach(), *gradients], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def over_ranks(num_ranks: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank_main, args=(num_ranks, dtype, shape, folder), nprocs=num_ranks, start_method="fork"
        )
        parts = [torch.load(f"{folder}/{rank}.pt") for rank in range(num_ranks)]
    return [torch.cat([part[0] for part in parts], dim=1), *parts[0][1:]]


def equality_rows() -> list[Row]:
    """Each form against the frame-by-frame recurrence, forward and gradients; the worst of the shapes."""
    rows = []
    shapes = [(2, 12, 7, 3, 8), (1, 12, 1, 2, 6), (1, 12, 33, 1, 16)]
    for dtype, limit in LIMITS.items():
        forms: dict[str, Callable[[DeltaInputs], Tensor]] = {
            "chunked, causal": lambda x: gated_delta(x, chunks=None)[0],
            "chunked, bidirectional": lambda x: gated_delta(x, chunks=one_chunk(12))[0],
            "bidirectional by definition": mirrored,
            "chunked, chunk-causal": lambda x: gated_delta(x, chunks=chunk_causal(12))[0],
            "streaming": lambda x: streamed(x, chunk_causal(12)),
        }
        references = {
            "chunked, causal": None,
            "chunked, bidirectional": one_chunk(12),
            "bidirectional by definition": one_chunk(12),
        }
        errors: dict[str, list[tuple[float, float]]] = {}
        for shape in shapes:
            inputs = random_inputs(shape, dtype)
            leaves = tensors_of(inputs)

            def reference(
                chunks: list[int] | None, inputs: DeltaInputs = inputs, leaves: list[Tensor] = leaves
            ) -> list[Tensor]:
                return with_gradients(gated_delta(inputs, chunks=chunks, form="recurrent")[0], leaves)

            for name, form in forms.items():
                expected = reference(references.get(name, chunk_causal(12)))
                errors.setdefault(name, []).append(worst(with_gradients(form(inputs), leaves), expected))
        inputs = random_inputs(shapes[0], dtype)
        whole, _ = gated_delta(inputs, chunks=chunk_causal(12), form="recurrent")
        expected = with_gradients(whole, tensors_of(inputs))
        for num_ranks in (1, 2, 3, 4):
            got = over_ranks(num_ranks, dtype, shapes[0])
            errors[f"context parallel, {num_ranks} ranks"] = [worst(got, expected)]
        for name, pairs in errors.items():
            forward, backward = (max(values) for values in zip(*pairs, strict=True))
            rows.append(
                {
                    "form": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "output": forward,
                    "gradients": backward,
                    "limit": limit,
                    "ok": max(forward, backward) <= limit,
                }
            )
    return rows


def _load_test(name: str) -> Any:
    """A test module, whose oracle and helpers are used here too."""
    spec = importlib.util.spec_from_file_location(name, TESTS_DIR / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def parity_rows() -> list[Row]:
    """Output and every gradient against diffusers' own transformer, to the limits of its test."""
    test = _load_test("test_exchange")
    rows = []
    for dtype, limit in test.PARITY_LIMITS.items():
        for case in test.CASES:
            output, gradients = test.parity_errors(case, dtype)
            worst_name = max(gradients, key=gradients.__getitem__)
            rows.append(
                {
                    "model": case,
                    "dtype": str(dtype).removeprefix("torch."),
                    "output": output,
                    "gradients": len(gradients),
                    "worst gradient": gradients[worst_name],
                    "of": worst_name,
                    "limit": limit,
                    "ok": max(output, gradients[worst_name]) <= limit,
                }
            )
    return rows


# The key-scale ablation


def ablation_rows(*, num_steps: int = 30, num_frames: int = 24) -> list[Row]:
    """Training of a small model on a fixed random task with each key scale; the paper's Fig. 6."""
    rows = []
    for scale, label in [("frame", "1 / sqrt(D S)"), ("head", "1 / sqrt(D)"), ("none", "1")]:
        torch.manual_seed(0)
        config = ModelConfig(
            width=64,
            num_blocks=2,
            num_heads=4,
            latent_channels=4,
            text_channels=8,
            softmax_every=0,
            camera="none",
            plucker=False,
            key_scale=scale,
        )
        model = WorldModel(config)
        clean = torch.randn(2, 4, 1, 4, 6).expand(-1, -1, num_frames, -1, -1)
        text, mask = torch.zeros(2, 1, 8), torch.ones(2, 1, dtype=torch.bool)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses: list[float] = []
        for _ in range(num_steps):
            noise = torch.randn(clean.shape)
            out = model(0.5 * clean + 0.5 * noise, torch.full((2,), 500.0), text, mask, None)
            loss = (out - (noise - clean)).square().mean()
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss) or losses[-1] > 1e6:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        diverged = len(losses) < num_steps or losses[-1] > losses[0]
        rows.append(
            {
                "key scale": label,
                "first loss": losses[0],
                "last loss": losses[-1],
                "diverged at step": len(losses) - 1 if len(losses) < num_steps else None,
                "ok": diverged == (scale != "frame"),
            }
        )
    return rows


def size_rows() -> list[Row]:
    """The full size on the meta device."""
    total = cost(full_2p6b(), Grid(num_frames=121, height=22, width=40))
    released = total.released_parameters
    gib = 2**30
    return [
        {
            "parameters": sum(total.parameters.values()),
            "in diffusers' format": released,
            "PFLOP of a forward pass": sum(total.flops.values()) / 1e15,
            "activations GiB": total.activation_bytes / gib,
            "with checkpointing GiB": total.checkpointed_bytes / gib,
            "ok": released == 2_661_800_448,
        }
    ]


def main(job: Job) -> int:
    # First, while this process is small.
    lengths = attention_lengths.measure() if job.lengths else {}
    torch.set_num_threads(job.threads)
    started, cpu_started = time.perf_counter(), time.process_time()
    tables = {
        "Forms of the gated delta rule, error relative to the recurrence": equality_rows(),
        "Parity with diffusers' SanaWMTransformer3DModel, relative error": parity_rows(),
        "Key scale (SANA-WM Fig. 6)": ablation_rows(),
        "Full size, 121 x 22 x 40": size_rows(),
    }
    checks_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    is_ok = all(row["ok"] for rows in tables.values() for row in rows)
    tables |= lengths
    notes = f"The checks took {checks_s:.0f} s, {cpu_s:.0f} s of them on a core. "
    notes += "All are within their limits." if is_ok else "SOME LIMITS WERE PASSED."
    write_report(
        "attention",
        "Attention of the world model",
        "python -m benchmarks.attention" + (" --lengths" if job.lengths else ""),
        tables,
        notes + (f"\n\n{attention_lengths.NOTE}" if job.lengths else ""),
        packages=["diffusers"],
        results_dir=job.out,
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))
