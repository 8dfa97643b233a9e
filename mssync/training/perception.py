"""Training of the networks that find faces and their meshes, on frames with a teacher's meshes (`data.views`).

What makes a face hard to see is added: light, blur, noise, small pictures, things before it, greys, tilted heads.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, MeshTraining
from mssync.data.views import SIZE as SQUARE
from mssync.data.views import Squares
from mssync.face.geometry import Views, cut, views_of
from mssync.face.mesh import SIZE, MeshNet
from mssync.faces import EYE_CORNERS, LEFT_LIDS, LIPS, N_LANDMARKS, N_SKIN, RIGHT_LIDS, head_pose
from mssync.precision import choose, drawing_precision
from mssync.render.organs import mirror_mesh
from mssync.training.common import Run, fit, launched

LIDS = LEFT_LIDS + RIGHT_LIDS
IRISES = tuple(range(N_SKIN, N_LANDMARKS))
LOOKED_AT = 3.0  # weight of lips, lids and irises, of which viewers see the most
DEPTH = 0.3  # weight of the third dimension
TURNED = 20.0  # degrees of yaw from which on frames are drawn twice as often
NEAR = 0.01  # eye distances below which errors count by their squares
ROUGH = 0.5  # weight of the meshes before closer looks
WARPED = 0.4  # share of views that are drawn out and bent
DRAWN_OUT, BENT = 0.04, 0.015  # deviations of the matrix from the identity, and of the knots of a bend, in half a view
BENDS = 5  # knots of a bend to a side
INVERSIONS = 6  # steps that find where a point of the straight view is in the bent one
STRANGE = 0.2  # share of a batch that shows no face: a piece beside it, or too little of it


class Batches:
    """Views of faces, disturbed; batch n is a function of (seed, n) alone."""

    def __init__(self, squares: Squares, settings: MeshTraining) -> None:
        self.squares, self.settings = squares, settings
        self.weights = frame_weights(squares)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views (B, 3, 192, 192) in [-1, 1], meshes (B, 478, 3) in the views' [-1, 1], and which are faces (B,)."""
        rng = np.random.default_rng((self.settings.seed, step))
        numbers = np.sort(rng.choice(len(self.squares), self.settings.batch, p=self.weights))
        pictures, meshes = self.squares.pictures(numbers), self.squares.meshes[torch.from_numpy(numbers)]
        flipped = torch.from_numpy(rng.random(len(numbers)) < 0.5)
        pictures = torch.where(flipped[:, None, None, None], pictures.flip(3), pictures)
        meshes = torch.where(flipped[:, None, None], mirror_mesh(meshes, SQUARE - 1.0), meshes)
        faces = torch.from_numpy(rng.random(len(numbers)) >= STRANGE)
        views = self._views(meshes, faces, step, rng)
        seen, meshes = warped(cut(pictures, views, SIZE), views.from_picture(meshes), rng)
        return disturbed(seen, rng) * 2 - 1, meshes, faces

    def _views(self, meshes: Tensor, faces: Tensor, step: int, rng: np.random.Generator) -> Views:
        """Views as a tracker, or a detector, would have them; the less exact the earlier in the training."""

        def within(reach: float, *size: int) -> Tensor:
            return torch.from_numpy(rng.uniform(-reach, reach, (len(meshes), *size))).float()

        settings, views = self.settings, views_of(meshes)
        share = max(settings.exact, 1 - (1 - settings.exact) * max(0.0, step / settings.steps - 0.15) / 0.4)
        tilted = torch.from_numpy(rng.random(len(meshes)) < settings.tilted * share)
        roll = views.roll + torch.where(tilted, within(1.0), share * within(0.25))
        centre = views.centre + views.side[:, None] * share * within(0.07, 2)
        side = views.side * (share * within(0.2)).exp()
        away = torch.where(torch.from_numpy(rng.random((len(meshes), 1)) < 0.5), 1.0, -1.0) * views.side[:, None]
        aside = centre + away * (0.55 + within(0.1, 2).abs() * 3)
        return Views(torch.where(faces[:, None], centre, aside), side, roll)


def frame_weights(squares: Squares) -> np.ndarray:
    """How often each frame is drawn, (N,), of sum 1: people by the root of how many frames there are of them, and
    turned heads, which are rare, the more often the more they are turned."""
    _, owner, counts = np.unique(squares.identities, return_inverse=True, return_counts=True)
    yaw = head_pose(squares.meshes.numpy())[:, 0]
    weights = (1 + (yaw / TURNED) ** 2) / np.sqrt(counts[owner])
    return weights / weights.sum()


def warped(views: Tensor, meshes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Some views (B, 3, s, s) drawn out and bent, as other people's faces might be, and their meshes (B, n, 3)."""
    chosen = torch.from_numpy(np.flatnonzero(rng.random(len(views)) < WARPED))
    size = views.shape[-1]
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    straight = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    drawn_out = torch.from_numpy(rng.normal(0, DRAWN_OUT, (len(chosen), 2, 2))).float()
    bent = torch.from_numpy(rng.normal(0, BENT, (len(chosen), 2, BENDS, BENDS))).float()
    shift = F.interpolate(bent, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    shift = shift + straight @ drawn_out.transpose(1, 2)[:, None]
    views, meshes = views.clone(), meshes.clone()
    views[chosen] = F.grid_sample(views[chosen], straight + shift, align_corners=False, padding_mode="border")
    goal, places, fields = meshes[chosen, :, :2], meshes[chosen, :, :2], shift.permute(0, 3, 1, 2)
    for _ in range(INVERSIONS):  # the point that comes from `goal`
        here = F.grid_sample(fields, places[:, None], align_corners=False, padding_mode="border")
        places = goal - here[:, :, 0].transpose(1, 2)
    meshes[chosen] = torch.cat([places, meshes[chosen, :, 2:]], -1)
    return views, meshes


def disturbed(views: Tensor, rng: np.random.Generator) -> Tensor:
    """Views (B, 3, s, s) in [0, 1] in other light, by other cameras, with something before them."""
    count, size = len(views), views.shape[-1]

    def drawn(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1))).float()

    def some(share: float) -> np.ndarray:
        return np.flatnonzero(rng.random(count) < share)

    views = views.clamp_min(1e-3) ** drawn(-0.5, 0.5).exp()
    views = (views - 0.5) * drawn(-0.4, 0.3).exp() + 0.5 + drawn(-0.15, 0.15)
    views = views * (1 + drawn(-0.15, 0.15, 3))
    for k in some(0.15):
        views[k] = views[k].mean(0, keepdim=True)
    for k in some(0.3):
        small = (int(rng.integers(36, 140)),) * 2
        low = F.interpolate(views[k : k + 1], small, mode="bilinear", antialias=True)
        views[k] = F.interpolate(low, (size, size), mode="bilinear")[0]
    for k in some(0.15):
        height, width = rng.integers(15, 70, 2)
        y, x = rng.integers(size - height), rng.integers(size - width)
        views[k, :, y : y + height, x : x + width] = torch.from_numpy(rng.random((3, 1, 1))).float()
    noise = drawn(0, 0.06) * (drawn(0, 1) < 0.5)
    return (views + noise * torch.from_numpy(rng.standard_normal(views.shape, np.float32))).clamp(0, 1)


def eye_distances(meshes: Tensor) -> Tensor:
    """Of meshes (B, n, 2 or 3) between the outer corners, in the picture, (B,)."""
    left, right = (meshes[:, corner, :2] for corner in EYE_CORNERS)
    return (right - left).norm(dim=-1)


def mesh_loss(found: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Mean distance of points (B, n, 3), in distances of the eyes, points weighted by (n,)."""
    error = (found - wanted) / eye_distances(wanted)[:, None, None] * torch.tensor([1.0, 1.0, DEPTH])
    points = F.smooth_l1_loss(error, torch.zeros_like(error), beta=NEAR, reduction="none").sum(-1)
    return (points * weights).mean()


def point_weights() -> Tensor:
    weights = torch.ones(N_LANDMARKS)
    weights[[*LIPS, *LIDS, *IRISES]] = LOOKED_AT
    return weights / weights.mean()


def train_mesh(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the mesh network on a folder of `mssync frames`; returns the model file ``mesh``."""
    settings = config.mesh_training
    run = Run(run_dir, "mesh", max_minutes, launched())
    batches, seen = Batches(Squares(data, "train"), settings), Squares(data, "val")
    torch.manual_seed(settings.seed)
    network = MeshNet()
    with torch.no_grad():  # it begins with the mean mesh
        views = views_of(batches.squares.meshes[::50])
        network.out.bias.copy_(views.from_picture(batches.squares.meshes[::50]).mean(0).flatten())
        network.out.weight.mul_(0.3)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    precision, weights = choose(None, torch.device("cpu")), point_weights()

    def losses(step: int) -> dict[str, Tensor]:
        pictures, wanted, faces = batches(step)
        with drawing_precision(pictures, precision):
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            rough, score = network.roughly(pictures)
            closer = network.closely(pictures, rough)
        face = F.binary_cross_entropy_with_logits(score.float(), faces.float())
        return {
            "points": mesh_loss(closer[faces], wanted[faces], weights),
            "rough": ROUGH * mesh_loss(rough[faces], wanted[faces], weights),
            "face": settings.face * face,
        }

    return fit(run, network, optimizer, settings, losses, partial(evaluate_mesh, squares=seen), ("mesh", {}))


@torch.no_grad()
def evaluate_mesh(network: nn.Module, squares: Squares) -> tuple[dict[str, float], Tensor]:
    """Mean distance to the teacher's points, % of the eyes' distance, of views as good as a tracker's; a sheet."""
    errors, shown = [], []
    for first in range(0, len(squares), 64):
        numbers = np.arange(first, min(first + 64, len(squares)))
        meshes, rng = squares.meshes[first : first + 64], torch.Generator().manual_seed(first)
        exact = views_of(meshes)
        centre = exact.centre + 0.03 * exact.side[:, None] * torch.randn(len(meshes), 2, generator=rng)
        side = exact.side * (0.05 * torch.randn(len(meshes), generator=rng)).exp()
        views = Views(centre, side, exact.roll + 0.05 * torch.randn(len(meshes), generator=rng))
        pictures = cut(squares.pictures(numbers), views, SIZE)
        found, wanted = network(pictures * 2 - 1)[0], views.from_picture(meshes)
        errors.append((found - wanted)[..., :2].norm(dim=-1) / eye_distances(wanted)[:, None])
        shown.append(dotted(pictures[0], found[0]))
    error = 100 * torch.cat(errors)
    parts = {"points": list(range(N_LANDMARKS)), "lips": list(LIPS), "lids": list(LIDS), "irises": list(IRISES)}
    columns = 6
    rows = [torch.cat(shown[k : k + columns], 2) for k in range(0, len(shown) - columns + 1, columns)]
    sheet = torch.cat(rows or [torch.cat(shown, 2)], 1)
    return {name: float(error[:, part].mean()) for name, part in parts.items()}, sheet


def dotted(picture: Tensor, mesh: Tensor) -> Tensor:
    """A view (3, s, s) in [0, 1] with the points of a mesh (478, 3) on it."""
    at = ((mesh[:, :2] + 1) * (picture.shape[-1] / 2)).long().clamp(0, picture.shape[-1] - 1)
    marked = picture.clone()
    marked[:, at[:, 1], at[:, 0]] = torch.tensor([0.2, 1.0, 0.3])[:, None]
    return marked
