"""Training of the residual layer (`mssync.render.residual`) on pairs of frames of one clip (`mssync.data.boxes`).

The field of every pair is computed once. The network is judged by the picture that comes out, but for mouth and eyes,
which painters draw, at three resolutions, so that what is far off pulls, too.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, ResidualTraining
from mssync.data.boxes import SIZE, Boxes
from mssync.faces import mirror_points
from mssync.pixels import filled
from mssync.precision import choose, drawing_precision
from mssync.reenact import to_tensor
from mssync.render.field import view
from mssync.render.organs import EYE_RINGS, MOUTH, face_window
from mssync.render.plate import fill
from mssync.render.renderer import body_map, in_view
from mssync.render.residual import MIRRORED, MIRRORED_FIELD, Residual
from mssync.render.scene import Look, Scene, View, layers
from mssync.training.common import Run, fit, launched
from mssync.weights import load_model

SOURCES, TARGETS = 2, 24  # frames of a clip that serve as portraits; others, at most, that each is to become
STEEP = 0.25  # cells that what is added to the field may change from cell to cell: more begins to tear
SIDE = 128  # pixels of the pictures that are compared
LEVELS = (1, 4, 16)  # pixels: of the pictures that are compared
SEEN = 240  # pairs that are looked at
BOX = (0.0, 0.0, float(SIZE))


@dataclass
class Source:
    """A frame that serves as portrait, and its fields to the other frames of its clip.

    own (1, 4, h, w), plate (1, 3, s, s), look: of its view; targets: numbers of frames; fields (n, 2, 64, 64) float16,
    in pixels; heads (n, 4, 2).
    """

    number: int
    own: Tensor
    plate: Tensor
    look: Look
    targets: list[int]
    fields: Tensor
    heads: Tensor


class Batch(NamedTuple):
    """given (B, 18, 64, 64); field (B, 2, 64, 64) in pixels; own (B, 4, h, w); plate, real (B, 3, s, s); weight
    (B, 1, s, s): 0 where painters draw."""

    given: Tensor
    field: Tensor
    own: Tensor
    plate: Tensor
    real: Tensor
    weight: Tensor


class Pairs:
    """Random pairs of frames; sample n is a function of (seed, n)."""

    def __init__(self, boxes: Boxes, renderer: Any, seed: int) -> None:
        self.boxes, self.seed = boxes, seed
        wanted = [(clip, clip[len(clip) * k // SOURCES]) for clip in boxes.clips for k in range(SOURCES)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            self.sources = list(pool.map(lambda pair: _source(boxes, renderer, *pair), wanted))
        torch.set_num_threads(threads)

    def batch(self, first: int, count: int) -> Batch:
        rngs = [np.random.default_rng((self.seed, first + k)) for k in range(count)]
        sources = [self.sources[rng.integers(len(self.sources))] for rng in rngs]
        found = self.of(
            [(source, int(rng.integers(len(source.targets)))) for source, rng in zip(sources, rngs, strict=True)]
        )
        gains = np.stack([rng.uniform(0.7, 1.25) * rng.uniform(0.93, 1.07, 3) for rng in rngs])
        flips = [rng.random() < 0.5 for rng in rngs]
        return _lit(_mirrored(found, torch.tensor(flips)), torch.from_numpy(gains).float())

    def picture(self, number: int) -> Tensor:
        """Frame `number`, (1, 3, SIDE, SIDE) in [0, 1]."""
        image = to_tensor(self.boxes.images[number : number + 1])
        return F.interpolate(image, size=(SIDE, SIDE), mode="bilinear", antialias=True)

    def of(self, pairs: list[tuple[Source, int]]) -> Batch:
        """(source, which of its targets)"""
        parts = []
        for source, k in pairs:
            field = source.fields[k : k + 1].float()
            real = self.picture(source.targets[k])
            given = source.look.given(field, source.heads[k : k + 1])
            weight = unpainted(self.boxes.meshes[source.targets[k]])
            parts.append((given, field, source.own, source.plate, real, weight))
        return Batch(*map(torch.cat, zip(*parts, strict=True)))


@torch.inference_mode()
def _source(boxes: Boxes, renderer: Any, clip: range, number: int) -> Source:
    image, mesh = boxes.images[number], boxes.meshes[number]
    picture, points = to_tensor(image[None]), torch.from_numpy(mesh)
    face, face_mesh, _ = face_window(image, mesh)
    matte = renderer.matte.alpha(picture, points, BOX)
    scene = Scene(picture, matte, points, BOX, to_tensor(face[None]), torch.from_numpy(face_mesh))
    at = View(scene, SIDE, fill)
    targets = [t for t in clip if t != number]
    targets = targets[:: math.ceil(len(targets) / TARGETS)]
    meshes = at.placed(torch.from_numpy(boxes.meshes[targets][..., :2]))
    rest, motion = (torch.from_numpy(boxes.motion[k]) for k in ([number], targets))
    heads = view(at.solver, meshes)
    body = in_view(body_map(rest, motion, *BOX), at)
    fields = torch.cat([at.field(meshes[k : k + 1], heads[k : k + 1], body[k : k + 1]) for k in range(len(targets))])
    own, _ = layers(scene, at.origin, at.scale, at.height, at.width, at.pad, fill)
    return Source(number, own, at.plate, at.look, targets, fields.half(), heads)


def unpainted(mesh: np.ndarray) -> Tensor:
    """Where painters do not draw under a mesh (478, 3) in pixels: (1, 1, SIDE, SIDE)."""
    assert MOUTH.outer is not None
    points = (mesh[:, :2] + 0.5) * np.float32(SIDE / SIZE) - 0.5
    right = mirror_points()[list(EYE_RINGS[:16])].tolist()
    rings = (EYE_RINGS[:16], right, (*MOUTH.outer[0], *MOUTH.outer[1][::-1]))
    painted = np.any([filled(np.rint(points[list(ring)]), SIDE, SIDE) for ring in rings], 0)
    return torch.from_numpy(~painted)[None, None].float()


def _mirrored(batch: Batch, flips: Tensor) -> Batch:
    """Some of a batch mirrored."""
    signs = (torch.tensor(MIRRORED), torch.tensor(MIRRORED_FIELD))
    turned = [x.flip(3) for x in batch]
    turned[0], turned[1] = (x * sign[:, None, None] for x, sign in zip(turned[:2], signs, strict=True))
    return Batch(*(torch.where(flips[:, None, None, None], new, old) for new, old in zip(turned, batch, strict=True)))


def _lit(batch: Batch, gains: Tensor) -> Batch:
    """Pictures under other light, gains (B, 3)."""
    gains = gains[:, :, None, None]
    given = torch.cat([batch.given[:, :3] * gains, batch.given[:, 3:]], 1)
    own = torch.cat([batch.own[:, :3] * gains, batch.own[:, 3:]], 1)
    return batch._replace(given=given, own=own, plate=batch.plate * gains, real=batch.real * gains)


def drawn(batch: Batch, change: Tensor) -> Tensor:
    """Pictures (B, 3, s, s) of a batch, with changes (B, 5, 64, 64) as `Residual` tells them."""
    cell = SIDE / change.shape[-1]
    maps = torch.cat([batch.field + change[:, :2] * cell, change[:, 2:].exp()], 1)
    maps = F.interpolate(F.interpolate(maps, scale_factor=2.0, mode="bicubic"), size=(SIDE, SIDE), mode="bilinear")
    full = batch.own.shape[-1]
    axis = torch.arange(SIDE) + (full - SIDE) / 2 + 0.5
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + maps[:, :2].permute(0, 2, 3, 1)
    own = F.grid_sample(batch.own, places * (2 / full) - 1, padding_mode="border", align_corners=False)
    return own[:, :3] * maps[:, 2:] + (1 - own[:, 3:]) * batch.plate


def losses(batch: Batch, change: Tensor, settings: ResidualTraining) -> dict[str, Tensor]:
    """L1 of what comes out at all LEVELS, and what keeps changes small and smooth."""
    difference = (drawn(batch, change) - batch.real) * batch.weight
    found = [F.avg_pool2d(difference, level).abs().mean() for level in LEVELS]
    across, down = ((change[:, :2].diff(dim=d).abs() - STEEP).clamp_min(0).square().mean() for d in (2, 3))
    return {
        "reconstruction": settings.reconstruction * torch.stack(found).sum(),
        "smoothness": settings.smoothness * (across + down),
        "light": settings.light * change[:, 2:].abs().mean(),
    }


def train(config: Config, data: str | Path, run_dir: str | Path, model: str, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the residual layer of a layered renderer; returns the model file in `run_dir`.

    data: the folder of `mssync frames`; model: the renderer, whose matte and keypoints are used. Resumed exactly from
    ``residual.pt``. Raises InputError as `read_frames`.
    """
    settings = config.residual_training
    run = Run(run_dir, "residual", max_minutes, launched())
    torch.manual_seed(settings.seed)
    network = Residual().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    renderer = load_model(model, kinds=("layered",))[0]
    seen = Pairs(Boxes(data, "val", renderer), renderer, 1)
    pairs = Pairs(Boxes(data, "train", renderer), renderer, settings.seed)
    precision = choose(None, torch.device("cpu"))

    def found(step: int) -> dict[str, Tensor]:
        batch = pairs.batch(step * settings.batch, settings.batch)
        with drawing_precision(batch.real, precision):
            change = network(batch.given)
        return losses(batch, change, settings)

    about = ("residual", {"widths": network.widths})
    return fit(run, network, optimizer, settings, found, lambda model: evaluate(model, seen), about)


@torch.no_grad()
def evaluate(network: nn.Module, pairs: Pairs) -> tuple[dict[str, float], Tensor]:
    """L1 over that of copying, with the layer and without; a sheet: portrait, without, with, real."""
    sums, rows = np.zeros((2, 3)), []
    for n in range(SEEN):
        source = pairs.sources[n * len(pairs.sources) // SEEN]
        batch = pairs.of([(source, len(source.targets) * (n % 7) // 7)])
        still = torch.zeros(1, 5, *batch.field.shape[2:])
        shown = [pairs.picture(source.number), drawn(batch, still), drawn(batch, network(batch.given))]
        face = F.interpolate(batch.given[:, 4:5], size=(SIDE, SIDE), mode="bilinear") * batch.weight
        errors = [(x - batch.real).abs() for x in shown]
        sums += [[float((error * mask).mean()) for error in errors] for mask in (1, face)]
        if n % 12 == 0:
            rows.append(torch.cat([x[0] for x in (*shown, batch.real)], 2))
    names = ("without", "with", "face without", "face with")
    values = dict(zip(names, (sums[:, 1:] / sums[:, :1]).flatten().tolist(), strict=True))
    half = len(rows) // 2
    return values, torch.cat([torch.cat(rows[:half], 1), torch.cat(rows[half : 2 * half], 1)], 2)
