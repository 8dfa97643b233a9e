"""Live: any cut of the sound gives the same frames, as many as offline, none from sound that has not come yet."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync import audio as audio_module
from mssync.animate import LIVE_FILE, MODELS, Pipeline, load
from mssync.audio import FeatureStream, features, live_features
from mssync.config import GeneratorConfig, load_config
from mssync.errors import InputError
from mssync.generator import Generator, level_futures
from mssync.motion import fit_head, idle
from mssync.speech import SpeechEncoder
from mssync.stream import StreamingAnimator
from mssync.video import FPS

SMALL = GeneratorConfig(
    layers=2, heads=2, width=16, feed_forward=24, context=6, audio_width=12, branch_hidden=10,
    relative_input=True, leak=0.02, lookahead=4,
)  # fmt: skip
FAR = level_futures()[-1]


def make(config: GeneratorConfig = SMALL) -> Generator:
    torch.manual_seed(0)
    generator = Generator(config).eval().requires_grad_(False)
    numbers = len(generator.audio_encoder.norm.mean)
    statistics = torch.randn(60) * 0.1, torch.rand(60) + 0.1, torch.randn(numbers), torch.rand(numbers) + 0.5
    generator.set_statistics(*statistics)
    generator.branches.out_weight *= 10
    return generator


def pieces(length: int, seed: int) -> list[slice]:
    """Random cuts of a sound, some of them empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, length + 1, rng.integers(0, 40)))
    edges = [0, *cuts.tolist(), length]
    return [slice(a, b) for a, b in pairwise(edges)]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)


@pytest.fixture
def talker() -> Pipeline:
    return Pipeline(FakeReenactor(), make(), face_mesh=FakeMesh())


# ---- features


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 20000), seed=st.integers(0, 10))
def test_features_do_not_depend_on_cuts(length, seed):
    waveform = speech(length / 16000)
    whole = live_features(waveform, "mfcc", round(length / 640)) if length else torch.zeros(0, 26)
    stream = FeatureStream("mfcc")
    rows = torch.cat([*(stream.push(waveform[piece]) for piece in pieces(length, seed)), stream.flush()])
    assert rows.shape == (4 * round(length / 640), 26)
    torch.testing.assert_close(rows, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["logfbank", "mfcc"])
def test_features_against_the_direct_formula(kind, monkeypatch):
    monkeypatch.setattr(audio_module, "BLOCK", 7)
    waveform = (speech(0.5) + 0.05).astype(np.float64) * np.linspace(0.2, 1, 8000)
    rows = live_features(waveform.astype(np.float32), kind, 12)
    mean, peak = 0.0, audio_module.USUAL_PEAK
    padded = np.concatenate([[0.0], waveform])  # nothing comes before the first sample
    for k in range(46):
        window, before = padded[160 * k + 1 : 160 * k + 401], padded[160 * k : 160 * k + 400]
        mean += 160 / 32000 * (window.mean() - mean)
        peak = max(peak * 0.5 ** (0.01 / 5), np.abs(window - mean).max(), 0.02)
        frame = (window - 0.97 * before - 0.03 * mean) / peak
        expected = audio_module.KINDS[kind](*audio_module._energies(torch.from_numpy(frame)[None]))
        torch.testing.assert_close(rows[k : k + 1].double(), expected, atol=1e-4, rtol=1e-5)


def test_level_of_usual_speech_is_that_of_the_recording():
    """After the peak has come, features are those of the whole recording."""
    waveform = speech(3.0) / np.abs(speech(3.0)).max()
    difference = live_features(waveform, "logfbank", 75) - features(waveform, "logfbank", 75)
    assert difference[150:].abs().mean() < 0.2
    quiet = live_features(0.01 * waveform, "logfbank", 75)
    assert (quiet < live_features(waveform, "logfbank", 75)).all()  # silence is not made loud


# ---- motion


@pytest.mark.parametrize("lookahead", [0, 1, 4, 9, FAR])
@pytest.mark.parametrize("frames", [1, 5, 90])
def test_listening_is_the_whole_roll_out(lookahead, frames):
    generator = make(replace(SMALL, lookahead=lookahead)).double()
    torch.manual_seed(2)
    x0, audio = torch.randn(2, 60).double(), torch.randn(2, 4 * frames, 26).double()
    whole = generator(x0, audio).transpose(0, 1)
    listener, made = generator.listen(x0), []
    for piece in pieces(4 * frames, lookahead):
        made += listener.push(audio[:, piece])
        assert len(made) >= listener.received // 4 - lookahead
    made += listener.flush()
    torch.testing.assert_close(torch.stack(made), whole, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.stack(list(generator.stream(x0, audio))), whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("lookahead", [0, 3, 4, 12])
def test_nothing_is_heard_beyond_the_lookahead(lookahead):
    generator = make(replace(SMALL, lookahead=lookahead)).double()
    x0, audio = torch.randn(1, 60).double(), torch.randn(1, 4 * 80, 26).double()
    changed = audio.clone()
    # Row k hears samples up to 160 k + 400; frame 40 may hear samples up to 640 (40 + lookahead).
    first = int(np.ceil((640 * (40 + lookahead) - 400 + 1) / 160))
    changed[:, first:] += 1
    difference = (generator(x0, audio) - generator(x0, changed)).abs().amax(-1)[0]
    assert difference[:41].max() == 0
    assert difference[41:45].max() > 0


def test_sound_before_and_after_matters_to_live_generators_alone():
    live, usual = make(), make(replace(SMALL, lookahead=None))
    assert (usual.lead, usual.follow) == (0, 0)
    x0, audio = torch.randn(1, 60), torch.randn(1, 4 * (live.lead + 20 + live.follow), 26)
    before, inside, after = audio.split([4 * live.lead, 80, 4 * live.follow], dim=1)
    assert not torch.allclose(live(x0, inside), live(x0, inside, around=(before, after)))
    # What lies around a piece is what a stream has heard before it and hears after it.
    stream = live.audio_vectors(audio)[live.lead :][:20]
    torch.testing.assert_close(live.audio_vectors(inside, (before, after)), stream, atol=1e-5, rtol=1e-5)


def test_lookahead_that_cannot_be():
    for change in ({"lookahead": -1}, {"lookahead": 4, "warmup_frames": 3}):
        with pytest.raises(InputError, match=r"generator\.lookahead must be null"):
            Generator(replace(SMALL, **change))
    with pytest.raises(InputError, match="cannot speak live"):
        make(replace(SMALL, lookahead=None)).listen(torch.zeros(1, 60))


# ---- frames


@settings(max_examples=8, deadline=None)
@given(seconds=st.floats(0.2, 3), seed=st.integers(0, 1000))
def test_streaming_equals_the_offline_run(seconds, seed):
    talker = Pipeline(FakeReenactor(), make(), face_mesh=FakeMesh())
    picture = np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)
    waveform = speech(seconds)
    offline = talker.animate(picture, waveform, sample_rate=16000, head_motion=0.5, expression=1.5)
    animator = StreamingAnimator(talker, picture, sample_rate=16000, head_motion=0.5, expression=1.5)
    motion = [animator.push_motion(waveform[piece]) for piece in pieces(len(waveform), seed)]
    motion = np.concatenate([*motion, animator.flush_motion()])
    np.testing.assert_allclose(motion, offline.motion, atol=1e-5, rtol=0)
    assert len(animator.flush_motion()) == 0


@settings(max_examples=8, deadline=None)
@given(seconds=st.floats(0.2, 3), seed=st.integers(0, 1000))
def test_a_generator_that_hears_speech_is_the_same_live_and_of_files(seconds, seed):
    torch.manual_seed(3)
    ears = SpeechEncoder(width=32, layers=8, expansion=1).eval().requires_grad_(False)
    generator = make(replace(SMALL, lookahead=None, hears="speech"))
    picture = np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)
    live, files = (Pipeline(FakeReenactor(), generator, ears=ears, live=x, face_mesh=FakeMesh()) for x in (True, False))
    assert (live.live, files.live, live.ahead, files.ahead) == (True, False, 120, 640)
    waveform = speech(seconds)
    offline = live.animate(picture, waveform, sample_rate=16000).motion
    animator = StreamingAnimator(live, picture, sample_rate=16000)
    assert animator.lookahead == 4
    made, ready = [], 0
    for piece in pieces(len(waveform), seed):
        made.append(animator.push_motion(waveform[piece]))
        ready = max(ready, (piece.stop - 120 * 16) // 640)
        assert animator.made >= ready
    motion = np.concatenate([*made, animator.flush_motion()])
    np.testing.assert_allclose(motion, offline, atol=1e-4, rtol=0)
    assert files.animate(picture, waveform, sample_rate=16000).motion.shape == offline.shape
    with pytest.raises(InputError, match="live=True"):
        StreamingAnimator(files, picture, sample_rate=16000)


def test_frames_come_after_the_lookahead(talker, picture):
    animator = StreamingAnimator(talker, picture, sample_rate=16000)
    assert (animator.lookahead, animator.latency) == (4, 4 / FPS)
    waveform, made = speech(2.0), 0
    for t in range(50):
        frames = animator.push(waveform[640 * t : 640 * (t + 1)])
        made += len(frames)
        assert t + 1 - 4 <= made <= t + 1
        assert all(frame.shape == (512, 512, 3) and frame.dtype == np.uint8 for frame in frames)
    assert made + len(animator.flush()) == animator.made == 50


def test_memory_of_a_stream_does_not_grow(talker, picture):
    animator = StreamingAnimator(talker, picture, sample_rate=16000)

    def held() -> int:
        listener = animator._listener
        tensors = [*listener.inputs, *listener.vectors, *(x for x in listener.state.cache if x is not None)]
        return sum(x.untyped_storage().nbytes() for x in tensors) + animator._features._samples.nbytes

    sizes = []
    for _ in range(60):
        animator.push_motion(speech(0.2))
        sizes.append(held())
    assert max(sizes[30:]) <= max(sizes[:30])


def test_silence_gives_a_gentle_idle_motion():
    pose = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 6)).astype(np.float32)
    still = np.repeat(pose[None], 1500, 0)
    moved = idle(pose, still)
    np.testing.assert_array_equal(moved[0], still[0])
    assert 0.002 < np.abs(moved - still)[..., :2].max() < 0.03
    assert np.abs(np.diff(moved, axis=0))[..., :2].max() < 0.002  # a quarter of a pixel a frame
    head = fit_head(pose, moved, range(10))  # the face as a whole: nothing in it moves
    around = head[:, None, :, :2] @ pose[None, :, :2, None]
    np.testing.assert_allclose(around[..., 0] + head[:, None, :, 2], moved[..., :2], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([idle(pose, still[:7]), idle(pose, still[7:], 7)]), moved, atol=1e-6)


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, 9), np.float32), np.zeros(4, np.int64), np.array([np.nan], np.float32), [0.0, 0.1]],
)
def test_samples_of_no_use(talker, picture, samples):
    with pytest.raises(InputError, match=r"\(n, channels\)|array of int64|NaN|type list"):
        StreamingAnimator(talker, picture, sample_rate=16000).push(samples)


def test_a_stream_ends_once(talker, picture):
    animator = StreamingAnimator(talker, picture, sample_rate=16000)
    animator.push(speech(0.3))
    assert len(animator.flush()) > 0
    assert animator.flush() == []
    with pytest.raises(InputError, match="has ended"):
        animator.push(speech(0.1))


def test_the_full_model_is_not_used_live(picture):
    with pytest.raises(InputError, match="train generator --config live"):
        StreamingAnimator(Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh()), picture, sample_rate=16000)


def test_live_sizes_are_those_it_begins_from():
    live, compact = load_config("live"), load_config("compact")
    assert replace(live.generator, lookahead=None) == compact.generator


@pytest.mark.skipif(not (MODELS["compact"] / LIVE_FILE).is_file(), reason="the package ships no live generator yet")
def test_shipped_weights_stream(portrait):
    talker = load(live=True)
    animator = StreamingAnimator(talker, portrait, sample_rate=16000)
    waveform = speech(1.0)
    offline = talker.animate(animator.portrait, waveform, sample_rate=16000)
    motion = [animator.push_motion(waveform[piece]) for piece in pieces(len(waveform), 0)]
    motion = np.concatenate([*motion, animator.flush_motion()])
    np.testing.assert_allclose(motion, offline.motion, atol=1e-5, rtol=0)
