"""Softmax attention with sink and window against torch's attention under an explicit mask."""

import pytest
import torch
import torch.nn.functional as F

from worldline.model.softmax_attention import AttentionSpan, softmax_attention

torch.set_num_threads(1)
CHUNKS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
SPANS = [
    AttentionSpan(),
    AttentionSpan(sink_frames=1, window_frames=3),
    AttentionSpan(sink_frames=0, window_frames=0),
]


def tensors(num_frames=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, num_frames, 3, 2, 8, dtype=dtype, generator=generator) for _ in range(3)]


def masked_reference(q, k, v, chunks, span):
    """The definition, with an N x N mask."""
    num_frames = q.shape[1]
    starts = [chunks.index(c) for c in chunks]
    visible = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    for t in range(num_frames):
        for u in range(num_frames):
            in_window = span.window_frames is None or u >= starts[t] - span.window_frames
            visible[t, u] = chunks[u] == chunks[t] or (
                chunks[u] < chunks[t] and (in_window or u < span.sink_frames)
            )
    mask = visible.repeat_interleave(3, 0).repeat_interleave(3, 1)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).unflatten(1, (num_frames, 3))
    )


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("chunks", [CHUNKS, [0] * 10, list(range(10))])
def test_equals_masked_attention(chunks, span):
    q, k, v = tensors()
    out, _ = softmax_attention(q, k, v, chunks=chunks, span=span)
    torch.testing.assert_close(out, masked_reference(q, k, v, chunks, span), rtol=0, atol=1e-13)


@pytest.mark.parametrize("span", SPANS)
def test_streaming_equals_whole_and_the_cache_is_bounded(span):
    q, k, v = tensors()
    whole, _ = softmax_attention(q, k, v, chunks=CHUNKS, span=span)
    pieces, cache = [], None
    for start, stop in [(0, 4), (4, 7), (7, 10)]:
        out, cache = softmax_attention(
            *(x[:, start:stop] for x in (q, k, v)), chunks=[0] * (stop - start), span=span, cache=cache
        )
        pieces.append(out)
        if span.window_frames is not None:
            assert len(cache.frames) <= span.sink_frames + span.window_frames
            assert cache.keys.shape[1] == len(cache.frames)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-13)


def test_padding_frames_are_not_read():
    q, k, v = tensors()
    valid = torch.tensor([[True] * 7 + [False] * 3] * 2)
    out, _ = softmax_attention(q, k, v, chunks=[0] * 10, span=AttentionSpan(), frame_valid=valid)
    short, _ = softmax_attention(q[:, :7], k[:, :7], v[:, :7], chunks=[0] * 7, span=AttentionSpan())
    torch.testing.assert_close(out[:, :7], short, rtol=0, atol=1e-13)


def test_bad_arguments():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="chunks has 2 entries for 10 frames"):
        softmax_attention(q, k, v, chunks=[0, 1], span=AttentionSpan())
    with pytest.raises(ValueError, match="negative"):
        AttentionSpan(window_frames=-1)
