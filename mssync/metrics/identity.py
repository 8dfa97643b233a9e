"""Whether a face stays the same person's: dlib's face embedding, whose weights come in a pip package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from mssync.errors import InputError

MODULES = ("dlib", "face_recognition_models")  # of the extra "identity"
WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
POINTS = (263, 362, 33, 133, 2)  # the mesh's points for dlib's five: corners of both eyes, base of the nose
CHIP = 150  # pixels
PADDING = 0.25
SAME_PERSON = 0.6  # the distance below which dlib's authors take two faces for one person's


def available() -> bool:
    """Whether the packages of the extra "identity" are installed."""
    return all(importlib.util.find_spec(name) for name in MODULES)


class FaceEmbedding:
    """Embeds faces: `embedding(picture, landmarks)`. Distances below SAME_PERSON mean the same person.

    Raises InputError where the packages of the extra "identity" are not installed.
    """

    def __init__(self) -> None:
        if not available():
            raise InputError(
                'the identity metric needs more packages; install them with: pip install "mssync[identity]"'
            )
        import dlib

        # Found without importing it: the package needs a setuptools of the past, its files do not.
        (folder,) = importlib.util.find_spec(MODULES[1]).submodule_search_locations  # type: ignore[union-attr, misc]
        self._dlib = dlib
        self._network = dlib.face_recognition_model_v1(str(Path(folder, "models", WEIGHTS)))

    def __call__(self, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Embedding (128,) of the face with landmarks (478, 3) in the pixels of a picture (H, W, 3) uint8 RGB."""
        dlib = self._dlib
        low, high = (f(landmarks[:, :2], axis=0).round().astype(int).tolist() for f in (np.min, np.max))
        points = dlib.points([dlib.point(*map(round, landmarks[i, :2].tolist())) for i in POINTS])
        face = dlib.full_object_detection(dlib.rectangle(*low, *high), points)
        chip = dlib.get_face_chip(np.ascontiguousarray(picture), face, CHIP, PADDING)
        return np.array(self._network.compute_face_descriptor(chip))
