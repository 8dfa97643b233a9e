"""Fit the motion space `face-1` to the clips of a prepared folder with motion: `python scripts/face1.py DATA`.

Writes mssync/assets/face_1.npz. What was trained on motion of the space that stood there before does not fit the new
one: a space that changes needs another name (`mssync.face1.SPACE`).
"""

from __future__ import annotations

import sys

import numpy as np

from mssync import face1
from mssync.training.face1 import fit_body, fit_space


def main(data: str) -> None:
    found = fit_space(data)
    np.savez_compressed(face1.FILE, **found, body=np.zeros((6, 6), np.float32))
    np.savez_compressed(face1.FILE, **found, body=fit_body(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
