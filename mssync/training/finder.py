"""Training of the network that finds faces, on pictures put together of frames whose face is known (`data.views`).

A face is shown in any size, place and tilt, alone or with others, on pieces of other pictures. Pieces without a face,
enlarged, are all that some pictures show.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, FinderTraining
from mssync.data.views import SIZE as SQUARE
from mssync.data.views import Squares
from mssync.errors import InputError
from mssync.face.analyser import FACE, LOOKS, FaceNets
from mssync.face.detector import CELL, SIZE, UNIT, FinderNet, decoded, views
from mssync.face.geometry import ROOM, Views, cut, views_of
from mssync.face.mesh import SIZE as VIEW
from mssync.precision import choose, drawing_precision
from mssync.training.common import Run, fit, launched
from mssync.training.perception import disturbed, frame_weights

SMALLEST, LARGEST = 9.0, 230.0  # pixels of a face
ALONE, FOUR = 0.6, 0.85  # of pictures: up to where they show one face, and up to where four pieces; the rest show none
WIDE, LARGEST_WIDE = 0.6, 100.0  # share of faces up to so many pixels that are taken from wide frames
EMPTY = 0.25  # of pieces that show no face
TILTED, TILT, UPRIGHT = 0.4, 1.05, 0.15  # share of faces that are tilted, up to how far, deviation of the others (rad)
NARROW = 9.0  # sides of a face in the deviation of the peak that is asked for
LEAST = 0.55  # cells, of that deviation
ROUND = 0.45  # height of the peak from which on a cell has to know place, size and roll
WEIGHTS = (1.0, 1.0, 2.0, 1.0, 1.0)  # of place, size and roll
DOUBTFUL = 0.1  # probability of a face in a picture, from which on the mesh network is asked
RIDGE = 1e-3
PICTURES = 200  # of `val` that are looked at

Face = tuple[float, float, float, float]  # x, y, side in pixels, roll


class Composer:
    """Pictures with known faces; picture n is a function of (seed, n) alone. People as in `perception.Batches`.

    near: squares around faces; wide: whole frames, if any, in which faces are smaller.
    """

    def __init__(self, near: Squares, wide: Squares | None, seed: int) -> None:
        self.seed = seed
        self.near = near, frame_weights(near)
        self.wide = None if wide is None else (wide, frame_weights(wide))

    def __call__(self, n: int) -> tuple[Tensor, list[Face]]:
        """A picture (3, 256, 256) in [0, 1] and its faces."""
        rng = np.random.default_rng((self.seed, n))
        kind = rng.random()
        if kind < ALONE:
            return self._piece(rng, SIZE, LARGEST)
        if kind >= FOUR:
            return self._nothing(rng, SIZE), []
        half, picture, faces = SIZE // 2, torch.empty(3, SIZE, SIZE), []
        for x in (0, half):
            for y in (0, half):
                piece, shown = self._piece(rng, half, LARGEST / 2)
                if rng.random() < EMPTY:
                    piece, shown = self._nothing(rng, half), []
                picture[:, y : y + half, x : x + half] = piece
                faces += [(a + x, b + y, side, roll) for a, b, side, roll in shown]
        return picture, faces

    def _piece(self, rng: np.random.Generator, size: int, largest: float) -> tuple[Tensor, list[Face]]:
        """A face on something else, (3, size, size)."""
        side = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(largest))))
        squares, weights = self._squares(rng, side)
        n = int(rng.choice(len(squares), p=weights))
        picture, mesh = squares.pictures(np.array([n])), squares.meshes[n : n + 1]
        exact = views_of(mesh)
        turn = rng.uniform(-TILT, TILT) if rng.random() < TILTED else rng.normal(0, UPRIGHT)
        reach = max(0.0, size - min(side, 0.9 * size)) / 2
        x, y = size / 2 + rng.uniform(-reach, reach, 2)
        scale = float(exact.side[0]) / ROOM / side  # pixels of the square in one of the piece
        view = Views(exact.centre, torch.tensor([size * scale]), exact.roll - float(turn))
        offset = view.to_picture(torch.tensor([[[1 - 2 * x / size, 1 - 2 * y / size]]], dtype=torch.float32))
        view = Views(offset[0], view.side, view.roll)
        shown, inside = cut(picture, view, size)[0], _inside(size, view)
        background = self._nothing(rng, size)
        faces = [(float(x), float(y), side, float(turn))]
        shown = shown * inside + background * (1 - inside)
        if rng.random() < 0.5:
            return shown.flip(2), [(size - a, b, s, -r) for a, b, s, r in faces]
        return shown, faces

    def _squares(self, rng: np.random.Generator, side: float) -> tuple[Squares, np.ndarray]:
        """Where a face of so many pixels is taken from, and how often each."""
        return self.wide if self.wide is not None and side < LARGEST_WIDE and rng.random() < WIDE else self.near

    def _nothing(self, rng: np.random.Generator, size: int) -> Tensor:
        """A piece of a square beside its face, enlarged; or noise, (3, size, size)."""
        squares, _ = self._squares(rng, 0)
        n = int(rng.integers(len(squares)))
        mesh = squares.meshes[n, :, :2]
        low, high = mesh.amin(0).tolist(), mesh.amax(0).tolist()
        for _ in range(60):
            side = SQUARE * float(np.exp(rng.uniform(np.log(0.08), np.log(0.7))))
            x, y = rng.uniform(0, SQUARE - side, 2)
            if x > high[0] or y > high[1] or x + side < low[0] or y + side < low[1]:
                view = Views(torch.tensor([[x + side / 2, y + side / 2]]).float(), torch.tensor([side]), torch.zeros(1))
                return cut(squares.pictures(np.array([n])), view, size)[0]
        return torch.from_numpy(rng.random((3, 1, 1)) + 0.1 * rng.standard_normal((3, size, size))).float().clamp(0, 1)


def _inside(size: int, view: Views) -> Tensor:
    """Which pixels of a view (1, size, size) lie in its square."""
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    points = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)
    where = view.to_picture(points[None])[0]
    return ((where >= 0) & (where <= SQUARE - 1)).all(-1).float().unflatten(0, (1, size, size))


def asked(faces: list[Face]) -> tuple[Tensor, Tensor]:
    """What `FinderNet` should say of faces: peaks (not logits) and numbers (6, 32, 32), and where these count."""
    cells = SIZE // CELL
    at, wanted, counts = torch.arange(cells) + 0.5, torch.zeros(6, cells, cells), torch.zeros(cells, cells)
    for x, y, side, roll in sorted(faces, key=lambda face: -face[2]):
        across, down = x / CELL - at[None].expand(cells, -1), y / CELL - at[:, None].expand(-1, cells)
        deviation = max(LEAST, side / CELL / NARROW)
        peak = torch.exp(-(across.square() + down.square()) / (2 * deviation**2))
        peak[min(int(y / CELL), cells - 1), min(int(x / CELL), cells - 1)] = 1
        here = (peak > ROUND) & (peak >= wanted[0])
        numbers = (across, down, np.log(side / UNIT), np.cos(roll), np.sin(roll))
        for k, number in enumerate(numbers, start=1):
            wanted[k][here] = number[here] if isinstance(number, Tensor) else float(number)
        wanted[0] = torch.maximum(wanted[0], peak)
        counts[here] = 1
    return wanted, counts


def finding_loss(said: Tensor, wanted: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Focal loss of the peaks (Law and Deng 2018), and errors of place, size and roll where they count."""
    chance = torch.sigmoid(said[:, 0]).clamp(1e-4, 1 - 1e-4)
    peaks = (wanted[:, 0] > 0.99).float()
    missed = peaks * (1 - chance).square() * chance.log()
    false = (1 - peaks) * (1 - wanted[:, 0]) ** 4 * chance.square() * (1 - chance).log()
    error = F.smooth_l1_loss(said[:, 1:], wanted[:, 1:], beta=0.05, reduction="none") * counts[:, None]
    return {
        "peaks": -(missed + false).sum() / peaks.sum().clamp_min(1),
        "numbers": error.sum((0, 2, 3)) @ torch.tensor(WEIGHTS) / counts.sum().clamp_min(1),
    }


def composer(data: Sequence[str | Path], split: str, seed: int) -> Composer:
    """Of a folder of `mssync frames` and, if there is a second one, the wide frames in it."""
    wide = Squares(data[1], split, wide=True) if len(data) > 1 else None
    return Composer(Squares(data[0], split), wide, seed)


def train_finder(
    config: Config, data: Sequence[str | Path], run_dir: str | Path, max_minutes: float | None = None
) -> Path:
    """Train (or go on training) the detector on folders of `mssync frames`; returns the model file ``finder``.

    data: frames close to faces and, if there is a second folder, wide ones.
    """
    settings: FinderTraining = config.finder_training
    run = Run(run_dir, "finder", max_minutes, launched())
    made, seen = composer(data, "train", settings.seed), composer(data, "val", 1)
    torch.manual_seed(settings.seed)
    network = FinderNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    precision = choose(None, torch.device("cpu"))

    def losses(step: int) -> dict[str, Tensor]:
        shown = [made(step * settings.batch + k) for k in range(settings.batch)]
        rng = np.random.default_rng((settings.seed + 1, step))
        pictures = disturbed(torch.stack([picture for picture, _ in shown]), rng) * 2 - 1
        wanted, counts = (torch.stack(part) for part in zip(*(asked(faces) for _, faces in shown), strict=True))
        with drawing_precision(pictures, precision):
            said = network(pictures.contiguous(memory_format=torch.channels_last))
        return finding_loss(said.float(), wanted, counts)

    return fit(run, network, optimizer, settings, losses, partial(evaluate_finder, made=seen), ("finder", {}))


@torch.no_grad()
def evaluate_finder(network: nn.Module, made: Composer) -> tuple[dict[str, float], Tensor]:
    """Share of faces found (middle within a third of the side), by size; false ones a picture; a sheet."""
    found: dict[str, list[bool]] = {"small": [], "large": []}
    false, shown = 0, []
    for n in range(PICTURES):
        picture, faces = made(n)
        said = decoded(network(picture[None] * 2 - 1))[0]
        left = list(said)
        for x, y, side, _ in faces:
            near = [f for f in left if np.hypot(f.x + 0.5 - x, f.y + 0.5 - y) < 0.35 * side]
            found["small" if side < UNIT else "large"].append(bool(near))
            left = [f for f in left if f not in near[:1]]
        false += len(left)
        if n < 12:
            shown.append(_framed(picture, [(f.x, f.y, f.side) for f in said]))
    figures = {f"found_{name}": float(np.mean(hits)) for name, hits in found.items()}
    sheet = torch.cat([torch.cat(shown[k : k + 4], 2) for k in range(0, 12, 4)], 1)
    return figures | {"false": false / PICTURES}, sheet


@torch.no_grad()
def _looked_at(nets: FaceNets, made: Composer, count: int) -> tuple[Tensor, Tensor]:
    """What the mesh network sees, (n, channels), at the last look at all that the detector half takes for faces in so
    many pictures; and which of these are faces, (n,)."""
    seen: list[Tensor] = []
    faces: list[bool] = []
    hook = nets.mesh.down4.register_forward_hook(lambda _, __, out: seen.append(out.mean((2, 3))))
    for n in range(count):
        picture, shown = made(n)
        picture = disturbed(picture[None], np.random.default_rng((made.seed + 1, n)))
        for hit in decoded(nets.finder(picture * 2 - 1), DOUBTFUL)[0]:
            apart = [np.hypot(hit.x + 0.5 - x, hit.y + 0.5 - y) / side for x, y, side, _ in shown]
            if any(0.35 < away < 0.8 for away in apart):
                continue  # neither one nor none
            view = views([hit])
            for _ in range(LOOKS):
                found, _ = nets.mesh(cut(picture, view, VIEW) * 2 - 1)
                view = views_of(view.to_picture(found))
            del seen[-LOOKS:-1]
            faces.append(min(apart, default=1.0) < 0.35)
    hook.remove()
    if not seen:
        raise InputError("the detector finds no face, nor what could be one; train it longer")
    return torch.cat(seen), torch.tensor(faces).float()


def fit_score(nets: FaceNets, data: Sequence[str | Path], count: int = 3000) -> dict[str, float]:
    """Fit the mesh network's score to what the detector takes for faces in so many composed pictures.

    Logistic regression. Returns the shares of faces that are kept, and of others, in composed pictures of `val`.
    """
    seen, faces = _looked_at(nets, composer(data, "train", 2), count)
    mean, deviation = seen.mean(0), seen.std(0) + 1e-3
    weight, bias = torch.zeros(seen.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(((seen - mean) / deviation) @ weight + bias, faces)
        (total := error + RIDGE * weight.square().sum()).backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        nets.mesh.score.weight.copy_((weight / deviation)[None])
        nets.mesh.score.bias.copy_(bias - (weight * mean / deviation).sum())
        seen, faces = _looked_at(nets, composer(data, "val", 3), count // 4)
        sure = torch.sigmoid(nets.mesh.score(seen)[:, 0]) > FACE
    return {"kept": float(sure[faces > 0].float().mean()), "false": float(sure[faces == 0].float().mean())}


def _framed(picture: Tensor, boxes: list[tuple[float, float, float]]) -> Tensor:
    marked = picture.clone()
    for x, y, side in boxes:
        edges = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        low_x, low_y, high_x, high_y = (int(np.clip(edge, 0, SIZE - 1)) for edge in edges)
        green = torch.tensor([0.2, 1.0, 0.3])[:, None]
        marked[:, low_y : high_y + 1, [low_x, high_x]] = green[..., None].expand(3, high_y + 1 - low_y, 2)
        marked[:, [low_y, high_y], low_x : high_x + 1] = green[..., None].expand(3, 2, high_x + 1 - low_x)
    return marked
