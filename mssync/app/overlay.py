"""What the page draws over pictures: the crop, the face found in it, and the keypoints that move it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mssync.animate import Frames, Pipeline, Portrait
from mssync.face.analyser import largest_face
from mssync.faces import Box, crop
from mssync.motion import jacobians, points
from mssync.pixels import stroke

PREVIEW = 560  # side of a preview in pixels: sharp on a phone's screen, quickly sent
SURROUNDINGS = 0.25  # what a preview shows around the crop, in sides of the crop
DIMMED = 0.35  # brightness of what lies outside the crop
CROP, FACE, KEYPOINT, AXES = (255, 255, 255), (120, 220, 255), (255, 210, 0), ((255, 90, 90), (90, 255, 120))  # RGB
FRAME = 2  # pixels: width of the lines around crop and face
AXIS = 0.05  # length of a keypoint's axes in sides of the crop, where its Jacobian is the unit matrix


def preview(talker: Pipeline, picture: np.ndarray) -> np.ndarray:
    """The part of a picture (H, W, 3) uint8 that is animated, bright in its surroundings, with face and keypoints.

    Returns (PREVIEW, PREVIEW, 3) uint8. Raises InputError where there is no face.
    """
    portrait = talker.portrait(picture)
    face = largest_face(talker.face_mesh, portrait.picture, "the picture")
    box, margin = portrait.box, SURROUNDINGS * portrait.box.side
    around = Box(box.x0 - margin, box.y0 - margin, box.side + 2 * margin)
    scale = PREVIEW / around.side
    inner = Box(margin * scale, margin * scale, box.side * scale)
    bright = crop(portrait.picture, around, PREVIEW)
    shown = (bright * DIMMED).astype(np.uint8)
    low, high = round(inner.x0), round(inner.x0 + inner.side)
    shown[low:high, low:high] = bright[low:high, low:high]
    _frame(shown, (low, low), (high, high), CROP)
    corners = (np.array(face.box).reshape(2, 2) - (around.x0, around.y0)) * scale
    upper, lower = corners.round().tolist()
    _frame(shown, upper, lower, FACE)
    draw_pose(shown, portrait.pose, inner)
    return shown


def _frame(picture: np.ndarray, upper: Sequence[float], lower: Sequence[float], colour: Sequence[int]) -> None:
    """Draw a rectangle around (x, y) of its upper left and its lower right corner into a picture (H, W, 3) uint8."""
    corners = [upper, (lower[0], upper[1]), lower, (upper[0], lower[1])]
    for k in range(4):
        stroke(picture, corners[k - 1], corners[k], FRAME, colour)


def with_motion(frames: Frames, portrait: Portrait, paste_back: bool) -> Iterator[np.ndarray]:
    """Frames with the keypoints that move them drawn in. paste_back: as they were asked for."""
    motion = frames.motion
    for frame, pose in zip(frames, motion, strict=True):
        shown = np.ascontiguousarray(frame)
        draw_pose(shown, pose, portrait.box if paste_back else Box(0, 0, shown.shape[0]))
        yield shown


def draw_pose(picture: np.ndarray, pose: np.ndarray, box: Box) -> None:
    """Draw keypoints (10, 6) of a crop into a picture (H, W, 3) uint8 that holds it at `box`: dots with their axes."""
    centres = np.array([box.x0, box.y0]) + (points(pose) + 1) * box.side / 2
    width = max(1, round(box.side / 200))
    for centre, jacobian in zip(centres, jacobians(pose), strict=True):
        for axis, colour in zip(jacobian.T, AXES, strict=True):  # where the x and the y axis of the face point
            stroke(picture, centre, centre + axis * AXIS * box.side, width, colour)
        stroke(picture, centre, centre, 4 * width, KEYPOINT)
