"""What pictures of a moving face look like: sharp or blurred, tinted, steady or flickering, whose they are.

Frames are (T, s, s, 3) uint8, landmarks (T, 478, 3) float32 in their pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.face.analyser import FaceMesh
from mssync.faces import eye_opening, mouth_opening
from mssync.metrics.colour import ciede2000, lab
from mssync.metrics.estimates import correlation
from mssync.metrics.footage import BLOCK, Clip
from mssync.metrics.identity import FaceEmbedding
from mssync.metrics.regions import pixels, seen_skin
from mssync.pixels import shrunk
from mssync.reenact import to_tensor
from mssync.render.field import thin_plate, view, view_solver
from mssync.render.organs import MOUTH, framed, grid, inside, opened, source_frame
from mssync.render.painter import sampled
from mssync.render.scene import control_points

NAN = float("nan")
COARSE = 1 / 64  # of the side: deviation of the low-pass before colours are compared
LEAST = 1e-6  # weight of a low-pass, far from all skin
REDUCED = 4  # times: as much smaller pictures are low-passed
CELLS = 32  # along a side, at which motion is interpolated between landmarks to take it out
FOLLOWS = 1e-4  # stiffness of that interpolation, in coordinates of [-1, 1]
OPEN = 0.9  # of a pixel in the mouth's window that is counted as inside
MIN_OPEN = 40  # pixels of that window that must be inside in two frames to compare them
MIN_FOUND = 10  # frames with a face, below which nothing follows
MIN_SPREAD = {"mouth": 0.01, "lids": 0.01, "gaze": 0.01}  # a clip that moves less has no correlation
IRISES = ((468, 33, 133), (473, 362, 263))  # centre, corners from left to right


def over(one: float, two: float) -> float:
    """A ratio; nan over nothing."""
    return one / two if two else NAN


def area_reduced(frame: np.ndarray, size: int) -> Tensor:
    """(s, s, 3) uint8 -> (1, 3, size, size) in [0, 1], means over areas."""
    return F.interpolate(to_tensor(frame[None]), size=(size,) * 2, mode="area")


def laplacian(pictures: Tensor) -> Tensor:
    """(T, 3, h, w) -> (T, h, w): four times a pixel's grey less its neighbours', 0 at the border."""
    grey = pictures.mean(1)
    middle, rows, columns = grey[:, 1:-1, 1:-1], grey[:, :, 1:-1], grey[:, 1:-1]
    inner = 4 * middle - rows[:, :-2] - rows[:, 2:] - columns[..., :-2] - columns[..., 2:]
    return F.pad(inner, (1, 1, 1, 1))


def tint(clip: Clip, frames: np.ndarray, times: Sequence[int] | np.ndarray, skin: Sequence[np.ndarray]) -> float:
    """Mean CIEDE2000 between low-passed colours of frames (T, s, s, 3) and of the portrait, at the same mesh points.

    times: of the frames that are looked at; skin: masks (s, s) bool of all. Points count where both show skin.
    """
    own, own_seen = skin_colours(clip.real[0], clip.landmarks[0], skin[0])
    differences = []
    for t in times:
        colours, seen = skin_colours(frames[t], clip.landmarks[t], skin[t])
        differences.append(ciede2000(own, colours)[own_seen & seen])
    every = np.concatenate(differences)
    return float(every.mean()) if len(every) else NAN


def skin_colours(frame: np.ndarray, points: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CIELAB (478, 3) of a frame (s, s, 3) at its mesh points, low-passed over its skin (s, s); which show it."""
    from scipy.ndimage import gaussian_filter

    side = len(frame) // REDUCED
    deviation = COARSE * side
    layers = (np.dstack([frame, np.ones_like(skin)]) * skin[..., None]).astype(np.float32)  # colours, and how much
    blurred = gaussian_filter(shrunk(layers, side, side), (deviation, deviation, 0), mode="mirror")
    x, y = pixels(points * (side / len(frame)), side)
    total, weight = np.split(blurred[y, x], [3], axis=1)
    return lab(total / np.maximum(weight, LEAST)), seen_skin(points, skin)


def teeth_change(frames: np.ndarray, landmarks: np.ndarray, blocks: np.ndarray) -> float:
    """Mean absolute change in [0, 1] inside the open mouth from frame to frame of a block, along the skull's motion.

    frames (T, s, s, 3) uint8; landmarks (T, 478, 3), first the portrait's; blocks (k, BLOCK). The mouth is seen in a
    window that is fixed to points which speech does not move.
    """
    portrait = torch.from_numpy(landmarks[:1])
    frame, solver, total, count = source_frame(MOUTH, portrait), view_solver(portrait), 0.0, 0.0
    scale = torch.tensor([float(frames.shape[1])] * 2)
    for block in blocks:
        mesh = torch.from_numpy(landmarks[block][..., :2])
        window = framed(frame, view(solver, mesh))
        seen = sampled(to_tensor(frames[block]), window, grid(MOUTH.size).expand(BLOCK, -1, -1, -1), scale)
        gap = opened(MOUTH, inside(window, mesh))[:, 0] > OPEN
        both = gap[1:] & gap[:-1]
        both &= both.sum((1, 2), keepdim=True) >= MIN_OPEN
        total += float(((seen[1:] - seen[:-1]).abs().mean(1) * both).sum())
        count += float(both.sum())
    return over(total, count)


def flicker(frames: np.ndarray, landmarks: np.ndarray, blocks: np.ndarray, face: Tensor) -> float:
    """Mean absolute second difference in [0, 1] over blocks of three frames, motion along the landmarks taken out.

    frames (T, s, s, 3) uint8; landmarks (T, 478, 3); blocks (k, 3); face (k, s, s): where to look, in middle frames.
    """
    total, count = 0.0, 0.0
    for block, mask in zip(blocks, face, strict=True):
        before, now, after = to_tensor(frames[block]).split(1)
        points = torch.from_numpy(landmarks[block][..., :2])
        onto = (moved(picture, points[k], points[1]) for k, picture in ((0, before), (2, after)))
        second = sum(onto, -2 * now).abs().mean(1)[0]
        total += float((second * mask).sum())
        count += float(mask.sum())
    return over(total, count)


def moved(picture: Tensor, points: Tensor, target: Tensor) -> Tensor:
    """A picture (1, 3, s, s) with landmarks (478, 2) in its pixels, warped so that they lie where `target` has them."""
    size, chosen = picture.shape[-1], control_points()
    unit = size / 2
    here, there = target[chosen] / unit, points[chosen] / unit
    where = _centres(CELLS).flatten(0, 1) + 1
    offset = thin_plate(here[None], (there - here)[None], where, FOLLOWS).view(1, CELLS, CELLS, 2)
    offset = F.interpolate(offset.permute(0, 3, 1, 2), size=(size, size), mode="bilinear").permute(0, 2, 3, 1)
    at = _centres(size) + offset
    return F.grid_sample(picture, at, mode="bicubic", padding_mode="border", align_corners=False)


def _centres(count: int) -> Tensor:
    """(count, count, 2): centres of cells in [-1, 1]."""
    axis = (torch.arange(count) * 2 + 1) / count - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def identity(clip: Clip, frames: np.ndarray, embed: FaceEmbedding | None) -> float:
    """Mean cosine between face embeddings of a clip's portrait and of frames, one a block; nan without an embedding."""
    if embed is None:
        return NAN
    own = embed(clip.real[0], clip.landmarks[0])
    others = np.array([embed(frames[t], clip.landmarks[t]) for t in clip.blocks[:, 1]])
    return float((others @ own / np.linalg.norm(others, axis=1) / np.linalg.norm(own)).mean())


def gaze(landmarks: np.ndarray) -> np.ndarray:
    """Where the irises are between the corners of their eyes, mean of both: (..., 478, 3) -> (...), 0 to 1."""
    places = []
    for iris, left, right in IRISES:
        along = landmarks[..., right, :2] - landmarks[..., left, :2]
        away = landmarks[..., iris, :2] - landmarks[..., left, :2]
        places.append((along * away).sum(-1) / np.square(along).sum(-1))
    return np.mean(places, 0)


def followed(landmarks: np.ndarray, drawn: np.ndarray, mesh: FaceMesh) -> dict[str, float]:
    """`found`, and r of mouth, lids and gaze between driving landmarks (T, 478, 3) and drawn frames, see `Figures`."""
    faces = list(mesh.track(iter(drawn)))
    seen = [t for t, face in enumerate(faces) if face is not None]
    figures = {"found": len(seen) / len(faces)}
    have = np.stack([faces[t].landmarks for t in seen]) if len(seen) >= MIN_FOUND else None  # type: ignore[union-attr]
    for name, measure in (("mouth", mouth_opening), ("lids", eye_opening), ("gaze", gaze)):
        wanted = measure(landmarks)
        if wanted.std() <= MIN_SPREAD[name]:
            figures[f"r_{name}"] = NAN
        else:
            figures[f"r_{name}"] = 0.0 if have is None else correlation(wanted[seen], measure(have))
    return figures
