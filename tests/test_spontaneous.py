"""Turns, blinks and saccades: the same for a seed however they are drawn, as often as they say; what they move."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generator import SMALL, example, make

from mssync.config import GeneratorConfig
from mssync.face1 import GAZE as HEAD_GAZE
from mssync.face1 import NUMBERS, POSE
from mssync.generator import Generator
from mssync.metrics.face import Face
from mssync.reenact.mesh import canonical_face, mesh_motion
from mssync.spontaneous import (
    BETWEEN,
    BLINK,
    BLINKS,
    DEVIATION,
    ELSEWHERE,
    FARTHEST,
    GAZE,
    HOLD,
    LOOK,
    LOOKS,
    PLACE,
    REST,
    TURNS,
    Spontaneous,
    own_seed,
)
from mssync.training.spontaneous import slow, spontaneous_motion

CONFIG = replace(SMALL, spontaneous=True)


def lively(config: GeneratorConfig = CONFIG) -> Generator:
    generator = make(config)
    torch.nn.init.normal_(generator.spontaneous_motion)
    return generator


# ---- what is drawn


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 2**63 - 1))
def test_numbers_do_not_depend_on_how_many_are_drawn_at_a_time(cuts, seed):
    whole, parts = Spontaneous(2, seed).draw(sum(cuts)), Spontaneous(2, seed)
    assert torch.equal(torch.cat([whole[:0], *map(parts.draw, cuts)]), whole)


def test_places_are_held_left_and_as_far_apart_as_they_say():
    places = Spontaneous(40, 3).draw(4000)[..., :PLACE]
    later = places[1000:]
    assert float(later.mean().abs()) < 0.05
    # A little less than the places themselves: on its way between two, the head is at neither.
    assert 0.7 * DEVIATION < float(later.std()) < DEVIATION
    assert float(places.abs().max()) <= FARTHEST * DEVIATION + 1e-6
    steps = places.diff(dim=0).abs().amax(2)
    assert 0.4 < float((steps < 0.003 * DEVIATION).float().mean()) < 0.8
    (turns,) = np.nonzero(np.diff((steps[:, 0] > 0.03 * DEVIATION).numpy().astype(int)) > 0)
    assert 0.5 < len(turns) * HOLD / 4000 < 1.5


def test_eyes_blink_about_twenty_times_a_minute():
    eyes = Spontaneous(40, 3).draw(4000)[..., PLACE].numpy().T
    assert eyes.min() == 0
    assert eyes.max() == pytest.approx(BLINK.max())
    starts = [np.flatnonzero((row[1:] > 0) & (row[:-1] == 0)) for row in eyes]
    assert min(np.diff(s).min() for s in starts) >= REST
    rates = 25 * 60 * np.array([len(s) for s in starts]) / eyes.shape[1]
    assert 16 < rates.mean() < 28
    assert rates.std() > 2  # people differ
    first = starts[0][0] + 1
    np.testing.assert_allclose(eyes[0, first : first + len(BLINK)], BLINK, rtol=1e-6)


def test_eyes_look_at_the_viewer_most_of_the_time_and_jump():
    gaze = Spontaneous(40, 3).draw(4000)[..., GAZE]
    aside = gaze.norm(dim=-1)
    assert 0.6 < float((aside < 0.03).float().mean()) < 0.9
    assert float(gaze[..., 0].abs().max()) <= FARTHEST * ELSEWHERE[0]
    assert float(gaze[..., 0].std()) > float(gaze[..., 1].std()) > 0.01
    # A saccade is over in three frames; in between eyes rest.
    steps = gaze.diff(dim=0).norm(dim=-1)
    assert float((steps < 0.001).float().mean()) > 0.6
    starts = (steps[1:] > 0.03) & ~(steps[:-1] > 0.03)
    assert 8 < 25 * 60 * float(starts.float().mean()) < 30


def test_everybody_begins_in_the_middle_with_open_eyes():
    assert not Spontaneous(3, 7).draw(1).any()


def test_every_clip_has_its_own_seed():
    assert own_seed("a") == own_seed("a") != own_seed("b")


# ---- what it moves


@pytest.mark.parametrize("hears", ["energies", "speech"])
@pytest.mark.parametrize("frames", [1, 7, 230])
def test_streams_and_listeners_add_it_to_what_speech_makes(hears, frames):
    generator = lively(replace(CONFIG, hears=hears)).double()
    x0, audio = (x.double() for x in example(frames, hears=hears))
    with torch.no_grad():
        expected = generator(x0, audio).transpose(0, 1)
    expected = expected + Spontaneous(2, 8).draw(frames).double() @ generator.spontaneous_motion
    torch.testing.assert_close(torch.stack(list(generator.stream(x0, audio, 8))), expected, atol=1e-6, rtol=1e-6)
    if hears == "energies":
        return
    listener = generator.listen(x0, 8)
    made = [frame for rows in audio.split(6, dim=1) for frame in listener.push(rows)]
    torch.testing.assert_close(torch.stack(made), expected, atol=1e-5, rtol=1e-5)


def test_seeds_give_other_motion():
    generator = lively()
    x0, audio = example(90, batch=1)
    first, again, other = (torch.stack(list(generator.stream(x0, audio, seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(first[0], x0)


# ---- how it is measured


def test_slow_is_a_gaussian_of_six_frames():
    x = torch.randn(70, 5)
    weights = np.exp(-0.5 * (np.arange(-18, 19) / 6) ** 2)
    for t in (0, 30, 69):
        near = [min(max(t + d, 0), 69) for d in range(-18, 19)]
        wanted = sum(w * x[n] for w, n in zip(weights / weights.sum(), near, strict=True))
        torch.testing.assert_close(slow(x)[t], wanted, atol=1e-5, rtol=1e-5)


def clips(blinks: bool = True) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Faces that go here and there, and what their eyes do in a blink: the Jacobians of the two eyes' keypoints."""
    face = torch.from_numpy(np.pad(mesh_motion(canonical_face()[None]).reshape(1, 54), ((0, 0), (0, 6)))).float()
    lids = torch.zeros(10, 6)
    lids[:2, 5] = -1.2
    torch.manual_seed(0)
    ways = torch.randn(6, 60) * 0.02
    found = []
    for n in range(6):
        times = torch.arange(150)[:, None]
        places = torch.sin(2 * torch.pi * (times / 150 * torch.arange(1, 7) / 2 + torch.rand(6)))
        closed = torch.exp(-0.5 * ((torch.arange(150) - 40 - 10 * n) / 1.5) ** 2) * blinks
        found.append(face + places @ ways + 0.7 * closed[:, None] * lids.flatten())
    return found, lids.flatten()


def test_places_are_where_heads_are_slowly():
    found, _ = clips(blinks=False)
    changes, face = spontaneous_motion(found, found), Face()
    assert not changes[PLACE].any()  # nobody blinks
    poses = torch.cat([slow(face.pose(clip)) - slow(face.pose(clip)).mean(0) for clip in found])
    # Places of variances of 1 without correlation make the covariance of the poses.
    made = face.pose(changes[:PLACE]) - face.pose(torch.zeros(60))
    torch.testing.assert_close(made.T @ made, poses.T @ poses / len(poses), atol=2e-5, rtol=0.02)
    for clip in found:
        slowly = slow(clip) - slow(clip).mean(0)
        again = slowly @ torch.linalg.pinv(changes[:PLACE]) @ changes[:PLACE]
        assert float((again - slowly).std()) < 0.1 * float(slowly.std())


def test_a_blink_is_what_eyes_do_in_blinks():
    found, lids = clips()
    blink, face = spontaneous_motion(found, found)[PLACE], Face()
    assert float(torch.nn.functional.cosine_similarity(blink, lids, dim=0)) > 0.95
    open_eyes = found[0][:1]
    assert float(face.eyes(open_eyes + blink) / face.eyes(open_eyes)) == pytest.approx(0, abs=0.3)


def looking() -> tuple[torch.Tensor, torch.Tensor]:
    """A face that holds five gazes for a second each, whose lids follow the eyes down; keypoints, and motion."""
    gazes = torch.tensor([[0.0, 0.0], [0.08, 0.0], [-0.05, 0.04], [0.0, -0.03], [0.06, 0.05]]).repeat_interleave(25, 0)
    motion = torch.zeros(125, NUMBERS)
    motion[:, HEAD_GAZE] = gazes.repeat(1, 2)
    motion[:, 12] = 3 * gazes[:, 1]
    motion[:, 1] = torch.linspace(0, 0.2, 125)  # the head turns meanwhile, which eyes do not follow
    still = torch.from_numpy(np.pad(mesh_motion(canonical_face()[None]).reshape(1, 54), ((0, 0), (0, 6)))).float()
    return still + 0.01 * torch.randn(125, 60, generator=torch.Generator().manual_seed(0)), motion


def test_a_gaze_is_what_eyes_and_lids_do_in_saccades():
    changes = spontaneous_motion(*([x] for x in looking()))[GAZE]
    torch.testing.assert_close(changes[:, HEAD_GAZE], torch.eye(2).repeat(1, 2), atol=0.01, rtol=0)
    torch.testing.assert_close(changes[:, 12], torch.tensor([0.0, 3.0]), atol=0.05, rtol=0)
    assert float(changes[:, POSE].abs().max()) < 1e-5


def test_keypoints_do_not_tell_where_eyes_look():
    found, _ = clips()
    assert not spontaneous_motion(found, found)[GAZE].any()


def test_thresholds_are_exceeded_once_in_so_many_frames():
    for threshold, frames in ((TURNS, HOLD), (BLINKS, BETWEEN), (LOOKS, LOOK)):
        assert math.erfc(threshold / math.sqrt(2)) / 2 == pytest.approx(1 / frames, rel=1e-12)
