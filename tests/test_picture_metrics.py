"""What is measured on pictures: known colours and known faults."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mssync.data.readers import Job
from mssync.errors import InputError
from mssync.faces import FaceMesh
from mssync.metrics.colour import ciede2000, lab
from mssync.metrics.frontal import mean_face
from mssync.metrics.picture import (
    SIZE,
    Clip,
    Figures,
    copying,
    evaluate,
    flicker,
    gaze,
    moments,
    sheet,
    summary,
    teeth_change,
    watch,
)

# Of the pairs that Sharma, Wu and Dalal (2005) publish to test implementations
PAIRS = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def test_differences_of_colours():
    one, two, wanted = (np.array(column, float) for column in zip(*PAIRS, strict=True))
    assert np.allclose(ciede2000(one, two), wanted, atol=1e-4)
    assert np.allclose(ciede2000(two, one), wanted, atol=1e-4)


def test_lab():
    assert np.allclose(lab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8)), [[100, 0, 0], [0, 0, 0]], atol=0.02)
    assert np.allclose(lab(np.array([255, 0, 0], np.uint8)), [53.24, 80.09, 67.20], atol=0.05)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A grainy face that opens its mouth, in blocks of three frames."""
    rng = np.random.default_rng(0)
    skin = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE, 3)), (0, 0), 1.5) * 3 + [190, 150, 130]
    points = mean_face() * 110 + np.array([256, 210, 0], np.float32)
    real, landmarks = [], []
    for t in range(10):
        moved = points.copy()
        moved[[14, 17, 87, 317, 88, 318, 178, 402], 1] += 4 * t  # the lower lip
        noise = rng.normal(0, 2, skin.shape)
        real.append(np.clip(skin + noise, 0, 255).astype(np.uint8))
        landmarks.append(moved)
    return Clip("clip", "person", np.stack(real), np.stack(landmarks).astype(np.float32))


class NoFaces:
    def track(self, frames):
        return [None for _ in frames]


def figures_of(clip: Clip, drawn: np.ndarray) -> Figures:
    return evaluate(clip, drawn, NoFaces(), lambda picture, points: np.ones(picture.shape[:2], np.float32))


def test_real_frames_are_right(clip):
    found = figures_of(clip, clip.real)
    assert found.l1_whole == found.l1_face == 0
    assert found.sharp_face == found.sharp_mouth == found.sharp_hair == 1
    assert found.steadiness == found.flicker == 1
    assert found.tint == found.tint_real < 1


def test_copying_is_as_bad_as_copying(clip):
    found = figures_of(clip, np.stack(list(copying(clip))))
    for name in ("whole", "face", "mouth", "eyes", "hair"):
        assert getattr(found, f"l1_{name}") == pytest.approx(getattr(found, f"l1_{name}_copy"))
    assert found.tint == 0
    assert found.steadiness == 0


def test_blur_tint_and_noise_show(clip):
    blurred = figures_of(clip, np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in clip.real]))
    assert blurred.sharp_face < 0.5
    shifted = clip.real.astype(int) + np.array([12, 0, -12])
    pink = figures_of(clip, np.clip(shifted, 0, 255).astype(np.uint8))
    at = (slice(None), slice(200, 300), slice(200, 300))
    wanted = ciede2000(*(lab(x[at].reshape(-1, 3).mean(0).round().astype(np.uint8)) for x in (clip.real, shifted)))
    assert pink.tint == pytest.approx(float(wanted), rel=0.15)
    noise = np.random.default_rng(1).normal(0, 8, clip.real.shape)
    noisy = figures_of(clip, np.clip(clip.real + noise, 0, 255).astype(np.uint8))
    assert noisy.flicker > 1.5
    assert noisy.steadiness > 1.5


def test_motion_is_no_flicker(clip):
    """A picture that moves with its landmarks, evenly, does not flicker; teeth that move with the skull are steady."""
    frames, landmarks = [], []
    for t in range(6):
        shift = np.float32([[1, 0, 3 * t], [0, 1, 2 * t]])
        frames.append(cv2.warpAffine(clip.real[0], shift, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE))
        landmarks.append(clip.landmarks[9] + np.array([3 * t, 2 * t, 0], np.float32))
    made = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    points = np.stack(landmarks)
    face = torch.zeros(6, SIZE, SIZE)
    face[:, 200:300, 200:300] = 1
    still = float((made[0, :, 200:300, 200:300] - made[1, :, 200:300, 200:300]).abs().mean())
    assert flicker(made, torch.from_numpy(points), face) < 0.15 * still
    assert teeth_change(made, np.concatenate([points[:1], points])) < 0.3 * still


def test_gaze_and_moments():
    points = np.repeat(mean_face()[None], 9, 0)
    for t in range(9):
        points[t, [468, 473], 0] += 0.01 * t
        points[t, 14, 1] += 0.1 if t == 4 else 0
    assert (np.diff(gaze(points)) > 0).all()
    assert gaze(points[0]) == pytest.approx(0.5, abs=0.1)
    assert moments(points)[:2] == [0, 4]


def test_sheets_and_summary(clip):
    assert sheet(clip, clip.real).shape == (2 * SIZE, 8 * SIZE, 3)
    rows = [Figures("a", "x", l1_face=1.0, l1_face_copy=2.0), Figures("b", "x", l1_face=3.0, l1_face_copy=4.0)]
    rows.append(Figures("c", "y", l1_face=1.0, l1_face_copy=1.0))
    found = summary(rows)["l1_face"]
    assert found.value == pytest.approx((2 + 1) / (3 + 1))
    assert found.clips == 2  # people


@pytest.mark.slow
def test_a_real_clip(data_dir: Path):
    path = next(iter(sorted((data_dir / "clips").glob("hr_*.mp4"))))
    found = watch(Job(path, "key", "val", "someone", "corpus"), FaceMesh())
    assert found.real.shape[1:] == (SIZE, SIZE, 3)
    assert len(found.real) == len(found.landmarks) == 1 + 3 * ((len(found.real) - 1) // 3)
    inside = (found.landmarks[..., :2] > 0).all() and (found.landmarks[..., :2] < SIZE).all()
    assert inside


def test_a_video_without_a_face(make_video):
    path = make_video("grey.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 12, [k / 25 for k in range(12)])
    with pytest.raises(InputError, match="no face"):
        watch(Job(path, "key", "val", "someone", "corpus"), FaceMesh())
