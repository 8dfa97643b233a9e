"""How well a reenactor redraws a clip from one of its own frames (self-reenactment)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mssync.data.clips import Clip, read_clips
from mssync.faces import FaceMesh, eye_opening, head_pose, mouth_opening
from mssync.reenact import Reenactor

PAIRS = 8  # random pairs of frames a clip, for the pixel errors
MAX_FOLLOWED = 100  # frames a clip, for the correlations
MIN_SPREAD = {
    "mouth": 0.01,
    "eyes": 0.01,
    "yaw": 1.0,
    "pitch": 1.0,
}  # a clip that moves less has no correlation


@dataclass
class ClipFigures:
    """Figures of one clip. l1: mean absolute error in [0, 1]; copy: the same for the unmoved source;
    r: correlation between the driving frames' landmarks and those measured on the output (nan: no movement)."""

    name: str
    l1: float
    l1_copy: float
    l1_face: float
    l1_face_copy: float
    r_mouth: float
    r_eyes: float
    r_yaw: float
    r_pitch: float
    followed: float  # share of output frames on which a face is found


def evaluate(reenactor: Reenactor, data: str | Path, split: str, seed: int = 0) -> list[ClipFigures]:
    """Figures of every clip of one split of a prepared folder. Raises InputError when it is no such folder."""
    from rich.progress import track

    mesh, rng = FaceMesh(), np.random.default_rng(seed)
    return [_evaluate_clip(reenactor, clip, mesh, rng) for clip in track(read_clips(data, split), split)]


def summary(figures: list[ClipFigures]) -> dict[str, float]:
    """Means over clips; the two ratios are of the means (1: no better than copying the source)."""
    names = [f.name for f in fields(ClipFigures) if f.name != "name"]
    means = {name: float(np.nanmean([getattr(f, name) for f in figures])) for name in names}
    means["l1_ratio"] = means["l1"] / means["l1_copy"]
    means["l1_face_ratio"] = means["l1_face"] / means["l1_face_copy"]
    return means


@torch.inference_mode()
def _evaluate_clip(reenactor: Reenactor, clip: Clip, mesh: FaceMesh, rng: np.random.Generator) -> ClipFigures:
    errors = []
    for _ in range(PAIRS):
        source, driving = rng.choice(len(clip), size=2, replace=False)
        errors.append(_pair_errors(reenactor, clip, int(source), int(driving)))
    l1, copied, face, face_copied = np.mean(errors, axis=0)
    return ClipFigures(clip.entry.name, l1, copied, face, face_copied, **_followed(reenactor, clip, mesh))


def _picture(clip: Clip, t: int) -> Tensor:
    return torch.from_numpy(clip.frame(t)).permute(2, 0, 1)[None].float() / 255


def _pair_errors(reenactor: Reenactor, clip: Clip, source: int, driving: int) -> list[float]:
    start, wanted = _picture(clip, source), _picture(clip, driving)
    drawn = reenactor.render(reenactor.prepare(start), reenactor.keypoints(wanted))
    size = wanted.shape[-1]
    marks = (clip.marks(driving) + 1) / 2 * size
    (x0, y0), (x1, y1) = (
        np.clip(marks.min(0), 0, size - 2).astype(int),
        np.clip(marks.max(0), 2, size).astype(int),
    )
    inside = (..., slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1)))
    pairs = [
        (drawn, wanted),
        (start, wanted),
        (drawn[inside], wanted[inside]),
        (start[inside], wanted[inside]),
    ]
    return [float((a - b).abs().mean()) for a, b in pairs]


def _followed(reenactor: Reenactor, clip: Clip, mesh: FaceMesh) -> dict[str, float]:
    """Correlations of mouth, eyes, yaw and pitch over a clip that is driven from its own first frame."""
    step = max(1, len(clip) // MAX_FOLLOWED)
    times = range(0, len(clip), step)
    state = reenactor.prepare(_picture(clip, 0))
    drawn = (reenactor.render(state, reenactor.keypoints(_picture(clip, t)))[0] for t in times)
    frames = ((frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for frame in drawn)
    faces = list(mesh.track(np.ascontiguousarray(frame) for frame in frames))
    found = [i for i, face in enumerate(faces) if face is not None]
    share = len(found) / len(faces)
    if len(found) < 10:
        return {"r_mouth": 0.0, "r_eyes": 0.0, "r_yaw": 0.0, "r_pitch": 0.0, "followed": share}
    driving = measures(clip.landmarks[list(times)][found])
    output = measures(np.stack([faces[i].landmarks for i in found]))  # type: ignore[union-attr]
    return {f"r_{k}": correlation(driving[k], output[k], MIN_SPREAD[k]) for k in MIN_SPREAD} | {"followed": share}


def measures(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Mouth and eye opening, yaw and pitch (degrees) along landmarks (T, 478, 3)."""
    pose = head_pose(landmarks)
    return {
        "mouth": mouth_opening(landmarks),
        "eyes": eye_opening(landmarks),
        "yaw": pose[:, 0],
        "pitch": pose[:, 1],
    }


def correlation(wanted: np.ndarray, have: np.ndarray, min_spread: float = 0.0) -> float:
    """Pearson's r; nan when `wanted` hardly varies (standard deviation up to min_spread), 0 when `have` does not."""
    if np.std(wanted) <= min_spread:
        return float("nan")
    return float(np.corrcoef(wanted, have)[0, 1]) if np.std(have) > 0 else 0.0
