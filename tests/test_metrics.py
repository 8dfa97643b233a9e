"""Evaluation: figures on made-up signals with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mssync.metrics.animation import AnimationFigures, loudness
from mssync.metrics.animation import summary as animation_summary
from mssync.metrics.reenactment import _pair_errors, correlation, measures


def test_loudness_is_the_level_around_each_frame() -> None:
    waveform = np.concatenate([0.01 * np.ones(6400), np.ones(6400)]).astype(np.float32)
    level = loudness(waveform, 20)
    assert level.shape == (20,)
    assert level[1:8] == pytest.approx(-40, abs=0.01)
    assert level[12:19] == pytest.approx(0, abs=0.01)


def test_silence_is_no_louder_than_the_floor() -> None:
    waveform = np.zeros(16000, np.float32)
    waveform[8000:9000] = 0.5
    assert loudness(waveform, 25).min() == -60


def test_correlation_needs_movement() -> None:
    t = np.linspace(0, 10, 200)
    assert correlation(np.sin(t), 3 * np.sin(t) + 1) == pytest.approx(1)
    assert correlation(np.sin(t), -np.sin(t)) == pytest.approx(-1)
    assert math.isnan(correlation(0.001 * np.sin(t), np.sin(t), min_spread=0.01))
    assert correlation(np.sin(t), np.ones(200)) == 0


def test_summary_leaves_out_what_could_not_be_measured() -> None:
    row = dict.fromkeys(("open_loud", "open_quiet", "yaw", "pitch", "roll", "border", "found"), 1.0)
    rows = [
        AnimationFigures(image="a", audio="b", frames=10, r=0.5, r_shuffled=0.1, **row),
        AnimationFigures(image="a", audio="c", frames=10, r=float("nan"), r_shuffled=0.1, **row),
    ]
    figures = animation_summary(rows)
    assert figures["r"] == 0.5
    assert figures["share_r_above_shuffled"] == 0.5


class Copying:
    """A reenactor that shows the source whatever the motion."""

    rigid = (0,)

    def keypoints(self, image: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros(len(image), 10, 6)

    def prepare(self, source: torch.Tensor) -> torch.Tensor:
        return source

    def render(self, state: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        return state.expand(len(motion), -1, -1, -1)


class Flashing:
    """A clip of two grey frames with a face in the middle."""

    def frame(self, t: int) -> np.ndarray:
        return np.full((256, 256, 3), 51 * t, np.uint8)

    def marks(self, t: int) -> np.ndarray:
        return np.random.default_rng(0).uniform(-0.5, 0.5, (478, 2))


def test_copying_the_source_is_as_good_as_copying_the_source() -> None:
    errors = _pair_errors(Copying(), Flashing(), 0, 1)  # type: ignore[arg-type]
    assert errors == pytest.approx([0.2] * 4)


def test_measures_have_one_value_a_frame() -> None:
    landmarks = np.random.default_rng(0).standard_normal((7, 478, 3))
    shapes = {name: value.shape for name, value in measures(landmarks).items()}
    assert shapes == {"mouth": (7,), "eyes": (7,), "yaw": (7,), "pitch": (7,)}
