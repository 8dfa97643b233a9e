"""Evaluation: figures on made-up signals with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeClip

from mssync.errors import InputError
from mssync.metrics.animation import AnimationFigures, loudness
from mssync.metrics.animation import summary as animation_summary
from mssync.metrics.estimates import correlation, mean, ratio
from mssync.metrics.footage import find_portraits
from mssync.metrics.outputs import faded_in
from mssync.metrics.pictures import PSNR_LIMIT, psnr


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
    assert math.isnan(correlation(np.ones(200), np.sin(t)))
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


def test_psnr_is_the_direct_formula() -> None:
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.uniform(0, 1, (1, 3, 64, 64))).float() for _ in range(2))
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / float(((a - b) ** 2).mean())), abs=1e-4)
    assert psnr(a, a) == PSNR_LIMIT


def test_the_portrait_is_the_first_frame_after_a_fade() -> None:
    clip = FakeClip()
    assert faded_in(clip) == 0  # type: ignore[arg-type]
    whole = clip.frame(0)
    clip.frame = lambda t: (whole * min(1, t / 4)).astype(np.uint8)  # type: ignore[method-assign]
    assert faded_in(clip) == 3  # type: ignore[arg-type]


def test_an_interval_holds_its_mean_and_leaves_out_nan() -> None:
    values = np.array([1.0, 2.0, 3.0, np.nan])
    found = mean(values)
    assert (found.value, found.clips) == (2, 3)
    assert 1 <= found.low < 2 < found.high <= 3
    assert ratio(values, 2 * values).value == 0.5
    assert math.isnan(mean(np.array([np.nan])).value)


def test_portraits_are_pictures_or_some_of_a_folder(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"x")
    found = find_portraits([tmp_path, tmp_path / "07.png"], most=10)
    assert len(found) == 11
    assert (found[0].name, found[9].name, found[10].name) == ("00.png", "29.png", "07.png")
    with pytest.raises(InputError, match="does not exist"):
        find_portraits([tmp_path / "none.png"], most=10)
