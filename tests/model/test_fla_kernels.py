"""flash-linear-attention's kernels in Triton's interpreter on the CPU, against the plain forms they stand for."""

from importlib import metadata

import pytest
import torch

from worldline.model import fla_kernels, temporal

SCRIPT = """
import json, sys
import torch
from triton.runtime.autotuner import Autotuner
# Which tile is fastest is nothing that an interpreter could tell; it takes the first.
Autotuner._bench = lambda self, *args, config, **kwargs: [0.0, 0.0, 0.0]
from worldline.model import fla_kernels
from worldline.model.temporal import mirrored_sum

def off(got, given, expected, truth):
    weights = torch.randn(expected.shape, dtype=torch.float64)
    assert got.shape == expected.shape
    slopes = torch.autograd.grad((got * weights.to(got.dtype)).sum(), given)
    true_slopes = torch.autograd.grad((expected * weights).sum(), truth)
    pairs = [(got, expected), *zip(slopes, true_slopes)]
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)

def leaves(*shapes):
    truth = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return truth, [x.detach().float().requires_grad_() for x in truth]

torch.manual_seed(0)
errors = {}
for name, in_chunk in json.loads(sys.argv[1]).items():
    frames = 5 if in_chunk is None else len(in_chunk[0])
    num_padded = frames + 3 * (1 if in_chunk is None else 2)
    truth, given = leaves((2, num_padded, 3, 7), (7, 4))
    errors[name] = off(fla_kernels.mirrored_conv(*given, in_chunk), given, mirrored_sum(*truth, in_chunk), truth)
for width in (20, 1100):
    truth, given = leaves((2, 3, 5, width), (width,))
    expected = torch.nn.functional.rms_norm(truth[0], (width,), eps=1e-5) * truth[1]
    errors[f"norm {width}"] = off(fla_kernels.rms_norm(*given, 1e-5), given, expected, truth)
half = torch.randn(1, 8, 2, 6, dtype=torch.bfloat16)
errors["dtype"] = float(fla_kernels.mirrored_conv(half, torch.randn(6, 4), None).dtype != torch.float32)
mixed = fla_kernels.rms_norm(half, torch.ones(6), 1e-5)
errors["norm dtype"] = float(mixed.dtype != torch.float32)
print(json.dumps(errors))
"""


def _in_chunk(chunks: list[int], first: int, stop: int) -> list[list[bool]]:
    """Of the frames first..stop of a clip, as temporal.short_conv has it on one rank of several."""
    return [
        [t + d < len(chunks) and chunks[t] == chunks[t + d] for t in range(first, stop)] for d in (1, 2, 3)
    ]


def test_conv_and_norm_in_the_interpreter_equal_the_plain_forms(interpreted):
    pytest.importorskip("fla", reason="flash-linear-attention is an optional package")
    forms = {
        "causal": None,
        "bidirectional": _in_chunk([0] * 9, 0, 9),
        "chunks of 4, 3 and 3": _in_chunk([0] * 4 + [1] * 3 + [2] * 3, 0, 10),
        "chunks of one": _in_chunk(list(range(4)), 0, 4),
        "one frame": _in_chunk([0], 0, 1),
        "a chunk that goes on": _in_chunk([0] * 3 + [1] * 9, 0, 6),
        "a chunk that goes on for a frame": _in_chunk([0] * 5 + [1] * 2 + [2] * 5, 0, 6),
    }
    errors = interpreted(SCRIPT, forms)
    assert len(errors) == len(forms) + 4
    assert max(errors.values()) < 1e-6, errors


def test_short_conv_takes_the_kernel_where_it_is_used(monkeypatch):
    """With the interpreter's place taken by the plain form, the arguments are what counts."""
    x, weight = torch.randn(1, 6, 2, 3), torch.randn(3, 4)
    chunks = [0, 0, 0, 1, 1, 1]
    expected = temporal.short_conv(x, weight, chunks=chunks)
    calls = []

    def recorded(*args):
        calls.append(args)
        return temporal.mirrored_sum(*args)

    monkeypatch.setattr(fla_kernels, "mirrored_conv", recorded)
    assert not calls
    monkeypatch.setattr(fla_kernels, "are_used", lambda x: True)
    got = temporal.short_conv(x, weight, chunks=chunks)
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_kernels_are_chosen_by_device_and_package(monkeypatch, caplog):
    name = fla_kernels.kernels_name.__wrapped__
    with caplog.at_level("INFO", logger="worldline.model.fla_kernels"):
        assert name("cpu") == "torch"
    assert caplog.messages == ["token-wise gated delta rule, short convolution and RMS norm on cpu: torch"]
    monkeypatch.setattr(fla_kernels.importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    versions = {"3.3.0": fla_kernels.FLA, "3.6.0": "torch", "3.7.1": fla_kernels.FLA}
    for version, expected in versions.items():
        monkeypatch.setattr(metadata, "version", lambda package, version=version: version)
        assert name("cuda") == expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(metadata, "version", lambda package: "3.6.0")
    assert name("cuda") == fla_kernels.FLA
    monkeypatch.setattr(fla_kernels.importlib.util, "find_spec", lambda package: None)
    assert name("cuda") == "torch"


def test_float64_and_compiled_calls_stay_plain(monkeypatch):
    monkeypatch.setattr(fla_kernels, "kernels_name", lambda device_type: fla_kernels.FLA)
    assert fla_kernels.are_used(torch.zeros(1))
    assert not fla_kernels.are_used(torch.zeros(1, dtype=torch.float64))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fla_kernels.are_used(torch.zeros(1))
