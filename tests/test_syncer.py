"""Eq. 2-4, 6 and 7 against the written formulas; alignment of windows; what is frozen, where gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync.errors import InputError
from mssync.pyramid import pyramid
from mssync.syncer import MultiScaleSyncLoss, Standardize, Syncer, SyncerPyramid, at_video_rate, info_nce
from mssync.weights import save_model


def small_syncer(motion_dim: int = 6, seed: int = 0) -> Syncer:
    torch.manual_seed(seed)
    return Syncer(motion_dim=motion_dim, width=8, embedding=12)


def small_loss(motion_dim: int = 6, reduction: str = "sum", levels: int = 4, fps: float = 25) -> MultiScaleSyncLoss:
    return MultiScaleSyncLoss(SyncerPyramid([small_syncer(motion_dim, n) for n in range(levels)], fps), reduction)


def test_score_is_the_cosine_of_equation_3():
    syncer = small_syncer()
    audio, motion = torch.randn(3, 20, 26), torch.randn(3, 5, 6)
    sound = syncer.audio_encoder(syncer.audio_norm(audio))[:, 0]
    moves = syncer.motion_encoder(syncer.motion_norm(motion))[:, 0]
    expected = [s @ m / (s.norm() * m.norm()) for s, m in zip(sound, moves, strict=True)]
    torch.testing.assert_close(syncer(audio, motion)[:, 0], torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("motion_dim", [2, 60, 136])
def test_any_motion_dimension(motion_dim):
    assert small_syncer(motion_dim)(torch.randn(2, 20, 26), torch.randn(2, 5, motion_dim)).shape == (2, 1)
    with pytest.raises(InputError, match=f"motion of {motion_dim} numbers"):
        small_syncer(motion_dim).embed_motion(torch.randn(2, 5, motion_dim + 1))


@given(length=st.integers(5, 40), rest=st.integers(0, 3))
@settings(deadline=None)
def test_a_sequence_gives_what_its_windows_give(length, rest):
    syncer = small_syncer()
    audio, motion = torch.randn(2, 4 * length + rest, 26), torch.randn(2, length, 6)
    sounds, moves = syncer.embed_audio(audio), syncer.embed_motion(motion)
    assert sounds.shape == moves.shape == (2, length - 4, 12)
    torch.testing.assert_close(moves.norm(dim=-1), torch.ones(2, length - 4))
    for n in {0, (length - 4) // 2, length - 5}:
        alone = syncer.embed_audio(audio[:, 4 * n : 4 * n + 20]), syncer.embed_motion(motion[:, n : n + 5])
        torch.testing.assert_close(sounds[:, n], alone[0][:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(moves[:, n], alone[1][:, 0], atol=1e-5, rtol=1e-5)


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


@settings(deadline=None, max_examples=20)
@given(length=st.integers(39, 90))
def test_all_levels_have_windows_of_the_same_time(length):
    """At most one window is lost where the two lengths of a level round differently."""
    loss = small_loss()
    scores = loss.pyramid(torch.zeros(1, length, 6), torch.zeros(1, 4 * length, 26))
    for level, windows in enumerate(scores):
        assert -(-length // 2**level) - 5 <= windows.shape[1] <= -(-length // 2**level) - 4


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("length", [40, 43])
def test_loss_is_equations_6_and_7(reduction, length):
    loss = small_loss(reduction=reduction)
    motion, audio = torch.randn(2, length, 6), torch.randn(2, 4 * length, 26)
    expected = []
    for syncer, sound, moves in zip(loss.pyramid.syncers, pyramid(audio), pyramid(motion), strict=True):
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


@pytest.mark.parametrize("fps", [10, 25, 30, 60, 100 / 3])
def test_motion_and_audio_of_another_duration_are_refused(fps):
    loss = small_loss(fps=fps)
    for seconds in (1.99, 2, 2.013, 4.5):  # whatever way the lengths are rounded
        frames, heard = seconds * fps, seconds * 100
        for length in {math.floor(frames), round(frames), math.ceil(frames)}:
            for rows in {math.floor(heard) - 2, round(heard), math.ceil(heard) + 2}:
                motion, audio = torch.zeros(1, length, 6), torch.zeros(1, rows, 26)
                if abs(length / fps - rows / 100) <= max(0.04, 1 / fps):
                    torch.testing.assert_close(loss(motion, audio)[0], loss(motion, loss.embed_audio(audio))[0])
    motion = torch.zeros(1, round(2 * fps), 6)
    for rows in (160, 188 if fps > 20 else 184, 212 if fps > 20 else 216, 400):
        audio = torch.zeros(1, rows, 26)
        words = rf"motion lasts 2\.0\d s \({round(2 * fps)} frames at .*\) and audio {rows / 100:.2f} s .*100 a second"
        with pytest.raises(InputError, match=words):
            loss(motion, audio)
        with pytest.raises(InputError, match="motion lasts"):
            loss.pyramid(motion, audio)
        with pytest.raises(InputError, match="motion lasts"):
            loss(motion, loss.embed_audio(audio))


@pytest.mark.parametrize(
    ("motion", "audio", "words"),
    [
        (torch.zeros(40, 6), torch.zeros(1, 160, 26), r"motion must have the shape \(B, T, D\), not \(40, 6\)"),
        (torch.zeros(1, 40, 6), torch.zeros(1, 25600), r"audio must have the shape \(B, A, 26\), not \(1, 25600\)"),
        (torch.zeros(1, 40, 6), torch.zeros(1, 160, 13), "13 numbers a frame; give the 26 of `mssync.audio.features`"),
        (torch.zeros(1, 40, 7), torch.zeros(1, 160, 26), "6 numbers a frame, not 7; train"),
        (torch.zeros(1, 40, 6).numpy(), torch.zeros(1, 160, 26), "must be a tensor .* not ndarray"),
        (torch.zeros(1, 40, 6), torch.zeros(1, 160, 26).numpy(), "must be a tensor .* not ndarray"),
        (torch.zeros(3, 40, 6), torch.zeros(2, 160, 26), "batch of 2, motion one of 3"),
    ],
)
def test_what_is_no_motion_or_audio(motion, audio, words):
    with pytest.raises(InputError, match=words):
        small_loss()(motion, audio)


def test_levels_and_rates_that_do_not_fit():
    audio = torch.zeros(1, 160, 26)
    with pytest.raises(InputError, match="2 levels, motion at 4"):
        small_loss()(torch.zeros(1, 40, 6), small_loss(levels=2).embed_audio(audio))
    for fps in (0, -25, float("nan"), float("inf")):
        with pytest.raises(InputError, match="above zero"):
            SyncerPyramid([small_syncer()], fps)
    with pytest.raises(InputError, match="at least one"):
        SyncerPyramid([])


def test_motion_in_float64_keeps_its_gradient():
    motion = torch.randn(1, 40, 6, dtype=torch.double, requires_grad=True)
    small_loss()(motion, torch.randn(1, 160, 26))[0].backward()
    assert motion.grad.dtype == torch.double
    assert motion.grad.abs().sum() > 0


def test_unknown_reduction():
    with pytest.raises(InputError, match="sum"):
        MultiScaleSyncLoss(SyncerPyramid([small_syncer()]), "max")


@pytest.mark.parametrize("fps", [10, 20, 50, 100 / 3])
def test_other_frame_rates_are_resampled(fps):
    """A straight line in time is the same line at 25 frames a second, up to the last whole frame."""
    seconds, slope = 4, torch.tensor([1.0, -2.0])
    line = torch.arange(int(seconds * fps))[None, :, None] / fps * slope
    found = at_video_rate(line, fps)
    torch.testing.assert_close(found, torch.arange(found.shape[1])[None, :, None] / 25 * slope)
    assert 0 <= line[0, -1, 0] - found[0, -1, 0] < 1 / 25
    motion = torch.randn(1, int(seconds * fps), 6, requires_grad=True)
    small_loss(fps=fps)(motion, torch.randn(1, 400, 26))[0].backward()
    assert motion.grad.abs().sum() > 0


@settings(deadline=None)
@given(length=st.integers(2, 30))
def test_half_the_frames_of_twice_the_rate(length):
    motion = torch.randn(1, length, 2)
    torch.testing.assert_close(at_video_rate(motion, 50), motion[:, ::2])
    assert at_video_rate(motion, 25) is motion


def test_pyramid_from_a_folder(tmp_path):
    config = {"motion_dim": 6, "width": 8, "embedding": 12}
    for level in (1, 2, 4):
        save_model(tmp_path / f"syncer{level}.safetensors", small_syncer(seed=level), "syncer", config)
    assert len(SyncerPyramid.load(tmp_path, levels=2)) == 2
    with pytest.raises(InputError, match="no syncer3"):
        SyncerPyramid.load(tmp_path)
    with pytest.raises(InputError, match="no syncer1"):
        SyncerPyramid.load(tmp_path / "none")


def test_the_shipped_pyramid_takes_the_motion_of_the_shipped_model():
    total, terms = MultiScaleSyncLoss()(torch.randn(1, 39, 60), torch.randn(1, 156, 26))
    assert len(terms) == 4
    torch.testing.assert_close(total, torch.stack(terms).sum())


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
