"""The speech encoder: the same live as of a file, nothing from later than it may hear; how it is trained."""

from __future__ import annotations

import csv
import importlib.util
import sys
import types
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mssync import speech
from mssync.cli import app
from mssync.config import SpeechTraining
from mssync.errors import InputError
from mssync.metrics import speech as probe
from mssync.metrics.frontal import mean_face
from mssync.speech import COMPONENTS, FEATURES, FRAME, SpeechEncoder, log_mel
from mssync.training import lips as reading
from mssync.training.common import Run
from mssync.training.speech import Pieces, Recording, disturbed, evaluate, explained, read_recordings
from mssync.weights import load_model, save_model

SMALL = {"width": 16, "layers": 8, "expansion": 2, "left": 3}


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Something that gets loud and quiet as speech does."""
    rng = np.random.default_rng(seed)
    count = int(16000 * seconds)
    knots = rng.random(count // 1600 + 2) ** 3
    loudness = np.interp(np.arange(count) / 1600, np.arange(len(knots)), knots)
    return (0.2 * loudness * rng.standard_normal(count)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    made = SpeechEncoder(**SMALL)
    for block in made.blocks:
        torch.nn.init.normal_(block.ahead.weight)
        torch.nn.init.normal_(block.contract.weight, std=0.3)
    return made.eval()


def test_the_filter_bank_is_the_one_in_the_package():
    with np.load(speech.BANK_FILE) as bank:
        for name, values in speech.filter_bank().items():
            np.testing.assert_allclose(bank[name], values, atol=1e-12)


def test_energies_of_all_bands_are_the_mean_square():
    sound = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 400)))
    inner = (speech.HIGHEST - speech.LOWEST) / 8000  # the share of white noise that the bands hear
    assert float(speech._energies(sound).sum(-1).mean()) == pytest.approx(inner, rel=0.03)


def test_rows_do_not_depend_on_the_level():
    sound = voice(6)
    loud, quiet = log_mel(sound), log_mel(sound * np.float32(0.1))
    assert float((loud - quiet)[400:].abs().mean()) < 0.1  # of a spread of 1
    assert loud.shape == (600, 64)


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    frames=st.integers(0, 32),
    seconds=st.sampled_from([0.01, 0.5, 1.37]),
)
def test_live_is_the_same_as_of_a_file(encoder, cuts, frames, seconds):
    sound, lookahead = voice(seconds), 20 * frames
    whole = encoder.features(np.pad(sound, (0, 16000)), lookahead, n_video_frames=60)  # silence follows a stream
    stream, parts, at = encoder.start(lookahead), [], 0
    for cut in cuts:
        parts.append(stream.push(sound[at : at + cut]))
        at += cut
        ready = (min(at, len(sound)) - 320 * frames) // FRAME
        assert sum(map(len, parts)) == max(0, ready)
    live = torch.cat([*parts, stream.push(sound[at:]), stream.flush()])
    count = min(len(live), len(whole))
    assert count == len(live) >= 2 * round(25 * seconds)
    torch.testing.assert_close(live[:count], whole[:count], atol=1e-4, rtol=0)


def test_a_recording_in_one_piece_is_the_same(encoder):
    sound = voice(3)
    with torch.inference_mode():
        at_once = encoder(log_mel(sound)[None], 160)[0]
    torch.testing.assert_close(at_once, encoder.features(sound, 160), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [0, 1, 8, 13, 32])
def test_a_frame_hears_all_until_its_lookahead_and_nothing_later(encoder, frames):
    rows = log_mel(voice(3))[None].requires_grad_()
    encoder(rows, 20 * frames)[0, 60].sum().backward()
    heard = rows.grad[0].abs().amax(1) > 0
    assert heard[2 * (60 + frames) + 1]
    assert not heard[2 * (60 + frames) + 2 :].any()


def test_rows_hear_nothing_later():
    sound = voice(1)
    later = sound.copy()
    later[8000:] = 0
    assert torch.equal(log_mel(sound)[:50], log_mel(later)[:50])
    assert not torch.equal(log_mel(sound)[50], log_mel(later)[50])


def test_features_are_as_many_as_the_video_needs(encoder):
    sound = voice(1)
    assert encoder.features(sound, 0).shape == (50, FEATURES)
    longer = encoder.features(sound, 0, n_video_frames=30)
    assert longer.shape == (60, FEATURES)
    assert torch.equal(longer[50:], longer[49:50].expand(10, -1))
    assert encoder.features(np.zeros(1, np.float32), 640, 1).isfinite().all()


def test_mistakes_are_named(encoder):
    for lookahead in (-20, 30, 660):
        with pytest.raises(InputError, match="look-ahead is 0 to 640 ms in steps of 20"):
            encoder.start(lookahead)
    stream = encoder.start(0)
    for bad in (np.zeros((2, 100), np.float32), np.array([0.0, np.nan], np.float32)):
        with pytest.raises(InputError, match="one channel of finite samples"):
            stream.push(bad)
    with pytest.raises(InputError, match="0 samples"):
        encoder.features(np.zeros(0, np.float32), 0)
    stream.flush()
    with pytest.raises(InputError, match="has ended"):
        stream.push(np.zeros(10, np.float32))


def test_a_model_file_is_read_back(encoder, tmp_path):
    save_model(tmp_path / "speech.safetensors", encoder, "speech", encoder.config)
    again = SpeechEncoder.load(tmp_path / "speech.safetensors")
    sound = voice(1)
    torch.testing.assert_close(again.features(sound, 80), encoder.features(sound, 80), atol=0.05, rtol=0.05)


def test_it_is_of_the_size_that_was_planned():
    assert 2e6 < sum(p.numel() for p in SpeechEncoder().parameters()) < 4e6


# Training and measuring


def test_features_that_tell_the_lips_score_high(monkeypatch):
    """A made-up set of clips whose features hold the opening."""
    rng = np.random.default_rng(0)
    clips = {f"c{k}": np.interp(np.arange(100), np.arange(0, 104, 4), rng.random(26)) for k in range(6)}

    def read(folder, split):
        names = ["c5"] if split == "val" else [f"c{k}" for k in range(5)]
        return [Face(name, clips[name].astype(np.float32)) for name in names]

    monkeypatch.setattr(reading, "read_clips", read)
    for module in (reading, probe):
        monkeypatch.setattr(module, "mouth_opening", lambda opening: opening)
    monkeypatch.setattr(reading, "STEPS", 40)
    monkeypatch.setattr(probe, "SEEDS", 1)
    for hear, least, most in ((good, 0.8, 1.0), (deaf, -0.5, 0.5)):
        ((name, r),) = probe.lips(hear, "nowhere", "val")
        assert name == "c5"
        assert least < r <= most
    figures = probe.summary({"good": [("a", 0.2), ("b", 0.4), ("c", 0.9)]})["good"]
    assert [round(e.value, 2) for e in figures.values()] == [0.5, 0.4]


class Face:
    def __init__(self, name, opening):
        self.landmarks = opening
        self.entry = types.SimpleNamespace(name=name, identity=name)

    def __len__(self):
        return len(self.landmarks)


def good(clip):
    return torch.from_numpy(clip.landmarks)[:, None].repeat(1, 4)


def deaf(clip):
    return torch.from_numpy(np.random.default_rng(1).random((len(clip), 4), np.float32))


def test_the_teacher_is_explained_by_language(encoder, labels):
    found = probe.languages(encoder, labels, "val", [0, 160])
    assert set(found) == {"all", "en"}
    assert found["en"]["explained at 160 ms ↑"].clips == 1


def write_labels(folder: Path, speakers: int = 4) -> None:
    """Labels that follow the sound's loudness."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(folder / "basis.npz", scale=np.linspace(3, 1, COMPONENTS), mean=np.zeros((1500, 512)))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "split", "speaker", "language", "corpus", "kind", "seconds"])
        for k in range(speakers):
            sound = voice(9, seed=k)
            energy = np.square(sound[: 320 * 450].reshape(450, 320)).mean(1)
            labels = np.log(energy + 1e-4)[:, None] * rng.standard_normal(FEATURES)
            samples = np.rint(sound * 32767).astype(np.int16)
            labels, lips = labels.astype(np.float16)[:, :COMPONENTS], labels.astype(np.float16)[:, COMPONENTS:]
            np.savez(folder / f"r{k}.npz", waveform=samples, labels=labels, lips=lips)
            writer.writerow([f"r{k}", "val" if k == 0 else "train", f"s{k}", "en", "none", "read", "9"])


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "labels"
    write_labels(folder)
    return folder


def test_pieces_are_functions_of_their_number(labels):
    pieces = Pieces(read_recordings(labels, "train"), SpeechTraining(batch=3, seconds=2.0))
    one, two = pieces.batch(5), pieces.batch(5)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[0].shape == (3, 32000)
    assert one[1].shape == (3, 100, FEATURES)
    assert not torch.equal(one[0], pieces.batch(6)[0])


@pytest.mark.parametrize("speed", [1.0, 0.9, 1.1])
def test_labels_stay_with_their_sound(speed):
    """A recording whose sound and labels tell the time: sample n is worth n, label k is 320 k."""
    samples, times = np.arange(32000, dtype=np.int16), np.arange(100, dtype=np.float16)
    recording = Recording("a", "a", "", "", samples, np.repeat(times[:, None], FEATURES, 1))
    pieces = Pieces([recording], SpeechTraining(seconds=5.0))  # longer than the recording
    sound, found = pieces._piece(np.random.default_rng(3), speed)
    assert len(sound) == 320 * len(found) == 80000
    np.testing.assert_allclose(sound[::320] * 32768, 320 * found[:, 0], atol=1)


def test_disturbed_sound_is_still_sound():
    every = SpeechTraining(rooms=1, voices=1, noise=1, bands=1, clipping=1)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sound = disturbed(voice(2), voice(2, 1), every, rng)
        assert sound.shape == (32000,)
        assert sound.dtype == np.float32
        assert 1e-3 < sound.std() < 0.5
    silence = np.zeros(1000, np.float32)
    assert np.array_equal(disturbed(silence, None, every, np.random.default_rng(0)), silence)


def test_figures_of_a_network(labels):
    values, sheet = evaluate(SpeechEncoder(**SMALL).eval(), read_recordings(labels, "val"), torch.ones(FEATURES))
    kinds, aheads = ("explained", "lips"), (0, 160, 640)
    assert {f"{kind}_{ahead}" for kind in kinds for ahead in aheads} | {"error"} == set(values)
    assert sheet.ndim == 3
    target = torch.randn(2, 50, FEATURES)
    assert explained(target, target) == 1


def test_a_training_that_was_stopped_goes_on_exactly(labels, tmp_path, monkeypatch):
    def trained(run, *more):
        small = ["speech.width=32", "speech.expansion=1", "speech_training.batch=2", "speech_training.seconds=1"]
        command = ["train", "speech", "--data", str(labels), "--run", str(tmp_path / run)]
        result = CliRunner().invoke(app, [*command, *small, "speech_training.steps=4", *more])
        assert result.exit_code == 0, result.output

    trained("once")
    original = Run.steps
    monkeypatch.setattr(Run, "steps", lambda run, start, stop: islice(original(run, start, stop), 2))
    trained("twice")
    monkeypatch.undo()
    trained("twice")
    one, two = (load_model(tmp_path / run / "speech.safetensors")[0].state_dict() for run in ("once", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_without_labels_is_named(tmp_path):
    result = CliRunner().invoke(app, ["train", "speech", "--data", str(tmp_path), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "label_speech.py" in result.output + (result.stderr or "")


def test_labels_are_the_teachers_numbers_where_it_heard_them(tmp_path, monkeypatch):
    """A made-up teacher that tells the loudness around each label, and the place in its window as Whisper does."""
    monkeypatch.setitem(sys.modules, "ctranslate2", types.SimpleNamespace(StorageView=Storage, models=Fake))
    extractor = types.SimpleNamespace(FeatureExtractor=lambda: lambda window, padding: window[None])
    monkeypatch.setitem(sys.modules, "faster_whisper", types.ModuleType("faster_whisper"))
    monkeypatch.setitem(sys.modules, "faster_whisper.feature_extractor", extractor)
    script = imported("label_speech")
    sounds = {f"r{k}": voice(3 + 2 * k, k) for k in range(25)} | {"long": voice(70, 99)}
    monkeypatch.setattr(script, "load_audio", lambda path: sounds[Path(path).stem])
    lines = "".join(f"{name}.wav,{'val' if name == 'r0' else ''},{name},en\n" for name in sounds)
    (tmp_path / "t.csv").write_text("file,split,speaker,language\n" + lines, encoding="utf-8")
    script.main("whisper", str(tmp_path / "out"), str(tmp_path / "t.csv"))
    with (tmp_path / "out" / "index.csv").open(encoding="utf-8") as file:
        splits = {row["name"]: row["split"] for row in csv.DictReader(file)}
    assert splits["r0"] == "val"
    assert sorted(splits.values()).count("val") == 1 + 3  # every twelfth of 25, from the first on
    for name, sound in sounds.items():
        with np.load(tmp_path / "out" / f"{name}.npz") as file:
            labels, waveform = file["labels"].astype(np.float32), file["waveform"]
        assert len(waveform) == len(sound)
        assert len(labels) == len(sound) // 320
        loudness = np.abs(sound[: 320 * len(labels)]).reshape(-1, 320).mean(1)
        assert abs(np.corrcoef(labels[:, 0], loudness)[0, 1]) > 0.9


class Storage:
    from_array = staticmethod(lambda array: array)


class Fake:
    @staticmethod
    def Whisper(folder, intra_threads):
        loud, place = np.eye(512)[:2]

        def encode(window, to_cpu):
            loudness = np.abs(window[0]).reshape(1500, 320).mean(1)
            return [loudness[:, None] * loud + np.linspace(0, 3, 1500)[:, None] * place]

        return types.SimpleNamespace(encode=encode)


def test_lips_are_read_by_those_who_have_not_seen_the_speaker(tmp_path, monkeypatch):
    """Readers that say who they learned from: clips of ten people, and a recording of a stranger."""
    script = imported("label_lips")
    people = [f"p{k}" for k in range(10)]
    clips = [reading.Heard(f"c_{name}", name, torch.zeros(60, 2 * COMPONENTS), torch.zeros(60, 8)) for name in people]
    monkeypatch.setattr(script, "heard", lambda hear, see, data, split: iter(clips))
    taught = []

    class Knows(torch.nn.Module):
        out = types.SimpleNamespace(out_features=8)

        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x):
            noise = torch.arange(8.0) + x[..., :8]
            return noise + 1000.0 * self.number

    def fitted(given, seed):
        taught.append({clip.identity for clip in given})
        return Knows(len(taught) - 1)

    monkeypatch.setattr(script, "fit_reader", fitted)
    monkeypatch.setattr(script, "read_clips", lambda data, split: [])
    rng = np.random.default_rng(0)
    with (tmp_path / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "split", "speaker"])
        for name in [*people, "stranger"]:
            labels = rng.standard_normal((75, COMPONENTS)).astype(np.float16)
            np.savez(tmp_path / f"{name}.npz", waveform=np.zeros(75 * FRAME, np.int16), labels=labels)
            writer.writerow([name, "train", name])
    asked = {}
    original = script._read
    monkeypatch.setattr(script, "_read", lambda readers, labels: asked.setdefault(len(asked), readers) and original(
        readers, labels
    ))  # fmt: skip
    script.main(str(tmp_path), "data")
    assert len(taught) == script.READERS * script.TRAININGS
    for k, name in enumerate(people):
        assert len(asked[k]) == script.TRAININGS
        assert all(name not in taught[reader.number] for reader in asked[k])
    assert len(asked[10]) == len(taught)
    with np.load(tmp_path / "stranger.npz") as arrays:
        assert arrays["lips"].shape == (75, 8)
        assert arrays["labels"].shape == (75, COMPONENTS)
    assert not list(tmp_path.glob("unfinished*"))


def test_shapes_of_lips():
    """A mouth that opens, then widens, before a head that turns: the gap, then the width, and nothing else."""
    face = np.repeat(mean_face()[None], 3, 0).astype(np.float32)
    face[1, [14, 17, 152], 1] += 0.1
    face[2, [61, 291], 0] *= 1.2
    found = imported("label_lips").shape(face)
    turned = imported("label_lips").shape(face @ rotation(20).T * 0.3 + 0.1)
    assert found.shape == (3, 8)
    np.testing.assert_allclose(turned, found, atol=1e-3)
    assert found[1, 0] - found[0, 0] == pytest.approx(0.1, abs=0.01)
    assert found[2, 2] > 1.15 * found[0, 2]
    assert found[2, 0] == pytest.approx(found[0, 0], abs=0.01)


def rotation(degrees):
    """About the vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def imported(name):
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
