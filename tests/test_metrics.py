"""Evaluation: figures on made-up signals with known answers."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeClip, FakeMesh, FakeReenactor
from PIL import Image
from rich.console import Console

from mssync.animate import BATCH, Pipeline
from mssync.errors import InputError
from mssync.metrics.animation import AnimationFigures, loudness
from mssync.metrics.animation import summary as animation_summary
from mssync.metrics.estimates import mean, minimum, ratio
from mssync.metrics.pictures import PSNR_LIMIT, background_and_body, compare
from mssync.metrics.reenactment import (
    PAIRS,
    STILL,
    ClipFigures,
    correlation,
    driven_times,
    evaluate_clip,
    faded_in,
    followed,
    measures,
    random_pairs,
    summary,
)
from mssync.metrics.report import Report, as_json, table
from mssync.metrics.speed import frames_per_second
from mssync.metrics.transfer import TILE, driving_clips, find_portraits, transfer
from mssync.metrics.transfer import summary as transfer_summary


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


class Copying:
    """A reenactor that shows the source whatever the motion."""

    rigid = (0,)

    def keypoints(self, image: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
        assert landmarks is not None  # so that a model need not search for faces
        assert landmarks.shape == (len(image), 478, 3)
        return torch.zeros(len(image), 10, 6)

    def prepare(self, source: torch.Tensor, motion: torch.Tensor | None = None) -> torch.Tensor:
        return source

    def render(self, state: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        return state.expand(len(motion), -1, -1, -1)


class Perfect(Copying):
    """A reenactor whose motion says which frame of the clip is wanted, and which draws just that."""

    def __init__(self, clip: FakeClip) -> None:
        self.frames = torch.stack([torch.from_numpy(clip.frame(t)) for t in range(len(clip))])
        self.marks = torch.from_numpy(clip.landmarks[:, 0])

    def keypoints(self, image: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
        assert landmarks is not None
        at = torch.cdist(landmarks[:, 0], self.marks).argmin(1)
        return at.float()[:, None, None].expand(-1, 10, 6)

    def render(self, state: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        return self.frames[motion[:, 0, 0].long()].permute(0, 3, 1, 2).float() / 255


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Stands in for the perceptual distance."""
    return (a - b).abs().max()


def figures_of(kind: Callable[[FakeClip], Copying], clip: FakeClip | None = None) -> ClipFigures:
    clip = clip or FakeClip()
    return evaluate_clip(kind(clip), clip, FakeMesh(), distance)  # type: ignore[arg-type]


def test_copying_the_source_is_as_good_as_copying_the_source() -> None:
    figures = figures_of(lambda clip: Copying())
    for name in ("l1", "l1_face", "psnr", "ssim", "perceptual"):
        assert getattr(figures, name) == getattr(figures, f"{name}_copy")
    estimates = summary([figures, figures])
    assert estimates["l1_ratio"].value == estimates["l1_face_ratio"].value == 1
    assert (figures.undriven, figures.background, figures.body) == (PSNR_LIMIT, 0, 0)


def test_a_perfect_reenactor_is_perfect() -> None:
    figures = figures_of(Perfect)
    assert (figures.l1, figures.l1_face, figures.perceptual) == (0, 0, 0)
    assert figures.psnr == figures.undriven == PSNR_LIMIT
    assert figures.ssim == pytest.approx(1, abs=1e-4)  # float32 of flat pictures
    assert figures.l1_copy > 0
    assert summary([figures])["l1_ratio"].value == 0
    assert figures.background == figures.background_real == 0
    assert figures.still == 1


class Drifting(Copying):
    """Brightens what it draws by 10 grey levels."""

    def render(self, state: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        return super().render(state, motion) + 10 / 255


def test_a_background_that_changes_is_measured_where_it_should_be_still() -> None:
    figures = figures_of(lambda clip: Drifting())
    assert (figures.background, figures.body) == (10, 10)
    flashing = FakeClip()
    flashing.frame = lambda t: np.full((256, 256, 3), 20 * t, np.uint8)  # type: ignore[method-assign]
    moving = figures_of(lambda clip: Copying(), flashing)
    assert moving.still == 0
    assert moving.background_real > STILL
    background = summary([figures, moving])["background"]
    assert (background.value, background.clips) == (10, 1)


def test_figures_are_those_of_the_direct_formulas() -> None:
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.uniform(0, 1, (1, 3, 64, 64))).float() for _ in range(2))
    b = (a + b) / 2
    marks = np.array([[-0.5, -0.5], [0.5, 0.25]])
    figures = compare(a, b, marks, distance)
    assert figures["psnr"] == pytest.approx(10 * math.log10(1 / float(((a - b) ** 2).mean())), abs=1e-4)
    assert figures["l1"] == pytest.approx(float((a - b).abs().mean()))
    assert figures["l1_face"] == pytest.approx(float((a - b)[..., 16:40, 16:48].abs().mean()))
    assert figures["ssim"] == pytest.approx(direct_ssim(a, b), abs=1e-4)


def direct_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wang et al. 2004 with their constants: Gaussian windows of 11 pixels, sigma 1.5, mirrored borders."""
    bell = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = (torch.outer(bell, bell) / bell.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (5, 5, 5, 5), mode="reflect"), window, groups=3)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def test_lost_faces_count_as_not_following_where_the_clip_moves() -> None:
    landmarks = np.tile(np.random.default_rng(0).standard_normal((478, 3)), (20, 1, 1))
    landmarks[:, 13, 1] += np.linspace(0, 1, 20)  # only the upper lip moves
    black, grey = np.zeros((20, 256, 256, 3), np.uint8), np.full((20, 256, 256, 3), 9, np.uint8)
    lost = followed(landmarks, black, FakeMesh())  # type: ignore[arg-type]
    assert (lost["r_mouth"], lost["followed"]) == (0, 0)
    found = followed(landmarks, grey, FakeMesh())  # type: ignore[arg-type]
    assert (found["r_mouth"], found["followed"]) == (0, 1)  # a face that does not move
    assert all(math.isnan(figures[name]) for figures in (lost, found) for name in ("r_eyes", "r_yaw", "r_pitch"))


def test_pairs_belong_to_the_clip() -> None:
    pairs = random_pairs("a", 50, seed=0)
    assert pairs.shape == (PAIRS, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    random_pairs("b", 50, seed=0)
    assert (pairs == random_pairs("a", 50, seed=0)).all()
    assert (pairs != random_pairs("b", 50, seed=0)).any()
    assert (pairs != random_pairs("a", 50, seed=1)).any()


@pytest.mark.parametrize("frames", [1, 99, 100, 101, 199, 1000])
def test_driven_times_start_at_the_first_frame(frames: int) -> None:
    times = driven_times(frames)
    assert times[0] == 0
    assert times[-1] < frames
    assert min(frames, 50) <= len(times) <= 100


def test_the_portrait_is_the_first_frame_after_a_fade() -> None:
    clip = FakeClip()
    assert faded_in(clip) == 0  # type: ignore[arg-type]
    whole = clip.frame(0)
    clip.frame = lambda t: (whole * min(1, t / 4)).astype(np.uint8)  # type: ignore[method-assign]
    assert faded_in(clip) == 3  # type: ignore[arg-type]
    assert driven_times(103, 3) == list(range(3, 103))
    figures = figures_of(lambda _: Copying(), clip)
    assert figures.undriven == PSNR_LIMIT


def test_background_is_neither_head_nor_body_of_either_frame() -> None:
    clip = FakeClip()
    background, body = background_and_body(clip.marks(0), clip.marks(11), 256)
    assert not (background & body).any()
    for t in (0, 11):
        x, y = ((clip.marks(t) + 1) * 128).astype(int).T
        assert not (background | body)[y, x].any()
    assert background[0, 0]
    assert background[0, -1]
    assert body[-1].all()


def test_an_interval_holds_its_mean_and_leaves_out_nan() -> None:
    values = np.array([1.0, 2.0, 3.0, np.nan])
    found = mean(values)
    assert (found.value, found.clips) == (2, 3)
    assert 1 <= found.low < 2 < found.high <= 3
    assert ratio(values, 2 * values).value == 0.5
    assert minimum(values).value == 1
    assert math.isnan(mean(np.array([np.nan])).value)


def test_sheets_of_portraits_under_other_peoples_motion(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(1, 255, (300, 400, 3), np.uint8)
    for name in ("one.png", "two.png"):
        Image.fromarray(picture).save(tmp_path / name)
    pipeline = Pipeline(FakeReenactor(), None, face_mesh=FakeMesh())  # type: ignore[arg-type]
    rows = transfer(pipeline, find_portraits([tmp_path]), [FakeClip("a"), FakeClip("b")], tmp_path / "out", "runs/x")  # type: ignore[list-item]
    assert [(row.clip, row.portrait) for row in rows] == [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]
    assert all(row.followed == 1 for row in rows)
    assert Image.open(tmp_path / "out" / "a_runs_x.png").size == (9 * TILE, 3 * TILE)
    assert transfer_summary(rows)["followed"].clips == 2


def test_portraits_are_pictures_or_ten_of_a_folder(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"x")
    found = find_portraits([tmp_path, tmp_path / "07.png"])
    assert len(found) == 11
    assert (found[0].name, found[9].name, found[10].name) == ("00.png", "29.png", "07.png")
    with pytest.raises(InputError, match="does not exist"):
        find_portraits([tmp_path / "none.png"])


def test_driving_clips_show_different_people() -> None:
    clips = [FakeClip(name) for name in "abcdef"]
    clips[1].entry = dataclasses.replace(clips[1].entry, identity="a")
    assert [clip.entry.name for clip in driving_clips(clips, 3)] == ["a", "d", "f"]  # type: ignore[arg-type]


def test_speed_is_measured_in_turns() -> None:
    reenactors = {"a": FakeReenactor(), "b": FakeReenactor()}
    pipelines = {name: Pipeline(model, None) for name, model in reenactors.items()}  # type: ignore[arg-type]
    found = frames_per_second(pipelines, FakeClip())  # type: ignore[arg-type]
    assert all(value > 0 for value in found.values())
    frames = 2 * BATCH * pipelines["a"].cores.count
    assert sum(reenactors["a"].batches) == sum(reenactors["b"].batches) == 6 * frames


def test_a_report_names_every_model(tmp_path: Path) -> None:
    figures = figures_of(Perfect)
    reports = [Report(name, None, 11.2, [figures]) for name in ("new", "old")]  # type: ignore[arg-type]
    reports[0].frames_per_second, reports[0].times_fomm = 20.0, 10.0
    reports[1].frames_per_second, reports[1].times_fomm = 10.0, 5.0
    content = as_json(reports, split="val")
    assert content["models"]["new"]["figures"]["l1_ratio"]["value"] == 0
    json.dumps(content, allow_nan=False)
    console = Console(file=io.StringIO(), width=120)
    console.print(table(reports, "val"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in text for word in ("new", "old", "SSIM", "background", "times the exact FOMM", "11.2"))


def test_measures_have_one_value_a_frame() -> None:
    landmarks = np.random.default_rng(0).standard_normal((7, 478, 3))
    shapes = {name: value.shape for name, value in measures(landmarks).items()}
    assert shapes == {"mouth": (7,), "eyes": (7,), "yaw": (7,), "pitch": (7,)}
