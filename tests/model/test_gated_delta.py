"""Every form of the frame-wise gated delta rule against the recurrence, which is itself held to three other
sources.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldline.model.delta_ops import frame_steps, read_states, state_scan
from worldline.model.gated_delta import (
    DeltaInputs,
    DeltaState,
    delta_chunked,
    delta_recurrent,
    gated_delta,
    guarded_beta,
    transition_norm,
)

torch.set_num_threads(1)
# B, T, S, H, D; the last two go frame by frame, with fewer frames than heads.
SHAPES = [(2, 7, 5, 3, 8), (1, 13, 1, 2, 6), (2, 4, 17, 1, 5), (1, 1, 3, 2, 4), (1, 4, 5, 6, 4)]
CHUNKS = {"causal": None, "bidirectional": 1, "chunk_causal": 3}
LIMIT = {torch.float64: 1e-12, torch.float32: 2e-5}


def make_inputs(shape, *, dtype=torch.float64, seed=0, normalised=True) -> DeltaInputs:
    batch, num_frames, num_tokens, num_heads, dim = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    full = (batch, num_frames, num_tokens, num_heads, dim)
    scale = (dim * num_tokens) ** -0.5
    plain_keys = (random(*full).relu() * scale).detach().requires_grad_()
    return DeltaInputs(
        queries=random(*full),
        keys=(random(*full) * scale).detach().requires_grad_(),
        values=random(*full),
        beta=random(batch, num_frames, num_tokens, num_heads).sigmoid().detach().requires_grad_(),
        gamma=random(batch, num_frames, num_heads).sigmoid().detach().requires_grad_(),
        plain_queries=(random(*full).relu() + 0.1).detach().requires_grad_() if normalised else None,
        plain_keys=plain_keys if normalised else None,
    )


def leaves(inputs: DeltaInputs) -> list[Tensor]:
    names = ["queries", "keys", "values", "beta", "gamma", "plain_queries", "plain_keys"]
    return [x for name in names if (x := getattr(inputs, name)) is not None]


def chunk_indices(kind: str, num_frames: int) -> list[int] | None:
    """First chunk of 4 frames, then 3, as the released model has it."""
    if CHUNKS[kind] is None:
        return None
    return (
        [0] * num_frames
        if kind == "bidirectional"
        else [0 if t < 4 else 1 + (t - 4) // 3 for t in range(num_frames)]
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-30))


def outputs_and_grads(call, inputs: DeltaInputs) -> list[Tensor]:
    out, state = call()
    results = [out, state.memory] + ([state.normaliser] if state.normaliser is not None else [])
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in results
    )
    return [*results, *torch.autograd.grad(loss, leaves(inputs))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalised", [True, False])
def test_chunked_equals_recurrence_with_gradients(shape, kind, dtype, normalised):
    inputs = make_inputs(shape, dtype=dtype, normalised=normalised)
    batch, _, _, heads, dim = shape
    start = DeltaState(
        memory=torch.randn(batch, heads, dim, dim, dtype=dtype) * 0.1,
        normaliser=torch.rand(batch, heads, 1, dim, dtype=dtype) if normalised else None,
    )
    chunks = chunk_indices(kind, shape[1])
    both = [
        outputs_and_grads(lambda f=form: gated_delta(inputs, chunks=chunks, state=start, form=f), inputs)
        for form in ("chunked", "recurrent")
    ]
    for chunked, recurrent in zip(*both, strict=True):
        assert relative(chunked, recurrent) < LIMIT[dtype]


def test_streaming_chunk_by_chunk_equals_the_whole_clip():
    shape = (2, 10, 6, 2, 8)
    inputs = make_inputs(shape)
    chunks = chunk_indices("chunk_causal", 10)
    for form in ("chunked", "recurrent"):
        whole, final = gated_delta(inputs, chunks=chunks, form=form)
        pieces, state = [], None
        for start, stop in [(0, 4), (4, 7), (7, 10)]:
            names = ["queries", "keys", "values", "beta", "gamma", "plain_queries", "plain_keys"]
            part = DeltaInputs(**{name: getattr(inputs, name)[:, start:stop] for name in names})
            out, state = gated_delta(part, chunks=[0] * (stop - start), state=state, form=form)
            pieces.append(out)
        assert relative(torch.cat(pieces, dim=1), whole) < 1e-12
        assert relative(state.memory, final.memory) < 1e-12
        assert relative(state.normaliser, final.normaliser) < 1e-12


def test_bidirectional_is_forward_plus_flipped_exclusive_scan():
    """The definition: numerators of a causal scan and of a causal scan over the flipped clip shifted by one
    frame.
    """
    x = make_inputs((1, 6, 4, 2, 5))
    forward, _ = delta_recurrent(x.queries, x.keys, x.values, beta=x.beta, gamma=x.gamma)

    def shifted(y: Tensor, fill: float) -> Tensor:
        return torch.cat([torch.full_like(y[:, :1], fill), y.flip(1)[:, :-1]], dim=1)

    backward, _ = delta_recurrent(
        x.queries.flip(1),
        shifted(x.keys, 0),
        shifted(x.values, 0),
        beta=shifted(x.beta, 0),
        gamma=shifted(x.gamma, 1),
    )
    both, _ = delta_chunked(x.queries, x.keys, x.values, beta=x.beta, gamma=x.gamma, chunks=[0] * 6)
    assert relative(both, forward + backward.flip(1)) < 1e-12


def test_no_decay_and_orthogonal_keys_is_linear_attention():
    """Closed form: with orthonormal keys, beta 1 and gamma 1 nothing is overwritten, so O = Q K^T V over
    frames <= t.
    """
    dim = 12
    keys = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0].reshape(1, 4, 3, 1, dim)
    values, queries = torch.randn(2, 1, 4, 3, 1, dim, dtype=torch.float64)
    out, _ = delta_chunked(
        queries,
        keys,
        values,
        beta=torch.ones(1, 4, 3, 1, dtype=torch.float64),
        gamma=torch.ones(1, 4, 1, dtype=torch.float64),
    )
    q, k, v = (x[0, :, :, 0] for x in (queries, keys, values))
    weights = torch.einsum("tsd,urd->tsur", q, k) * torch.ones(4, 4).tril()[:, None, :, None]
    assert relative(out[0, :, :, 0], torch.einsum("tsur,ure->tse", weights, v)) < 1e-12


def fla_naive():
    spec = importlib.util.find_spec("fla")
    if spec is None:
        pytest.skip("flash-linear-attention is not installed: pip install 'worldline[fla]'")
    path = Path(spec.submodule_search_locations[0]) / "ops" / "gated_delta_rule" / "naive.py"
    module_spec = importlib.util.spec_from_file_location("fla_gated_delta_rule_naive", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"])
def test_one_token_a_frame_equals_flash_linear_attention(form):
    x = make_inputs((2, 37, 1, 3, 8), dtype=torch.float32, normalised=False)
    start = torch.randn(2, 3, 8, 8)
    ours, state = delta_chunked(x.queries, x.keys, x.values, beta=x.beta, gamma=x.gamma, state=start)
    theirs, final = getattr(fla_naive(), form)(
        q=x.queries[:, :, 0],
        k=x.keys[:, :, 0],
        v=x.values[:, :, 0],
        g=x.gamma.log(),
        beta=x.beta[:, :, 0],
        scale=1.0,
        initial_state=start.mT,
        output_final_state=True,
    )
    assert relative(ours[:, :, 0], theirs) < 2e-5
    assert relative(state, final.mT) < 2e-5
    theirs_grads = torch.autograd.grad(theirs.square().sum(), leaves(x))
    ours_grads = torch.autograd.grad(ours.square().sum(), leaves(x))
    for a, b in zip(ours_grads, theirs_grads, strict=True):
        assert relative(a, b) < 2e-5


def random_leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]


def test_scan_gradients_by_finite_differences():
    arguments = random_leaves((2, 3, 4, 4), (2, 3, 3, 4), (2, 3, 4))
    for reverse in (False, True):
        assert torch.autograd.gradcheck(lambda a, b, c, r=reverse: state_scan(a, b, c, r), arguments)


def step_arguments() -> list[Tensor]:
    """keys, values, beta, gamma with a value dim of its own, and one frame that forgets everything."""
    tokens = (2, 3, 5, 2)
    keys, values, beta, gamma = random_leaves((*tokens, 4), (*tokens, 3), tokens, (2, 3, 2))
    gamma.data[0, 1] = 0
    return [keys, values, beta, gamma]


def test_step_and_read_gradients_by_finite_differences():
    assert torch.autograd.gradcheck(frame_steps, step_arguments())
    assert torch.autograd.gradcheck(read_states, random_leaves((2, 3, 5, 2, 4), (4, 3, 3, 4)))


def test_steps_of_tensors_that_are_not_contiguous():
    """Heads first in memory, as some projections leave them, and an expanded gradient."""
    arguments = step_arguments()
    scattered = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in arguments]
    assert not scattered[0].is_contiguous()
    results = [frame_steps(*x) for x in (arguments, scattered)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    grads = [
        torch.autograd.grad(r[0].sum() + r[1].sum(), x)
        for r, x in zip(results, (arguments, scattered), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert relative(b, a) < 1e-14


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_tokens():
    kept = []
    for num_tokens in (10, 40):
        x = make_inputs((1, 6, num_tokens, 2, 8), normalised=False)
        sizes: dict[int, int] = {}
        inputs = {y.data_ptr() for y in leaves(x)}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda y, s=sizes: s.update({y.data_ptr(): y.numel()}) or y, lambda y: y
        ):
            gated_delta(x, chunks=[0] * 6)
        kept.append(sum(size for pointer, size in sizes.items() if pointer not in inputs))
    assert kept[0] == kept[1] <= 5 * 6 * 2 * 8 * 8  # transitions, two scans and their sum, [T, H, D, D] each


def test_a_gradient_of_a_gradient_is_refused():
    x = make_inputs((1, 3, 4, 1, 4), normalised=False)
    out, _ = gated_delta(x, chunks=[0] * 3)
    first = torch.autograd.grad(out.square().sum(), x.keys, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_operator_registration():
    scan = [x.detach().float() for x in random_leaves((3, 2, 4, 4), (3, 2, 1, 4), (3, 1, 4))]
    leaves = [x.requires_grad_() for x in scan[:2]]
    torch.library.opcheck(state_scan, (*leaves, scan[2], False), rtol=1e-4, atol=1e-5)
    torch.library.opcheck(frame_steps, step_arguments())
    torch.library.opcheck(read_states, random_leaves((2, 3, 5, 2, 4), (4, 3, 3, 4)))


def test_half_precision_runs_in_float32_inside():
    x = make_inputs((1, 5, 6, 2, 8), dtype=torch.bfloat16)
    y = DeltaInputs(**{name: getattr(x, name).float() for name in DeltaInputs.__dataclass_fields__})
    half, _ = gated_delta(x, chunks=[0] * 5)
    full, _ = gated_delta(y, chunks=[0] * 5)
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def dominated_keys(*, per_head: bool) -> Tensor:
    """ReLU(RMSNorm) keys / sqrt(D S) where one head holds all the energy and all its tokens point the same
    way.
    """
    heads, dim, tokens = 20, 16, 24
    x = torch.full((1, 30, tokens, heads, dim), 1e-3, dtype=torch.float64)
    x[..., 0, :] = 1.0
    mean_dims = (-1,) if per_head else (-2, -1)
    keys = x * x.square().mean(dim=mean_dims, keepdim=True).rsqrt()
    return keys / (dim * tokens) ** 0.5


def test_full_width_key_norm_breaks_the_contraction_and_both_remedies_hold_it():
    keys = dominated_keys(per_head=False)
    beta = torch.full(keys.shape[:-1], 0.99, dtype=torch.float64)
    gamma = torch.ones(1, 30, 20, dtype=torch.float64)
    values = torch.randn(keys.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    norm = transition_norm(keys, beta, gamma)
    assert norm[..., 0].min() > 10  # one head holds the trace of all twenty
    out, _ = delta_chunked(keys, keys, values, beta=beta, gamma=gamma)
    assert out.abs().max() > 1e20  # 30 frames are enough

    guarded = guarded_beta(keys, beta)
    assert transition_norm(keys, guarded, gamma).max() <= 1 + 1e-12
    out, _ = delta_chunked(keys, keys, values, beta=guarded, gamma=gamma)
    assert out.abs().max() < 10

    keys = dominated_keys(per_head=True)
    assert transition_norm(keys, beta, gamma).max() <= 1 + 1e-12


@pytest.mark.parametrize("num_tokens", [3, 40])
def test_guard_bounds_random_keys_and_leaves_small_ones_alone(num_tokens):
    generator = torch.Generator().manual_seed(0)
    beta = torch.rand(2, 3, num_tokens, 2, dtype=torch.float64, generator=generator)
    gamma = torch.ones(2, 3, 2, dtype=torch.float64)
    direction = torch.randn(2, 3, num_tokens, 2, 8, dtype=torch.float64, generator=generator)
    large, small = 3 * direction, 1e-3 * direction
    assert transition_norm(large, beta, gamma).max() > 2
    assert transition_norm(large, guarded_beta(large, beta), gamma).max() <= 1 + 1e-12
    assert torch.equal(guarded_beta(small, beta), beta)
    zero = torch.zeros_like(beta, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(guarded_beta(large, zero).sum(), zero)[0]).all()


def test_bad_arguments():
    x = make_inputs((1, 3, 2, 1, 4))
    with pytest.raises(ValueError, match="form"):
        gated_delta(x, chunks=None, form="fast")
    with pytest.raises(ValueError, match="chunks has 2 entries for 3 frames"):
        gated_delta(x, chunks=[0, 0])
