"""Rotary embedding against complex rotation and its relative-position invariant."""

import numpy as np
import torch

from worldline.model.rope import Grid, apply_rope, rope_table, split_channels

torch.set_num_threads(1)


def test_split_of_the_full_model():
    assert split_channels(112) == (40, 36, 36)
    assert split_channels(56) == (20, 18, 18)


def test_equals_complex_rotation_in_numpy():
    grid, dim = Grid(num_frames=3, height=2, width=4, first_frame=7), 16
    x = torch.randn(1, 3, 8, 2, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = apply_rope(x, rope_table(grid, dim)).numpy()
    pairs = x.numpy()[..., 0::2] + 1j * x.numpy()[..., 1::2]
    for t in range(3):
        for token in range(8):
            angles = []
            for position, size in zip((7 + t, token // 4, token % 4), split_channels(dim), strict=True):
                angles += [position / 1e4 ** (2 * i / size) for i in range(size // 2)]
            expected = pairs[0, t, token] * np.exp(1j * np.array(angles))
            np.testing.assert_allclose(got[0, t, token, :, 0::2], expected.real, atol=1e-13)
            np.testing.assert_allclose(got[0, t, token, :, 1::2], expected.imag, atol=1e-13)


def test_inverse_undoes_and_scores_depend_on_differences_only():
    dim = 24
    x = torch.randn(2, 4, 6, 1, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = []
    for first_frame in (0, 100_000):
        table = rope_table(Grid(num_frames=4, height=2, width=3, first_frame=first_frame), dim)
        rotated = apply_rope(x, table)
        torch.testing.assert_close(apply_rope(rotated, table, inverse=True), x, rtol=0, atol=1e-13)
        scores.append(torch.einsum("btshd,burhd->btsur", rotated, rotated))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-8)


def test_a_smaller_rotation_keeps_the_fastest_frequencies_of_each_axis():
    grid = Grid(num_frames=2, height=2, width=2)
    full, part = rope_table(grid, 112), rope_table(grid, 112, rotated_dim=56)
    keep = [*range(10), *range(20, 29), *range(38, 47)]
    # To the last bit but one: a CPU's sine of a number may depend on its place in a vector.
    torch.testing.assert_close(part, full[..., keep], rtol=0, atol=2**-52)
    assert apply_rope(torch.ones(1, 2, 4, 1, 56, dtype=torch.bfloat16), part).dtype == torch.bfloat16
