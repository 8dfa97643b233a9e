"""Eq. 5 against a direct loop, lengths, alignment, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync.pyramid import RADIUS, downsample, pyramid, reflect_index


def mirrored(position: int, length: int) -> int:
    """Walk back and forth between the two ends."""
    while not 0 <= position < length:
        if length == 1:
            return 0
        position = -position if position < 0 else 2 * (length - 1) - position
    return position


def downsample_slowly(x: np.ndarray) -> np.ndarray:
    """Eq. 5 word for word: (T, D) -> (ceil(T / 2), D)."""
    length = len(x)
    return np.stack(
        [
            sum(x[mirrored(2 * t + tau, length)] for tau in range(-RADIUS, RADIUS + 1)) / (2 * RADIUS + 1)
            for t in range((length + 1) // 2)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 50), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_downsample_is_equation_5(batch, length, size, seed):
    x = np.random.default_rng(seed).normal(size=(batch, length, size))
    expected = np.stack([downsample_slowly(sample) for sample in x])
    np.testing.assert_allclose(downsample(torch.from_numpy(x)).numpy(), expected, atol=1e-12)


@given(length=st.integers(1, 9), position=st.integers(-40, 40))
def test_reflection_walks_back_and_forth(length, position):
    assert reflect_index(torch.tensor([position]), length).item() == mirrored(position, length)


def test_reflection_is_the_usual_padding_where_that_exists():
    x = torch.randn(2, 9, 4)
    index = reflect_index(torch.arange(-3, 12), 9)
    torch.testing.assert_close(x[:, index], F.pad(x.transpose(1, 2), (3, 3), mode="reflect").transpose(1, 2))


@pytest.mark.parametrize("length", [1, 2, 7, 40, 41])
def test_level_lengths(length):
    levels = pyramid(torch.randn(1, length, 3), levels=4)
    assert [level.shape[1] for level in levels] == [-(-length // 2**i) for i in range(4)]
    assert levels[0].shape == (1, length, 3)


def test_frame_t_of_a_level_is_centred_on_frame_2t_below():
    # Away from the ends a ramp stays a ramp under a symmetric average.
    ramp = torch.arange(64.0)[None, :, None]
    for i, level in enumerate(pyramid(ramp)):
        inside = slice(4, level.shape[1] - 4)
        torch.testing.assert_close(level[0, inside, 0], 2.0**i * torch.arange(level.shape[1])[inside])


def test_gradient():
    x = torch.randn(2, 5, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: pyramid(v, 3)[2], x)
