"""Motion of your own: what the file may hold, who is held out, syncers of all levels trained on it by one command."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mssync import cli
from mssync.audio import features
from mssync.config import AugmentationConfig
from mssync.data.own import SLACK, read_recordings
from mssync.data.sequences import SequenceBatches, read_sequences, validation_batches
from mssync.errors import InputError
from mssync.syncer import MultiScaleSyncLoss, Syncer, SyncerPyramid
from mssync.training import syncer
from mssync.weights import load_model, save_model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


NUMBERS = itertools.count()


def write(folder: Path, **arrays: object) -> Path:
    path = folder / f"motion{next(NUMBERS)}.npz"
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return path


def recordings(count: int, seconds: int = 4, size: int = 3, speakers: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of so many recordings, each of a speaker of its own unless told how many speakers there are."""
    arrays = {}
    for n in range(count):
        arrays |= {f"motion_{n}": noise(25 * seconds, size) + n, f"audio_{n}": noise(16000 * seconds)}
        if speakers:
            arrays[f"speaker_{n}"] = np.array(f"speaker {n % speakers}")
    return arrays


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(30, 120),
    size=st.integers(1, 7),
    fps=st.sampled_from([12.5, 20, 25, 50, 100, 30000 / 1001]),
    late=st.floats(-0.15, 0.15),
    as_features=st.booleans(),
    kind=st.sampled_from([np.float32, np.float64, np.float16]),
)
def test_a_recording_is_read_at_25_frames_a_second(
    tmp_path: Path, frames: int, size: int, fps: float, late: float, as_features: bool, kind: type
) -> None:
    """A line in time stays that line; sound and motion cover the same time, whatever they were given as."""
    motion = np.arange(frames)[:, None] / fps * np.arange(1, size + 1)
    sound = noise(round(16000 * (frames / fps + late)))
    audio = features(sound).numpy() if as_features else sound
    path = write(tmp_path, motion=motion.astype(kind), audio=audio, fps=fps)
    parts = read_recordings(path, "train", 1)
    moves, rows = torch.cat([part.motion for part in parts]), torch.cat([part.audio for part in parts])
    assert moves.dtype == rows.dtype == torch.float32
    assert rows.shape == (4 * len(moves), 26)
    assert abs(len(moves) - 25 * frames / fps) <= SLACK + 1
    wanted = np.arange(len(moves))[:, None] / 25 * np.arange(1, size + 1)
    np.testing.assert_allclose(moves, wanted, atol=0.1 if kind is np.float16 else 1e-4)
    torch.testing.assert_close(rows, features(sound)[: len(rows)])


def test_motion_is_taken_as_it_is_and_only_scaled(tmp_path: Path) -> None:
    path = write(tmp_path, **recordings(3, size=2))
    sequences = read_sequences(path, "train", 50)
    np.testing.assert_array_equal(torch.cat([s.motion for s in sequences if s.identity == "1"]), noise(100, 2) + 1)
    whole = read_sequences(write(tmp_path, motion=noise(50, 2) + 3, audio=noise(200, 26)), "train", 50)
    strong = AugmentationConfig(flip=1.0, shift=5.0, scale=0.5)
    pieces, *_ = SequenceBatches(whole, frames=50, batch=8, seed=0, augmentation=strong)(0)
    for factors in pieces / whole[0].motion:
        torch.testing.assert_close(factors, factors[0, 0].expand_as(factors))
        assert 0.5 <= factors[0, 0] <= 1.5
    assert len({float(piece[0, 0]) for piece in pieces}) == 8


@pytest.mark.parametrize(
    ("count", "speakers", "held_out"),
    [(1, None, 0), (14, None, 0), (15, None, 2), (31, None, 3), (9, 1, 0), (40, 20, 4)],
)
def test_a_tenth_is_held_out(tmp_path: Path, count: int, speakers: int | None, held_out: int) -> None:
    path = write(tmp_path, **recordings(count, seconds=2, speakers=speakers))
    assert len(read_recordings(path, "val", 40)) == held_out
    assert len(read_recordings(path, "train", 40)) == count - held_out
    train = read_sequences(path, "train", 40)
    checks = validation_batches(path, train, 40, 4, 2, 3)
    assert [len(batch[0]) for batch in checks] == [4, 4]  # where nothing is held out, of the training's own


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 60), speakers=st.integers(1, 12))
def test_no_speaker_is_on_both_sides(tmp_path: Path, count: int, speakers: int) -> None:
    arrays = {}
    for n in range(count):
        arrays |= {f"motion_{n}": noise(8, 1), f"audio_{n}": noise(32, 26), f"speaker_{n}": f"s{n % speakers}"}
    path = write(tmp_path, **arrays)
    train, val = ({r.speaker for r in read_recordings(path, split, 5)} for split in ("train", "val"))
    assert not train & val
    assert train
    assert len(read_recordings(path, "val", 5)) <= round(count / 10)
    assert len(read_recordings(path, "val", 5)) + len(read_recordings(path, "train", 5)) == count


def test_a_long_recording_comes_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path, motion=noise(1000, 2), audio=noise(4000, 26))
    parts = read_recordings(path, "train", 70)
    assert len(parts) == 1000 // 140
    assert min(map(len, parts)) >= 140
    assert len({part.name for part in parts}) == len(parts)
    np.testing.assert_array_equal(torch.cat([part.motion for part in parts]), noise(1000, 2))
    np.testing.assert_array_equal(torch.cat([part.audio for part in parts]), noise(4000, 26))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, motion=noise(50, 2), audio=noise(200, 26))
    assert len(read_recordings(path, "train", 40)) == 1
    write(tmp_path, **recordings(2, seconds=2)).replace(path)
    assert len(read_recordings(path, "train", 40)) == 2


GOOD = {"motion_a": noise(50, 3), "audio_a": noise(32000)}
# Each with what its one line must say; None takes an array away.
MISTAKES = {
    "no sound": ({"audio_a": None}, "no audio_a"),
    "no motion": ({"motion_a": None}, "no motion_a"),
    "a speaker of nothing": ({"speaker_b": "b"}, "no motion_b"),
    "nothing": ({"audio_a": None, "motion_a": None}, "no motion;"),
    "unknown array": ({"motions_a": noise(50, 3)}, "motions_a"),
    "no name": ({"motion_": noise(50, 3)}, "motion_"),
    "half of the sound": ({"audio_a": noise(16000)}, "2.00 s, audio_a 1.00 s"),
    "48 kHz": ({"audio_a": noise(96000)}, "16 kHz"),
    "features at 25 Hz": ({"audio_a": noise(50, 26)}, "same time"),
    "another fps": ({"fps": 50}, "50 frames a second"),
    "keypoints by axis": ({"motion_a": noise(50, 3, 2)}, "50 × 3 × 2"),
    "flat motion": ({"motion_a": noise(50)}, "frames × numbers"),
    "no frames": ({"motion_a": noise(0, 3)}, "0 × 3"),
    "no numbers": ({"motion_a": noise(50, 0)}, "50 × 0"),
    "stereo": ({"audio_a": noise(32000, 2)}, "mono"),
    "a scalar for sound": ({"audio_a": 1.0}, "a single number"),
    "no samples": ({"audio_a": noise(0)}, "mono"),
    "NaN": ({"motion_a": np.where(np.arange(50) == 7, np.nan, 1.0)[:, None]}, "motion_a holds values"),
    "infinite sound": ({"audio_a": np.where(np.arange(32000) == 7, np.inf, 1.0)}, "audio_a holds values"),
    "too large": ({"motion_a": np.full((50, 3), 1e300)}, "too large"),
    "complex": ({"motion_a": noise(50, 3) + 1j}, "complex"),
    "words": ({"motion_a": [["x"]] * 50}, "not numbers"),
    "objects": ({"motion_a": np.array([{}] * 50, object)}, "Python objects"),
    "an object for a speaker": ({"speaker_a": np.array({}, object)}, "Python objects"),
    "two sizes": ({"motion_b": noise(50, 4), "audio_b": noise(32000)}, "3 numbers a frame in a, 4 in b"),
    "fps of zero": ({"fps": 0}, "fps must be"),
    "fps of NaN": ({"fps": math.nan}, "fps must be"),
    "two fps": ({"fps": [25, 30]}, "fps must be"),
    "fps in words": ({"fps": "25"}, "fps must be"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, mistake: str) -> None:
    changes, word = MISTAKES[mistake]
    path = write(tmp_path, **{key: value for key, value in (GOOD | changes).items() if value is not None})
    with pytest.raises(InputError) as caught:
        read_sequences(path, "train", 40)
    assert word in str(caught.value)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind(tmp_path: Path) -> None:
    for name, content in {"text.npz": b"motion", "empty.npz": b"", "zip.npz": b"PK\x03\x04" + bytes(40)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_sequences(tmp_path / name, "train", 40)
    whole = write(tmp_path, **GOOD).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "array.npy", noise(50, 3))
    for name in ("half.npz", "array.npy"):
        with pytest.raises(InputError, match=name):
            read_sequences(tmp_path / name, "train", 40)
    with pytest.raises(InputError, match="40 frames or more"):
        read_sequences(write(tmp_path, motion=noise(39, 3), audio=noise(156, 26)), "train", 40)


# Training

SMALL = ["syncer.width=8", "syncer.embedding=8", "syncer_training.batch=12", "syncer_training.iterations=2",
         "syncer_training.frames=70", "syncer_training.negatives=[12,12,12,20]"]  # fmt: skip


def train_syncer(*words: object) -> str:
    """Run the command; its error line, "" where all went well."""
    result = CliRunner().invoke(cli.app, ["train", "syncer", *map(str, words)])
    assert result.exit_code in (0, 2), (result.output, result.exception)
    return result.stderr if result.exit_code else ""


@pytest.mark.slow
def test_one_command_trains_the_pyramid_and_the_loss_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs mssync[train]")
    path = write(tmp_path, motion=noise(2 * 600, 5), audio=noise(16000 * 24), fps=50)
    assert train_syncer("--data", path, "--run", tmp_path / "all", *SMALL) == ""
    pyramid = SyncerPyramid.load(tmp_path / "all", fps=50)
    assert [net.motion_dim for net in pyramid.syncers] == [5] * 4
    motion = torch.randn(2, 160, 5, requires_grad=True)
    total, levels = MultiScaleSyncLoss(pyramid)(motion, torch.randn(2, 320, 26))
    total.backward()
    assert len(levels) == 4
    assert motion.grad is not None
    assert motion.grad.abs().sum() > 0
    assert train_syncer("--data", path, "--run", tmp_path / "one", "--level", 3, *SMALL) == ""
    alone, among = (load_model(tmp_path / run / "syncer3.safetensors")[0].state_dict() for run in ("one", "all"))
    assert all(torch.equal(value, among[name]) for name, value in alone.items())


@pytest.mark.slow
def test_a_stopped_pyramid_goes_on_and_ends_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="needs mssync[train]")
    from mssync.config import load_config
    from mssync.training import common

    path, config = write(tmp_path, **recordings(3)), load_config("compact", SMALL)
    whole = syncer.train_pyramid(config, path, tmp_path / "whole")
    assert [file.name for file in whole] == [f"syncer{level}.safetensors" for level in (1, 2, 3, 4)]

    def interrupted(self: common.Run, start: int, stop: int):
        yield start
        self.interrupted = True

    with monkeypatch.context() as patch:
        patch.setattr(common.Run, "steps", interrupted)
        assert len(syncer.train_pyramid(config, path, tmp_path / "parts")) == 1
    parts = syncer.train_pyramid(config, path, tmp_path / "parts")
    for one, two in zip(whole, parts, strict=True):
        first, second = (load_model(file)[0].state_dict() for file in (one, two))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_no_time_is_left_for_a_second_level(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs mssync[train]")
    path = write(tmp_path, **recordings(3))
    assert train_syncer("--data", path, "--run", tmp_path / "run", "--max-minutes", 1e-6, *SMALL) == ""
    assert [file.name for file in (tmp_path / "run").glob("*.safetensors")] == ["syncer1.safetensors"]


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs mssync[train]")
    short = write(tmp_path, motion=noise(75, 3), audio=noise(48000))
    assert "other clips" in train_syncer("--data", short, "--run", tmp_path / "r", *SMALL)
    assert "does not exist" in train_syncer("--data", tmp_path / "none.npz", "--run", tmp_path / "r")
    assert "no prepared folder" in train_syncer("--data", tmp_path, "--run", tmp_path / "r")
    result = CliRunner().invoke(cli.app, ["train", "generator", "--data", str(short), "--syncers", "s", "--run", "r"])
    assert (result.exit_code, "no prepared folder" in result.stderr) == (2, True)


def test_the_example_makes_the_file_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/examples/landmarks.py on noise: all of it but the reading of prepared clips."""
    place = Path(__file__).parents[1] / "docs" / "examples" / "landmarks.py"
    spec = importlib.util.spec_from_file_location("landmarks", place)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    clips = [(f"clip{n}", f"person{n}", 0.02 * noise(90, 168), noise(640 * 90)) for n in range(2)]
    monkeypatch.setattr(example, "read", lambda data, split: clips)
    example.collect(tmp_path, tmp_path / "lips.npz")
    found = read_recordings(tmp_path / "lips.npz", "train", 80)
    assert [(r.speaker, r.motion.shape) for r in found] == [(f"person{n}", (90, 168)) for n in range(2)]
    for level in (1, 2, 3, 4):
        sizes = {"motion_dim": 168, "width": 8, "embedding": 8}
        save_model(tmp_path / f"syncer{level}.safetensors", Syncer(**sizes), "syncer", sizes)
    example.compare(tmp_path, tmp_path, steps=2, seeds=1)
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in table[2:]] == [
        "real", "L2", "L2 + MultiScaleSyncLoss", "difference, ± standard error",
    ]  # fmt: skip
    assert all(len(row) == 7 for row in table)
    assert [float(row[-1]) for row in table[2:3]] == [1.0]  # the real motion follows itself
