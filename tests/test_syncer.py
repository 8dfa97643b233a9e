"""Eq. 2-4, 6 and 7 against the written formulas; alignment of windows; what is frozen, where gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync.errors import InputError
from mssync.pyramid import pyramid
from mssync.syncer import Standardize, Syncer, SynchronyLoss, audio_windows, info_nce, motion_windows, windows


def small_syncer(motion_dim: int = 6, seed: int = 0) -> Syncer:
    torch.manual_seed(seed)
    return Syncer(motion_dim=motion_dim, width=8, depth=1, embedding=12)


def small_loss(motion_dim: int = 6, reduction: str = "sum", levels: int = 4) -> SynchronyLoss:
    return SynchronyLoss([small_syncer(motion_dim, seed) for seed in range(levels)], reduction)


def test_score_is_the_cosine_of_equation_3():
    syncer = small_syncer()
    audio, motion = torch.randn(3, 20, 26), torch.randn(3, 5, 6)
    sound = syncer.audio_encoder(syncer.audio_norm(audio)[:, None])
    moves = syncer.motion_encoder(syncer.motion_norm(motion).transpose(1, 2))
    expected = [s @ m / (s.norm() * m.norm()) for s, m in zip(sound, moves, strict=True)]
    torch.testing.assert_close(syncer(audio, motion), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("motion_dim", [2, 60, 136])
def test_any_motion_dimension(motion_dim):
    assert small_syncer(motion_dim)(torch.randn(2, 20, 26), torch.randn(2, 5, motion_dim)).shape == (2,)


def test_embeddings_of_many_windows_are_those_of_each():
    syncer = small_syncer()
    audio, motion = torch.randn(2, 3, 20, 26), torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(syncer.embed_audio(audio)[1, 2], syncer.embed_audio(audio[1, 2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        syncer.embed_motion(motion)[1, 2], syncer.embed_motion(motion[1, 2]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(syncer.embed_motion(motion).norm(dim=-1), torch.ones(2, 3))


@settings(deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=4), min_size=1, max_size=5),
    temperature=st.floats(0.05, 2),
)
def test_info_nce_is_equation_2_with_its_log(scores, temperature):
    expected = 0.0
    for positive, *negatives in scores:
        e = math.exp(positive / temperature)
        expected -= math.log(e / (e + sum(math.exp(n / temperature) for n in negatives)))
    table = torch.tensor(scores, dtype=torch.double)
    loss = info_nce(table[:, 0], table[:, 1:], temperature)
    assert loss.item() == pytest.approx(expected / len(scores), abs=1e-9)


@given(length=st.integers(5, 60))
def test_windows_cover_the_same_time(length):
    # Every frame holds its own time in milliseconds, so the alignment can be read off the windows.
    motion = 40.0 * torch.arange(length)[None, :, None].expand(2, -1, 3)
    audio = 10.0 * torch.arange(4 * length)[None, :, None].expand(2, -1, 26)
    sounds, moves = windows(audio, motion)
    assert sounds.shape == (2, length - 4, 20, 26)
    assert moves.shape == (2, length - 4, 5, 3)
    torch.testing.assert_close(sounds[:, :, 0, 0], moves[:, :, 0, 0])
    torch.testing.assert_close(sounds[:, :, -1, 0] + 10, moves[:, :, -1, 0] + 40)
    torch.testing.assert_close(moves[0, :, 2, 0], 40.0 * torch.arange(2, length - 2))


@given(length=st.integers(39, 90))
def test_windows_of_all_levels_have_the_same_counts(length):
    audio, motion = torch.zeros(1, 4 * length, 26), torch.zeros(1, length, 2)
    for level, (sound, moves) in enumerate(zip(pyramid(audio), pyramid(motion), strict=True)):
        sounds, frames = windows(sound, moves)
        assert sounds.shape[1:3] == (frames.shape[1], 20)
        assert frames.shape[2] == 5
        # At most one window is lost where the two lengths round differently.
        assert -(-length // 2**level) - 5 <= frames.shape[1] <= -(-length // 2**level) - 4


def test_windows_are_views():
    audio, motion = torch.randn(1, 40, 26), torch.randn(1, 10, 3)
    assert audio_windows(audio).data_ptr() == audio.data_ptr()
    assert motion_windows(motion).data_ptr() == motion.data_ptr()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("length", [40, 43])
def test_loss_is_equations_6_and_7(reduction, length):
    loss = small_loss(reduction=reduction)
    motion, audio = torch.randn(2, length, 6), torch.randn(2, 4 * length, 26)
    expected = []
    for syncer, sound, moves in zip(loss.syncers, pyramid(audio), pyramid(motion), strict=True):
        scores = []
        for t in range(2, moves.shape[1] - 2):  # centre of the window
            window = sound[:, 4 * (t - 2) : 4 * (t + 3)]
            if window.shape[1] == 20:
                scores.append(syncer(window, moves[:, t - 2 : t + 3]))
        expected.append(-torch.stack(scores).mean())
    total, terms = loss(motion, audio)
    torch.testing.assert_close(terms, expected)
    combined = sum(expected) / (4 if reduction == "mean" else 1)
    torch.testing.assert_close(total, combined)


def test_gradient_reaches_the_motion_only():
    loss = small_loss()
    motion = torch.randn(1, 40, 6, requires_grad=True)
    audio = torch.randn(1, 160, 26, requires_grad=True)
    loss(motion, audio)[0].backward()
    assert motion.grad.abs().sum() > 0
    assert audio.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_every_level_pulls_on_the_motion():
    motion = torch.randn(1, 40, 6, requires_grad=True)
    for term in small_loss()(motion, torch.randn(1, 160, 26))[1]:
        (gradient,) = torch.autograd.grad(term, motion, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_training_mode_does_not_unfreeze():
    loss = small_loss()
    holder = torch.nn.ModuleList([loss]).train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())


def test_audio_embedded_once_serves_many_motions():
    loss = small_loss()
    audio = torch.randn(1, 160, 26)
    embedded = loss.embed_audio(audio)
    for motion in torch.randn(2, 1, 40, 6):
        torch.testing.assert_close(loss(motion, embedded)[0], loss(motion, audio)[0])


def test_single_scale_and_shortest_sequence():
    one = small_loss(levels=1)
    total, terms = one(torch.randn(1, 5, 6), torch.randn(1, 20, 26))
    assert len(terms) == 1
    assert total == terms[0]
    small_loss()(torch.randn(1, 39, 6), torch.randn(1, 156, 26))
    with pytest.raises(InputError, match="at least 20 frames of audio"):
        small_loss()(torch.randn(1, 38, 6), torch.randn(1, 152, 26))
    with pytest.raises(InputError, match="at least 5 frames of motion"):
        one(torch.randn(1, 4, 6), torch.randn(1, 20, 26))


def test_unknown_reduction():
    with pytest.raises(InputError, match="sum"):
        SynchronyLoss([small_syncer()], "max")


def test_statistics_travel_with_the_weights():
    trained, fresh = small_syncer(seed=0), small_syncer(seed=1)
    trained.motion_norm.set_statistics(torch.full((6,), 2.0), torch.full((6,), 0.5))
    trained.audio_norm.set_statistics(torch.full((26,), -9.0), torch.full((26,), 3.0))
    fresh.load_state_dict(trained.state_dict())
    audio, motion = torch.randn(2, 20, 26) - 9, torch.randn(2, 5, 6) + 2
    torch.testing.assert_close(fresh(audio, motion), trained(audio, motion))
    bare = small_syncer(seed=0)
    torch.testing.assert_close(trained(audio, motion), bare((audio + 9) / 3, (motion - 2) / 0.5))


def test_still_coordinates_are_only_centred():
    norm = Standardize(3)
    norm.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1e-9, 0.1]))
    torch.testing.assert_close(norm(torch.tensor([1.0, 2.5, 3.2])), torch.tensor([0.0, 0.5, 2.0]))
