"""Training of the renderer's networks: what they are given, and how they are put together."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mssync.cli import app
from mssync.data import frames
from mssync.data.frames import MATTE, Settings, collect, read_frames
from mssync.data.windows import Windows
from mssync.errors import InputError
from mssync.metrics.frontal import mean_face
from mssync.pixels import encode_jpeg
from mssync.render.painter import Painter
from mssync.training.common import Run
from mssync.training.painter import Pairs, evaluate, posed
from mssync.weights import load_model, save_model


def write_clip(folder: Path, name: str, split: str, count: int, seed: int) -> None:
    """Frames of a made-up face that opens its mouth."""
    rng = np.random.default_rng(seed)
    picture = np.clip(rng.normal(120, 30, (1, 1, 3)) + rng.normal(0, 20, (160, 160, 3)), 0, 255).astype(np.uint8)
    points = mean_face() * 40 + np.array([80, 65, 0], np.float32)
    blobs, landmarks = [], []
    for t in range(count):
        moved = points.copy()
        moved[[14, 87, 317, 17, 152], 1] += 2 * t
        blobs.append(encode_jpeg(picture, frames.QUALITY, "4:4:4"))
        landmarks.append(moved)
    np.savez(
        folder / f"{name}.npz",
        jpegs=np.frombuffer(b"".join(blobs), np.uint8),
        offsets=np.cumsum([0, *map(len, blobs)]),
        landmarks=np.array(landmarks, np.float32),
        split=np.array(split),
        identity=np.array(name),
    )
    alpha = np.zeros((1, 512, 512), np.uint8)
    alpha[:, 100:, 150:400] = 255
    np.savez_compressed(folder / f"{name}{MATTE}", times=np.array([0]), alpha=alpha)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("frames")
    for k, split in enumerate(("train", "train", "val", "val")):
        write_clip(made, f"person{k}", split, 5, k)
    return made


def test_frames_are_read_back(folder):
    clips = read_frames(folder, "train")
    assert [clip.identity for clip in clips] == ["person0", "person1"]
    assert clips[0].frame(2).shape == (160, 160, 3)
    with pytest.raises(InputError, match="no frames of the split 'test'"):
        read_frames(folder, "test")


def test_windows_and_pairs(folder):
    windows = Windows(folder, "train")
    assert windows.images.shape == (10, 288, 256, 3)
    assert windows.pixels == pytest.approx(np.full(10, 40 / 120), rel=0.02)
    pairs = Pairs(windows, "mouth", 0)
    one, two = pairs.batch(0, 3), pairs.batch(0, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))  # a function of the number
    given, real = posed("mouth", *one)
    assert given.channels.shape == (3, 16, 96, 128)
    assert real.shape == (3, 3, 96, 128)
    seen = Pairs(Windows(folder, "val"), "mouth", 1)
    values, sheet = evaluate(Painter("mouth", (8, 8, 8, 8)).eval(), seen, "float32")
    assert np.isfinite(list(values.values())).all()
    assert sheet.shape == (3, 96, 2 * 10 * 128)


def test_a_renderer_is_put_together(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "assemble_renderer.py"
    spec = importlib.util.spec_from_file_location("assemble_renderer", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = str(Path(sys.modules["mssync"].__file__).parent / "checkpoints" / "reenactor.safetensors")
    new = Painter("mouth")
    save_model(tmp_path / "mouth.safetensors", new, "painter", {"organ": "mouth", "widths": new.widths}, {"steps": 7})
    module.main(shipped, str(tmp_path / "out.safetensors"), mouth=str(tmp_path / "mouth.safetensors"))
    before, after = load_model(shipped)[0], load_model(tmp_path / "out.safetensors")[0]
    assert after.space == before.space
    for name in ("eye", "matte", "residual", "detector"):
        kept, taken = (getattr(model, name).state_dict() for model in (before, after))
        assert all(torch.equal(kept[key], taken[key]) for key in kept)
    assert after.mouth.head[0].weight.abs().max() == 0


@pytest.fixture
def one_thread():
    """Two that wait for each other take minutes where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(folder, run, part, *overrides) -> list[str]:
    """Overrides make it small; the lines that a run of `mssync train` prints."""
    arguments = ["train", part, "--data", str(folder), "--run", str(run)]
    result = CliRunner().invoke(app, [*arguments, *overrides])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", ["mouth", "matte", "residual"])
def test_a_training_that_was_stopped_goes_on_exactly(folder, tmp_path, monkeypatch, part):
    monkeypatch.setattr("mssync.render.painter.WIDTHS", (8, 8))
    section = {"mouth": "painter"}.get(part, part) + "_training"
    small = [f"{section}.batch=2", f"{section}.steps=4", *([f"{section}.size=64"] if part == "matte" else [])]
    trained(folder, tmp_path / "once", part, *small)
    monkeypatch.setattr("mssync.training.common.Run.steps", stopped_after(2))
    trained(folder, tmp_path / "twice", part, *small)
    monkeypatch.undo()
    monkeypatch.setattr("mssync.render.painter.WIDTHS", (8, 8))
    trained(folder, tmp_path / "twice", part, *small)
    one, two = (load_model(tmp_path / run / f"{part}.safetensors")[0].state_dict() for run in ("once", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def stopped_after(count):
    original = Run.steps
    return lambda run, start, stop: islice(original(run, start, stop), count)


@pytest.mark.slow
def test_frames_are_collected(data_dir, tmp_path):
    clip = sorted((data_dir / "clips").glob("hr_*.mp4"))[0]
    (tmp_path / "m.csv").write_text(f"file,split,identity\n{clip},train,somebody\n", encoding="utf-8")
    assert collect([tmp_path / "m.csv"], tmp_path / "out", Settings(6, 1), 1) == 1
    shown = read_frames(tmp_path / "out", "train")[0]
    assert 3 <= len(shown) <= 6
    assert shown.landmarks.shape[1:] == (478, 3)
    assert collect([tmp_path / "m.csv"], tmp_path / "out", Settings(6, 1), 1) == 1  # nothing is left to do


@pytest.mark.slow
def test_wide_frames_show_more_around_the_same_face(data_dir, tmp_path):
    still = sorted((data_dir / "portraits").glob("frontal_*.jpg"))[8]  # at a distance
    (tmp_path / "m.csv").write_text(f"file,split,identity\n{still},train,somebody\n", encoding="utf-8")
    heights = []
    for around in (1.0, 2.4):
        out = tmp_path / str(around)
        assert collect([tmp_path / "m.csv"], out, Settings(6, 1, around=around), 1) == 1
        shown = read_frames(out, "train")[0]
        frame, mesh = shown.frame(0), shown.landmarks[0]
        assert frame.shape[0] == frame.shape[1]
        assert 0 < mesh[:, 1].min() < mesh[:, 1].max() < len(frame)
        heights.append(np.ptp(mesh[:, 1]) / len(frame))
    assert heights[1] < 0.9 * heights[0]


def test_a_folder_without_frames_is_named(tmp_path):
    result = CliRunner().invoke(app, ["train", "mouth", "--data", str(tmp_path / "no"), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "mssync frames" in result.output + (result.stderr or "")
