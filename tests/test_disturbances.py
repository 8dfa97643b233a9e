"""Disturbed sound: as loud as it says, in the band that it says."""

from __future__ import annotations

import numpy as np
import pytest

from mssync.audio import SAMPLE_RATE, load_audio
from mssync.cli.common import DEMO_SPEECH
from mssync.metrics import recovery
from mssync.metrics.disturbances import music, telephone, under


@pytest.fixture(scope="module")
def speech():
    return load_audio(DEMO_SPEECH)


def level(x):
    return 10 * np.log10(np.square(x).mean())


def energy(x, low, high):
    """Of a band in Hz, dB."""
    spectrum = np.abs(np.fft.rfft(x)) ** 2
    hz = np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE)
    return 10 * np.log10(spectrum[(hz >= low) & (hz < high)].mean())


def test_what_is_under_is_as_far_below_as_it_says(speech):
    song = music(SAMPLE_RATE, np.random.default_rng(0))  # shorter: it goes round
    for decibels in (10.0, 3.0):
        added = under(speech, song, decibels) - speech
        assert level(speech) - level(added) == pytest.approx(decibels, abs=0.01)


def test_a_telephone_has_its_band_and_its_steps(speech):
    heard = telephone(speech)
    assert abs(energy(heard, 500, 2500) - energy(speech, 500, 2500)) < 1
    assert energy(heard, 20, 150) < energy(speech, 20, 150) - 10
    assert energy(heard, 4500, 8000) < energy(heard, 500, 2500) - 25
    assert len(np.unique(heard)) <= 255


def test_music_is_a_song_of_its_own():
    one, again, other = (music(4 * SAMPLE_RATE, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    loud = np.array([level(piece) for piece in one.reshape(-1, SAMPLE_RATE // 4)])
    assert np.ptp(loud) < 20  # it goes on


def test_disturbed_clips_are_groups_of_their_own():
    trials = [
        recovery.Trial("a", "", condition, 5.0, 2, 2.0 + wrong, 0.0, 0.9, True)
        for condition, wrong in (("shifted", 0), *((name, 3) for name in recovery.DISTURBED))
    ]
    table = recovery.summary(trials)
    assert table["all"]["within 1"].value == 1
    assert all(table[name]["within 1"].value == 0 for name in recovery.DISTURBED)
