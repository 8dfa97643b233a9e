"""Training of one syncer of the pyramid (eq. 2): InfoNCE between windows of sound and windows of motion.

Negatives are motion windows against the same sound: on the levels that hold enough windows, misaligned ones of
the same sequence; on the coarsest level, windows of other sequences of the batch.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mssync.config import Config
from mssync.data.sequences import Sequence, SequenceBatches, read_sequences, validation_batches
from mssync.errors import InputError
from mssync.pyramid import LEVELS, pyramid
from mssync.syncer import Syncer, info_nce, windows
from mssync.training.common import Run, cosine_rate, launched
from mssync.weights import save_model

VALIDATE_EVERY = 250  # steps
VALIDATION_BATCHES = 8
WARMUP = 100


def level_windows(audio: Tensor, motion: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Windows of one level of the pyramid: (B, 4T, 26), (B, T, 60) -> (B, n, 20, 26), (B, n, 5, 60)."""
    return windows(pyramid(audio, level)[-1], pyramid(motion, level)[-1])


def contrast(
    sounds: Tensor, moves: Tensor, clips: Tensor | None, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores of a batch of unit embeddings (B, n, E) each: positives (B * n,) and negatives (B * n, N).

    clips: None to draw negatives from the misaligned windows of the anchor's own sequence; otherwise (B,), which
    clip each sequence is of, to draw from the windows of other clips.
    Negatives are drawn without replacement. Raises InputError when there are fewer than N to draw from.
    """
    batch, count, _ = sounds.shape
    positive = (sounds * moves).sum(-1).flatten()
    if clips is None:
        scores = (sounds @ moves.transpose(1, 2)).flatten(0, 1)  # (B * n, n)
        barred = torch.eye(count, dtype=torch.bool).repeat(batch, 1)
    else:
        scores = sounds.flatten(0, 1) @ moves.flatten(0, 1).T  # (B * n, B * n)
        owner = clips.cpu().repeat_interleave(count)
        barred = owner[:, None] == owner
    available = int((~barred).sum(1).min())
    if available < negatives:
        raise InputError(
            f"{negatives} negatives are wanted but there are only {available}: "
            "raise syncer_training.frames or .batch, or lower syncer_training.negatives"
        )
    order = torch.rand(scores.shape, generator=generator).masked_fill(barred, -1.0)
    chosen = order.topk(negatives, dim=1).indices.to(scores.device)
    return positive, scores.gather(1, chosen)


def train(config: Config, data: str | Path, run_dir: str | Path, level: int, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the syncer of one level; returns the model file ``syncerN.safetensors``.

    The file holds the weights with the highest accuracy on the `val` split so far (on `train`, where there is no
    other): the share of windows that score higher with their own sound than all negatives. The loss is no good
    judge, it punishes rare confident mistakes at a low temperature. Raises InputError when `data` is not a
    prepared folder with motion.
    """
    settings = config.syncer_training
    fabric = launched()
    run = Run(run_dir, f"syncer{level}", max_minutes or settings.max_minutes, fabric)
    torch.manual_seed(level)
    syncer = Syncer(**asdict(config.syncer))
    sequences = read_sequences(data, "train", settings.frames, config.augmentation.smooth)
    _set_statistics(syncer, sequences, level)
    batches = SequenceBatches(sequences, settings.frames, settings.batch, level, config.augmentation)
    checks = validation_batches(
        data, sequences, settings.frames, settings.batch, VALIDATION_BATCHES, config.augmentation.smooth
    )
    optimizer = torch.optim.AdamW(
        syncer.parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    kept = {"model": syncer, "optimizer": optimizer}
    numbers = run.restore(kept)
    start, best = int(numbers.get("step", 0)), float(numbers.get("best", 0.0))
    wrapped, optimizer = fabric.setup(syncer, optimizer)
    wrapped.mark_forward_method("embed_audio")
    wrapped.mark_forward_method("embed_motion")
    done = start
    for step in run.steps(start, settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_rate(step, settings.iterations, WARMUP)
        batch = batches(step * fabric.world_size + fabric.global_rank)
        loss, accuracy = _loss(wrapped, batch, config, level, step)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        run.log(step, {"loss": float(loss.detach()), "accuracy": accuracy})
        if done % VALIDATE_EVERY == 0 or done == settings.iterations:
            best = _validate(run, wrapped, checks, config, level, done, best)
            run.save(kept, step=done, best=best)
    run.save(kept, step=done, best=best)
    if not best:
        _validate(run, wrapped, checks, config, level, done, best)
    return run.folder / f"syncer{level}.safetensors"


def _loss(syncer: Any, batch: tuple[Tensor, ...], config: Config, level: int, seed: int) -> tuple[Tensor, float]:
    """InfoNCE of a batch, and the share of windows whose positive scores above all of its negatives."""
    motion, audio = batch[0].to(syncer.device), batch[1].to(syncer.device)
    sounds, moves = level_windows(audio, motion, level)
    settings = config.syncer_training
    positive, negatives = contrast(
        syncer.embed_audio(sounds),
        syncer.embed_motion(moves),
        batch[3] if level == LEVELS else None,
        settings.negatives[level - 1],
        generator=torch.Generator().manual_seed(seed),
    )
    accuracy = float((positive > negatives.max(1).values).float().mean())
    return info_nce(positive, negatives, settings.temperature), accuracy


def _set_statistics(syncer: Syncer, sequences: list[Sequence], level: int) -> None:
    motion = torch.cat([pyramid(s.motion[None], level)[-1][0] for s in sequences])
    audio = torch.cat([pyramid(s.audio[None], level)[-1][0] for s in sequences])
    syncer.motion_norm.set_statistics(motion.mean(0), motion.std(0))
    syncer.audio_norm.set_statistics(audio.mean(0), audio.std(0))


@torch.no_grad()
def _validate(
    run: Run,
    syncer: Any,
    checks: list[tuple[Tensor, ...]],
    config: Config,
    level: int,
    step: int,
    best: float,
) -> float:
    syncer.eval()
    results = [_loss(syncer, batch, config, level, n) for n, batch in enumerate(checks)]
    syncer.train()
    loss = float(torch.stack([r[0] for r in results]).mean())
    accuracy = sum(r[1] for r in results) / len(results)
    run.log(step, {"val_loss": loss, "val_accuracy": accuracy}, every=0)
    if accuracy <= best:
        return best
    figures = {"level": level, "steps": step, "val_loss": round(loss, 4), "val_accuracy": round(accuracy, 4)}
    path = run.folder / f"syncer{level}.safetensors"
    if run.fabric.is_global_zero:
        save_model(path, syncer.module, "syncer", asdict(config.syncer), figures)
    return accuracy
