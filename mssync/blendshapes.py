"""The 52 blendshapes of ARKit, by which 3-D avatars are moved (VRM, MetaHuman, three.js), from motion of face-1.

A blendshape is nearly linear in expressions and gaze, but never below zero: W is fitted to a network that sees
blendshapes in meshes (`scripts/arkit.py`), counted from an ordinary face, which is the zero of all of them.

    blendshape = min(1, max(0, W [gaze, expression, 1]))

"Left" is the person's own left. Files are those that the app Live Link Face writes, which Unreal Engine reads.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mssync.errors import InputError, PathLike, written_whole
from mssync.face1 import EXPRESSION, GAZE, NUMBERS, TURN, rotation, straight
from mssync.video import FPS

FILE = Path(__file__).parent / "assets" / "arkit.npy"  # W, (45, 52)
SIDED = ("EyeBlink", "EyeLookDown", "EyeLookIn", "EyeLookOut", "EyeLookUp", "EyeSquint", "EyeWide")
NAMES = (  # in the order of Live Link Face
    *(f"{name}Left" for name in SIDED), *(f"{name}Right" for name in SIDED),
    "JawForward", "JawRight", "JawLeft", "JawOpen",
    "MouthClose", "MouthFunnel", "MouthPucker", "MouthRight", "MouthLeft",
    "MouthSmileLeft", "MouthSmileRight", "MouthFrownLeft", "MouthFrownRight", "MouthDimpleLeft", "MouthDimpleRight",
    "MouthStretchLeft", "MouthStretchRight", "MouthRollLower", "MouthRollUpper", "MouthShrugLower", "MouthShrugUpper",
    "MouthPressLeft", "MouthPressRight", "MouthLowerDownLeft", "MouthLowerDownRight",
    "MouthUpperUpLeft", "MouthUpperUpRight",
    "BrowDownLeft", "BrowDownRight", "BrowInnerUp", "BrowOuterUpLeft", "BrowOuterUpRight",
    "CheekPuff", "CheekSquintLeft", "CheekSquintRight", "NoseSneerLeft", "NoseSneerRight", "TongueOut",
)  # fmt: skip
EYES = tuple(f"{side}Eye{turn}" for side in ("Left", "Right") for turn in ("Yaw", "Pitch", "Roll"))
ROTATIONS = ("HeadYaw", "HeadPitch", "HeadRoll", *EYES)
EYE_TURN = 2.4  # sine of an eyeball's turn where its iris moves by the width of the eye: 29 mm, over a radius of 12 mm


@lru_cache(maxsize=1)
def _weight() -> NDArray[np.float32]:
    return np.load(FILE)


def blendshapes(motion: NDArray) -> NDArray[np.float32]:
    """Motion (..., 50) of the space face-1 -> blendshapes (..., 52) by `NAMES`, each from 0 to 1."""
    given = np.concatenate([motion[..., GAZE], motion[..., EXPRESSION]], -1)
    return (given @ _weight()[:-1] + _weight()[-1]).clip(0, 1).astype(np.float32)


def rotations(motion: NDArray) -> NDArray[np.float32]:
    """Motion (..., 50) of the space face-1 -> turns of head and eyes (..., 9) by `ROTATIONS`, rad.

    Yaw is positive to the person's own left, pitch upwards, roll towards the own left shoulder. Eyes turn in the head,
    counted from looking straight ahead; they do not roll.
    """
    turns = rotation(torch.from_numpy(motion[..., TURN].astype(np.float64))).numpy()
    forward, right = -turns[..., 2], turns[..., 0]  # columns: where the nose, and the own left, point in the picture
    head = [np.arctan2(forward[..., 0], -forward[..., 2]), np.arcsin(-forward[..., 1].clip(-1, 1))]
    head.append(np.arctan2(right[..., 1], right[..., 0]))
    # The eye on the right of the picture is the person's left one.
    sines = (EYE_TURN * (motion[..., GAZE] - straight())).clip(-1, 1)
    eyes = np.arcsin(sines).reshape(*motion.shape[:-1], 2, 2)[..., ::-1, :]
    eyes = np.concatenate([eyes[..., :1], -eyes[..., 1:], np.zeros_like(eyes[..., :1])], -1)
    return np.concatenate([np.stack(head, -1), eyes.reshape(*motion.shape[:-1], 6)], -1).astype(np.float32)


def save_blendshapes(path: PathLike, motion: NDArray) -> None:
    """Write motion (T, 50) of the space face-1 as a CSV file of Live Link Face, 25 frames a second.

    Raises InputError when motion is of another shape, or the file cannot be written.
    """
    if motion.ndim != 2 or motion.shape[1] != NUMBERS:
        raise InputError(f"{path}: blendshapes are made from motion of the space face-1, frames × {NUMBERS}")
    values = np.concatenate([blendshapes(motion), rotations(motion)], 1)
    with written_whole(path, ".csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["Timecode", "BlendshapeCount", *NAMES, *ROTATIONS])
        for number, row in enumerate(values):
            table.writerow([timecode(number), len(row), *(f"{value:.5f}" for value in row)])


def timecode(frame: int) -> str:
    """Of a frame at 25 a second: hours, minutes, seconds, frames and their thousandths."""
    seconds, frames = divmod(frame, FPS)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frames:02}.000"
