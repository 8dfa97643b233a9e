"""How good drawn pictures are: people's clips drawn again from their first frame, under their own motion.

Every figure is told beside what real frames have, or as a ratio to them: an error alone rewards blur. Frames are taken
in blocks of three that follow each other, evenly spread over a clip, so that what flickers is seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.data.readers import Job
from mssync.data.tracks import fill_gaps
from mssync.errors import InputError
from mssync.faces import Box, Face, FaceMesh, crop, crop_box, eye_opening, mouth_opening
from mssync.metrics import estimates
from mssync.metrics.colour import ciede2000, lab
from mssync.metrics.estimates import Estimate
from mssync.metrics.identity import FaceEmbedding, available
from mssync.metrics.reenactment import FADED_IN, MIN_FOUND, correlation
from mssync.reenact import SIZE as SQUARE
from mssync.reenact.mesh import LEFT_LIDS, LOWER_LIP, RIGHT_LIDS, UPPER_LIP
from mssync.render.field import thin_plate, view, view_solver
from mssync.render.organs import MOUTH, framed, grid, inside, opened, source_frame
from mssync.render.painter import sampled
from mssync.render.scene import control_points
from mssync.video import VideoReader

if TYPE_CHECKING:
    from mssync.animate import Pipeline

SIZE, COMPARED = 512, 256  # pixels: at which frames are drawn, and at which errors are counted, as earlier ones were
BLOCKS = 16  # of three frames a clip, at most
COARSE = 8.0  # pixels of SIZE: deviation of the low-pass before colours are compared
GROWN_MOUTH, GROWN_EYES = 1.3, 1.4  # regions, in sizes of lips and lids
CELLS = 32  # at which motion is interpolated between landmarks, to take it out
MIN_GAP = 40  # pixels of the mouth's window that must be open in two frames to compare them
MIN_SPREAD = {"mouth": 0.01, "lids": 0.01, "gaze": 0.01}  # a clip that moves less has no correlation
IRISES = ((468, 33, 133), (473, 362, 263))  # centre, corners from left to right
LIPS, LIDS = (*UPPER_LIP, *LOWER_LIP), (LEFT_LIDS, RIGHT_LIDS)
REGIONS = ("whole", "face", "mouth", "eyes", "hair")

Matte = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Picture (H, W, 3) uint8 and landmarks (478, 3) in its pixels -> alpha (H, W) in [0, 1]."""


Drawer = Callable[["Clip"], Iterator[np.ndarray]]
"""The first frame of a clip under the faces of all of them: (SIZE, SIZE, 3) uint8 each."""


def drawer(pipeline: Pipeline) -> Drawer:
    """Draws with a model, as `Pipeline.reenact` does with a driving video."""

    def draw(clip: Clip) -> Iterator[np.ndarray]:
        from mssync.animate import Portrait

        box, part = Box(0, 0, SIZE), np.array([1, 1, 0], np.float32)
        meshes = clip.landmarks * np.float32(2 / SIZE) - part
        poses = np.concatenate(
            [
                pipeline.keypoints(crop(frame, box, SQUARE)[None], mesh[None])
                for frame, mesh in zip(clip.real, meshes, strict=True)
            ]
        )
        state = pipeline.prepared(clip.real[0], box, clip.landmarks[0], poses[:1])
        portrait = Portrait(clip.real[0], box, poses[0], state, (SIZE, SIZE), meshes[0, :, :2])
        for t in range(len(poses)):
            yield pipeline.draw_here(portrait, poses[t : t + 1], SIZE, meshes[t : t + 1, :, :2])[0]

    return draw


def copying(clip: Clip) -> Iterator[np.ndarray]:
    """Draws nothing: the portrait as it is."""
    return (clip.real[0] for _ in clip.real)


@dataclass
class Clip:
    """Frames of one person: real (T, SIZE, SIZE, 3) uint8, the first is the portrait; landmarks (T, 478, 3) in their
    pixels; the others come in blocks of three."""

    name: str
    identity: str
    real: np.ndarray
    landmarks: np.ndarray


@dataclass
class Figures:
    """Figures of one clip, nan where it cannot tell.

    l1_…: mean absolute error at 256 pixels, of copying in l1_…_copy; sharp_…: Laplacian energy over the real frames';
    tint: CIEDE2000 of low-passed skin against the portrait's, tint_real: the real frames'; steadiness, flicker: over
    the real clip's; identity: cosine of face embeddings with the portrait's, identity_real; r_…: correlation of
    openings and gaze, measured on drawn frames, with the driving ones.
    """

    name: str
    identity_of: str
    l1_whole: float = float("nan")
    l1_face: float = float("nan")
    l1_mouth: float = float("nan")
    l1_eyes: float = float("nan")
    l1_hair: float = float("nan")
    l1_whole_copy: float = float("nan")
    l1_face_copy: float = float("nan")
    l1_mouth_copy: float = float("nan")
    l1_eyes_copy: float = float("nan")
    l1_hair_copy: float = float("nan")
    sharp_face: float = float("nan")
    sharp_mouth: float = float("nan")
    sharp_hair: float = float("nan")
    tint: float = float("nan")
    tint_real: float = float("nan")
    steadiness: float = float("nan")
    flicker: float = float("nan")
    identity: float = float("nan")
    identity_real: float = float("nan")
    r_mouth: float = float("nan")
    r_lids: float = float("nan")
    r_gaze: float = float("nan")


def watch(job: Job, mesh: FaceMesh) -> Clip:
    """Read a video's blocks of frames. Raises InputError where no face is seen, or too few frames."""
    frames = list(VideoReader(job.path, job.start, job.stop))
    faces = list(mesh.track(iter(frames)))
    if len(frames) < 8 or sum(face is not None for face in faces) < len(frames) / 2:
        raise InputError(f"{job.path}: too short, or no face is seen in it")
    landmarks = fill_gaps([None if face is None else face.landmarks for face in faces])
    height, width = frames[0].shape[:2]
    box = crop_box([Face(points) for points in landmarks], width, height)
    start = _start(frames)
    firsts = np.unique(np.linspace(start + 1, len(frames) - 3, BLOCKS).astype(int))
    firsts = firsts[np.concatenate([[True], np.diff(firsts) >= 3])]
    times = [start, *(int(t) + k for t in firsts for k in range(3))]
    scale = SIZE / box.side
    points = (landmarks[times] - np.array([box.x0, box.y0, 0], np.float32)) * np.float32(scale)
    real = np.stack([crop(frames[t], box, SIZE) for t in times])
    return Clip(job.key, job.identity, real, np.asarray(points, np.float32))


def _start(frames: Sequence[np.ndarray]) -> int:
    """The first frame that has the usual contrast: some clips fade in."""
    contrast = np.array([frame[::8, ::8].std() for frame in frames])
    return int(np.argmax(contrast >= FADED_IN * np.median(contrast)))


def measured(job: Job, pipeline: Pipeline, folder: Path) -> Figures | None:
    """Figures of a model on one clip; writes its contact sheet FOLDER/KEY.jpg. None, with a warning: no face."""
    from PIL import Image

    try:
        clip = watch(job, pipeline.face_mesh)
    except InputError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    drawn = np.stack(list(drawer(pipeline)(clip)))
    Image.fromarray(sheet(clip, drawn)).save(folder / f"{clip.name}.jpg", quality=92)
    return evaluate(clip, drawn, pipeline.face_mesh, _matte_of(pipeline))


def _matte_of(pipeline: Pipeline) -> Matte | None:
    """The matte of a layered renderer, by which hair is found."""
    net = getattr(pipeline.reenactor, "matte", None)
    if net is None:
        return None
    return lambda picture, points: net.alpha(_tensor(picture[None]), torch.from_numpy(points), (0, 0, SIZE))[
        0, 0
    ].numpy()


@torch.inference_mode()
def evaluate(clip: Clip, drawn: np.ndarray, mesh: FaceMesh, matte: Matte | None = None) -> Figures:
    """Figures of a clip and what was drawn of it, (T, SIZE, SIZE, 3) uint8."""
    figures = Figures(clip.name, clip.identity)
    regions = [
        _regions(points, matte and matte(real, points)) for real, points in zip(clip.real, clip.landmarks, strict=True)
    ]
    masks = {name: torch.stack([part[name] for part in regions])[1:] for name in REGIONS}
    real, made = _tensor(clip.real)[1:], _tensor(drawn)[1:]
    _errors(figures, real, made, _tensor(clip.real[:1]), masks)
    for name in ("face", "mouth", "hair"):
        energies = [float((laplacian(x).square() * masks[name][:, None]).sum()) for x in (made, real)]
        setattr(figures, f"sharp_{name}", energies[0] / energies[1] if energies[1] else float("nan"))
    figures.tint, figures.tint_real = (_tint(clip, x) for x in (drawn, clip.real))
    points = torch.from_numpy(clip.landmarks[1:])
    figures.steadiness = _ratio(*(teeth_change(x, clip.landmarks) for x in (made, real)))
    figures.flicker = _ratio(*(flicker(x, points, masks["face"]) for x in (made, real)))
    _identity(figures, clip, drawn)
    _followed(figures, clip, drawn, mesh)
    return figures


def summary(rows: Sequence[Figures]) -> dict[str, Estimate]:
    """Means over people, errors as shares of those of copying."""
    people = sorted({row.identity_of for row in rows})

    def column(name: str) -> np.ndarray:
        values = [[getattr(row, name) for row in rows if row.identity_of == person] for person in people]
        return np.array([np.nanmean(v) if np.isfinite(v).any() else np.nan for v in values])

    found = {f"l1_{name}": estimates.ratio(column(f"l1_{name}"), column(f"l1_{name}_copy")) for name in REGIONS}
    plain = [f.name for f in fields(Figures) if not f.name.startswith("l1_")]
    return found | {name: estimates.mean(column(name)) for name in plain if name not in ("name", "identity_of")}


# Parts of a clip


def _tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def _ratio(one: float, two: float) -> float:
    return one / two if two else float("nan")


def _regions(points: np.ndarray, alpha: np.ndarray | None) -> dict[str, Tensor]:
    """Masks (SIZE, SIZE) in {0, 1} of a frame with landmarks (478, 3)."""
    import cv2

    def hull(chosen: np.ndarray, grown: float) -> np.ndarray:
        mask, middle = np.zeros((SIZE, SIZE), np.float32), chosen.mean(0)
        outline = cv2.convexHull(np.rint((chosen - middle) * grown + middle).astype(np.int32))
        cv2.fillConvexPoly(mask, outline, (1.0,))
        return mask

    flat = points[:, :2]
    face = hull(flat, 1.0)
    hair = np.zeros_like(face)
    if alpha is not None:
        above = np.arange(SIZE)[:, None] < flat[152, 1]
        hair = ((alpha > 0.9) & (hull(flat, 1.05) == 0) & above).astype(np.float32)
    eyes = np.maximum(*(hull(flat[list(lids)], GROWN_EYES) for lids in LIDS))
    found = {
        "whole": np.ones_like(face),
        "face": face,
        "mouth": hull(flat[list(LIPS)], GROWN_MOUTH),
        "eyes": eyes,
        "hair": hair,
    }
    return {name: torch.from_numpy(mask) for name, mask in found.items()}


def _errors(figures: Figures, real: Tensor, made: Tensor, source: Tensor, masks: dict[str, Tensor]) -> None:
    """L1 of drawing and of copying at COMPARED pixels, region by region."""
    small = [F.interpolate(x, size=(COMPARED,) * 2, mode="area") for x in (real, made, source)]
    for name, mask in masks.items():
        weight = F.interpolate(mask[:, None], size=(COMPARED,) * 2, mode="area")
        total = float(weight.sum()) * 3
        for end, x in (("", small[1]), ("_copy", small[2])):
            setattr(figures, f"l1_{name}{end}", _ratio(float(((x - small[0]).abs() * weight).sum()), total))


def laplacian(x: Tensor) -> Tensor:
    """(T, 3, h, w) -> (T, 1, h, w), of grey, 0 at the border."""
    grey = x.mean(1, keepdim=True)
    inner = (
        4 * grey[..., 1:-1, 1:-1]
        - grey[..., :-2, 1:-1]
        - grey[..., 2:, 1:-1]
        - grey[..., 1:-1, :-2]
        - grey[..., 1:-1, 2:]
    )
    return F.pad(inner, (1, 1, 1, 1))


def _tint(clip: Clip, frames: np.ndarray) -> float:
    """Mean CIEDE2000 between the low-passed colours of frames and of the portrait, at the skin's mesh points."""
    import cv2

    moving = {*LIPS, *LEFT_LIDS, *RIGHT_LIDS}
    skin = [k for k in range(0, 468, 4) if k not in moving]
    blurred = [cv2.GaussianBlur(frame, (0, 0), COARSE) for frame in (clip.real[0], *frames[1:])]
    colours = []
    for frame, points in zip(blurred, clip.landmarks, strict=True):
        x, y = np.clip(points[skin, :2].round().astype(int), 0, SIZE - 1).T
        colours.append(lab(frame[y, x]))
    return float(np.mean([ciede2000(colours[0], other).mean() for other in colours[1:]]))


def teeth_change(frames: Tensor, landmarks: np.ndarray) -> float:
    """Mean absolute change inside the open mouth from frame to frame of a block, along the skull's motion.

    frames (T, 3, SIZE, SIZE), without the portrait; landmarks (T + 1, 478, 3), with it.
    """
    points = torch.from_numpy(landmarks)
    frame, solver = source_frame(MOUTH, points[:1]), view_solver(points[:1])
    mesh = points[1:, :, :2]
    window = framed(frame, view(solver, mesh))
    at = grid(MOUTH.size).expand(len(mesh), -1, -1, -1)
    seen = sampled(frames, window, at, torch.tensor([float(SIZE)] * 2))
    gap = opened(MOUTH, inside(window, mesh))[:, :1] > 0.9
    changes = []
    for t in range(len(mesh) - 1):
        both = (gap[t] & gap[t + 1]).float()
        if t % 3 < 2 and both.sum() >= MIN_GAP:
            changes.append(float(((seen[t] - seen[t + 1]).abs() * both).sum() / both.sum() / 3))
    return float(np.mean(changes)) if changes else float("nan")


def flicker(frames: Tensor, landmarks: Tensor, face: Tensor) -> float:
    """Mean absolute second difference in the face over blocks of three frames, motion taken out.

    frames (T, 3, s, s), landmarks (T, 478, 3), face (T, s, s): masks.
    """
    found = []
    for t in range(1, len(frames) - 1, 3):
        before, after = (_onto(frames[k], landmarks[k], landmarks[t]) for k in (t - 1, t + 1))
        second = (before + after - 2 * frames[t]).abs().mean(0)
        found.append(float((second * face[t]).sum() / face[t].sum()))
    return float(np.mean(found)) if found else float("nan")


def _onto(frame: Tensor, points: Tensor, target: Tensor) -> Tensor:
    """A frame (3, s, s) with landmarks (478, 3), warped onto those of another."""
    size, chosen = frame.shape[-1], control_points()
    unit = size / 2
    here, there = target[chosen, :2] / unit, points[chosen, :2] / unit
    cells = (torch.arange(CELLS) + 0.5) * (2 / CELLS)
    where = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), -1).flatten(0, 1)
    offset = thin_plate(here[None], (there - here)[None], where, 1e-4).view(1, CELLS, CELLS, 2)
    offset = F.interpolate(offset.permute(0, 3, 1, 2), size=(size, size), mode="bilinear").permute(0, 2, 3, 1)
    axis = (torch.arange(size) + 0.5) / unit - 1
    at = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + offset
    return F.grid_sample(frame[None], at, mode="bicubic", padding_mode="border", align_corners=False)[0]


def _identity(figures: Figures, clip: Clip, drawn: np.ndarray) -> None:
    if not available():
        return
    embed = FaceEmbedding()
    own = embed(clip.real[0], clip.landmarks[0])
    for name, frames in (("identity", drawn), ("identity_real", clip.real)):
        others = [embed(frames[t], clip.landmarks[t]) for t in range(2, len(frames), 6)]
        cosines = [own @ other / np.linalg.norm(own) / np.linalg.norm(other) for other in others]
        setattr(figures, name, float(np.mean(cosines)) if cosines else float("nan"))


def gaze(landmarks: np.ndarray) -> np.ndarray:
    """Where the irises are between the corners of their eyes, mean of both: (..., 478, 3) -> (...), 0 to 1."""
    places = []
    for iris, left, right in IRISES:
        along = landmarks[..., right, :2] - landmarks[..., left, :2]
        away = landmarks[..., iris, :2] - landmarks[..., left, :2]
        places.append((along * away).sum(-1) / np.square(along).sum(-1))
    return np.mean(places, 0)


def _followed(figures: Figures, clip: Clip, drawn: np.ndarray, mesh: FaceMesh) -> None:
    faces = list(mesh.track(iter(drawn)))
    seen = [t for t, face in enumerate(faces) if face is not None]
    if len(seen) < MIN_FOUND:
        return
    have = np.stack([faces[t].landmarks for t in seen])  # type: ignore[union-attr]
    for name, measure in (("mouth", mouth_opening), ("lids", eye_opening), ("gaze", gaze)):
        wanted = measure(clip.landmarks[seen])
        if wanted.std() > MIN_SPREAD[name]:
            setattr(figures, f"r_{name}", correlation(wanted, measure(have)))


# Contact sheets


def moments(landmarks: np.ndarray) -> list[int]:
    """Frames of (T, 478, 3) to look at: first, widest mouth, closed lips, closed eyes, head left, right, up, down."""
    mouth, eyes = mouth_opening(landmarks), eye_opening(landmarks)
    x, y = (
        landmarks[:, 1, 0] - landmarks[:, [234, 454], 0].mean(1),
        landmarks[:, 1, 1] - landmarks[:, [10, 152], 1].mean(1),
    )
    late = max(1, len(landmarks) // 8)
    return [
        0, int(mouth.argmax()), late + int(mouth[late:].argmin()), int(eyes.argmin()),
        int(x.argmin()), int(x.argmax()), int(y.argmin()), int(y.argmax()),
    ]  # fmt: skip


def sheet(clip: Clip, drawn: np.ndarray) -> np.ndarray:
    """Real frames above drawn ones at `moments`: (2 SIZE, 8 SIZE, 3) uint8."""
    times = moments(clip.landmarks)
    return np.concatenate([np.concatenate(list(frames[times]), 1) for frames in (clip.real, drawn)])
