"""Temporal convolutions against torch's conv1d and against their own whole-clip form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.model.temporal import short_conv, temporal_conv

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise conv1d over frames of x [B, T, S, C], padded on the left."""
    batch, num_frames, num_tokens, channels = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels, num_frames)
    y = F.conv1d(F.pad(rows, (weight.shape[1] - 1, 0)), weight[:, None], groups=channels)
    return y.reshape(batch, num_tokens, channels, num_frames).permute(0, 3, 1, 2)


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_short_conv_equals_conv1d_and_its_flip(num_frames):
    x, weight = random(2, num_frames, 3, 5), random(5, 4, seed=1)
    causal, _ = short_conv(x, weight, chunks=None)
    torch.testing.assert_close(causal, causal_conv1d(x, weight), rtol=0, atol=1e-13)
    both, _ = short_conv(x, weight, chunks=[0] * num_frames)
    expected = causal_conv1d(x, weight) + causal_conv1d(x.flip(1), weight).flip(1) - weight[:, -1] * x
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-13)


def test_short_conv_resets_its_reverse_part_at_chunk_borders():
    x, weight = random(1, 10, 2, 3), random(3, 4, seed=1)
    y, _ = short_conv(x, weight, chunks=[0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    forward = causal_conv1d(x, weight)
    pieces = [causal_conv1d(part.flip(1), weight).flip(1) for part in x.split([4, 3, 3], dim=1)]
    torch.testing.assert_close(y, forward + torch.cat(pieces, dim=1) - weight[:, -1] * x, rtol=0, atol=1e-13)


def test_temporal_conv_equals_conv2d_and_stops_at_chunk_borders():
    x, weight = random(2, 8, 3, 4), random(6, 4, 3, seed=1)
    whole, _ = temporal_conv(x, weight, chunks=[0] * 8)
    planes = F.conv2d(x.permute(0, 3, 1, 2), weight[..., None], padding=(1, 0))
    torch.testing.assert_close(whole, planes.permute(0, 2, 3, 1), rtol=0, atol=1e-13)

    chunked, _ = temporal_conv(x, weight, chunks=[0, 0, 0, 1, 1, 1, 2, 2])
    cut = whole.clone()
    for last in (2, 5):
        cut[:, last] -= F.linear(x[:, last + 1], weight[..., 2])
    torch.testing.assert_close(chunked, cut, rtol=0, atol=1e-13)


@pytest.mark.parametrize("conv", [short_conv, temporal_conv])
def test_streaming_equals_whole(conv):
    x = random(2, 9, 3, 4)
    weight = random(4, 4, seed=1) if conv is short_conv else random(4, 4, 3, seed=1)
    whole, final = conv(x, weight, chunks=[0, 0, 0, 0, 1, 2, 2, 2, 2])
    pieces, tail = [], None
    for part in x.split([4, 1, 4], dim=1):
        y, tail = conv(part, weight, chunks=[0] * part.shape[1], tail=tail)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-13)
    assert torch.equal(tail, final)


def test_identity_weight_changes_nothing():
    x = random(1, 5, 2, 3)
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[:, -1] = 1
    assert torch.equal(short_conv(x, weight, chunks=[0] * 5)[0], x)
