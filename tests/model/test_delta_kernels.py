"""The Triton scan in Triton's interpreter on the CPU, against its recurrence in float64; on a GPU benchmarks/gpu.py
holds it to the same."""

import pytest
import torch

pytest.importorskip("triton", reason="the scan's kernel needs Triton")

SCRIPT = """
import json, sys
import torch
from worldline.model.delta_kernels import scan

def recurrence(transition, added, start, reverse, adjoint):
    states, state, before = torch.empty_like(added), start, None
    frames = range(added.shape[1])
    for t in reversed(frames) if reverse else frames:
        if adjoint:
            state = added[:, t] if before is None else state @ transition[:, before].mT + added[:, t]
        else:
            state = state @ transition[:, t] + added[:, t]
        states[:, t], before = state, t
    return states

torch.manual_seed(0)
rows = []
for heads, frames, values, keys in json.loads(sys.argv[1]):
    transition = torch.randn(heads, frames, keys, keys, dtype=torch.float64) * keys**-0.5
    added = torch.randn(heads, frames, values, keys, dtype=torch.float64)
    for reverse in (False, True):
        for adjoint in (False, True):
            start = torch.randn(heads, values, keys, dtype=torch.float64) * (not adjoint)
            got = scan(transition.float(), added.float(), start.float(), reverse=reverse, adjoint=adjoint)
            truth = recurrence(transition, added, start, reverse, adjoint)
            rows.append(float((got - truth).norm() / truth.norm()))
print(json.dumps(rows))
"""


def test_scan_in_the_interpreter_equals_the_recurrence(interpreted):
    # Rows beyond one program's, one row as the normaliser has, channels that are no power of two, a single frame.
    shapes = [(3, 7, 20, 24), (2, 5, 1, 16), (1, 4, 17, 112), (1, 1, 4, 8)]
    errors = interpreted(SCRIPT, shapes)
    assert len(errors) == 4 * len(shapes)
    assert max(errors) < 1e-6


@pytest.mark.parametrize(
    ("device", "dtype", "key_dim", "capability", "name"),
    [
        ("cpu", torch.float32, 112, (9, 0), "torch"),
        ("cuda", torch.float32, 112, (9, 0), "triton"),
        ("cuda", torch.float32, 256, (9, 0), "torch"),
        ("cuda", torch.float64, 112, (9, 0), "torch"),
        ("cuda", torch.float32, 112, (7, 5), "torch"),
    ],
)
def test_the_kernel_is_chosen_by_device_size_and_capability(
    monkeypatch, caplog, device, dtype, key_dim, capability, name
):
    from worldline.model.delta_ops import scan_name

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    with caplog.at_level("INFO"):
        assert scan_name.__wrapped__(device, dtype, key_dim) == name
    assert caplog.messages[-1].endswith(name)
