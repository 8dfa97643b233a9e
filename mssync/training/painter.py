"""Training of the painters of mouth and eyes, on pairs of frames of one person (`data.windows`).

The first part is reconstruction and a perceptual loss, which leave teeth blurred; then a discriminator of patches with
feature matching joins, which sees the painted window beside what is open in it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.config import Config, PainterTraining
from mssync.data.windows import Windows
from mssync.metrics.appearance import laplacian
from mssync.precision import choose, drawing_precision
from mssync.render.field import view, view_solver
from mssync.render.organs import FACE, framed, grid, mirror_mesh, source_frame
from mssync.render.painter import ORGANS, Asked, Painter, Prompt, sampled
from mssync.training.adversary import PatchDiscriminator
from mssync.training.common import Run, fit, launched
from mssync.training.perceptual import PerceptualLoss

SCALE = torch.tensor([float(FACE.size[1]), float(FACE.size[0])])
CANDIDATES = 6  # frames of which the one that differs most is the target
MAX_YAW, MAX_TURN = 30.0, 20.0  # degrees, of a frame and between two
SHARP, SHARP_SHARE = 0.7, 0.8  # pixels of the source a pixel from which faces are sharp; the share of samples that are
BY_OPENING = 0.7  # share of pairs chosen so
COARSE = 8  # pixels: of what is compared for tint
PEOPLE = 24  # whose pictures are looked at


class Pairs:
    """Random pairs of frames of one person as tensors; sample n is a function of (seed, n)."""

    def __init__(self, windows: Windows, organ: str, seed: int) -> None:
        self.windows, self.organ, self.seed = windows, organ, seed
        frontal = np.abs(windows.yaw) < MAX_YAW
        kept = {name: [np.array(c)[frontal[c.start : c.stop]] for c in clips] for name, clips in windows.people.items()}
        several = [[c for c in clips if len(c) > 2] for _, clips in sorted(kept.items())]
        self.people = [clips for clips in several if clips]
        sharp = np.array([windows.pixels[clips[0]].mean() > SHARP for clips in self.people])
        self.shares = np.where(sharp, SHARP_SHARE / max(sharp.sum(), 1), (1 - SHARP_SHARE) / max((~sharp).sum(), 1))
        self.shares /= self.shares.sum()
        self.measure = windows.mouths if organ == "mouth" else windows.eyes

    def chosen(self, n: int) -> tuple[int, int, np.random.Generator]:
        rng = np.random.default_rng((self.seed, n))
        clips = self.people[rng.choice(len(self.people), p=self.shares)]
        clip = clips[rng.integers(len(clips))]
        source, *others = (clip[int(k)] for k in rng.integers(len(clip), size=1 + CANDIDATES))
        if rng.random() < BY_OPENING:
            gaps = np.abs(self.measure[others] - self.measure[source])
            gaps -= 1e3 * (np.abs(self.windows.yaw[others] - self.windows.yaw[source]) > MAX_TURN)
            return source, others[int(gaps.argmax())], rng
        return source, others[0], rng

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures (B, 3, 288, 256) in [0, 1] and meshes (B, 478, 3) of source and target."""
        chosen = [self.chosen(first + k) for k in range(count)]
        pictures, meshes = [], []
        for end in (0, 1):
            numbers = [pair[end] for pair in chosen]
            images = np.stack([self.windows.images[k] for k in numbers])
            pictures.append(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
            meshes.append(torch.from_numpy(self.windows.meshes[numbers]))
        for k, (_, _, rng) in enumerate(chosen):
            flip = rng.random() < 0.5
            gain = torch.from_numpy(rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)).float()
            pale = max(0.0, rng.uniform(-0.5, 1)) if rng.random() < 0.15 else 1.0
            for picture, mesh in zip(pictures, meshes, strict=True):
                changed = picture[k] * gain[:, None, None]
                grey = changed.mean(0, keepdim=True)
                picture[k] = (grey + pale * (changed - grey)).clamp(0, 1)
                if flip:
                    picture[k] = picture[k].flip(2)
                    mesh[k] = mirror_mesh(mesh[k], FACE.size[1] - 1.0)
        return pictures[0], meshes[0], pictures[1], meshes[1]


def posed(organ: str, source: Tensor, mesh: Tensor, target: Tensor, wanted: Tensor) -> tuple[Prompt, Tensor]:
    """The prompt of a pair, and the real window (B, 3, h, w)."""
    kind = ORGANS[organ]
    frame, head = source_frame(kind, mesh), view(view_solver(mesh), wanted[..., :2])
    there = framed(frame, head)
    given = Asked(kind, source, frame[..., :2], mesh[..., :2], SCALE).prompt(there, wanted[..., :2])
    real = sampled(target, there, grid(kind.size).expand(len(target), -1, -1, -1), SCALE)
    return given, real


class Losses(torch.nn.Module):
    def __init__(self, settings: PainterTraining) -> None:
        super().__init__()
        self.settings, self.perceptual = settings, PerceptualLoss()

    def forward(self, painted: Tensor, real: Tensor, given: Prompt) -> dict[str, Tensor]:
        gap = given.gap
        # A gap is few pixels, and all that one looks at.
        weight = 0.3 + 2 * given.near + gap * (1200 / (gap.sum((2, 3), keepdim=True) + 120))
        difference = painted - real
        s = self.settings
        return {
            "reconstruction": s.reconstruction * (difference.abs() * weight).mean(),
            "tint": s.tint * (F.avg_pool2d(difference, COARSE).abs() * F.avg_pool2d(weight, COARSE)).mean(),
            "perceptual": s.perceptual * self.perceptual(painted, real),
        }


def train(config: Config, data: str | Path, run_dir: str | Path, organ: str, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the painter of an organ, "mouth" or "eye"; returns the model file in `run_dir`.

    data: the folder of `mssync frames`. Resumed exactly from ``ORGAN.pt``. Raises InputError as `read_frames`.
    """
    settings = config.painter_training
    run = Run(run_dir, organ, max_minutes, launched())
    torch.manual_seed(settings.seed)
    model, critic, judged = Painter(organ), PatchDiscriminator(inputs=4), Losses(settings)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), settings.lr, betas=(0.5, 0.99))
    judge = torch.optim.Adam(critic.parameters(), settings.critic_lr, betas=(0.5, 0.99))
    pairs, seen = Pairs(Windows(data, "train"), organ, settings.seed), Pairs(Windows(data, "val"), organ, 1)
    precision = choose(None, torch.device("cpu"))

    def losses(step: int) -> dict[str, Tensor]:
        given, real = posed(organ, *pairs.batch(step * settings.batch, settings.batch))
        with drawing_precision(real, precision):
            painted = model(given)
        found = judged(painted, real, given)
        if step >= settings.critic_from * settings.steps:
            found |= _criticised(critic, judge, painted, real, given, settings)
        return found

    about, others = ("painter", {"organ": organ, "widths": model.widths}), {"critic": critic, "judge": judge}
    looked = partial(evaluate, pairs=seen, precision=precision)
    return fit(run, model, optimizer, settings, losses, looked, about, others)


def _criticised(
    critic: PatchDiscriminator, judge: Any, painted: Tensor, real: Tensor, given: Prompt, settings: PainterTraining
) -> dict[str, Tensor]:
    """One step of the discriminator, then the losses that it gives."""
    one, two = (torch.cat([picture, given.gap], 1) for picture in (painted, real))
    critic.judge(one, two).backward()
    judge.step()
    critic.requires_grad_(False)
    adversarial, matching = critic.criticise(one, two)
    critic.requires_grad_(True)
    judge.zero_grad(set_to_none=True)
    return {"adversarial": settings.adversarial * adversarial, "matching": settings.matching * matching}


@torch.no_grad()
def evaluate(model: torch.nn.Module, pairs: Pairs, precision: str) -> tuple[dict[str, float], Tensor]:
    """L1 near lips or lids over that of copying, Laplacian energy of what is open over the real one's; a sheet."""
    rows, sums = [], np.zeros(5)
    measure = pairs.measure
    for clips in pairs.people[:PEOPLE]:
        numbers = np.array(clips[0])
        order = numbers[np.argsort(measure[numbers])]
        source = order[0] if pairs.organ == "mouth" else order[-1]
        targets = [order[-1], order[len(order) * 3 // 4], order[len(order) // 2], order[0]]
        images = torch.from_numpy(np.stack([pairs.windows.images[k] for k in (source, *targets)]))
        images = images.permute(0, 3, 1, 2).float() / 255
        meshes = torch.from_numpy(pairs.windows.meshes[[source, *targets]])
        count = len(targets)
        given, real = posed(
            pairs.organ, images[:1].expand(count, -1, -1, -1), meshes[:1].expand(count, -1, -1), images[1:], meshes[1:]
        )
        with drawing_precision(real, precision):
            painted = model(given)
        warped, still = given.warped, given.channels[:, 3:6] / 2 + 0.5
        near, gap = given.near, given.gap[:, 0]
        sums += [float(((x - real).abs() * near).sum()) for x in (painted, warped, still)] + [
            float((laplacian(x).square() * gap).sum()) for x in (painted, real)
        ]
        rows.append(torch.cat([still[0], *(torch.cat([warped[k], painted[k], real[k]], 2) for k in range(3))], 2))
    half = len(rows) // 2
    sheet = torch.cat([torch.cat(rows[:half], 1), torch.cat(rows[half : 2 * half], 1)], 2)
    return {"painted": sums[0] / sums[2], "warped": sums[1] / sums[2], "sharpness": sums[3] / sums[4]}, sheet
