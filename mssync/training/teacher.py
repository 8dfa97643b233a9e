"""Faces as MediaPipe sees them, of which the networks of `mssync.face` learn. A tool of training alone:
`pip install "mssync[teachers]"`, which has wheels for Python 3.10 to 3.12.

mediapipe is not safe with threads, and a graph of it that failed once fails for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mssync.errors import InputError
from mssync.faces import Box, Face, crop, eye_distance, mirrored_landmarks

FIND, FOLLOW = 0.5, 0.3  # confidence of a face in a picture, and in the square around it
PIXELS = (192, 512)  # side of that square, least and most
AGREED = 0.2  # mean distance, in that of the eyes, of meshes of a picture and of its mirror picture
ROOM = 2.0  # side of that square in the larger side of a detection


@lru_cache(maxsize=1)
def _solutions() -> Any:
    try:
        import mediapipe
    except ImportError as error:
        raise InputError('MediaPipe is not installed; pip install "mssync[teachers]"') from error
    return mediapipe.solutions


class Teacher:
    """Dense landmarks of faces in pictures, and in videos of one speaker.

    agreed: whether what it says of a picture and of its mirror picture, which differs by 2 % of the eyes' distance,
    is averaged, and nothing said where the two do not agree: of such meshes more is learned than of single ones.
    """

    def __init__(self, agreed: bool = True) -> None:
        self.agreed = agreed
        meshes, detection = _solutions().face_mesh.FaceMesh, _solutions().face_detection.FaceDetection
        self._still = meshes(
            static_image_mode=True, refine_landmarks=True, max_num_faces=1, min_detection_confidence=FOLLOW
        )
        self._finders = [detection(model_selection=model, min_detection_confidence=FIND) for model in (0, 1)]

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """The surest face of a picture (H, W, 3) RGB that shows as a whole, if any."""
        height, width = image.shape[:2]
        for finder in self._finders:  # near faces, then those that are small in the picture
            found = sorted(finder.process(image).detections or [], key=lambda hit: -hit.score[0])
            for hit in found[:1]:
                box = hit.location_data.relative_bounding_box
                side = ROOM * max(box.width * width, box.height * height)
                x, y = (box.xmin + box.width / 2) * width, (box.ymin + box.height / 2) * height
                square = Box(x - side / 2, y - side / 2, side)
                points = self._mesh(crop(image, square, int(np.clip(round(side), *PIXELS))))
                if points is not None:
                    return [Face(points * np.float32(side) + np.array([square.x0, square.y0, 0], np.float32))]
        return []

    def track(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[Face | None]:
        """One face (or None) a frame (H, W, 3) RGB, each seen alone."""
        for frame in frames:
            yield next(iter(self(frame)), None)

    def _mesh(self, square: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """The mesh (478, 3), if any, in a square's [0, 1]."""
        straight = self._told(square)
        if straight is None or not self.agreed:
            return straight
        turned = self._told(square[:, ::-1])
        if turned is None:
            return None
        back = mirrored_landmarks(turned) + np.array([1, 0, 0], np.float32)
        eyes = eye_distance(straight)
        apart = np.linalg.norm((straight - back)[:, :2], axis=1).mean()
        return (straight + back) / 2 if apart < AGREED * eyes else None

    def _told(self, square: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        seen = self._still.process(np.ascontiguousarray(square)).multi_face_landmarks
        return np.array([(p.x, p.y, p.z) for p in seen[0].landmark], np.float32) if seen else None
