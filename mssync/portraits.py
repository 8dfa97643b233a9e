"""The face of a portrait: turned upright where the picture lies on its side, and what speaks against animating it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import Box, Face, crop, eye_opening, head_pose, mouth_opening
from mssync.pictures import RGB

TURNED = {  # quarter turns to the left, in the order in which they are tried -> what is said of them
    0: "",
    1: "lies on its side; the picture is turned to the left",
    3: "lies on its side; the picture is turned to the right",
    2: "is upside down; the picture is turned",
}
MAX_ROLL = 60.0  # degrees: a head may tilt by less in a picture that is upright
AROUND = 2.0  # side of the part by which a face's direction is told, in sides of the face
AROUND_PIXELS = 256
SURE = 0.97  # of a face that is upright: those that are upside down have less

# Where portraits stop to be good ones, by landmarks. These turn less than the head: the three profiles among 193
# portraits have 52 to 56 degrees, all others at most 36.
MAX_YAW = 45.0
MIN_WIDTH = 75  # pixels
LEAST_WIDTH = 24  # pixels: with fewer, eyes and lips are dots
MAX_OUTSIDE = 0.02  # of the face's height, outside the picture: as far as landmarks may err
MOST_OUTSIDE = 0.3  # likewise: with more, eyes or mouth are missing
MIN_EYES = 0.12  # `faces.eye_opening`
MAX_MOUTH = 0.4  # `faces.mouth_opening`


def find_face(mesh: FaceMesh, picture: RGB, name: str) -> tuple[RGB, Face]:
    """The largest face of a picture, and the picture, by quarter turns so that this face is upright.

    picture: (H, W, 3) uint8. Warns where it is turned, and of what makes bad videos.
    Raises InputError (naming `name`) where there is no face, or nothing good could come of it.
    """
    seen_at: dict[int, list[Face]] = {}
    more: int | None = None
    for turn in TURNED:
        upright = turned(picture, turn)
        if faces := mesh(upright):
            seen_at[turn] = faces
            if (more := _turns_to_upright(mesh, upright, faces[0])) is not None:
                break
    if not seen_at:
        raise InputError(f"{name}: no face found; use a picture that shows one face, roughly from the front")
    if more is None:
        turn = next(iter(seen_at))
    faces, upright = seen_at[turn], turned(picture, turn)
    if more and (seen := mesh(turned(upright, more))):
        faces, upright, turn = seen, turned(upright, more), (turn + more) % 4
    if turn:
        warnings.warn(f"{name}: the face {TURNED[turn]}", stacklevel=2)
    height, width = upright.shape[:2]
    for doubt in doubts(faces, width, height, name):
        warnings.warn(f"{name}: {doubt}", stacklevel=2)
    return upright, faces[0]


def turned(picture: RGB, quarters: int) -> RGB:
    """A picture after quarter turns to the left."""
    return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture


def _turns_to_upright(mesh: FaceMesh, picture: RGB, face: Face) -> int | None:
    """How many quarter turns to the left bring a face upright, 0 to 3; None where it is seen from no side.

    A mesh that was found on an upside-down face looks upright as often as not, so that the face is looked at from
    all four sides: each is a vote for where its mesh says that up is, and weighs as much as the detector is sure of it.
    """
    x0, y0, x1, y1 = face.box
    side = AROUND * max(x1 - x0, y1 - y0)
    around = crop(picture, Box((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side), AROUND_PIXELS)
    votes = np.zeros(4)
    for quarters in range(4):
        view = turned(around, quarters)
        sure = mesh.confidence(view)
        faces = mesh(view) if sure else []
        if faces:
            roll = (head_pose(faces[0].landmarks)[2] + 90 * quarters + 180) % 360 - 180
            needed = 0 if abs(roll) < MAX_ROLL else round(roll / 90) % 4
            if needed == quarters == 0 and sure > SURE:
                return 0
            votes[needed] += np.log(sure / (1 - sure))
    return int(votes.argmax()) if votes.any() else None


def doubts(faces: list[Face], width: int, height: int, name: str) -> Iterator[str]:
    """What speaks against animating the first of some faces in a picture of so many pixels, a sentence each.

    Raises InputError (naming `name`) where nothing good could come of it.
    """
    x0, y0, x1, y1 = faces[0].box
    outside = max(-x0, -y0, x1 - width, y1 - height) / (y1 - y0)
    if outside > MOST_OUTSIDE:
        raise InputError(f"{name}: too much of the face lies outside the picture; use one that shows the whole head")
    if x1 - x0 < LEAST_WIDTH:
        raise InputError(
            f"{name}: the face is only {x1 - x0:.0f} pixels wide; use a larger picture, {MIN_WIDTH} are the least"
        )
    if len(faces) > 1:
        yield f"{len(faces)} faces found; the largest one is used"
    if abs(head_pose(faces[0].landmarks)[0]) > MAX_YAW:
        yield "the face is seen from the side and will be torn; use a picture from the front"
    if x1 - x0 < MIN_WIDTH:
        yield f"the face is only {x1 - x0:.0f} pixels wide and will be blurred; use a larger picture or a closer one"
    if outside > MAX_OUTSIDE:
        yield "the face reaches out of the picture, which will show; use a picture of the whole head"
    if eye_opening(faces[0].landmarks) < MIN_EYES:
        yield "the eyes are closed and will stay so; use a picture with open eyes"
    if mouth_opening(faces[0].landmarks) > MAX_MOUTH:
        yield "the mouth is wide open and will hardly close; use a picture with the lips together"
