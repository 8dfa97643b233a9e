"""Training of the matte network on the labels of `scripts/label_mattes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config
from mssync.data.frames import MATTE, Shown, read_frames
from mssync.errors import InputError
from mssync.faces import CHIN, CROP_SCALE
from mssync.pixels import shrunk, warped
from mssync.precision import choose, drawing_precision
from mssync.render.matte import FAR, MatteNet, face_hint
from mssync.render.plate import fill, grown
from mssync.training.common import Run, fit, launched

SIDE = 512  # pixels of the labels
CLOSER, FARTHER = 0.35, 0.3  # logarithms of how much smaller and larger views are than head and shoulders
AFAR = 0.6  # share of views from afar, of pictures that show enough around
BEYOND = 1.15  # sides of a picture that a view may be large
ASIDE = 0.35  # half sides of a view, up to which the face is off its middle
TILT = 0.12  # rad, deviation
ELSEWHERE, PLAIN = 0.6, 0.3  # share of people before another background, and of those before a plain one
RIM = 4  # pixels that are taken off around a person
GREY, NOISY, COARSE = 0.15, 0.3, 0.2  # shares of views
BAND = 10  # pixels of SIDE around hair in which errors are told
NOISE, LEAST = 0.05, 0.3  # deviation at most; size of coarse views at least


class Mattes:
    """Pictures with labelled mattes of one split, in memory; sample n is a function of (seed, n).

    folders: of `mssync frames`, close or wide, with the labels of `scripts/label_mattes.py`.
    """

    def __init__(self, folders: Sequence[str | Path], split: str, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self.pictures: list[np.ndarray] = []
        self.alphas: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        for clip in (clip for folder in folders for clip in read_frames(folder, split)):
            label = clip.path.with_suffix("").with_suffix(MATTE)
            if label.exists():
                self._add(clip, label)
        if not self.pictures:
            names = ", ".join(map(str, folders))
            raise InputError(f"{names}: no mattes of the split {split!r}; label them with scripts/label_mattes.py")

    def _add(self, clip: Shown, label: Path) -> None:
        with np.load(label) as file:
            times, alphas = file["times"], file["alpha"]
        for t, alpha in zip(times, alphas, strict=True):
            frame = clip.frame(int(t))
            scale = np.array([SIDE / frame.shape[1], SIDE / frame.shape[0]], np.float32)
            self.pictures.append(shrunk(frame, SIDE, SIDE))
            self.alphas.append(alpha)
            self.points.append((clip.landmarks[int(t)][:, :2] + 0.5) * scale)

    def __len__(self) -> int:
        return len(self.pictures)

    def whole(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Picture k unchanged: (3, s, s), alpha (1, s, s), points (478, 2) in its pixels."""
        return self._warped(k, np.eye(2, 3) * (self.size / SIDE))

    def _warped(self, k: int, matrix: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The same under a map (2, 3) of the picture's pixels to those of the result."""
        back = np.linalg.inv(np.concatenate([matrix, [[0, 0, 1]]]))[:2]
        picture, alpha = (warped(x, back, self.size, self.size) for x in (self.pictures[k], self.alphas[k]))
        points = self.points[k] @ matrix[:, :2].T.astype(np.float32) + matrix[:, 2].astype(np.float32)
        return (
            torch.from_numpy(picture).permute(2, 0, 1).float() / 255,
            torch.from_numpy(alpha)[None].float() / 255,
            torch.from_numpy(points.astype(np.float32)),
        )

    def _view(self, k: int, rng: np.random.Generator) -> np.ndarray:
        """The map (2, 3) to a view of picture k, close or from afar, as the renderer has them and less exact."""
        points = self.points[k]
        near = CROP_SCALE * np.ptp(points[:, 1])
        side = near * np.exp(rng.uniform(-CLOSER, FARTHER))
        if rng.random() < AFAR and near * FAR < 2 * SIDE:
            side *= rng.uniform(1, FAR)
        zoom, angle = self.size / min(side, BEYOND * SIDE), rng.normal() * TILT
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = self.size / 2 * (1 + rng.uniform(-ASIDE, ASIDE, 2)) - turn @ points.mean(0)
        return np.concatenate([turn, shift[:, None]], 1)

    def sample(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, n))
        k = int(rng.integers(len(self)))
        picture, alpha, points = self._warped(k, self._view(k, rng))
        if rng.random() < ELSEWHERE:
            colour = torch.from_numpy(rng.uniform(0, 1, 3)).float()[:, None, None]
            plain = rng.random() < PLAIN
            behind = colour if plain else background(*self.whole(int(rng.integers(len(self))))[:2]).flip(2)
            picture = torch.lerp(behind.expand_as(picture), picture, alpha)
        picture = _relit(picture, rng)
        if rng.random() < 0.5:
            picture, alpha = picture.flip(2), alpha.flip(2)
            points = torch.stack([self.size - points[:, 0], points[:, 1]], -1)
        return picture, alpha, points


def background(picture: Tensor, alpha: Tensor) -> Tensor:
    """A picture (3, s, s) without its person, whose alpha is (1, s, s): coarse colours of what is around instead."""
    return fill(picture[None], (1 - grown(alpha[None], RIM)).clamp_min(0))[0]


def _relit(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A picture (3, s, s) in [0, 1] in other light, by another camera."""
    gain = torch.from_numpy(rng.uniform(0.6, 1.3) * rng.uniform(0.9, 1.1, 3)).float()
    picture = (picture * gain[:, None, None]).clamp(0, 1) ** float(rng.uniform(0.7, 1.4))
    if rng.random() < GREY:
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    if rng.random() < COARSE:
        size = picture.shape[-1]
        small = (int(size * rng.uniform(LEAST, 1)),) * 2
        coarse = F.interpolate(picture[None], small, mode="bilinear", antialias=True)
        picture = F.interpolate(coarse, (size, size), mode="bilinear")[0]
    if rng.random() < NOISY:
        noise = torch.from_numpy(rng.normal(size=picture.shape).astype(np.float32))
        picture = picture + noise * float(rng.uniform(0, NOISE))
    return picture


def _losses(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy, of which what is surely wrong learns, and L1 over a pyramid, the edges weighted up."""
    total = F.binary_cross_entropy(drawn, wanted)
    for _ in range(4):
        edge = F.max_pool2d(wanted, 7, 1, 3) + F.max_pool2d(-wanted, 7, 1, 3)
        total = total + ((drawn - wanted).abs() * (1 + 3 * edge)).mean()
        drawn, wanted = F.avg_pool2d(drawn, 2), F.avg_pool2d(wanted, 2)
    return total


def train(config: Config, data: Sequence[str | Path], run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) on folders of `mssync frames` with their labels; returns the model file."""
    settings = config.matte_training
    run = Run(run_dir, "matte", max_minutes, launched())
    torch.manual_seed(settings.seed)
    model = MatteNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr)
    mattes, seen = Mattes(data, "train", settings.seed, settings.size), Mattes(data, "val", 1, 384)
    precision = choose(None, torch.device("cpu"))

    def losses(step: int) -> dict[str, Tensor]:
        samples = [mattes.sample(step * settings.batch + k) for k in range(settings.batch)]
        picture, alpha, points = (torch.stack(x) for x in zip(*samples, strict=True))
        with drawing_precision(picture, precision):
            drawn = model(picture, face_hint(points, settings.size))
        return {"loss": _losses(drawn, alpha)}

    about = ("matte", {"widths": model.widths})
    return fit(run, model, optimizer, settings, losses, lambda network: evaluate(network, seen), about)


@torch.no_grad()
def evaluate(model: nn.Module, mattes: Mattes) -> tuple[dict[str, float], Tensor]:
    """Mean absolute error, whole and around hair, and a sheet: picture, label, matte."""
    errors: list[float] = []
    hair: list[float] = []
    rows: list[Tensor] = []
    for k in range(len(mattes)):
        picture, alpha, points = (x[None] for x in mattes.whole(k))
        drawn = model(picture, face_hint(points, mattes.size))
        errors.append(float((drawn - alpha).abs().mean()))
        if (band := around_hair(alpha, points)).any():
            hair.append(float((drawn - alpha).abs()[band].mean()))
        if len(rows) < 18:
            rows.append(torch.cat([picture, alpha.expand(-1, 3, -1, -1), drawn.expand(-1, 3, -1, -1)], 3)[0])
    per = max(1, len(rows) // 3)
    columns = [torch.cat(rows[k * per : (k + 1) * per], 1) for k in range(3)]
    sheet = F.interpolate(torch.cat(columns, 2)[None], scale_factor=0.5, mode="area")[0]
    return {"error": float(np.mean(errors)), "hair": float(np.mean(hair))}, sheet


def around_hair(alpha: Tensor, points: Tensor) -> Tensor:
    """The band of BAND pixels of SIDE on both sides of the edge of alpha (1, 1, s, s), above the chin: a mask.

    points: (1, 478, 2), of the face.
    """
    person, size = (alpha > 0.5).float(), alpha.shape[-1]
    reach = round(BAND * size / SIDE)
    edge = grown(person, reach) > -grown(-person, reach)
    return edge & (torch.arange(size)[:, None] < points[0, CHIN, 1])
