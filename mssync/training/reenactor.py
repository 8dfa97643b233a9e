"""Training of the compact reenactor.

Four stages, in steps of one run: the detector alone learns the landmark guidance; detector, dense motion and
painter learn together at half resolution while the guidance fades; then the detector is frozen (the motion space
is fixed from here on, so syncers and generator can be trained beside it) and the rest goes on at 128×128, and at
last at 256×256.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, ReenactorTraining
from mssync.data.clips import read_clips
from mssync.data.pairs import FramePairs
from mssync.reenact.compact import CompactReenactor, exact_geometry, inverse, split
from mssync.training.common import Average, Run, cosine_rate, ramp
from mssync.training.perceptual import PerceptualLoss
from mssync.weights import save_model

LOW_SIZE = 128
GUIDED, JOINT, LOW, FULL = 1, 2, 3, 4  # stages
# eyes, nose, cheeks, forehead, chin, upper lip, lower lip, mouth: see guidance.ANCHORS
GUIDANCE_KEYPOINTS = (2.0, 2.0, 1.0, 0.5, 0.5, 0.5, 1.0, 2.0, 3.0, 2.0)
GUIDANCE_VALUES = (1.0, 1.0, 0.1, 0.1, 0.1, 0.15)  # x, y, then the Jacobian; its last entry is how far open
IMAGE_EVERY, SAVE_EVERY = 250, 250  # steps


class ReenactorLosses(nn.Module):
    """The model and its losses as one module, so that Fabric can wrap it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weights = config.reenactor_training
        self.model = CompactReenactor(**asdict(config.reenactor))
        self.perceptual = PerceptualLoss()

    def forward(self, batch: dict[str, Tensor], stage: int, guidance: float) -> tuple[Tensor, dict, Tensor]:
        """batch of FramePairs -> total loss, its parts, a strip of pictures (3, h, w)."""
        source, driving = batch["source"].float() / 255, batch["driving"].float() / 255
        wanted = torch.stack([batch["source_motion"], batch["driving_motion"]])
        if stage == GUIDED:
            motion = self.model.keypoints(torch.cat([source, driving]))
            losses = {"guidance": guidance * self._guidance(motion.unflatten(0, (2, -1)), wanted)}
            return losses["guidance"], losses, driving[0]
        if stage < FULL:
            source, driving = (F.interpolate(x, size=(LOW_SIZE,) * 2, mode="area") for x in (source, driving))
        with torch.set_grad_enabled(stage == JOINT and torch.is_grad_enabled()):
            motion = self.model.keypoints(torch.cat([source, driving]))
        source_motion, driving_motion = motion.chunk(2)
        state = self.model.prepare_with(source, source_motion)
        parts = self.model.render_parts(state, driving_motion)
        losses = self._pictures(parts, driving, batch["weight"])
        if stage == JOINT:
            losses["guidance"] = guidance * self._guidance(motion.unflatten(0, (2, -1)), wanted)
            losses["equivariance"] = self.weights.equivariance * self._equivariance(driving, driving_motion)
        strip = torch.cat(list(_rows(source, driving, parts)), 2)
        return torch.stack(list(losses.values())).sum(), losses, strip

    def _pictures(self, parts: dict[str, Tensor], driving: Tensor, weight: Tensor) -> dict[str, Tensor]:
        weight = F.interpolate(weight, size=driving.shape[-2:], mode="bilinear")
        weight = weight / weight.mean()
        return {
            "reconstruction": self.weights.reconstruction * (weight * (parts["frame"] - driving).abs()).mean(),
            "generated": self.weights.generated * (weight * (parts["generated"] - driving).abs()).mean(),
            "perceptual": self.weights.perceptual * self.perceptual(parts["frame"], driving),
        }

    @staticmethod
    def _guidance(motion: Tensor, wanted: Tensor) -> Tensor:
        """L1 to the landmarks' motion, both (2, B, 10, 6): source and driving.

        What moves a picture is the change from source to driving, so that counts beside the values, and
        lips and eyes, which move least and matter most, count more.
        """
        error = motion - wanted
        change = error[1] - error[0]
        weight = error.new_tensor(GUIDANCE_KEYPOINTS)[:, None] * error.new_tensor(GUIDANCE_VALUES)
        weight = weight / len(GUIDANCE_KEYPOINTS)
        return (weight * (error.abs().mean((0, 1)) + 2 * change.abs().mean(0))).sum() / 2

    def _equivariance(self, image: Tensor, motion: Tensor) -> Tensor:
        """FOMM's equivariance under a random affine map z -> A z + b of the picture, values and Jacobians."""
        batch, device = len(image), image.device
        noise = torch.randn(batch, 2, 3, device=device) * torch.tensor([0.08, 0.08, 0.06], device=device)
        affine = torch.eye(2, device=device) + noise[..., :2]
        moved = F.grid_sample(
            image,
            F.affine_grid(torch.cat([affine, noise[..., 2:]], -1), list(image.shape), align_corners=False),
            padding_mode="reflection",
            align_corners=False,
        )
        return equivariance(motion, self.model.keypoints(moved), affine, noise[..., 2])


@exact_geometry
def equivariance(motion: Tensor, moved: Tensor, affine: Tensor, shift: Tensor) -> Tensor:
    """How far two motions (B, 10, 6) are from being the same points, values and Jacobians.

    A picture sampled at A z + b shows at z what the original shows at A z + b; affine (B, 2, 2), shift (B, 2).
    """
    (p, j), (q, k) = split(motion), split(moved)
    back = torch.einsum("bij,bkj->bki", affine, q) + shift[:, None]
    product = inverse(j) @ (affine[:, None] @ k)
    return (p - back).abs().mean() + 0.1 * (product - torch.eye(2, device=p.device)).abs().mean()


def _rows(source: Tensor, driving: Tensor, parts: dict[str, Tensor]) -> Iterator[Tensor]:
    """Pictures for the log, one below the other, four samples side by side."""
    shown = [source, driving, parts["frame"], parts["generated"], parts["share"].expand_as(source)]
    for k in range(min(4, len(source))):
        yield torch.cat([x[k].float() for x in shown], 1)


def train(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) on the prepared folder `data`; returns the model file in `run_dir`.

    The run is resumed exactly from ``reenactor.pt``: samples are a function of the step. Raises InputError when the
    folder is not a prepared one or the run was made with other sizes.
    """
    from lightning.fabric import Fabric
    from torch.utils.data import DataLoader, Subset

    settings = config.reenactor_training
    # Stages leave parts of the model without gradients, which DDP has to be told.
    fabric = Fabric(precision=settings.precision, strategy=_strategy())
    fabric.launch()
    run = Run(run_dir, "reenactor", max_minutes, fabric)
    torch.manual_seed(settings.seed)
    losses = ReenactorLosses(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(losses.model, settings.average)
    trained = list(losses.model.parameters())
    optimizer = torch.optim.Adam(trained, lr=settings.lr, betas=(0.5, 0.99))
    wrapped, optimizer = fabric.setup(losses, optimizer)
    average.model.to(fabric.device)
    kept = {"model": losses.model, "average": average.model, "optimizer": optimizer}
    start = int(run.restore(kept).get("step", 0))
    ends = _stage_ends(settings)
    clips = read_clips(data, "train")
    while start < ends[-1]:
        stage = next(i for i, end in enumerate(ends) if start < end) + 1
        if stage > JOINT:
            # What is kept from here on is the averaged detector, so the rest learns with that one.
            losses.model.detector.load_state_dict(average.model.detector.state_dict())  # type: ignore[union-attr]
            losses.model.detector.requires_grad_(False)
        size = {GUIDED: settings.detector_batch, FULL: settings.full_batch}.get(stage, settings.batch)
        world, rank = fabric.world_size, fabric.global_rank
        dataset = FramePairs(clips, ends[-1] * size * world, settings.seed)
        # rank r of step s reads samples (s * world + r) * size ...: the same set whatever the number of processes
        order = [(s * world + rank) * size + i for s in range(start, ends[stage - 1]) for i in range(size)]
        loader = DataLoader(
            Subset(dataset, order),
            size,
            num_workers=settings.workers,
            prefetch_factor=4 if settings.workers else None,
            worker_init_fn=_ignore_interrupt,
        )
        done = start
        for step, batch in zip(run.steps(start, ends[stage - 1]), loader, strict=False):
            _set_mode(losses.model, stage)
            _set_rate(optimizer, settings, step, ends)
            fade = ramp(step, ends[0], ends[1])
            guidance = settings.guidance + (settings.guidance_final - settings.guidance) * fade
            torch.manual_seed(settings.seed + step * world + rank)
            batch = {k: v.to(fabric.device) for k, v in batch.items()}
            total, parts, strip = wrapped(batch, stage, guidance)
            fabric.backward(total)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(losses.model, step)
            done = step + 1
            run.log(step, {"total": float(total.detach()), **{k: float(v.detach()) for k, v in parts.items()}})
            if done % IMAGE_EVERY == 0:
                run.image(step, "pictures", strip.detach())
            if done % SAVE_EVERY == 0:
                _save(run, kept, done)
        _save(run, kept, done)
        if done < ends[stage - 1]:
            break
        start = done
    return run.folder / "reenactor.safetensors"


def _strategy() -> Any:
    """One process unless launched as several (torchrun, fabric run)."""
    from lightning.fabric.strategies import DDPStrategy

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return DDPStrategy(find_unused_parameters=True) if several else "auto"


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C ends the training after the step under way, which needs the reader's batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stage_ends(settings: ReenactorTraining) -> list[int]:
    """The step at which each of the four stages ends."""
    steps = (settings.detector_steps, settings.joint_steps, settings.low_steps, settings.full_steps)
    return list(accumulate(steps))


def _set_mode(model: CompactReenactor, stage: int) -> None:
    model.train()
    if stage > JOINT:
        model.detector.eval()  # frozen: its batch norms too


def _set_rate(optimizer: Any, settings: ReenactorTraining, step: int, ends: list[int]) -> None:
    """The detector has a cosine of its own; the later stages share one."""
    first = ends[0]
    if step < first:
        factor = cosine_rate(step, first, settings.warmup, 0.3)
    else:
        factor = cosine_rate(step - first, ends[-1] - first, settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * factor


def _save(run: Run, parts: dict[str, Any], step: int) -> None:
    run.save(parts, step=step)
    shipped = parts["average"]
    if run.fabric.is_global_zero:
        save_model(run.folder / "reenactor.safetensors", shipped, "compact", shipped.config, {"steps": step})
