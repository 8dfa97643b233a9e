"""How far one picture is from another, and which parts of a talking head's picture are what.

Pictures are (1, 3, s, s) float in [0, 1]; landmarks are marks (478, 2) in the picture's [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from mssync.faces import CHIN

PSNR_LIMIT = 100.0  # dB, of equal pictures, so that a mean over pictures stays finite
HEAD_GROWTH = 1.6  # the mesh ends at hairline and ears: hair, ears and what a warp drags along lie outside of it
HAIR_GROWTH = 1.3  # once more upwards of the face's centre

Distance = Callable[[Tensor, Tensor], Tensor]  # of two pictures, a scalar


def compare(picture: Tensor, wanted: Tensor, marks: np.ndarray, perceptual: Distance) -> dict[str, float]:
    """Distances of a picture from the wanted one, whose face has the given marks.

    l1, l1_face: mean absolute error in [0, 1], the whole picture and the box of the face alone; psnr: dB, at most
    PSNR_LIMIT; ssim: structural similarity, 1 for equal pictures; perceptual: what `perceptual` says, see
    training.perceptual (this is not LPIPS).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    inside = face_box(marks, wanted.shape[-1])
    return {
        "l1": float((picture - wanted).abs().mean()),
        "l1_face": float((picture[inside] - wanted[inside]).abs().mean()),
        "psnr": psnr(picture, wanted),
        "ssim": float(structural_similarity_index_measure(picture, wanted, data_range=1.0)),  # type: ignore[arg-type]
        "perceptual": float(perceptual(picture, wanted)),
    }


def psnr(picture: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], at most PSNR_LIMIT."""
    squared = float((picture - wanted).square().mean())
    return float(min(-10 * np.log10(max(squared, 1e-30)), PSNR_LIMIT))


def face_box(marks: np.ndarray, size: int) -> tuple[EllipsisType, slice, slice]:
    """Index of the marks' bounding box in pictures (…, size, size); never empty."""
    pixels = _pixels(marks, size)
    x0, y0 = np.clip(pixels.min(0), 0, size - 2).astype(int)
    x1, y1 = np.clip(pixels.max(0), 2, size).astype(int)
    return ..., slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


def background_and_body(marks: np.ndarray, other: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture shows background and where body, in either of two frames: two masks (size, size).

    marks, other: of the two frames. Head is the hull of the marks, grown by HEAD_GROWTH around the face, in
    both frames together. Body is what else lies below the higher of the two chins, with what may be seen
    beside the shoulders. Background is the rest: nothing of a person, unless hair or hands reach further.
    """
    head = _head(marks, size) | _head(other, size)
    chin = min(float(_pixels(m, size)[CHIN, 1]) for m in (marks, other))
    below = np.broadcast_to((np.arange(size) + 0.5 >= chin)[:, None], head.shape)
    return ~head & ~below, ~head & below


def _head(marks: np.ndarray, size: int) -> np.ndarray:
    import cv2

    pixels = _pixels(marks, size)
    centre = (pixels.min(0) + pixels.max(0)) / 2
    reach = (pixels - centre) * HEAD_GROWTH
    reach[:, 1] *= np.where(reach[:, 1] < 0, HAIR_GROWTH, 1.0)
    hull = cv2.convexHull((centre + reach).astype(np.float32)).round().astype(np.int32)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, hull, (1,))
    return mask.astype(bool)


def _pixels(marks: np.ndarray, size: int) -> np.ndarray:
    return (marks[:, :2] + 1) / 2 * size


def to_tensor(frames: np.ndarray) -> Tensor:
    """(B, s, s, 3) uint8 -> (B, 3, s, s) float in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def to_frames(pictures: Tensor) -> np.ndarray:
    """(B, 3, s, s) in [0, 1] -> (B, s, s, 3) uint8, as a video shows them."""
    frames = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(frames.cpu().numpy())
