"""Training of the matte network on the labels of `scripts/label_mattes.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config
from mssync.data.frames import MATTE, Shown, read_frames
from mssync.errors import InputError
from mssync.pixels import shrunk, warped
from mssync.precision import choose, drawing_precision
from mssync.render.matte import MatteNet, face_hint
from mssync.training.common import Run, fit, launched

SIDE = 512  # pixels of the labels


class Mattes:
    """Pictures with labelled mattes of one split, in memory; sample n is a function of (seed, n)."""

    def __init__(self, folder: str | Path, split: str, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self.pictures: list[np.ndarray] = []
        self.alphas: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        for clip in read_frames(folder, split):
            label = clip.path.with_suffix("").with_suffix(MATTE)
            if label.exists():
                self._add(clip, label)
        if not self.pictures:
            raise InputError(f"{folder}: no mattes of the split {split!r}; label them with scripts/label_mattes.py")

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

    def sample(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, n))
        k = int(rng.integers(len(self)))
        zoom, angle = self.size / SIDE * rng.uniform(0.8, 1.5), rng.normal() * 0.12
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        room = self.size / 2 * 0.35
        shift = self.size / 2 + rng.uniform(-room, room, 2) - turn @ (self.points[k].mean(0))
        picture, alpha, points = self._warped(k, np.concatenate([turn, shift[:, None]], 1))
        if rng.random() < 0.4:  # before another background
            other = self._warped(int(rng.integers(len(self))), np.eye(2, 3) * (self.size / SIDE))[0]
            picture = (
                picture * alpha + other.flip(2) * (1 - alpha)
                if rng.random() < 0.5
                else picture * alpha + torch.from_numpy(rng.uniform(0, 1, 3)).float()[:, None, None] * (1 - alpha)
            )
        gain = torch.from_numpy(rng.uniform(0.6, 1.3) * rng.uniform(0.9, 1.1, 3)).float()
        picture = (picture * gain[:, None, None]).clamp(0, 1) ** float(rng.uniform(0.7, 1.4))
        if rng.random() < 0.15:
            picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
        if rng.random() < 0.3:
            picture = picture + torch.from_numpy(rng.normal(size=picture.shape).astype(np.float32)) * float(
                rng.uniform(0, 0.05)
            )
        if rng.random() < 0.5:
            picture, alpha = picture.flip(2), alpha.flip(2)
            points = torch.stack([self.size - points[:, 0], points[:, 1]], -1)
        return picture, alpha, points


def _losses(drawn: Tensor, wanted: Tensor) -> Tensor:
    """L1 over a pyramid, the edges weighted up."""
    total = torch.zeros(())
    for _ in range(4):
        edge = F.max_pool2d(wanted, 7, 1, 3) + F.max_pool2d(-wanted, 7, 1, 3)
        total = total + ((drawn - wanted).abs() * (1 + 3 * edge)).mean()
        drawn, wanted = F.avg_pool2d(drawn, 2), F.avg_pool2d(wanted, 2)
    return total


def train(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) on the folder of `mssync frames` with its labels; returns the model file."""
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
    """Mean absolute error, and a sheet: picture, label, matte."""
    errors: list[float] = []
    rows: list[Tensor] = []
    for k in range(len(mattes)):
        picture, alpha, points = (x[None] for x in mattes.whole(k))
        drawn = model(picture, face_hint(points, mattes.size))
        errors.append(float((drawn - alpha).abs().mean()))
        if len(rows) < 18:
            rows.append(torch.cat([picture, alpha.expand(-1, 3, -1, -1), drawn.expand(-1, 3, -1, -1)], 3)[0])
    per = max(1, len(rows) // 3)
    columns = [torch.cat(rows[k * per : (k + 1) * per], 1) for k in range(3)]
    sheet = F.interpolate(torch.cat(columns, 2)[None], scale_factor=0.5, mode="area")[0]
    return {"error": float(np.mean(errors))}, sheet
