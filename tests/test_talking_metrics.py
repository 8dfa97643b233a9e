"""Metrics of talking videos: frontal faces, LMD, head motion, Fréchet distances, by direct formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from fakes import golden_rule
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import head_pose
from mssync.metrics import identity
from mssync.metrics.frechet import EfficientNetFeatures, add_pictures, frechet_distance, frechet_metric
from mssync.metrics.frontal import RIGID, fit, frontalised, mean_face, mean_rigid_face, rigid_face
from mssync.metrics.head import PoseDistance, head_figures, head_poses, motion_poses, pose_windows, spectrum
from mssync.metrics.inception import InceptionFeatures, load_inception
from mssync.metrics.lmd import MOUTH, LandmarkDistance, mouth_distances, unit_in_pixels
from mssync.reenact.mesh import mesh_motion


def rotations(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Turns (T, 3, 3) of a picture's x right, y down, z away by angles in degrees."""
    turns = []
    for (i, j), angle in (((0, 2), yaw), ((1, 2), pitch), ((0, 1), roll)):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        turn = np.tile(np.eye(3), (len(angle), 1, 1))
        turn[:, i, i], turn[:, i, j], turn[:, j, i], turn[:, j, j] = c, -s, s, c
        turns.append(turn)
    return turns[2] @ turns[1] @ turns[0]


def talking(frames: int, seed: int = 0) -> np.ndarray:
    """A face of 100 pixels between the eyes whose mouth moves, (T, 478, 3)."""
    r = np.random.default_rng(seed)
    face = r.uniform(-1, 1, (478, 3))
    face[list(RIGID)] = rigid_face() + 0.01 * r.standard_normal((len(RIGID), 3))
    faces = np.tile(face, (frames, 1, 1))
    faces[:, MOUTH] += 0.1 * r.standard_normal((frames, len(MOUTH), 3))
    return 100 * faces + [300, 200, 0]


# Frontal faces and LMD


def test_fit_finds_the_similarity() -> None:
    r = np.random.default_rng(0)
    yaw, pitch, roll = (r.uniform(-40, 40, 20) for _ in range(3))
    turns, scales = rotations(yaw, pitch, roll), r.uniform(20, 90, 20)
    faces = np.zeros((20, 478, 3))
    faces[:, RIGID] = scales[:, None, None] * rigid_face() @ turns.swapaxes(1, 2) + [40, 50, 6]
    found = fit(faces)
    np.testing.assert_allclose(found.rotation, turns, atol=1e-9)
    np.testing.assert_allclose(found.scale, scales)
    np.testing.assert_allclose(found.centre, np.tile([40, 50, 6], (20, 1)), atol=1e-6)
    np.testing.assert_allclose(found.frontal(faces)[:, RIGID], np.tile(rigid_face(), (20, 1, 1)), atol=1e-9)


def test_fit_never_mirrors_a_face() -> None:
    face = np.zeros((1, 478, 3))
    face[:, RIGID] = rigid_face() * [1, 1, -1]
    assert np.linalg.det(fit(face).rotation) == pytest.approx(1)


@pytest.mark.parametrize(("yaw", "pitch"), [(40, 0), (0, 40), (-40, 40), (25, -40), (-10, -10)])
def test_turning_a_sequence_leaves_lmd_unchanged(yaw: float, pitch: float) -> None:
    said, wanted = talking(30), talking(30, 1)
    turns = rotations(np.linspace(0, yaw, 30), np.linspace(pitch, 0, 30), np.zeros(30))
    turned = said @ turns.swapaxes(1, 2) * 1.3 + 20
    straight = mouth_distances(said, wanted)
    assert straight.mean() > 0.05
    np.testing.assert_allclose(mouth_distances(turned, wanted), straight, rtol=1e-6)  # 1 % is asked
    np.testing.assert_allclose(mouth_distances(said, turned), 0, atol=1e-9)


def test_turning_real_landmarks_leaves_lmd_unchanged(data_dir: Path) -> None:
    from itertools import islice

    from mssync.video import VideoReader

    mesh, videos = FaceMesh(), ("hdtf_001", "hdtf_003")
    faces = [list(mesh.track(islice(VideoReader(data_dir / "clips" / f"{name}.mp4"), 12))) for name in videos]
    said, wanted = (np.stack([face.landmarks for face in found if face is not None]) for found in faces)
    straight = mouth_distances(said, wanted).mean()
    for yaw, pitch in ((40, 0), (-40, 20), (0, 40), (0, -40)):
        turns = rotations(np.full(12, yaw), np.full(12, pitch), np.zeros(12))
        turned = (said - 100) @ turns.swapaxes(1, 2)
        assert mouth_distances(turned, wanted).mean() == pytest.approx(straight, rel=0.01)


def test_lmd_has_the_unit_it_states() -> None:
    """A mouth moved down by a tenth of the distance of the eyes, which is 100 pixels in a picture of 512."""
    real = talking(6)
    said = real.copy()
    said[:, MOUTH, 1] += 10
    distance = mouth_distances(said, real)
    np.testing.assert_allclose(distance, 0.1, rtol=0.02)  # the face is not quite the mean face
    assert unit_in_pixels(real, side=512) == pytest.approx(50, rel=0.02)
    metric = LandmarkDistance()
    metric.update(said, real, side=512)
    metric.update(real, real, side=512)
    found = metric.compute()
    assert float(found["lmd"]) == pytest.approx(distance.mean() / 2)
    assert float(found["lmd_pixels"]) == pytest.approx(10 / 2 / 2, rel=0.001)


def test_mean_rigid_face_is_symmetric_and_found_again() -> None:
    mirror = [RIGID.index(i) for i in (263, 362, 133, 33)]
    np.testing.assert_allclose(rigid_face()[mirror], rigid_face()[:4] * [-1, 1, 1], atol=1e-6)
    r = np.random.default_rng(0)
    angles = (5 * r.standard_normal(300) for _ in range(3))
    faces = np.zeros((300, 478, 3))
    faces[:, RIGID] = 50 * (rigid_face() + 0.02 * r.standard_normal((300, len(RIGID), 3)))
    assert np.abs(mean_rigid_face(faces @ rotations(*angles).swapaxes(1, 2)) - rigid_face()).max() < 0.03


# Head motion


def test_poses_are_the_angles_that_the_head_was_turned_by() -> None:
    for name, column in (("yaw", 0), ("pitch", 1), ("roll", 2)):
        angles = {other: np.zeros(30) for other in ("yaw", "pitch", "roll")}
        angles[name] = np.linspace(-30, 30, 30)
        faces = np.tile(talking(1), (30, 1, 1)) @ rotations(**angles).swapaxes(1, 2)
        poses = head_poses(faces)
        np.testing.assert_allclose(poses[:, column] - poses[15, column], angles[name] - angles[name][15], atol=0.3)
        others = [k for k in range(3) if k != column]
        assert np.ptp(poses[:, others], axis=0).max() < 1
        assert np.sign(np.diff(head_pose(faces)[:, column])).mean() == np.sign(np.diff(poses[:, column])).mean()


def test_a_motion_tells_the_pose_of_its_mesh() -> None:
    """A mean face in space, turned and seen in a picture, and no more than the keypoints of that."""
    for name, column in (("yaw", 0), ("pitch", 1), ("roll", 2)):
        angles = {other: np.zeros(21) for other in ("yaw", "pitch", "roll")}
        angles[name] = np.linspace(-20, 20, 21)
        faces = mean_face() @ rotations(**angles).swapaxes(1, 2)
        faces = 0.5 * faces + np.linspace(-0.1, 0.1, 21)[:, None, None] * [1, 0, 0]
        poses = motion_poses(np.pad(mesh_motion(faces).reshape(21, 54), ((0, 0), (0, 6))))
        np.testing.assert_allclose(poses, head_poses(faces), atol=1.5)
        assert np.ptp(poses[:, column]) == pytest.approx(40, rel=0.05)


def test_head_figures_of_a_nodding_head() -> None:
    """±10° at 1.5 Hz for 4 s: the 5th to the 95th percentile of a sine are sin(81°) = 0.988 of its amplitude."""
    time = np.arange(100) / 25
    poses = np.zeros((100, 5))
    poses[:, 1] = 10 * np.sin(2 * np.pi * 1.5 * time)
    poses[:, 3] = 0.02 * time
    found = head_figures(poses)
    assert found.pitch == pytest.approx(2 * 9.88, rel=0.02)
    assert found.yaw == found.roll == 0
    assert found.place == pytest.approx(0.02 * 3.96 * 0.9, rel=0.01)
    assert found.frequency == pytest.approx(1.5, abs=0.1)
    damped = np.exp(-np.square(2 * np.pi * 1.5 / 25 * 2) / 2)  # by a Gaussian of 2 frames
    assert found.speed == pytest.approx(4 * 10 * 1.5 * damped, rel=0.1)  # but for the ends
    frequencies, power = spectrum(poses)
    assert frequencies[power.argmax()] == 1.5


def test_a_still_head_has_no_frequency() -> None:
    found = head_figures(np.full((100, 5), 3.0))
    assert (found.yaw, found.speed) == (0, 0)
    assert np.isnan(found.frequency)


def poses(frames: int, size: float, seed: int) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal((frames, 5)).cumsum(0)


def test_pose_distance_is_the_formula() -> None:
    from scipy.linalg import sqrtm

    real, made = [poses(120, 1, i) for i in range(4)], [poses(90, 0.6, i) for i in range(10, 14)]
    metric = PoseDistance()
    for clip in real:
        metric.update(clip, real=True)
    for clip in made:
        metric.update(clip, real=False)
    windows = [np.concatenate([pose_windows(clip) for clip in clips]) for clips in (real, made)]
    assert windows[0].shape == (4 * 20, 25)
    np.testing.assert_array_equal(pose_windows(real[0])[2, 5:10], (real[0] - real[0].mean(0))[15])
    deviation = np.sqrt(windows[0].reshape(-1, 5, 5).var(0, ddof=1).mean(0))
    windows = [w / np.tile(deviation, 5) for w in windows]
    (m, n), (c, d) = (w.mean(0) for w in windows), (np.cov(w.T) for w in windows)
    wanted = np.square(m - n).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert float(metric.compute()) == pytest.approx(wanted, rel=1e-6)


def test_pose_distance_tells_too_much_and_too_little_motion() -> None:
    found = []
    for size in (0, 0.5, 1, 2):
        metric = PoseDistance()
        for i in range(30):
            metric.update(poses(100, 1, i), real=True)
            metric.update(poses(100, size, 100 + i), real=False)
        found.append(float(metric.compute()))
    assert found[2] < 2
    assert found[0] > found[1] > found[2] < found[3]
    assert np.isnan(float(PoseDistance().compute()))


# Fréchet distances of pictures


class MeanColours(nn.Module):
    """Features by hand: the mean of each quarter of a picture, (B, 12)."""

    num_features = 12

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)


def pictures(count: int, seed: int, shift: int = 0) -> Tensor:
    r = np.random.default_rng(seed)
    return torch.from_numpy(r.integers(shift, 200 + shift, (count, 3, 16, 16)).astype(np.uint8))


def test_frechet_distance_of_known_distributions() -> None:
    """Independent coordinates: Σ (m - n)² + (σ - τ)²."""
    m, n, s, t = (torch.tensor(v, dtype=torch.float64) for v in ([0, 1.0], [2, 4.0], [1, 3.0], [2, 1.0]))
    wanted = (4 + 9) + (1 + 4)
    assert float(frechet_distance(m, s.square().diag(), n, t.square().diag())) == pytest.approx(wanted)


def test_fid_equals_the_library_on_two_folders(tmp_path: Path) -> None:
    from scipy.linalg import sqrtm

    for name, shift in (("made", 20), ("real", 0)):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures(40, shift, shift)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:02}.png")
    library, columns = FrechetInceptionDistance(feature=MeanColours()), {}
    for name in ("made", "real"):
        files = sorted((tmp_path / name).iterdir())
        loaded = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])).permute(0, 3, 1, 2)
        library.update(loaded, real=name == "real")
        columns[name] = MeanColours()(loaded).double().numpy()
    metric = frechet_metric(MeanColours())
    for name in columns:
        add_pictures(metric, (np.asarray(Image.open(f)) for f in (tmp_path / name).iterdir()), real=name == "real")
    found = float(metric.compute())
    assert found == pytest.approx(float(library.compute()), rel=1e-5)
    (m, n), (c, d) = (x.mean(0) for x in columns.values()), (np.cov(x.T) for x in columns.values())
    assert found == pytest.approx(np.square(m - n).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real), rel=1e-4)


def test_efficientnet_features_tell_pictures_apart() -> None:
    features = EfficientNetFeatures()
    found = features(pictures(3, 0))
    assert found.shape == (3, EfficientNetFeatures.num_features)
    assert (found >= 0).all()
    assert (found[0] - found[1]).abs().max() > 0.01


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    state = {name: golden_rule(name, like) for name, like in InceptionFeatures().state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_is_the_librarys(inception_file: Path) -> None:
    """Numbers of torchmetrics' own extractor (torch-fidelity 0.4.0), weights filled by the golden rule."""
    picture = (torch.arange(3 * 64 * 64) % 251).reshape(1, 3, 64, 64).byte()
    found = load_inception(inception_file)(picture)[0]
    wanted = [0.0, 0.6217084527015686, 0.016451150178909302, 0.0, 0.46756911277770996, 0.7253493070602417]
    np.testing.assert_allclose(found[:6], wanted, rtol=1e-4, atol=1e-6)
    assert float(found.mean()) == pytest.approx(0.24805180728435516, rel=1e-4)
    assert float(found.std()) == pytest.approx(0.31737664341926575, rel=1e-4)


def test_other_weights_than_inceptions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"pt_inception-2015-12-05-6726825d\.pth .*--inception FILE"):
        load_inception(None)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the weights of the FID's Inception"):
        load_inception(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(InputError, match="not a PyTorch checkpoint"):
        load_inception(tmp_path / "text.pth")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_inception("download")


# Identity


def test_a_face_stays_its_own(portrait: np.ndarray) -> None:
    if not identity.available():
        pytest.skip('needs the extra "identity"')
    embedding, (face, *_) = identity.FaceEmbedding(), FaceMesh()(portrait)
    own = embedding(portrait, face.landmarks)
    darker = embedding((0.7 * portrait).astype(np.uint8), face.landmarks)
    smaller = embedding(np.ascontiguousarray(portrait[::2, ::2]), face.landmarks / 2)
    noise = np.random.default_rng(0).integers(0, 255, portrait.shape).astype(np.uint8)
    assert own.shape == (128,)
    assert np.linalg.norm(darker - own) < np.linalg.norm(smaller - own) < identity.SAME_PERSON
    assert np.linalg.norm(embedding(noise, face.landmarks) - own) > identity.SAME_PERSON


def test_identity_without_its_packages_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MODULES", ("no_such_module",))
    assert not identity.available()
    with pytest.raises(InputError, match=r"mssync\[identity\]"):
        identity.FaceEmbedding()


# Several processes


def _metrics() -> list[Metric]:
    return [LandmarkDistance(), PoseDistance(), frechet_metric(MeanColours())]


def _update(metrics: list[Metric], part: int) -> None:
    lmd, distance, fid = metrics
    lmd.update(talking(4, part), talking(4, 50 + part), side=256)
    distance.update(poses(60, 1, part), real=True)
    distance.update(poses(60, 2, 9 + part), real=False)
    fid.update(pictures(20, part), real=True)
    fid.update(pictures(20, 9 + part, 30), real=False)


def _values(metrics: list[Metric]) -> list[float]:
    lmd, distance, fid = (metric.compute() for metric in metrics)
    return [float(lmd["lmd"]), float(distance), float(fid)]


def _work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metrics = _metrics()
    _update(metrics, rank)
    Path(folder, str(rank)).write_text(" ".join(map(str, _values(metrics))), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = _metrics()
    for part in (0, 1):
        _update(metrics, part)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(_work, (str(tmp_path),), nprocs=2)
    for rank in ("0", "1"):
        found = [float(v) for v in (tmp_path / rank).read_text(encoding="utf-8").split()]
        np.testing.assert_allclose(found, _values(metrics), rtol=1e-6)


def test_frontal_faces_have_their_eyes_level() -> None:
    eyes = frontalised(talking(1))[0, [33, 263]]
    np.testing.assert_allclose(eyes, [[-0.5, 0, 0], [0.5, 0, 0]], atol=0.05)
