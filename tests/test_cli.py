"""The command line: every command, and one line and exit code 2 for every mistake."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

import mssync
from mssync import animate, cli
from mssync.motion import load_motion
from mssync.video import VideoReader, probe, write_video


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder, with stand-ins for the models behind the name "compact"."""
    monkeypatch.chdir(tmp_path)
    real = animate.load

    def load(model="compact", device="cpu", precision=None):
        if model != "compact":
            return real(model, device, precision=precision)
        return animate.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())

    monkeypatch.setattr(animate, "load", load)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder of inputs, good and bad."""
    folder = tmp_path / "in"
    folder.mkdir()
    texture = np.random.default_rng(0).integers(1, 255, (200, 260, 3), np.uint8)
    Image.fromarray(texture).save(folder / "face.png")
    Image.new("RGB", (200, 200)).save(folder / "noface.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "empty.wav").touch()
    write_wav(folder / "speech.wav", speech(1))
    write_wav(folder / "short.wav", speech(0.1))
    write_wav(folder / "none.wav", speech(0))
    write_wav(folder / "silent.wav", 0 * speech(1))
    _write_nan_wav(folder / "nan.wav")
    frames = [np.full((96, 128, 3), 20 + 8 * t, np.uint8) for t in range(25)]
    write_video(folder / "driving.mp4", iter(frames), speech(1))
    write_video(folder / "mute.mp4", iter(frames), None)
    whole = (folder / "driving.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    save_file({"a": np.zeros(3, np.float32)}, folder / "other.safetensors")
    of_version_0_1 = {"mssync_kind": "compact", "config": '{"blocks": 3}', "training": "{}"}
    save_file({"a": np.zeros(3, np.float32)}, folder / "keypoints.safetensors", of_version_0_1)
    torch.save({"a": torch.zeros(3)}, folder / "other.pth.tar")
    (folder / "pickle.pth.tar").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    np.savez(folder / "other.npz", a=np.zeros(3))
    (folder / "index.csv").touch()  # makes it a prepared folder, as far as options are checked
    return folder


def _write_nan_wav(path: Path) -> None:
    """32-bit floating-point WAV, which the wave module does not write."""
    data = np.full(16000, np.nan, "<f4").tobytes()
    header = b"WAVEfmt " + np.array([16], "<u4").tobytes() + np.array([3, 1], "<u2").tobytes()
    header += np.array([16000, 64000], "<u4").tobytes() + np.array([4, 32], "<u2").tobytes()
    body = header + b"data" + np.array([len(data)], "<u4").tobytes() + data
    path.write_bytes(b"RIFF" + np.array([len(body)], "<u4").tobytes() + body)


def test_animate_writes_video_and_motion(run, files) -> None:
    face, audio = files / "face.png", files / "speech.wav"
    result = run("animate", face, audio, "-o", "out.mp4", "--save-motion", "m.npz")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    info = probe("out.mp4")
    assert (info.frames, info.width, info.sample_rate, info.generated) == (25, 512, 16000, True)
    assert len(load_motion("m.npz").motion) == 25
    result = run("render", face, "m.npz", "-o", "again.mp4", "--audio", audio)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(next(iter(VideoReader("again.mp4"))), next(iter(VideoReader("out.mp4"))))


def test_animate_pastes_back(run, files) -> None:
    result = run("animate", files / "face.png", files / "speech.wav", "-o", "out.mp4", "--paste-back")
    assert result.exit_code == 0, result.output
    assert (probe("out.mp4").width, probe("out.mp4").height) == (260, 200)


def test_silent_audio_is_one_warning(run, files) -> None:
    result = run("animate", files / "face.png", files / "silent.wav", "-o", "out.mp4")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert result.stderr.count("\n") == 1
    assert "silent" in result.stderr


@pytest.mark.parametrize("options", [[], ["--absolute"], ["--no-best-frame"]])
def test_reenact(run, files, options) -> None:
    result = run("reenact", files / "face.png", files / "driving.mp4", "-o", "out.mp4", *options)
    assert result.exit_code == 0, result.output
    assert (probe("out.mp4").frames, probe("out.mp4").sample_rate) == (25, 16000)


def test_reenact_without_sound(run, files) -> None:
    assert run("reenact", files / "face.png", files / "mute.mp4", "-o", "out.mp4").exit_code == 0
    assert probe("out.mp4").sample_rate is None


def test_motion_and_info(run, files) -> None:
    assert run("motion", files / "driving.mp4", "-o", "m.npz").exit_code == 0
    for path, words in {
        "m.npz": ["motion", "25 at 25", "space   fake", "128 × 96"],
        files / "face.png": ["image", "260 × 200"],
        files / "speech.wav": ["audio", "1.00 s", "16000 Hz, mono"],
        files / "driving.mp4": ["video", "25 at 25", "128 × 96", "16000 Hz", "by MS-Sync"],
        files / "mute.mp4": ["none"],
    }.items():
        result = run("info", path)
        assert result.exit_code == 0, result.output
        assert all(word in result.output for word in words), result.output


def test_info_of_a_model(run, tmp_path) -> None:
    metadata = {"mssync_kind": "syncer", "config": '{"width": 48}', "training": '{"steps": 7}'}
    save_file({"a": np.zeros((3, 500_000), np.float16)}, tmp_path / "m.safetensors", metadata)
    result = run("info", "m.safetensors")
    assert result.exit_code == 0
    assert all(word in result.output for word in ["syncer", "1.50 million (F16)", "width", "48", "steps"])


SPEAK = ["animate", "IN/face.png", "IN/speech.wav"]
TRAIN_SYNCER = ["train", "syncer", "--level", "1"]

# Each with what its one line must say. IN stands for the folder of inputs.
MISTAKES = {
    "no face": (["animate", "IN/noface.png", "IN/speech.wav", "-o", "o.mp4"], "no face"),
    "text named jpg": (["animate", "IN/text.jpg", "IN/speech.wav", "-o", "o.mp4"], "text.jpg"),
    "empty picture": (["animate", "IN/empty.jpg", "IN/speech.wav", "-o", "o.mp4"], "empty"),
    "empty sound": (["animate", "IN/face.png", "IN/empty.wav", "-o", "o.mp4"], "empty"),
    "0.1 s": (["animate", "IN/face.png", "IN/short.wav", "-o", "o.mp4"], "short.wav"),
    "no samples": (["animate", "IN/face.png", "IN/none.wav", "-o", "o.mp4"], "none.wav"),
    "NaN": (["animate", "IN/face.png", "IN/nan.wav", "-o", "o.mp4"], "NaN"),
    "video without sound": (["animate", "IN/face.png", "IN/mute.mp4", "-o", "o.mp4"], "no sound"),
    "truncated sound": (["animate", "IN/face.png", "IN/truncated.mp4", "-o", "o.mp4"], "truncated"),
    "truncated video": (["reenact", "IN/face.png", "IN/truncated.mp4", "-o", "o.mp4"], "truncated"),
    "1×1 pixel": (["animate", "IN/pixel.png", "IN/speech.wav", "-o", "o.mp4"], "pixel"),
    "missing picture": (["animate", "IN/nowhere.png", "IN/speech.wav", "-o", "o.mp4"], "nowhere.png"),
    "a folder": (["animate", "IN", "IN/speech.wav", "-o", "o.mp4"], "directory"),
    "output in no folder": ([*SPEAK, "-o", "no/o.mp4"], "no/o.mp4"),
    "output a file's child": ([*SPEAK, "-o", "IN/face.png/o.mp4"], "o.mp4"),
    "output of another kind": ([*SPEAK, "-o", "o.avi"], ".mp4"),
    "output an input": (["reenact", "IN/face.png", "IN/driving.mp4", "-o", "IN/driving.mp4"], "input"),
    "motion in no folder": (
        [*SPEAK, "-o", "o.mp4", "--save-motion", "no/m.npz"],
        "no/m.npz",
    ),
    "unknown model": ([*SPEAK, "-o", "o.mp4", "--model", "huge"], "compact"),
    "wrong model file": (
        [*SPEAK, "-o", "o.mp4", "--model", "IN/other.safetensors"],
        "other.safetensors",
    ),
    "a keypoint renderer": ([*SPEAK, "-o", "o.mp4", "--model", "IN/keypoints.safetensors"], "version 0.1"),
    "motion of a keypoint renderer": (["extract", "IN", "--model", "IN/keypoints.safetensors"], "version 0.1"),
    "unknown device": (
        [*SPEAK, "-o", "o.mp4", "--model", "x", "--device", "abacus"],
        "abacus",
    ),
    "size": ([*SPEAK, "-o", "o.mp4", "--size", "65"], "size"),
    "head motion": ([*SPEAK, "-o", "o.mp4", "--head-motion", "nan"], "head motion"),
    "wrong checkpoint": (["convert", "IN/other.pth.tar", "-o", "o.safetensors"], "other.pth.tar"),
    "malicious checkpoint": (["convert", "IN/pickle.pth.tar", "-o", "o.safetensors"], "pickle.pth.tar"),
    "text for a checkpoint": (["convert", "IN/text.jpg", "-o", "o.safetensors"], "text.jpg"),
    "no motion file": (["render", "IN/face.png", "IN/other.npz", "-o", "o.mp4"], "other.npz"),
    "a video without a face": (["motion", "IN/speech.wav", "-o", "o.npz"], "speech.wav"),
    "info of text": (["info", "IN/text.jpg"], "text.jpg"),
    "info of an unknown model": (["info", "IN/other.safetensors"], "other.safetensors"),
    "training without data": ([*TRAIN_SYNCER, "--data", "no", "--run", "r"], "preprocess"),
    "extracting from no prepared folder": (["extract", "no"], "preprocess"),
    "measuring without data": (["eval", "sync", "--data", "no"], "preprocess"),
    "pictures of no video": (["eval", "picture", "no", "-o", "o"], "no does not exist"),
    "pictures of small videos": (["eval", "picture", "IN/driving.mp4", "-o", "o", "--min-size", "999"], "999 pixels"),
    "pictures by an unknown model": (["eval", "picture", "IN/driving.mp4", "-o", "o", "--model", "huge"], "compact"),
    "portraits that are none": (["eval", "picture", "IN/driving.mp4", "-o", "o", "--portraits", "no.jpg"], "no.jpg"),
    "unknown key": (
        [*TRAIN_SYNCER, "--data", "IN", "--run", "r", "generator.widht=3"],
        "generator.width",
    ),
    "unknown configuration": ([*TRAIN_SYNCER, "--data", "IN", "--run", "r", "--config", "huge"], "compact"),
    "nothing to prepare": (["preprocess", "IN/nowhere", "-o", "prepared"], "nowhere"),
    "unknown style": (["preprocess", "IN", "-o", "prepared", "--style", "round"], "centred"),
    "unknown layout": (["preprocess", "IN", "-o", "prepared", "--layout", "lrs3"], "voxceleb2"),
    "another layout": (["preprocess", "IN", "-o", "prepared", "--layout", "hdtf"], "hdtf"),
    "nobody to train on": (["preprocess", "IN", "-o", "prepared", "--val", "1"], "shares"),
    "no model": (["preprocess", "IN", "-o", "prepared", "--model", "IN/other.npz"], "other.npz"),
    "preparing into a file": (["preprocess", "IN", "-o", "IN/face.png"], "is a file"),
    "no cluster": (["preprocess", "IN", "-o", "prepared", "--ray", "127.0.0.1:9"], "ray"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(run, files, tmp_path, case) -> None:
    words, expected = MISTAKES[case]
    before = sorted(tmp_path.rglob("*"))
    result = run(*[word.replace("IN", str(files)) if word.startswith("IN") else word for word in words])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert expected in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_preprocess_tells_what_it_did(run, files, tmp_path) -> None:
    result = run("preprocess", files / "driving.mp4", files / "text.jpg", "-o", tmp_path / "out")
    assert (result.exit_code, "text.jpg" in result.stderr) == (2, True)
    result = run("preprocess", files / "driving.mp4", "-o", tmp_path / "out", "--workers", 1, "--min-seconds", 0.2)
    assert result.exit_code == 0, result.output
    assert "1 sources" in result.output
    assert "dropped:" in result.output
    result = run("preprocess", files / "driving.mp4", "-o", tmp_path / "out", "--style", "centred")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another value of" in result.stderr


def test_failure_half_way_leaves_nothing(run, files, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(animate.Pipeline, "draw_here", fail)
    before = sorted(tmp_path.rglob("*"))
    result = run("animate", files / "face.png", files / "speech.wav", "-o", "o.mp4", "--save-motion", "m.npz")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "No space left" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupting_leaves_nothing(run, files, tmp_path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(animate.Pipeline, "draw_here", interrupt)
    before = sorted(tmp_path.rglob("*"))
    assert run("animate", files / "face.png", files / "speech.wav", "-o", "o.mp4").exit_code == 130
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_extra_says_how_to_install(run, files, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(*TRAIN_SYNCER, "--data", files, "--run", "r")
    assert result.exit_code == 2
    assert 'pip install "mssync[train]"' in result.stderr


def test_measuring_needs_its_extra(run, files, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("eval", "sync", "--data", files)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert 'pip install "mssync[eval]"' in result.stderr


def test_version_and_usage_errors(run) -> None:
    assert run("--version").output == f"mssync {mssync.__version__}\n"
    assert run("animate").exit_code == 2
    assert run("fly").exit_code == 2


def test_help_is_quick_and_main_exits_with_2(tmp_path) -> None:
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(Path(mssync.__file__).parents[1])}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    def worked() -> float:  # processor time, which a busy machine stretches little
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start = worked()
    shown = python("-m", "mssync.cli", "--help")
    assert "animate" in shown.stdout
    assert worked() - start < 1  # takes 0.2 s; with PyTorch it would be more than this
    heavy = "import sys, mssync.cli; sys.exit(bool({'torch', 'av', 'numpy'} & set(sys.modules)))"
    assert python("-c", heavy).returncode == 0
    failed = python("-m", "mssync.cli", "animate", "a.jpg", "b.wav", "-o", "o.mp4")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: a.jpg does not exist; check the path\n"
