"""Training: losses against direct formulas, and every training on real clips, stopped and resumed exactly."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs mssync[train]")

from mssync.config import Config, GeneratorConfig, GeneratorTraining, load_config
from mssync.data.prepare import prepare
from mssync.data.sequences import FaceMotion, Sequence, extract
from mssync.errors import InputError
from mssync.face_generator import FaceGenerator
from mssync.generator import Generator
from mssync.metrics.frontal import mean_face
from mssync.reenact.detector import KeypointDetector
from mssync.reenact.mesh import ANCHORS, LOWER_LIP, UPPER_LIP, canonical_face, mesh_motion
from mssync.reenact.surface import Surface
from mssync.speech import SpeechEncoder
from mssync.syncer import info_nce
from mssync.training import generator, syncer
from mssync.training.face import POSE_BAND, UNIT, FaceLosses, spectra
from mssync.weights import load_model, read_metadata, save_model

CLIPS = 3


def test_contrast_against_loops() -> None:
    g = torch.Generator().manual_seed(0)
    sounds, moves = (torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=g), dim=-1) for _ in range(2))
    positive, negatives = syncer.contrast(sounds, moves, None, 4, g)
    for b in range(2):
        for t in range(5):
            row = b * 5 + t
            assert positive[row] == pytest.approx(float(sounds[b, t] @ moves[b, t]), abs=1e-6)
            wanted = sorted(float(sounds[b, t] @ moves[b, n]) for n in range(5) if n != t)
            assert sorted(negatives[row].tolist()) == pytest.approx(wanted, abs=1e-6)
    _, others = syncer.contrast(sounds, moves, torch.tensor([0, 1]), 5, g)
    wanted = sorted(float(sounds[0, 2] @ moves[1, n]) for n in range(5))
    assert sorted(others[2].tolist()) == pytest.approx(wanted, abs=1e-6)
    assert info_nce(positive, negatives) > 0
    with pytest.raises(InputError, match="only 4"):
        syncer.contrast(sounds, moves, None, 5, g)
    with pytest.raises(InputError, match="only 0"):
        syncer.contrast(sounds, moves, torch.tensor([7, 7]), 1, g)  # one clip twice is not another clip


def test_reconstruction_is_equation_14() -> None:
    x, y = torch.randn(3, 7, 60), torch.randn(3, 7, 60)
    wanted = sum(float(((x[b] - y[b]) ** 2).sum()) for b in range(3)) / 3
    assert float(generator.reconstruction_loss(x, y)) == pytest.approx(wanted, rel=1e-5)


def test_lips_are_read_from_keypoints() -> None:
    """A mesh, its keypoints, and back: opening and distance are those of the mesh's own lips."""
    mesh = torch.from_numpy(canonical_face()).float().repeat(2, 3, 1, 1)  # (B, T, 478, 2)
    wider = mesh.clone()
    wider[..., LOWER_LIP, 1] += 0.02
    flat, read = (torch.from_numpy(mesh_motion(m.numpy())).flatten(2) for m in (mesh, wider))
    flat, read = (torch.nn.functional.pad(m, (0, 6)) for m in (flat, read))  # the keypoint of the body
    face = FaceLosses()
    gap = (wider[..., 14, :] - wider[..., 13, :]).norm(dim=-1)
    torch.testing.assert_close(face.opening(read), gap, atol=0.004, rtol=0)
    assert float(face.lips_loss(flat, flat)) == 0
    mouth = sorted({*LOWER_LIP, *UPPER_LIP})
    surfaces = [Surface()(m.reshape(6, 10, 6))[:, mouth] for m in (flat, read)]
    moved = [s - s.mean(1, keepdim=True) for s in surfaces]
    squares = (moved[0] - moved[1]).square().sum(-1).mean(1) / UNIT**2  # a frame each, of two times three
    assert float(face.lips_loss(flat, read)) == pytest.approx(float(squares.sum()) / 2, rel=1e-3)
    shifted = torch.from_numpy(mesh_motion((1.2 * mesh + 0.1).numpy())).flatten(2)
    assert float(face.shape_loss(flat, torch.nn.functional.pad(shifted, (0, 6)))) < 0.05
    assert float(face.shape_loss(flat, read)) > 0.05
    assert float(face.closing_loss(read)) == pytest.approx(3 * (float(gap[0, 0]) / UNIT) ** 2, rel=0.3)


def nodding(frames: int, phase: float = 0.0, size: float = 1.0) -> torch.Tensor:
    """The keypoints (1, T, 60) of a mean face in space that turns to either side, 1.5 times a second."""
    angle = size * 0.3 * np.sin(2 * np.pi * 1.5 * np.arange(frames) / 25 + phase)
    turn = np.zeros((frames, 3, 3))
    turn[:, 0, 0] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = -np.sin(angle), np.sin(angle), 1
    mesh = 0.5 * mean_face() @ turn.swapaxes(1, 2) + [0.1, -0.2, 0.0]
    return torch.from_numpy(np.pad(mesh_motion(mesh).reshape(1, frames, 54), ((0, 0), (0, 0), (0, 6)))).float()


def test_pose_loss_wants_as_much_motion_whenever_it_comes() -> None:
    face, real = FaceLosses(), nodding(66)
    late, lively, still = nodding(66, 2.5), nodding(66, 2.5, 1.2), nodding(66, size=0)
    assert float(face.pose_loss(real, real)) == 0
    assert float(face.pose_loss(real, still)) == pytest.approx(1, abs=0.15)  # some channels do not move
    assert float(face.pose_loss(real, late)) < 0.2
    assert float(face.pose_loss(real, late)) < float(face.pose_loss(real, lively)) < float(face.pose_loss(real, still))
    assert float(generator.reconstruction_loss(real, late)) > float(generator.reconstruction_loss(real, still))
    poses = face.pose(real)[0]
    assert poses.std(0).argmax() == 4  # yaw
    found = spectra(face.pose(real), 50, POSE_BAND)
    assert found.shape == (1, 1, 1 + 10, 6)
    assert found[0, 0, 1:, 4].argmax() == 2  # 1.5 Hz, of 0.5, 1, 1.5 …
    assert float(found[0, 0, 0, 4]) == pytest.approx(float(poses[:50, 4].std(correction=0)), rel=1e-3)


def test_mouth_loss_wants_lips_that_move_as_much_whenever_they_do() -> None:
    face, motion = FaceLosses(), nodding(66, size=0)
    times = torch.arange(66) / 25

    def speaking(size: float, phase: float = 0.0) -> torch.Tensor:
        moved = motion.clone()
        lip = list(ANCHORS).index("lower lip")
        moved[..., 6 * lip + 1] += size * 0.05 * (1 + torch.sin(2 * torch.pi * 4 * times + phase))
        return moved

    real = speaking(1)
    assert float(face.mouth_loss(real, real)) == 0
    assert float(face.mouth_loss(real, speaking(1, 1.5))) < float(face.mouth_loss(real, speaking(0.6)))
    assert float(face.mouth_loss(real, speaking(0.6))) < float(face.mouth_loss(real, speaking(0)))


def test_contact_loss_wants_lips_that_meet_when_real_ones_do() -> None:
    face, motion = FaceLosses(), nodding(66, size=0)

    def speaking(closed: list[int]) -> torch.Tensor:
        moved = motion.clone()
        opened = torch.full((66,), 0.08)
        opened[closed] = 0
        moved[..., 6 * list(ANCHORS).index("lower lip") + 1] += opened
        return moved

    real = speaking([10, 11, 30, 31, 50, 51])
    assert float(face.contact_loss(real, real)) == pytest.approx(0, abs=1e-3)
    missed, false = speaking([10, 11, 30, 31]), speaking([10, 11, 20, 21, 30, 31, 50, 51])
    assert float(face.contact_loss(real, missed)) > 1
    assert float(face.contact_loss(real, false)) > 1
    assert float(face.contact_loss(real, speaking([10, 11, 30, 31, 50]))) < float(face.contact_loss(real, missed))


def test_turning_does_not_skew_a_face_but_stretching_does() -> None:
    face, real = FaceLosses(), nodding(20, size=0)
    stretched = real.clone()
    stretched[..., 1:54:6] *= 1.2  # heights of the keypoints
    assert float(face.skew_loss(real, real)) == 0
    assert float(face.skew_loss(real, stretched)) > 20 * float(face.skew_loss(real, nodding(20, size=0.7)))


def test_synchrony_beyond_the_ceiling_is_not_rewarded() -> None:
    class Judge:
        """Scores that the motion itself states, a level each."""

        def __call__(self, motion: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            terms = list(-motion.mean((0, 1)))
            return torch.stack(terms).sum(), terms

    parts = cast(Any, SimpleNamespace(synchrony=Judge()))
    real, made = torch.tensor([0.4, 0.4]).expand(2, 5, 2), torch.tensor([0.45, 0.7]).repeat(2, 5, 1).requires_grad_()
    for ceiling, wanted in ((None, 1.15), (1.5, 0.45 + 0.6)):
        settings = GeneratorTraining(sync_ceiling=ceiling)
        total, terms = generator._synchrony(parts, settings, real, made, torch.zeros(2, 20, 26))
        assert float(total) == pytest.approx(-wanted)
        assert [float(t) for t in terms] == pytest.approx([-0.45, -0.7])
    slopes = torch.autograd.grad(total, made)[0].sum((0, 1))
    assert slopes.tolist() == pytest.approx([-1, 0])


def test_what_speech_tells_of_expressions_is_found_by_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "TOLD_STEPS", 30)
    torch.manual_seed(0)
    model = FaceGenerator(
        GeneratorConfig(space="face-1", layers=1, heads=2, width=16, audio_width=8, branch_hidden=8, hears="speech")
    )
    truth, rest, clips = torch.randn(40, 8, 6) / 7, torch.from_numpy(mean_face()), []
    for k in range(30):
        heard = torch.randn(400, 104)
        windows = torch.nn.functional.pad(heard[:, 96:].T, (4, 0)).unfold(1, 6, 2)  # (8, 200, 6)
        motion = 0.1 * torch.randn(200, 50)
        motion[:, 10:] = torch.randn(40) + torch.einsum("ctk,dck->td", windows, truth) + 0.1 * torch.randn(200, 40)
        face = FaceMotion(motion, rest, motion[0], rest)
        still, sound = torch.zeros(200, 60), torch.zeros(800, 26)
        clips.append(Sequence(str(k), str(k), "", False, "", "", still, None, sound, (heard,), (face, face)))
    settings = GeneratorTraining(frames=66, lambda_lips=1.0, lambda_mouth=0.1, lambda_contact=0.1, quiet=0.125)
    generator.tell(model, clips[:25], settings, torch.zeros(2, 30, 104))
    assert not any(weight.requires_grad for weight in model.expression.parameters())
    for clip in clips[25:]:
        assert clip.faces is not None
        said = clip.faces[0].motion[:, 10:]
        told = model.expression(clip.heard[0][None], said[:1])[0]
        assert ((told - told.mean(0)) - (said - said.mean(0))).std() < 0.4 * said.std(0).mean()


def test_only_some_pieces_fall_silent() -> None:
    model = Generator(GeneratorConfig(layers=1, heads=2, width=16, audio_width=8, branch_hidden=8))
    heard = torch.randn(6, 4 * 40, 26).clamp_min(-4)  # no quieter than the network tells
    hushed = generator.hushed(model, heard, 2, None)
    start = 4 * generator.SPEAKING
    assert torch.equal(hushed[:4], heard[:4])
    assert torch.equal(hushed[:, :start], heard[:, :start])
    assert (hushed[4:, start:] <= heard[4:, start:]).all()
    assert (hushed[5, start:] == -4).all()  # digital silence is as far as the network tells
    assert generator.hushed(model, heard, 0, None) is heard


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Three short real clips, prepared, with the motion of an untrained detector."""
    folder = tmp_path_factory.mktemp("data")
    with (data_dir / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["corpus"] == "GRID" and row["split"] == "train"][:CLIPS]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"file": str(data_dir / row["file"])} for row in rows)
    totals = prepare([folder / "manifest.csv"], folder / "prepared", processes=1)
    assert (totals["kept"], totals["dropped"]) == (CLIPS, {})
    assert prepare([folder / "manifest.csv"], folder / "prepared") == totals  # nothing is done twice
    torch.manual_seed(0)
    untrained = SimpleNamespace(space="untrained-1", keypoints=KeypointDetector(8).eval())
    extract(folder / "prepared", cast(Any, untrained), "logfbank")
    return folder / "prepared"


@pytest.fixture
def small() -> Config:
    return load_config(
        "compact",
        [
            "syncer.width=8", "syncer.embedding=16",
            "syncer_training.batch=12", "syncer_training.iterations=4", "syncer_training.frames=70",
            "generator.width=32", "generator.heads=2", "generator.layers=1", "generator.audio_width=16",
            "generator.branch_hidden=16", "generator_training.batch=4", "generator_training.iterations=3",
            "generator_training.decay_iterations=1", "discriminator.frame_hidden=16",
            "discriminator.sequence_hidden=16",
        ],
    )  # fmt: skip


def stopped_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the next training end after so many steps, as --max-minutes or Ctrl-C would."""
    import mssync.training.common as common

    left = [steps]

    def limited(self: common.Run, start: int, stop: int):
        for step in range(start, stop):
            if not left[0]:
                return
            left[0] -= 1
            yield step

    monkeypatch.setattr(common.Run, "steps", limited)


def same_file(one: Path, two: Path) -> bool:
    first, second = (load_model(path)[0].state_dict() for path in (one, two))
    return all(torch.equal(value, second[name]) for name, value in first.items())


SHARED_STEP = """
import sys, torch
from mssync.training.common import Run, launched


def main(folder):
    fabric = launched()
    run = Run(folder, "shared", None, fabric)
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 1.0))
    for step in run.steps(0, 2):
        given = torch.full((1, 1), 1.0 + step * fabric.world_size + fabric.global_rank)
        fabric.backward(wrapped(given).sum())
        optimizer.step()
        optimizer.zero_grad()
    run.save({"model": model}, rank=fabric.global_rank, world=fabric.world_size)


main(sys.argv[1])
"""


@pytest.mark.slow
def test_processes_share_a_step(tmp_path: Path) -> None:
    """Each takes a batch of its own, all take the mean of the gradients, and the first one writes."""
    (tmp_path / "step.py").write_text(SHARED_STEP, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "step.py")]
    subprocess.run([*command, str(tmp_path)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    kept = torch.load(tmp_path / "shared.pt", weights_only=True)
    torch.manual_seed(0)
    begun = torch.nn.Linear(1, 1, bias=False).weight.detach()
    assert (kept["rank"], kept["world"]) == (0, 2)
    torch.testing.assert_close(kept["model"]["weight"], begun - (1 + 2) / 2 - (3 + 4) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 4])
def test_syncer_and_generator_train_and_resume(
    prepared: Path, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    small.syncer_training.negatives = [12, 12, 12, 20]
    whole = syncer.train(small, prepared, tmp_path / "syncers", level)
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        syncer.train(small, prepared, tmp_path / "parts", level)
    assert same_file(whole, syncer.train(small, prepared, tmp_path / "parts", level))
    if level != 1:
        return
    made = generator.train(small, prepared, tmp_path / "syncers", tmp_path / "g")
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        generator.train(small, prepared, tmp_path / "syncers", tmp_path / "h")
    assert same_file(made, generator.train(small, prepared, tmp_path / "syncers", tmp_path / "h"))
    assert read_metadata(made)["config"]["audio"] == "logfbank"


@pytest.mark.slow
def test_a_run_of_other_sizes_is_refused(prepared: Path, small: Config, tmp_path: Path) -> None:
    small.syncer_training.iterations = 1
    syncer.train(small, prepared, tmp_path, 1)
    small.syncer.width = 16
    with pytest.raises(InputError, match="another configuration"):
        syncer.train(small, prepared, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["keypoints", "face-1"])
def test_a_generator_learns_to_hear_speech(
    prepared: Path, small: Config, tmp_path: Path, space: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the weights of one that hears energies; stopped and gone on with, when the encoder has been taken away."""
    syncer.train(small, prepared, tmp_path / "syncers", 1)
    if space == "keypoints":
        first = generator.train(small, prepared, tmp_path / "syncers", tmp_path / "energies")
        small.generator_training.start = str(first)
    small.generator.space = space
    monkeypatch.setattr(generator, "TOLD_STEPS", 20)
    torch.manual_seed(0)
    encoder, ears = SpeechEncoder(width=32, expansion=1), tmp_path / "ears.safetensors"
    save_model(ears, encoder, "speech", encoder.config)
    small.generator.hears, small.generator_training.ears = "speech", str(ears)
    made = generator.train(small, prepared, tmp_path / "syncers", tmp_path / "speech")
    hearing, about = load_model(made)
    assert (hearing.live, hearing.rows) == (True, 2)
    assert about["config"]["motion_space"] == ("face-1" if space == "face-1" else "untrained-1")
    assert same_file(tmp_path / "speech" / "speech.safetensors", ears)
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(patch, 2)
        generator.train(small, prepared, tmp_path / "syncers", tmp_path / "again")
    ears.unlink()
    again = load_model(generator.train(small, prepared, tmp_path / "syncers", tmp_path / "again"))[0]
    # Gradients of convolutions may be rounded otherwise in another place of memory.
    for name, weight in hearing.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), weight, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_a_generator_begins_from_another_one(prepared: Path, small: Config, tmp_path: Path) -> None:
    syncer.train(small, prepared, tmp_path / "syncers", 1)
    first = generator.train(small, prepared, tmp_path / "syncers", tmp_path / "full")
    small.generator_training.start, small.generator_training.lr_generator = str(first), 0.0
    second = load_model(generator.train(small, prepared, tmp_path / "syncers", tmp_path / "second"))[0]
    before = load_model(first)[0]
    for name, weight in before.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), weight, atol=1e-3, rtol=1e-2)
    assert second.spontaneous_motion.any()
    small.generator.width = 2 * small.generator.width
    with pytest.raises(InputError, match="has other sizes"):
        generator.train(small, prepared, tmp_path / "syncers", tmp_path / "wide")
    small.generator_training.lambda_lips = small.generator_training.quiet = 0
    with pytest.raises(InputError, match="spontaneous reads faces"):
        generator.train(small, prepared, tmp_path / "syncers", tmp_path / "blind")
