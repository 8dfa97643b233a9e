"""Training of the compact reenactor.

Four stages, in steps of one run. MOTION: the dense motion and the learned keypoint, cheap steps without a painter;
they are shown where pixels come from by the face meshes of both frames, which are exact on the face, and by optical
flow elsewhere. Then the detector is frozen (the motion space is fixed from here on, so syncers and generator can be
trained beside it) and the painter joins: LOW at 128×128, FULL at 256×256, where the dense motion sees the whole
picture and the painter draws a window of it, and SHARP, the same with a discriminator.
"""

from __future__ import annotations

import re
import signal
import uuid
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, ReenactorTraining
from mssync.data.clips import read_clips
from mssync.data.pairs import FramePairs
from mssync.errors import InputError
from mssync.faces import CHIN
from mssync.motion import UNNAMED, check_space_name
from mssync.reenact.compact import (
    BODY,
    MOTION_SIZE,
    CompactReenactor,
    DenseMotion,
)
from mssync.reenact.geometry import coordinate_grid, exact_geometry, inverse, split, warp, windowed
from mssync.reenact.mesh import LEFT_LIDS, LOWER_LIP, RIGHT_LIDS, UPPER_LIP
from mssync.training.adversary import PatchDiscriminator
from mssync.training.common import Average, Run, cosine_rate, launched, ramp, synchronised
from mssync.training.perceptual import PerceptualLoss
from mssync.weights import save_model

LOW_SIZE = 128
MOTION, LOW, FULL, SHARP = 1, 2, 3, 4  # stages
FINE_POINTS = sorted({*LEFT_LIDS, *RIGHT_LIDS, *UPPER_LIP, *LOWER_LIP})
FINE_WEIGHT = 4.0  # of a mesh point of eyelids and lips in the loss; others have 1
CHANGED_WEIGHT = 40.0  # of a pixel in the loss where mouth or eyes open or close; the background has 1
CHEEKS = (234, 454)  # mesh points at the sides of the face
BODY_SPREAD = 1.2  # half the width of the body's region, in widths of the face
FLOW_SCALE = 4 / 256  # offset error, 2 pixels of 256, from which more error hardly costs more
IMAGE_EVERY, SAVE_EVERY = 100, 100  # steps


class ReenactorLosses(nn.Module):
    """The model and its losses as one module, so that Fabric can wrap it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weights = config.reenactor_training
        self.model = CompactReenactor(**asdict(config.reenactor))
        self.perceptual = PerceptualLoss()

    def forward(self, batch: dict[str, Tensor], stage: int, guidance: float) -> tuple[dict, dict[str, Tensor]]:
        """batch of FramePairs, factor of the guidance by mesh and flow -> weighted losses, pictures."""
        source, driving = batch["source"].float() / 255, batch["driving"].float() / 255
        if stage < FULL:
            source, driving = (F.interpolate(x, size=(LOW_SIZE,) * 2, mode="area") for x in (source, driving))
        marks = torch.cat([batch["source_marks"], batch["driving_marks"]])
        with torch.set_grad_enabled(stage == MOTION and torch.is_grad_enabled()):
            motion = self.model.detector(torch.cat([source, driving]), marks)
        source_motion, driving_motion = motion.chunk(2)
        if stage == MOTION:
            parts, losses = self._motion_stage(batch, source, driving, source_motion, driving_motion)
        else:
            view = batch["view"] if stage >= FULL else None
            parts = self.model.render_parts(self.model.prepare(source, source_motion), driving_motion, view)
            warped = weighted_error(warp(source, parts["offset"]), driving, batch["weight"])
            weight = batch["weight"]
            if view is not None:
                driving, weight = windowed(driving, view), windowed(weight, view)
            weight = with_changes(weight, parts["opened"])
            losses = {"warped": self.weights.warped * warped, **self._pictures(parts, driving, weight)}
        losses["mesh"] = guidance * self.weights.mesh * mesh_error(parts["offset"], marks)
        losses["flow"] = guidance * self.weights.flow * flow_error(parts["offset"], batch["flow"], batch["trust"])
        return losses, {"source": source, "driving": driving, **parts}

    def _motion_stage(
        self, batch: dict[str, Tensor], source: Tensor, driving: Tensor, source_motion: Tensor, driving_motion: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        small = F.interpolate(source, size=(MOTION_SIZE,) * 2, mode="area")
        field = self.model.dense_motion(small, source_motion, driving_motion)
        warped = warp(source, field.offset)
        losses = {
            "warped": self.weights.reconstruction * weighted_error(warped, driving, batch["weight"]),
            "coarse": self.weights.reconstruction * (F.avg_pool2d(warped - driving, 8)).abs().mean(),
            "body": self.weights.flow * body_error(source_motion, driving_motion, batch),
            "equivariance": self.weights.equivariance
            * self._equivariance(driving, driving_motion[:, BODY:], batch["affine"]),
        }
        return {"warped": warped, "frame": warped, "offset": field.offset}, losses

    def _pictures(self, parts: dict[str, Tensor], driving: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {
            "reconstruction": self.weights.reconstruction * weighted_error(parts["frame"], driving, weight),
            "generated": self.weights.generated * weighted_error(parts["generated"], driving, weight),
            "perceptual": self.weights.perceptual * self.perceptual(parts["frame"], driving),
        }

    def _equivariance(self, image: Tensor, motion: Tensor, affine: Tensor) -> Tensor:
        """FOMM's equivariance under an affine map z -> A z + b of the picture, for the learned keypoint."""
        grid = F.affine_grid(affine, list(image.shape), align_corners=False)
        moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        return equivariance(motion, self.model.detector.body(moved), affine[..., :2], affine[..., 2])


def weighted_error(drawn: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """L1 of pictures (B, 3, s, s) under weights (B, 1, h, h), of mean 1 in each picture."""
    weight = F.interpolate(weight, size=drawn.shape[-2:], mode="bilinear")
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    return (weight * (drawn - wanted).abs()).mean()


def with_changes(weight: Tensor, opened: Tensor) -> Tensor:
    """Loss weights (B, 1, h, h), raised where mouth or eyes are to be open and were not, or the other way round.

    opened (B, 4, s, s): see `compact.Field`; returns (B, 1, s, s). A lid that closes is few pixels, and all of a blink.
    """
    wanted, there = opened.chunk(2, 1)
    changed = (wanted - there).abs().sum(1, keepdim=True)
    return F.interpolate(weight, size=opened.shape[-2:], mode="bilinear") + CHANGED_WEIGHT * changed


@exact_geometry
def mesh_error(offset: Tensor, marks: Tensor) -> Tensor:
    """How far off the field (B, h, h, 2) is at the mesh: a point of the driving face comes from the same of the source.

    marks (2B, 478, 2): source, then driving.
    """
    source, driving = marks.chunk(2)
    found = F.grid_sample(
        offset.permute(0, 3, 1, 2), driving[:, :, None], padding_mode="border", align_corners=False
    ).squeeze(-1)
    weight = torch.ones(driving.shape[1], device=offset.device)
    weight[FINE_POINTS] = FINE_WEIGHT
    error = (found.transpose(1, 2) - (source - driving)).abs().sum(-1)
    return (error * weight).mean() / weight.mean()


@exact_geometry
def flow_error(offset: Tensor, flow: Tensor, trust: Tensor) -> Tensor:
    """Distance of the field (B, h, h, 2) from optical flow (B, 64, 64, 2), as far as that is trusted (B, 64, 64)."""
    small = F.interpolate(offset.permute(0, 3, 1, 2), size=flow.shape[1:3], mode="area").permute(0, 2, 3, 1)
    return (trust * _robust(small - flow)).mean()


def body_error(source: Tensor, driving: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """How far the learned keypoint's own affine motion is from the optical flow below the chin."""
    offset = DenseMotion.sparse_offsets(source, driving, MOTION_SIZE)[:, 1 + BODY]
    marks, grid = batch["driving_marks"], coordinate_grid(MOTION_SIZE, batch["driving_marks"])
    chin = marks[:, CHIN, None, None]
    width = (marks[:, CHEEKS[1], 0] - marks[:, CHEEKS[0], 0]).abs()[:, None, None]
    away = grid - chin
    region = (away[..., 1] > 0) & (away[..., 0].abs() < BODY_SPREAD * width)
    return (batch["trust"] * region * _robust(offset - batch["flow"])).mean()


def _robust(difference: Tensor) -> Tensor:
    """(..., 2) -> its length, growing ever more slowly beyond FLOW_SCALE: flow has outliers."""
    length = (difference.square().sum(-1) + 1e-8).sqrt()
    return FLOW_SCALE * torch.log1p(length / FLOW_SCALE)


@exact_geometry
def equivariance(motion: Tensor, moved: Tensor, affine: Tensor, shift: Tensor) -> Tensor:
    """How far two motions (B, K, 6) are from being the same points, values and Jacobians.

    A picture sampled at A z + b shows at z what the original shows at A z + b; affine (B, 2, 2), shift (B, 2).
    """
    (p, j), (q, k) = split(motion), split(moved)
    back = torch.einsum("bij,bkj->bki", affine, q) + shift[:, None]
    product = inverse(j) @ (affine[:, None] @ k)
    return (p - back).abs().mean() + 0.1 * (product - torch.eye(2, device=p.device)).abs().mean()


def picture_grid(pictures: dict[str, Tensor], columns: int = 4) -> Tensor:
    """Pictures for the log, (3, h, w): source, driving, frame, generated, share, one below the other."""
    names = ("source", "driving", "frame", "generated", "share")
    shown = [pictures[name][:columns].detach().float() for name in names if name in pictures]
    size = shown[-1].shape[-1]  # the source is whole where a window is drawn
    shown = [F.interpolate(x, size=(size, size), mode="area") for x in shown]
    rows = [torch.cat(list(x.expand(-1, 3, -1, -1)), 2) for x in shown]
    return torch.cat(rows, 1)


def train(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) on the prepared folder `data`; returns the model file in `run_dir`.

    The run is resumed exactly from ``reenactor.pt``: samples are a function of the step. Launched by torchrun or
    `fabric run`, several processes share each step's batch, `batch` samples a process. Raises InputError when the
    folder is not a prepared one or the run was made with other sizes.
    """
    settings = config.reenactor_training
    fabric = launched(settings.precision)
    trainer = _Trainer(config, fabric, Run(run_dir, "reenactor", max_minutes, fabric))
    clips = read_clips(data, "train")
    ends = _stage_ends(settings)
    start = trainer.restore()
    trainer.name_space(config.reenactor.motion_space)
    while start < ends[-1]:
        stage = next(i for i, end in enumerate(ends) if start < end) + 1
        stop = trainer.stage(stage, start, ends, clips)
        trainer.save(stop)
        if stop < ends[stage - 1]:
            break
        start = stop
    return trainer.run.folder / "reenactor.safetensors"


class _Trainer:
    """Models, optimizers and their steps."""

    def __init__(self, config: Config, fabric: Any, run: Run) -> None:
        self.settings, self.fabric, self.run = config.reenactor_training, fabric, run
        torch.manual_seed(self.settings.seed)
        self.losses = synchronised(ReenactorLosses(config), fabric)
        self.model: CompactReenactor = self.losses.model
        self.critic = PatchDiscriminator()
        self.average = Average(self.model, self.settings.average)
        self.average.model.to(fabric.device)
        self.optimizer, self.critic_optimizer = (
            torch.optim.Adam(module.parameters(), lr=self.settings.lr, betas=(0.5, 0.99))
            for module in (self.model, self.critic)
        )
        channels_last = torch.channels_last
        self.wrapped, self.optimizer = fabric.setup(self.losses.to(memory_format=channels_last), self.optimizer)
        self.judge, self.critic_optimizer = fabric.setup(self.critic, self.critic_optimizer)
        self.judge.mark_forward_method("judge")
        self.kept = {
            "model": self.model,
            "average": self.average.model,
            "optimizer": self.optimizer,
            "critic": self.critic,
            "critic_optimizer": self.critic_optimizer,
        }

    def restore(self) -> int:
        """The step to go on at."""
        numbers = self.run.restore(self.kept)
        self.shipped.space = numbers.get("motion_space", UNNAMED)
        return int(numbers.get("step", 0))

    @property
    def shipped(self) -> CompactReenactor:
        """What becomes the model file."""
        return cast(CompactReenactor, self.average.model)

    def name_space(self, wanted: str) -> None:
        """Name the motion space of a run that has just begun. Raises InputError for another name than it has."""
        if self.shipped.space == UNNAMED:
            made_up = re.sub(r"[^\w.+-]+", "-", f"{self.run.folder.resolve().name}-{uuid.uuid4().hex[:8]}")
            self.shipped.space = made_up if wanted == UNNAMED else check_space_name(wanted)
        elif wanted not in (UNNAMED, self.shipped.space):
            raise InputError(
                f"{self.run.folder}: its motion space is {self.shipped.space!r}, not {wanted!r}; give a new --run"
            )

    def save(self, step: int) -> None:
        self.run.save(self.kept, step=step, motion_space=self.shipped.space)
        if self.fabric.is_global_zero:
            path = self.run.folder / "reenactor.safetensors"
            save_model(path, self.shipped, "compact", self.shipped.config, {"steps": step})

    def stage(self, stage: int, start: int, ends: list[int], clips: list[Any]) -> int:
        """Train from `start` to the end of `stage`, of the time, or Ctrl-C; returns the next step."""
        if stage > MOTION:
            # What is kept from here on is the averaged detector, so the rest learns with that one.
            self.model.detector.load_state_dict(self.shipped.detector.state_dict())
        self.model.detector.requires_grad_(stage == MOTION)
        self.model.painter.requires_grad_(stage != MOTION)
        step = start
        loader = self._loader(stage, start, ends, clips)
        for at, batch in zip(self.run.steps(start, ends[stage - 1]), loader, strict=False):
            self.model.train()
            self.model.detector.train(stage == MOTION)  # frozen: its batch norms too
            batch = {name: value.to(self.fabric.device) for name, value in batch.items()}
            self._step(stage, at, ends, batch)
            step = at + 1
            if step % SAVE_EVERY == 0:
                self.save(step)
        return step

    def _step(self, stage: int, at: int, ends: list[int], batch: dict[str, Tensor]) -> None:
        settings = self.settings
        _set_rate(self.optimizer, settings, at, ends)
        fade = ramp(at, ends[0], ends[1])
        guidance = 1 + (settings.guidance_final - 1) * fade
        losses, pictures = self.wrapped(batch, stage, guidance)
        if stage == SHARP:
            losses |= self._criticised(pictures)
        self.fabric.backward(torch.stack(list(losses.values())).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if norm.isfinite():  # a single bad batch must not end a run of days
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, at)
        self._log(at, losses, pictures, len(batch["source"]))

    def _criticised(self, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the discriminator, then the losses it gives."""
        drawn, real = pictures["frame"], pictures["driving"]
        self.fabric.backward(self.judge.judge(drawn, real))
        self.critic_optimizer.step()
        self.critic.requires_grad_(False)
        with self.fabric.autocast():
            adversarial, matching = self.critic.criticise(drawn, real)
        self.critic.requires_grad_(True)
        self.critic_optimizer.zero_grad(set_to_none=True)
        return {"adversarial": self.settings.adversarial * adversarial, "matching": self.settings.matching * matching}

    def _loader(self, stage: int, start: int, ends: list[int], clips: list[Any]) -> Any:
        from torch.utils.data import DataLoader, Subset

        settings, world, rank = self.settings, self.fabric.world_size, self.fabric.global_rank
        size = {MOTION: settings.motion_batch, LOW: settings.low_batch}.get(stage, settings.full_batch)
        dataset = FramePairs(clips, ends[-1] * size * world, settings.seed)
        # rank r of step s reads samples (s * world + r) * size ...: the same set whatever the number of processes
        order = [(s * world + rank) * size + i for s in range(start, ends[stage - 1]) for i in range(size)]
        return DataLoader(
            Subset(dataset, order),
            size,
            num_workers=settings.workers,
            prefetch_factor=4 if settings.workers else None,
            worker_init_fn=_start_worker,
        )

    def _log(self, at: int, losses: dict[str, Tensor], pictures: dict[str, Tensor], samples: int) -> None:
        found = self.fabric.all_reduce(torch.stack([value.detach().float() for value in losses.values()]))
        values = dict(zip(losses, found.tolist(), strict=True))
        self.run.log(at, {"total": sum(values.values()), **values}, samples=samples * self.fabric.world_size)
        if (at + 1) % IMAGE_EVERY == 0:
            self.run.image(at, "pictures", picture_grid(pictures))


def _start_worker(_: int) -> None:
    """Ctrl-C ends the training after the step under way, which needs the reader's batch."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stage_ends(settings: ReenactorTraining) -> list[int]:
    """The step at which each of the four stages ends."""
    return list(accumulate((settings.motion_steps, settings.low_steps, settings.full_steps, settings.sharp_steps)))


def _set_rate(optimizer: Any, settings: ReenactorTraining, step: int, ends: list[int]) -> None:
    """The first stage has a cosine of its own; the later ones share one."""
    first, warmup = ends[0], settings.warmup
    if step < first:
        factor = cosine_rate(step, first, warmup, 0.2)
    else:
        factor = cosine_rate(step - first, ends[-1] - first, warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * factor
