"""Token-wise gated delta rule against the frame-wise recurrence at one token a frame, and against fla's
naive version.
"""

import pytest
import torch
import torch.nn.functional as F

from worldline.model.gated_delta import DeltaInputs, DeltaState, delta_recurrent
from worldline.model.token_delta import blocked_rule, token_delta

torch.set_num_threads(1)


def sequence(num_tokens, *, batch=2, heads=3, dim=6, value_dim=5):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    q, k = (F.normalize(random(batch, num_tokens, heads, dim), dim=-1) for _ in range(2))
    v = random(batch, num_tokens, heads, value_dim)
    beta, alpha = random(2, batch, num_tokens, heads).sigmoid()
    state = random(batch, heads, value_dim, dim)
    return [x.requires_grad_() for x in (q, k, v, beta, alpha, state)]


@pytest.mark.parametrize("num_tokens", [1, 7, 63, 75])
def test_blocks_equal_the_recurrence_with_gradients(num_tokens):
    leaves = q, k, v, beta, alpha, state = sequence(num_tokens)
    out, final = blocked_rule(q, k, v, beta=beta, log_alpha=alpha.log(), state=state, block_tokens=16)
    frames = [x[:, :, None] for x in (q, k, v, beta)]
    expected, expected_final = delta_recurrent(*frames[:3], beta=frames[3], gamma=alpha, state=state)
    pairs = [(out, expected[:, :, 0]), (final, expected_final)]
    losses = [sum((x**2).sum() for x in side) for side in zip(*pairs, strict=True)]
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    for got, wanted in [*pairs, *zip(*grads, strict=True)]:
        assert float((got - wanted).detach().norm() / wanted.detach().norm()) < 1e-12


def make_inputs(num_frames, num_tokens):
    q, k, v, beta, _, _ = (x.detach() for x in sequence(num_frames * num_tokens, value_dim=6))
    gamma = torch.rand(2, num_frames, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heads = [x.unflatten(1, (num_frames, num_tokens)) for x in (q, k, v, beta)]
    return DeltaInputs(queries=heads[0], keys=heads[1], values=heads[2], beta=heads[3], gamma=gamma)


def test_chunks_add_later_tokens_and_streaming_equals_whole():
    x = make_inputs(5, 4)
    chunks = [0, 0, 1, 1, 1]
    whole, final = token_delta(x, chunks=chunks)
    causal, _ = token_delta(x, chunks=None)
    assert torch.equal(whole[:, 1, -1], causal[:, 1, -1])  # the last token of a chunk has none after it
    assert not torch.allclose(whole[:, 1, 0], causal[:, 1, 0])
    pieces, state = [], None
    for start, stop in [(0, 2), (2, 5)]:
        part = DeltaInputs(
            **{
                name: getattr(x, name)[:, start:stop]
                for name in ("queries", "keys", "values", "beta", "gamma")
            }
        )
        out, state = token_delta(part, chunks=[0] * (stop - start), state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(state.memory, final.memory, rtol=0, atol=1e-13)


def test_one_token_a_frame_is_the_frame_wise_rule():
    x = make_inputs(9, 1)
    chunks = [0] * 4 + [1] * 5
    out, _ = token_delta(
        x, chunks=chunks, state=DeltaState(memory=torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    )
    expected, _ = delta_recurrent(x.queries, x.keys, x.values, beta=x.beta, gamma=x.gamma, chunks=chunks)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
