"""Training of one syncer of the pyramid (eq. 2): InfoNCE between windows of sound and windows of motion.

Negatives are motion windows against the same sound: on the levels that hold enough windows, misaligned ones of the same
sequence; above (on the coarsest level, in the paper), windows of other sequences of the batch. A second, optional loss
asks what syncers are for: of all offsets of a second of speech, the true one should fit best.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.config import Config, SyncerTraining
from mssync.data.own import PARTS
from mssync.data.sequences import Sequence, SequenceBatches, disturbed_sound, read_sequences, validation_batches
from mssync.errors import InputError
from mssync.pyramid import LEVELS, pyramid
from mssync.syncer import MAX_OFFSET, Syncer, info_nce
from mssync.training.common import Average, Run, cosine_rate, launched
from mssync.weights import save_model

VALIDATE_EVERY = 250  # steps
VALIDATION_BATCHES = 8
WARMUP = 100
MIN_STRETCH = 3  # windows
NEAR = 1  # windows next to the true one are neither right nor wrong


# Losses


def contrast(
    sounds: Tensor, moves: Tensor, clips: Tensor | None, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores of a batch of unit embeddings (B, n, E) each: positives (B * n,) and negatives (B * n, N).

    clips: None to draw negatives from the misaligned windows of the anchor's own sequence; otherwise (B,), which
    clip each sequence is of, to draw from the windows of other clips.
    Negatives are drawn without replacement. Raises InputError when there are fewer than N to draw from; of other
    clips, of which chance may put few into a batch, when there are none: what lacks to N scores -inf.
    """
    batch, count, _ = sounds.shape
    positive = (sounds * moves).sum(-1).flatten()
    if clips is None:
        cosines = (sounds @ moves.transpose(1, 2)).flatten(0, 1)  # (B * n, n)
        barred = torch.eye(count, dtype=torch.bool).repeat(batch, 1)
    else:
        cosines = sounds.flatten(0, 1) @ moves.flatten(0, 1).T  # (B * n, B * n)
        owner = clips.cpu().repeat_interleave(count)
        barred = owner[:, None] == owner
    available = int((~barred).sum(1).min())
    if available < (negatives if clips is None else 1):
        raise InputError(
            f"{negatives} negatives are wanted but there are only {available}: "
            "raise syncer_training.frames or .batch, or lower syncer_training.negatives"
        )
    order = torch.rand(cosines.shape, generator=generator).masked_fill(barred, -1.0)
    chosen = order.topk(min(negatives, cosines.shape[1]), dim=1).indices.to(cosines.device)
    return positive, cosines.masked_fill(barred.to(cosines.device), -torch.inf).gather(1, chosen)


def scores(moves: Tensor, sounds: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Cosines (B, n, 2 reach + 1) of every motion window with the sound windows up to `reach` away, and which of
    them exist (n, 2 reach + 1). Column k: the sound window k - reach later."""
    count = moves.shape[1]
    around = F.pad(sounds, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1)
    at = torch.arange(count, device=moves.device)[:, None] + torch.arange(-reach, reach + 1, device=moves.device)
    return torch.einsum("bne,bnek->bnk", moves, around), (at >= 0) & (at < count)


def stretch_loss(cosines: Tensor, there: Tensor, windows: int, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the true offset of stretches of so many windows, and the share of them recovered within one.

    The evidence for an offset is the sum of its cosines, those that do not exist counting as the mean.
    """
    known = cosines.masked_fill(~there, 0)
    mean = known.sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    centred = (known - mean).masked_fill(~there, 0)
    parts = max(1, cosines.shape[1] // windows)
    logits = torch.stack([part.sum(1) for part in centred.tensor_split(parts, dim=1)], 1).flatten(0, 1) * sharpness
    reach = logits.shape[-1] // 2
    target = torch.zeros_like(logits)
    target[:, reach], target[:, [reach - 1, reach + 1]] = 0.7, 0.15
    recovered = ((logits.argmax(-1) - reach).abs() <= 1).float().mean()
    return -(target * logits.log_softmax(-1)).sum(-1).mean(), recovered


class Trained(nn.Module):
    """A syncer while it is trained, with the sharpness of `stretch_loss`."""

    def __init__(self, syncer: Syncer, level: int, settings: SyncerTraining) -> None:
        super().__init__()
        self.syncer, self.level, self.settings = syncer, level, settings
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, batch: tuple[Tensor, ...], seed: int) -> tuple[Tensor, Tensor]:
        """Loss of a batch of `SequenceBatches`, and the share of windows whose positive scores above all negatives."""
        motion, audio, clips, settings = batch[0], batch[1], batch[3], self.settings
        moves = self.syncer.embed_motion(pyramid(motion, self.level)[-1])
        sounds = self.syncer.embed_audio(pyramid(audio, self.level)[-1])
        count = min(moves.shape[1], sounds.shape[1])
        moves, sounds = moves[:, :count], sounds[:, :count]
        drawn = torch.Generator().manual_seed(seed)
        others = clips if self.level > settings.own_levels else None
        positive, negatives = contrast(sounds, moves, others, settings.negatives[self.level - 1], drawn)
        loss = info_nce(positive, negatives, settings.temperature)
        if settings.stretch:
            windows = max(MIN_STRETCH, settings.stretch // 2 ** (self.level - 1))
            around = scores(moves, sounds, min(MAX_OFFSET, count - 1))
            loss = loss + stretch_loss(*around, windows, self.log_sharpness.exp())[0]
        return loss, (positive > negatives.max(1).values).float().mean()


# Training


def train(config: Config, data: str | Path, run_dir: str | Path, level: int, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the syncer of one level; returns the model file ``syncerN.safetensors``.

    data: a prepared folder, or an .npz file of your own motion (`mssync.data.own`).
    The file holds the weights with the highest accuracy on the `val` split so far (on `train`, where there is no
    other): the share of windows that score higher with their own sound than all negatives. The loss is no good
    judge, it punishes rare confident mistakes at a low temperature. Raises InputError when `data` is not a
    prepared folder with motion, and no such file.
    """
    fabric = launched()
    run = Run(run_dir, f"syncer{level}", max_minutes or config.syncer_training.max_minutes, fabric)
    return _train(config, data, _training_sequences(config, data, level), run, level)


def train_pyramid(
    config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None
) -> list[Path]:
    """`train` the syncers of all levels, one after the other; returns the model files of those that were begun.

    max_minutes is for all of them together, what is left being for the next call; the limit of the configuration, which
    it overrides, is for each. Raises InputError: as `train`; a single clip, which level 4 has nothing to compare with.
    """
    deadline = time.monotonic() + 60 * (max_minutes or math.inf)
    sequences = _training_sequences(config, data, LEVELS)
    fabric, files = launched(), []
    for level in range(1, LEVELS + 1):
        left = max((deadline - time.monotonic()) / 60, 1e-6) if max_minutes else config.syncer_training.max_minutes
        run = Run(run_dir, f"syncer{level}", left, fabric)
        files.append(_train(config, data, sequences, run, level))
        if run.interrupted or time.monotonic() > deadline:
            break
    return files


def _training_sequences(config: Config, data: str | Path, highest: int) -> list[Sequence]:
    """Sequences to train on. Raises InputError when the highest level, which learns from other clips, has none."""
    settings = config.syncer_training
    sequences = read_sequences(data, "train", settings.frames, config.augmentation.smooth)
    if highest > settings.own_levels and len(sequences) < 2:
        raise InputError(
            f"{data}: the syncer of level {highest} learns from other clips, and there is only one; give more "
            f"recordings, or one of at least {2 * PARTS * settings.frames} frames"
        )
    return sequences


def _train(config: Config, data: str | Path, sequences: list[Sequence], run: Run, level: int) -> Path:
    settings, fabric = config.syncer_training, run.fabric
    torch.manual_seed(level)
    sizes = {"motion_dim": sequences[0].motion.shape[1]} | asdict(config.syncer)
    stored = sizes | {"motion_space": sequences[0].space}
    model = Trained(Syncer(**sizes, dropout=settings.dropout), level, settings)
    _set_statistics(model.syncer, sequences, level)
    disturb = _disturbance(settings)
    batches = SequenceBatches(
        sequences, settings.frames, settings.batch, level, config.augmentation, None, disturb, settings.strangers
    )
    checks = validation_batches(
        data, sequences, settings.frames, settings.batch, VALIDATION_BATCHES, config.augmentation.smooth
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    average = Average(model, settings.average)
    averaged = cast(Trained, average.model)
    kept = {"model": model, "optimizer": optimizer, "average": average.model}
    numbers = run.restore(kept)
    start, best = int(numbers.get("step", 0)), float(numbers.get("best", 0.0))
    wrapped, optimizer = fabric.setup(model, optimizer)
    average.model.to(fabric.device)
    done = start
    for step in run.steps(start, settings.iterations):
        seed = step * fabric.world_size + fabric.global_rank
        torch.manual_seed(seed)  # dropout: the same after a stop
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_rate(step, settings.iterations, WARMUP)
        loss, accuracy = wrapped(tuple(x.to(fabric.device) for x in batches(seed)), step)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        done = step + 1
        run.log(step, {"loss": float(loss.detach()), "accuracy": float(accuracy)})
        if done % VALIDATE_EVERY == 0 or done == settings.iterations:
            best = _validate(run, averaged, checks, stored, done, best)
            run.save(kept, step=done, best=best)
    run.save(kept, step=done, best=best)
    if not best:
        _validate(run, averaged, checks, stored, done, best)
    return run.folder / f"syncer{level}.safetensors"


def _disturbance(settings: SyncerTraining) -> Any:
    """What `SequenceBatches` does to the sound; None for nothing."""
    chances = settings.tilt, settings.noise, settings.mask
    if not any(chances):
        return None

    def disturb(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return disturbed_sound(sound, *chances, rng)

    return disturb


def _set_statistics(syncer: Syncer, sequences: list[Sequence], level: int) -> None:
    motion = torch.cat([pyramid(s.motion[None], level)[-1][0] for s in sequences])
    audio = torch.cat([pyramid(s.audio[None], level)[-1][0] for s in sequences])
    syncer.motion_norm.set_statistics(motion.mean(0), motion.std(0))
    syncer.audio_norm.set_statistics(audio.mean(0), audio.std(0))


@torch.no_grad()
def _validate(
    run: Run, model: Trained, checks: list[tuple[Tensor, ...]], stored: dict[str, Any], step: int, best: float
) -> float:
    device = run.fabric.device
    results = [model(tuple(x.to(device) for x in batch), n) for n, batch in enumerate(checks)]
    loss, accuracy = (float(torch.stack(values).mean()) for values in zip(*results, strict=True))
    run.log(step, {"val_loss": loss, "val_accuracy": accuracy}, every=0)
    if accuracy <= best:
        return best
    figures = {"level": model.level, "steps": step, "val_loss": round(loss, 4), "val_accuracy": round(accuracy, 4)}
    path = run.folder / f"syncer{model.level}.safetensors"
    if run.fabric.is_global_zero:
        save_model(path, model.syncer, "syncer", stored, figures)
    return accuracy
