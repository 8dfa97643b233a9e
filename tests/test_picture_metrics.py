"""What is measured on pictures: known colours and known faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from mssync.cli import app
from mssync.data.readers import Job
from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import Face
from mssync.metrics import picture
from mssync.metrics.appearance import flicker, followed, gaze, moved, teeth_change, tint
from mssync.metrics.colour import ciede2000, lab
from mssync.metrics.drawers import copying, drawing
from mssync.metrics.footage import Clip, find_jobs, first_clear, moments, spread_blocks, watch
from mssync.metrics.frontal import mean_face
from mssync.metrics.picture import Figures, Judges, Yardstick, summary
from mssync.metrics.regions import facing, masks, seen_skin
from mssync.metrics.sheets import own_sheet, unlike_names
from mssync.pixels import warped

SIZE = 192

# Of the pairs that Sharma, Wu and Dalal (2005) publish to test implementations
PAIRS = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
    ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def test_differences_of_colours() -> None:
    one, two, wanted = (np.array(column, float) for column in zip(*PAIRS, strict=True))
    np.testing.assert_allclose(ciede2000(one, two), wanted, atol=1e-4)
    np.testing.assert_allclose(ciede2000(two, one), wanted, atol=1e-4)


def test_lab() -> None:
    np.testing.assert_allclose(lab(np.array([[255, 255, 255], [0, 0, 0]])), [[100, 0, 0], [0, 0, 0]], atol=0.02)
    np.testing.assert_allclose(lab(np.array([255, 0, 0], np.uint8)), [53.24, 80.09, 67.20], atol=0.05)


# Whole clips


def blurred(picture: np.ndarray) -> np.ndarray:
    return gaussian_filter(picture, (1.5, 1.5, 0), mode="mirror")


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A grainy face that opens its mouth: a portrait and three blocks."""
    rng = np.random.default_rng(0)
    skin = blurred(rng.normal(0, 60, (SIZE, SIZE, 3))) * 3 + [170, 140, 120]
    face = mean_face() * 60 + np.array([SIZE / 2, 60, 0], np.float32)
    real, landmarks = [], []
    for t in range(10):
        points = face.copy()
        points[[14, 17, 87, 317, 88, 318, 178, 402], 1] += 2 * t  # the lower lip
        real.append(np.clip(skin + rng.normal(0, 2, skin.shape), 0, 255).astype(np.uint8))
        landmarks.append(points)
    marks = np.stack(landmarks).astype(np.float32)
    blocks = np.arange(1, 10).reshape(3, 3)
    return Clip("clip", "person", np.stack(real), marks, blocks, (0, 9, 1, 2, 3, 4, 5, 6))


class NoFaces(FaceMesh):
    def track(self, frames):
        return (None for _ in frames)


@pytest.fixture(scope="module")
def yardstick(clip: Clip) -> Yardstick:
    return Yardstick(clip, Judges(NoFaces(), lambda frame, _: np.ones(frame.shape[:2], np.float32)))


def test_real_frames_are_right(clip: Clip, yardstick: Yardstick) -> None:
    found = yardstick.figures(clip.real)
    assert found.l1_whole == found.l1_face == 0
    assert [found.sharp_face, found.sharp_mouth, found.sharp_hair] == pytest.approx([1, 1, 1])
    assert found.tint == pytest.approx(found.tint_real)
    assert found.tint < 1
    assert min(found.teeth_real, found.flicker_real) > 0
    ratios = summary([found])
    assert [ratios[name].value for name in ("teeth_ratio", "flicker_ratio")] == pytest.approx([1, 1])


def test_copying_is_as_bad_as_copying(clip: Clip, yardstick: Yardstick) -> None:
    found = yardstick.figures(np.stack(list(copying(clip))))
    for name in ("whole", "face", "mouth", "eyes", "hair"):
        assert getattr(found, f"l1_{name}") == pytest.approx(getattr(found, f"l1_{name}_copy"))
    assert found.l1_face > 0
    assert found.tint < 0.2  # the mouth covers a little more or less of the skin
    assert found.teeth == 0


def test_blur_is_not_sharp(clip: Clip, yardstick: Yardstick) -> None:
    found = yardstick.figures(np.stack([blurred(frame) for frame in clip.real]))
    assert max(found.sharp_face, found.sharp_mouth, found.sharp_hair) < 0.5


def test_noise_flickers(clip: Clip, yardstick: Yardstick) -> None:
    noise = np.random.default_rng(1).normal(0, 8, clip.real.shape)
    found = yardstick.figures(np.clip(clip.real + noise, 0, 255).astype(np.uint8))
    assert found.flicker > 1.5 * found.flicker_real
    assert found.teeth > 1.5 * found.teeth_real


def test_a_tint_is_told_in_delta_e(clip: Clip, yardstick: Yardstick) -> None:
    plain = np.full_like(clip.real, 0) + np.array([170, 140, 120], np.uint8)
    pink = plain + np.array([20, 0, 5], np.uint8)
    pink[:, : SIZE // 8] = 0  # which is not the face
    even = replace(clip, real=plain)
    wanted = ciede2000(lab(plain[0, 0, 0]), lab(pink[0, -1, -1]))
    times = range(1, 10)
    assert tint(even, pink, times, yardstick.skin) == pytest.approx(float(wanted))
    assert tint(even, plain, times, yardstick.skin) < 1e-3


def test_frames_of_another_size_are_refused(clip: Clip, yardstick: Yardstick) -> None:
    with pytest.raises(ValueError, match="expected"):
        yardstick.figures(clip.real[:, ::2, ::2])


def test_a_drawer_without_faces_follows_nothing(clip: Clip) -> None:
    found = followed(clip.landmarks, clip.real, NoFaces())
    assert (found["found"], found["r_mouth"]) == (0, 0)
    assert np.isnan(found["r_gaze"])  # which does not move


def test_what_follows_follows(clip: Clip) -> None:
    class Knowing(FaceMesh):
        def track(self, frames):
            return (Face(points) for points in clip.landmarks)

    found = followed(clip.landmarks, clip.real, Knowing())
    assert (found["found"], found["r_mouth"]) == (1, pytest.approx(1))


# Motion


def test_motion_is_no_flicker(clip: Clip) -> None:
    """A picture that moves with its landmarks, evenly, does not flicker; teeth that move with the skull are steady."""
    frames, landmarks = [], []
    for t in range(6):
        frames.append(warped(clip.real[0], np.array([[1, 0, -3 * t], [0, 1, -2 * t]]), SIZE, SIZE))
        landmarks.append(clip.landmarks[9] + np.array([3 * t, 2 * t, 0], np.float32))
    drawn, points, blocks = np.stack(frames), np.stack(landmarks), np.arange(6).reshape(2, 3)
    inner = slice(SIZE // 3, SIZE // 2)
    face = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    face[:, inner, inner] = True
    still = np.abs(drawn[0, inner, inner].astype(float) - drawn[1, inner, inner]).mean() / 255
    assert flicker(drawn, points, blocks, face) < 0.15 * still
    assert teeth_change(drawn, points, blocks) < 0.3 * still
    unmoved = np.repeat(drawn[:1], 6, 0)
    assert flicker(unmoved, points, blocks, face) > 0.5 * still
    assert teeth_change(unmoved, points, blocks) > 0.5 * still


def test_a_picture_is_moved_to_its_landmarks(clip: Clip) -> None:
    ramp = torch.arange(SIZE).float().expand(1, 3, SIZE, SIZE) / SIZE
    points = torch.from_numpy(clip.landmarks[0, :, :2])
    shifted = moved(ramp, points, points + torch.tensor([5.0, 0.0]))
    np.testing.assert_allclose(shifted[..., 60:120], ramp[..., 55:115], atol=1e-3)


def test_gaze_follows_the_irises() -> None:
    points = np.repeat(mean_face()[None], 9, 0)
    points[:, [468, 473], 0] += 0.01 * np.arange(9)[:, None]
    assert (np.diff(gaze(points)) > 0).all()
    assert gaze(points[0]) == pytest.approx(0.5, abs=0.1)


# Regions


def test_regions_lie_in_each_other() -> None:
    points = mean_face() * 60 + np.array([SIZE / 2, 60, 0], np.float32)
    found = masks(points, np.ones((SIZE, SIZE)))
    assert (found["mouth"] & found["face"]).sum() > 0.9 * found["mouth"].sum() > 0
    assert not (found["skin"] & (found["mouth"] | found["eyes"])).any()
    assert not (found["hair"] & found["face"]).any()
    assert not masks(points, np.zeros((SIZE, SIZE)))["hair"].any()
    seen = seen_skin(points, found["skin"])
    assert not seen[[13, 14, 159, 386, 468]].any()  # lips, lids, iris
    assert seen[[50, 280]].all()  # cheeks


@pytest.mark.parametrize(("turn", "hidden"), [(0.9, 454), (-0.9, 234)])
def test_a_turned_face_hides_a_cheek(turn: float, hidden: int) -> None:
    """Turned to the picture's right or left."""
    c, s = np.cos(turn), np.sin(turn)
    seen = facing(mean_face() @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32))
    assert not seen[hidden]
    assert seen[454 if hidden == 234 else 234]


# Clips


def test_blocks_are_spread_and_do_not_overlap() -> None:
    for frames in (4, 5, 30, 61, 250):
        times = spread_blocks(frames, 60)
        assert times.min() == 1
        assert times.max() < frames
        assert len(np.unique(times)) == times.size <= 60
    assert spread_blocks(250, 60).shape == (20, 3)


def test_moments_and_fades() -> None:
    points = np.repeat(mean_face()[None], 20, 0)
    points[0, 14, 1] -= 0.02  # closed before anybody speaks
    points[4, 14, 1] += 0.1
    points[7, 14, 1] -= 0.01
    assert moments(points)[:3].tolist() == [0, 4, 7]
    assert first_clear(np.array([0.0, 10, 38, 50, 50, 50])) == 2


def test_jobs_of_a_split(film, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        film(tmp_path / f"{name}.mp4", seconds=0.2)
    lines = ["file,split,identity", "a.mp4,val,x", "b.mp4,val,x", "c.mp4,test,y"]
    (tmp_path / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    manifest = [tmp_path / "m.csv"]
    assert [job.key for job in find_jobs(manifest, "val", 320)] == ["a", "b"]
    assert [job.key for job in find_jobs(manifest, "val", people=1)] == ["a"]
    assert len(find_jobs([tmp_path], "test")) == 3  # a folder, whose split nobody knows
    with pytest.raises(InputError, match="321 pixels or more of the split 'val'"):
        find_jobs(manifest, "val", 321)


def test_a_video_without_a_face(make_video) -> None:
    path = make_video("grey.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 12, [k / 25 for k in range(12)])
    with pytest.raises(InputError, match="no face"):
        watch(Job(path, "key", "val", "someone", "corpus"), FaceMesh())


# Over clips


def test_sheets(clip: Clip) -> None:
    drawn = {"compact": clip.real, "copy": np.stack(list(copying(clip)))}
    assert own_sheet(clip, drawn).shape == (3 * SIZE, 8 * SIZE, 3)
    assert unlike_names([Path("a/x.jpg"), Path("b/x.jpg"), Path("y.jpg")]) == ["x (1)", "x (2)", "y"]


def test_summary_counts_people(yardstick: Yardstick, clip: Clip) -> None:
    row = yardstick.figures(clip.real)
    errors = [("x", 1.0, 2.0), ("x", 3.0, 4.0), ("y", 1.0, 1.0)]
    rows = [replace(row, person=p, l1_face=e, l1_face_copy=c, tint=np.nan) for p, e, c in errors]
    found = summary(rows)
    assert found["l1_face_ratio"].value == pytest.approx((2 + 1) / (3 + 1))
    assert found["l1_face_ratio"].clips == 2
    assert found["tint"].clips == 0
    assert picture.table({"a": rows, "b": rows}, "title").row_count == 20  # four sections of 16 figures


# The real thing


@pytest.fixture(scope="module")
def film_job(film, tmp_path_factory) -> Job:
    return Job(film(tmp_path_factory.mktemp("film") / "film.mp4", seconds=0.6), "film", "test", "someone", "corpus")


def test_watching(film_job: Job) -> None:
    found = watch(film_job, FaceMesh(), 128, 9)
    assert found.real.shape[1:] == (128, 128, 3)
    assert found.blocks.shape == (3, 3)
    assert len(found.real) == len(found.landmarks) > found.blocks.max() >= max(found.shown[1:])
    assert ((found.landmarks[..., :2] > 0) & (found.landmarks[..., :2] < 128)).all()


@pytest.mark.slow
def test_a_model_and_copying(film_job: Job, portrait, tmp_path: Path) -> None:
    from PIL import Image

    from mssync.animate import load

    Image.fromarray(portrait).save(tmp_path / "face.png")
    pipelines = {"compact": load("compact"), "copy": None}
    picture.show_portraits(pipelines, [tmp_path / "face.png"], [film_job], 1, tmp_path, 128)
    found = picture.measure(pipelines, [film_job], tmp_path, 128, 9)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "face.png", "film.png", "portraits_film_compact.png",
    ]  # fmt: skip
    assert Image.open(tmp_path / "film.png").size == (8 * 128, 3 * 128)
    assert Image.open(tmp_path / "portraits_film_compact.png").size == (8 * 128, 2 * 128)
    (own,), (copied,) = found["compact"], found["copy"]
    assert own.l1_face < copied.l1_face
    assert copied.l1_face == pytest.approx(copied.l1_face_copy)
    assert isinstance(own, Figures)
    assert len(list(drawing(pipelines["compact"])(watch(film_job, FaceMesh(), 128, 9)))) > 9


def test_nothing_to_measure(make_video, tmp_path: Path) -> None:
    path = make_video("grey.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 12, [k / 25 for k in range(12)])
    with pytest.warns(UserWarning, match="no face"), pytest.raises(InputError, match="none of the videos"):
        picture.measure({"copy": None}, [Job(path, "key", "val", "x", "y")], tmp_path, 128, 9)


@pytest.mark.slow
def test_the_command_writes_a_table_rows_and_a_summary(film, tmp_path: Path) -> None:
    """Of copying, which needs no model."""
    film(tmp_path / "film.mp4", seconds=0.6)
    words = ["eval", "picture", tmp_path / "film.mp4", "-o", tmp_path / "out", "--model", "copy", "--frames", 9]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--size", 128]])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Sharpness" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures.csv", "film.png", "summary.json"]
    assert len((tmp_path / "out" / "figures.csv").read_text(encoding="utf-8").splitlines()) == 2
    found = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert found["models"]["copy"]["l1_face_ratio"]["value"] == pytest.approx(1)
