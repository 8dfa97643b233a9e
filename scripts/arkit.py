"""Fit ARKit's blendshapes to motion of the space face-1: `python scripts/arkit.py TASK GRAPH DATA`.

TASK: MediaPipe's `face_landmarker.task` (Apache-2.0), whose network `face_blendshapes.tflite` tells 52 blendshapes from
146 points of a mesh; GRAPH: its source file `face_blendshapes_graph.cc`, which lists points and names; DATA: a prepared
folder. The expressions and gazes of the training clips are put on the mean face, the network is asked about these
meshes (`pip install ai-edge-litert`), and the weights of `mssync.blendshapes` are fitted to what it says, counted from
what it says of the median mesh. Writes mssync/assets/arkit.npy, and prints R² by name on the clips of `val`.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mssync import blendshapes
from mssync.data.sequences import read_sequences
from mssync.face1 import EXPRESSION, GAZE, POSE, FaceSpace, mean_rest

EVERY, SHORTEST, TAPS = 4, 50, 3  # frames that are taken of clips, of the shortest clip, of smoothing
PIXELS = 200  # in a unit of the space, of the meshes as the network sees them
STEPS, BATCH, RATE = 3000, 2048, 2e-3
SLOPE = 0.05  # of what is below zero, which the fit would not leave otherwise
RIDGE = 1e-3
LEAST = 0.02  # deviation of a blendshape, of which errors count in units

Teacher = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main(task: str, graph: str, data: str) -> None:
    points, names = listed(graph)
    ask = teacher(task, points)
    columns = [names.index(name[0].lower() + name[1:]) for name in blendshapes.NAMES if name != "TongueOut"]
    given, meshes = faces(data, "train")
    said = ask(meshes)[:, columns]
    usual = np.median(said, 0)
    weight = fit(given, counted(said, usual))
    tongue = torch.zeros(len(weight), 1)  # which no mesh shows
    np.save(blendshapes.FILE, torch.cat([weight, tongue], 1).numpy())
    given, meshes = faces(data, "val")
    wanted = counted(ask(meshes)[:, columns], usual)
    error = ((with_one(given) @ weight).clamp(0, 1) - wanted).square().mean(0)
    for name, r2 in zip(blendshapes.NAMES, 1 - error / wanted.var(0), strict=False):
        print(f"{name:20s} {float(r2):.2f}")


def counted(said: NDArray[np.float32], usual: NDArray[np.float32]) -> Tensor:
    """Blendshapes (m, n) counted from those of an ordinary face (n,), from 0 to 1."""
    return torch.from_numpy(((said - usual) / (1 - usual)).clip(0, 1))


def listed(graph: str) -> tuple[list[int], list[str]]:
    """The points that the network sees, and the names of what it tells, as its source file lists them."""
    text = Path(graph).read_text(encoding="utf-8")
    points, names = (
        re.search(rf"{name} = \{{(.*?)\}};", text, re.S) for name in ("kLandmarksSubsetIdxs", "kBlendshapeNames")
    )
    if not (points and names):
        raise SystemExit(f"{graph} lists no points and names")
    return [int(n) for n in re.findall(r"\d+", points[1])], re.findall(r'"(\w+)"', names[1])


def teacher(task: str, points: list[int]) -> Teacher:
    """Meshes (n, 478, 2) -> blendshapes (n, 52)."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(model_content=zipfile.ZipFile(task).read("face_blendshapes.tflite"))
    network.allocate_tensors()
    into, out = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]

    def ask(meshes: NDArray[np.float32]) -> NDArray[np.float32]:
        found = []
        for mesh in meshes[:, points]:
            network.set_tensor(into, mesh[None] * PIXELS + PIXELS)
            network.invoke()
            found.append(network.get_tensor(out).copy())
        return np.stack(found)

    return ask


def faces(data: str, split: str) -> tuple[Tensor, NDArray[np.float32]]:
    """Gaze and expression (n, 44) of frames of a split, and the mean face under them (n, 478, 2)."""
    clips = read_sequences(data, split, SHORTEST, TAPS, faces=True)
    motion = torch.cat([clip.faces[0].motion[::EVERY] for clip in clips if clip.faces])
    still = motion.clone()
    still[:, POSE] = 0
    meshes = FaceSpace().mesh(still, torch.from_numpy(mean_rest())[None])
    return torch.cat([motion[:, GAZE], motion[:, EXPRESSION]], 1), meshes.numpy()


def with_one(given: Tensor) -> Tensor:
    return F.pad(given, (0, 1), value=1.0)


def fit(given: Tensor, wanted: Tensor) -> Tensor:
    """Weights (45, n) of least squares of what is not below zero: ridge regression, then Adam."""
    design, scale = with_one(given), wanted.std(0).clamp_min(LEAST)
    square = design.T @ design + RIDGE * len(design) * torch.diag(design.square().mean(0))
    weight = torch.linalg.solve(square, design.T @ wanted).requires_grad_(True)
    optimizer, generator = torch.optim.Adam([weight], RATE), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = torch.randint(len(design), (BATCH,), generator=generator)
        made = F.leaky_relu(design[rows] @ weight, SLOPE)
        loss = ((made - wanted[rows]) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach()


if __name__ == "__main__":
    main(*sys.argv[1:])
