"""How well a reenactor redraws a clip from one of its own frames (self-reenactment).

Keypoints come with the clips' stored landmarks, so that no model is judged by faces that were not found.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mssync.data.clips import Clip
from mssync.faces import FaceMesh, eye_opening, head_pose, mouth_opening
from mssync.metrics import estimates
from mssync.metrics.estimates import Estimate
from mssync.metrics.pictures import Distance, background_and_body, compare, psnr, to_frames, to_tensor
from mssync.reenact import Reenactor

PAIRS = 16  # random pairs of frames a clip, for the errors of pictures
UNDRIVEN = 4  # frames a clip that are drawn under their own keypoints
MAX_DRIVEN = 100  # frames a clip, for what follows the driving video and what stays still
MIN_FOUND = 10  # frames with a face, below which nothing follows
BATCH = 8  # frames rendered at once
FADED_IN = 0.7  # share of a clip's usual contrast that a frame needs to be a portrait: some clips fade in from white
STILL = 3.0  # grey levels: a real background that changes less is still (a codec's noise is 0.5 to 2.7)
MIN_BACKGROUND = 0.05  # share of the picture, below which a clip has no background to speak of
MIN_SPREAD = {"mouth": 0.01, "eyes": 0.01, "yaw": 1.0, "pitch": 1.0}  # a clip that moves less has no correlation


@dataclass
class ClipFigures:
    """Figures of one clip; nan where the clip cannot tell.

    l1 … perceptual: mean over pairs of frames, see `pictures.compare`; …_copy: the same for the unmoved source.
    r_…: correlation between the driving frames' landmarks and those measured on the output; followed: share of
    output frames on which a face is found. undriven: PSNR in dB of frames drawn under their own keypoints.
    background, body: mean absolute change against the portrait in grey levels of 255 when the clip drives its
    first frame (that of `faded_in`), see `pictures.background_and_body`; …_real: the same of the clip itself;
    still: 1 when the real background is, else 0.
    """

    name: str
    l1: float
    l1_copy: float
    l1_face: float
    l1_face_copy: float
    psnr: float
    psnr_copy: float
    ssim: float
    ssim_copy: float
    perceptual: float
    perceptual_copy: float
    r_mouth: float
    r_eyes: float
    r_yaw: float
    r_pitch: float
    followed: float
    undriven: float
    background: float
    background_real: float
    body: float
    body_real: float
    still: int


def evaluate(reenactor: Reenactor, clips: Sequence[Clip], seed: int = 0) -> list[ClipFigures]:
    """Figures of every clip."""
    from rich.progress import track

    from mssync.training.perceptual import PerceptualLoss

    mesh, perceptual = FaceMesh(), PerceptualLoss()
    return [evaluate_clip(reenactor, clip, mesh, perceptual, seed) for clip in track(clips, "reenactment")]


@torch.inference_mode()
def evaluate_clip(reenactor: Reenactor, clip: Clip, mesh: FaceMesh, perceptual: Distance, seed: int = 0) -> ClipFigures:
    """Figures of one clip, the same whatever other clips are evaluated beside it."""
    start, landmarks = faded_in(clip), clip.landmarks
    times = driven_times(len(clip), start)
    pairs = start + random_pairs(clip.entry.name, len(clip) - start, seed)
    figures: dict[str, Any] = _errors(reenactor, clip, landmarks, pairs, perceptual)
    real, drawn = _driven(reenactor, clip, landmarks, times)
    figures |= followed(landmarks[times], drawn, mesh)
    figures |= stillness(landmarks[times], real, drawn)
    return ClipFigures(name=clip.entry.name, undriven=_undriven(reenactor, clip, landmarks, start), **figures)


def summary(figures: list[ClipFigures]) -> dict[str, Estimate]:
    """Means over clips, those of background and body over clips with a still background; besides the ratios of
    means l1_ratio and l1_face_ratio (1: no better than copying the source), and undriven_min."""
    column = {f.name: np.array([getattr(row, f.name) for row in figures]) for f in fields(ClipFigures)}
    del column["name"]
    for name in ("background", "background_real", "body", "body_real"):
        column[name] = np.where(column["still"] == 1, column[name], np.nan)
    found = {name: estimates.mean(values) for name, values in column.items()}
    for name in ("l1", "l1_face"):
        found[f"{name}_ratio"] = estimates.ratio(column[name], column[f"{name}_copy"])
    found["undriven_min"] = estimates.minimum(column["undriven"])
    return found


# Parts of a clip


def random_pairs(name: str, frames: int, seed: int) -> np.ndarray:
    """PAIRS pairs (source, driving) of different frames, (PAIRS, 2), of a clip: they depend on these three alone."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.array([rng.choice(frames, size=2, replace=False) for _ in range(PAIRS)])


def driven_times(frames: int, start: int = 0) -> list[int]:
    """At most MAX_DRIVEN times of a clip, evenly spaced from `start` on."""
    return list(range(start, frames, -(-(frames - start) // MAX_DRIVEN)))


def faded_in(clip: Clip) -> int:
    """The first frame that can be a portrait: 0, but for a clip that fades in from white or black."""
    sample = np.linspace(0, len(clip) - 1, 9).round().astype(int)
    enough = FADED_IN * np.median([clip.frame(int(t)).std() for t in sample])
    return next(t for t in range(len(clip)) if clip.frame(t).std() >= enough)


def keypoints(reenactor: Reenactor, pictures: Tensor, landmarks: np.ndarray) -> Tensor:
    """Motion (B, 10, 6) of pictures (B, 3, s, s) whose landmarks (B, 478, 3) are known."""
    return reenactor.keypoints(pictures, torch.from_numpy(landmarks).to(pictures.device))


def read_frames(clip: Clip, times: Sequence[int]) -> np.ndarray:
    """Frames (B, s, s, 3) uint8 of a clip."""
    return np.stack([clip.frame(int(t)) for t in times])


# Measures


def _errors(
    reenactor: Reenactor, clip: Clip, landmarks: np.ndarray, pairs: np.ndarray, perceptual: Distance
) -> dict[str, float]:
    """Mean errors over pairs of frames, of the output and (…_copy) of the source."""
    rows = []
    for pair in pairs:
        pictures = to_tensor(read_frames(clip, pair))
        motion, (source, wanted) = keypoints(reenactor, pictures, landmarks[pair]), pictures.split(1)
        drawn = reenactor.render(reenactor.prepare(source, motion[:1]), motion[1:])
        marks = landmarks[pair[1]]
        own, copied = (compare(picture, wanted, marks, perceptual) for picture in (drawn, source))
        rows.append(own | {f"{name}_copy": value for name, value in copied.items()})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _undriven(reenactor: Reenactor, clip: Clip, landmarks: np.ndarray, start: int) -> float:
    """Mean PSNR of frames, from `start` on, that are drawn under their own keypoints."""
    found = []
    for t in np.linspace(start, len(clip) - 1, UNDRIVEN).round().astype(int):
        source = to_tensor(read_frames(clip, [t]))
        motion = keypoints(reenactor, source, landmarks[[t]])
        found.append(psnr(reenactor.render(reenactor.prepare(source, motion), motion), source))
    return float(np.mean(found))


def _driven(
    reenactor: Reenactor, clip: Clip, landmarks: np.ndarray, times: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Real and drawn frames, (T, s, s, 3) uint8 each: the first of `times` under the keypoints of all of them."""
    real, drawn, state = [], [], None
    for start in range(0, len(times), BATCH):
        batch = times[start : start + BATCH]
        real.append(read_frames(clip, batch))
        pictures = to_tensor(real[-1])
        motion = keypoints(reenactor, pictures, landmarks[batch])
        if state is None:
            state = reenactor.prepare(pictures[:1], motion[:1])
        drawn.append(to_frames(reenactor.render(state, motion)))
    return np.concatenate(real), np.concatenate(drawn)


def followed(landmarks: np.ndarray, drawn: np.ndarray, mesh: FaceMesh) -> dict[str, float]:
    """Correlations of mouth, eyes, yaw and pitch between driving landmarks (T, 478, 3) and drawn frames.

    Over the frames on which a face is found, 0 with fewer than MIN_FOUND of them; nan where the driving face does
    not move, which is the same for every model.
    """
    faces = list(mesh.track(drawn))
    found = [i for i, face in enumerate(faces) if face is not None]
    figures = {"followed": len(found) / len(faces)}
    driving = measures(landmarks)
    output = measures(np.stack([faces[i].landmarks for i in found])) if len(found) >= MIN_FOUND else None  # type: ignore[union-attr]
    for name, values in driving.items():
        if np.std(values) <= MIN_SPREAD[name]:
            figures[f"r_{name}"] = float("nan")
        else:
            figures[f"r_{name}"] = 0.0 if output is None else correlation(values[found], output[name])
    return figures


def stillness(landmarks: np.ndarray, real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Change of background and body against the first real frame, of drawn and real frames (T, s, s, 3) uint8."""
    portrait, rows = real[0].astype(np.int16), []
    for marks, *frames in zip(landmarks, drawn, real, strict=True):
        masks = background_and_body(landmarks[0], marks, len(portrait))
        changes = [np.abs(frame - portrait).mean(-1) for frame in frames]
        rows.append([_mean(change[mask]) for mask in masks for change in changes] + [masks[0].mean()])
    # A frame without any body or background in it says nothing; a clip of such frames only is nan.
    table = np.ma.masked_invalid(rows).mean(0).filled(np.nan)
    background, background_real, body, body_real, share = table.tolist()
    still = int(background_real < STILL and share >= MIN_BACKGROUND)
    return {
        "background": background, "background_real": background_real, "body": body, "body_real": body_real,
        "still": still,
    }  # fmt: skip


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def measures(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Mouth and eye opening, yaw and pitch (degrees) along landmarks (T, 478, 3)."""
    pose = head_pose(landmarks)
    return {
        "mouth": mouth_opening(landmarks),
        "eyes": eye_opening(landmarks),
        "yaw": pose[:, 0],
        "pitch": pose[:, 1],
    }


def correlation(wanted: np.ndarray, have: np.ndarray) -> float:
    """Pearson's r; nan when `wanted` does not vary, 0 when `have` does not."""
    if np.ptp(wanted) == 0:  # exact, where the deviation of equal numbers may be a rounding error
        return float("nan")
    return float(np.corrcoef(wanted, have)[0, 1]) if np.ptp(have) > 0 else 0.0
