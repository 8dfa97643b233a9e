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

from mssync.animate import Pipeline, load
from mssync.config import GeneratorConfig
from mssync.errors import InputError
from mssync.generator import Generator, build_generator
from mssync.speech import SpeechEncoder
from mssync.stream import StreamingAnimator
from mssync.video import FPS

SMALL = GeneratorConfig(
    layers=2, heads=2, width=16, feed_forward=24, context=6, audio_width=12, branch_hidden=10,
    relative_input=True, leak=0.02, hears="speech",
)  # fmt: skip


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


def talking(live: bool = True) -> Pipeline:
    torch.manual_seed(3)
    ears = SpeechEncoder(width=32, layers=8, expansion=1).eval().requires_grad_(False)
    return Pipeline(FakeReenactor(), make(), ears=ears, live=live, face_mesh=FakeMesh())


@pytest.fixture
def talker() -> Pipeline:
    return talking()


# ---- motion


@pytest.mark.parametrize("frames", [1, 5, 90])
def test_listening_is_the_whole_roll_out(frames):
    generator = make().double()
    torch.manual_seed(2)
    x0, audio = torch.randn(2, 60).double(), torch.randn(2, 2 * frames, 104).double()
    whole = generator(x0, audio).transpose(0, 1)
    listener, made, heard = generator.listen(x0), [], 0
    for piece in pieces(2 * frames, frames):
        made += listener.push(audio[:, piece])
        heard += piece.stop - piece.start
        assert len(made) == heard // 2
    torch.testing.assert_close(torch.stack(made), whole, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.stack(list(generator.stream(x0, audio))), whole, atol=1e-10, rtol=1e-10)


def test_nothing_is_heard_of_what_is_to_come():
    generator = make().double()
    x0, audio = torch.randn(1, 60).double(), torch.randn(1, 160, 104).double()
    changed = audio.clone()
    changed[:, 82:] += 1
    difference = (generator(x0, audio) - generator(x0, changed)).abs().amax(-1)[0]
    assert difference[:41].max() == 0
    assert difference[41:45].max() > 0


def test_sound_before_matters_to_live_generators_alone():
    live, usual = make(), make(replace(SMALL, hears="energies"))
    assert (usual.lead, usual.live) == (0, False)
    x0, audio = torch.randn(1, 60), torch.randn(1, 2 * (live.lead + 20), 104)
    before, inside = audio.split([2 * live.lead, 40], dim=1)
    assert not torch.allclose(live(x0, inside), live(x0, inside, before=before))
    # What lies before a piece is what a stream has heard before it.
    stream = live.audio_vectors(audio)[live.lead :]
    torch.testing.assert_close(live.audio_vectors(inside, before), stream, atol=1e-5, rtol=1e-5)


def test_what_cannot_speak_live():
    with pytest.raises(InputError, match="no warmup_frames"):
        Generator(replace(SMALL, warmup_frames=3))
    with pytest.raises(InputError, match="cannot speak live"):
        make(replace(SMALL, hears="energies")).listen(torch.zeros(1, 60))
    with pytest.raises(InputError, match="earlier version"):
        build_generator({"lookahead": 4})


# ---- frames


@settings(max_examples=8, deadline=None)
@given(seconds=st.floats(0.2, 3), seed=st.integers(0, 1000))
def test_streaming_equals_the_offline_run(seconds, seed):
    live, files = talking(), talking(live=False)
    assert (live.live, files.live, live.ahead, files.ahead) == (True, False, 120, 640)
    picture = np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)
    waveform, options = speech(seconds), {"sample_rate": 16000, "head_motion": 0.5, "expression": 1.5}
    offline = live.animate(picture, waveform, **options).motion
    animator = StreamingAnimator(live, picture, **options)
    made, ready = [], 0
    for piece in pieces(len(waveform), seed):
        made.append(animator.push_motion(waveform[piece]))
        ready = max(ready, (piece.stop - 120 * 16) // 640)
        assert animator.made >= ready
    motion = np.concatenate([*made, animator.flush_motion()])
    np.testing.assert_allclose(motion, offline, atol=1e-4, rtol=0)
    assert len(animator.flush_motion()) == 0
    assert files.animate(picture, waveform, **options).motion.shape == offline.shape
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
        listener, hearing = animator._listener, animator._features
        tensors = [listener.recent.kept, *(x for x in listener.state.cache if x is not None)]
        tensors += [hearing._rows, hearing._frames, *hearing._inputs, hearing._sounds._samples]
        return sum(x.numel() for x in tensors)

    sizes = []
    for _ in range(60):
        animator.push_motion(speech(0.2))
        sizes.append(held())
    assert max(sizes[30:]) <= max(sizes[:30])


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


def test_what_hears_energies_is_not_used_live(picture):
    with pytest.raises(InputError, match="train generator --config face"):
        StreamingAnimator(Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh()), picture, sample_rate=16000)


def test_shipped_weights_stream(portrait):
    talker = load(live=True)
    animator = StreamingAnimator(talker, portrait, sample_rate=16000)
    waveform = speech(1.0)
    offline = talker.animate(animator.portrait, waveform, sample_rate=16000)
    motion = [animator.push_motion(waveform[piece]) for piece in pieces(len(waveform), 0)]
    motion = np.concatenate([*motion, animator.flush_motion()])
    assert motion.shape == (25, 50)
    np.testing.assert_allclose(motion, offline.motion, atol=1e-4, rtol=0)
