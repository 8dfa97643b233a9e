"""Training of the sync meter: syncers on landmarks, for lips (levels 1-4) and for the rigid head (levels 1-3).

Lips learn by InfoNCE (eq. 2), and by what they are for: of all offsets of a second of speech, the true one should fit
best. The head learns by a triplet loss (section 4.3). All negatives are misaligned windows of the same sequence.

Real clips have small offsets of their own, which a network learns by heart. So two networks first measure the clips of
people that they were not trained on, each trained on half of the people; then the meter learns from mended clips.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO
from mssync.config import Config, MeterTraining
from mssync.data.clips import Clip, read_clips
from mssync.data.sequences import disturbed_sound
from mssync.errors import InputError, written_whole
from mssync.meter import (
    FRAME_MS,
    HEAD,
    HEAD_LEVELS,
    MOUTH,
    STEP_MS,
    SURE,
    Comparison,
    SyncMeter,
    head_motion,
    level_sums,
    located,
    mean_skull,
    mirrored_motion,
    mouth_motion,
    sound_features,
)
from mssync.pyramid import LEVELS, pyramid
from mssync.syncer import MAX_OFFSET, Syncer
from mssync.training.common import Average, Run, cosine_rate, launched
from mssync.training.syncer import NEAR, scores, stretch_loss
from mssync.video import FPS
from mssync.weights import save_model

OFFSETS = "offsets.json"  # in the run folder: by clip, by how many frames its sound was found to be late
TRUSTED = 0.9  # probability, not calibrated yet, below which a training clip is left out
PIECES = (2, 4, 8)  # seconds of the pieces on which the probability is calibrated
WARMUP = 100
VALIDATE_EVERY = 250  # steps
VALIDATION_BATCHES = 8


@dataclass
class Example:
    """A clip as the meter sees it: motion, mirrored (T, D), sound (4T, 26)."""

    name: str
    identity: str
    motion: np.ndarray
    mirrored: np.ndarray
    sound: np.ndarray
    late: float = 0.0  # frames by which its sound was measured to be late; what is cut from it makes up for that

    def __len__(self) -> int:
        return len(self.motion)


class Pieces:
    """Random batches of equally long pieces; batch n is a function of (seed, n) alone (exact resume).

    Pieces start between frames and run a little fast or slow. Identities are drawn by the root of their footage.
    """

    def __init__(self, examples: list[Example], settings: MeterTraining, seed: int, augment: bool = True) -> None:
        self.settings, self.seed, self.augment = settings, seed, augment
        self.needed = int(np.ceil(settings.frames * (1 + settings.speed))) + 2
        self.identities: dict[str, list[Example]] = {}
        for example in examples:
            if len(example) >= self.needed:
                self.identities.setdefault(example.identity, []).append(example)
        if not self.identities:
            raise InputError(f"no clip is {self.needed} frames long; use longer clips or lower meter_training.frames")
        self.names = sorted(self.identities)
        lengths = np.array([sum(len(e) for e in self.identities[name]) for name in self.names], float)
        self.weights = np.sqrt(lengths) / np.sqrt(lengths).sum()

    def __call__(self, n: int) -> tuple[Tensor, Tensor]:
        """Batch n: motion (B, frames, D) and sound (B, 4 frames, 26)."""
        rng = np.random.default_rng((self.seed, n))
        motions, sounds = zip(*(self._piece(rng) for _ in range(self.settings.batch)), strict=True)
        return torch.from_numpy(np.stack(motions)), torch.from_numpy(np.stack(sounds))

    def _piece(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        owned = self.identities[self.names[rng.choice(len(self.names), p=self.weights)]]
        lengths = np.array([len(e) for e in owned], float)
        example = owned[rng.choice(len(owned), p=lengths / lengths.sum())]
        settings, count = self.settings, self.settings.frames
        speed = rng.uniform(1 - settings.speed, 1 + settings.speed) if self.augment else 1.0
        first, last = max(0.0, -example.late), len(example) - max(0.0, example.late) - count * speed - 1
        start = rng.uniform(first, max(first, last))
        source = example.mirrored if self.augment and rng.random() < 0.5 else example.motion
        motion = resampled(source, start, speed, count)
        heard = (start + example.late) * AUDIO_PER_VIDEO
        sound = resampled(example.sound, heard, speed, AUDIO_PER_VIDEO * count)
        if self.augment:
            motion, sound = (
                disturbed_motion(motion, settings, rng),
                disturbed_sound(sound, settings.tilt, settings.noise, settings.mask, rng),
            )
        return motion, sound


def resampled(x: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """(count, D): rows start, start + step, … of (T, D), linearly interpolated; the end rows go on outside."""
    at = (start + step * np.arange(count)).clip(0, len(x) - 1)
    left = np.minimum(at.astype(int), max(len(x) - 2, 0))
    weight = (at - left)[:, None].astype(np.float32)
    return x[left] * (1 - weight) + x[np.minimum(left + 1, len(x) - 1)] * weight


def disturbed_motion(motion: np.ndarray, settings: MeterTraining, rng: np.random.Generator) -> np.ndarray:
    """Motion as of a livelier or calmer speaker, with the noise of landmarks on a poor picture."""
    size = rng.uniform(1 - settings.liveliness, 1 + settings.liveliness)
    noise = rng.uniform(0, settings.landmark_noise) * rng.standard_normal(motion.shape, np.float32)
    return (size * motion + noise).astype(np.float32)


# Losses


def window_loss(cosines: Tensor, there: Tensor, temperature: Tensor | float) -> Tensor:
    """InfoNCE over the offsets of every window; the offsets next to the true one do not count."""
    reach = cosines.shape[-1] // 2
    apart = (torch.arange(-reach, reach + 1, device=cosines.device)).abs()
    negative = (there & (apart > NEAR)).expand_as(cosines)
    logits = (cosines / temperature).masked_fill(~negative & (apart != 0), -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), torch.full((logits.shape[0] * logits.shape[1],), reach))


def triplet_loss(cosines: Tensor, there: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """max(0, margin + d(true) - d(other)), mean over the misaligned windows of the sequence; and the share of them
    that are further away than the true one. d: distance of unit vectors."""
    reach = cosines.shape[-1] // 2
    distance = (2 - 2 * cosines).clamp(min=1e-6).sqrt()
    apart = torch.arange(-reach, reach + 1, device=cosines.device).abs()
    negative = (there & (apart > NEAR)).expand_as(distance)
    lead = (distance - distance[..., reach : reach + 1])[negative]
    return (margin - lead).clamp(min=0).mean(), (lead > 0).float().mean()


# Training


class Levels(nn.Module):
    """The syncers of one part while they are trained, with the sharpness of `stretch_loss` for each."""

    def __init__(self, syncers: list[Syncer]) -> None:
        super().__init__()
        self.syncers = nn.ModuleList(syncers)
        self.log_sharpness = nn.Parameter(torch.zeros(len(syncers)))

    def forward(self, motion: Tensor, sound: Tensor, settings: MeterTraining, part: str) -> tuple[Tensor, Tensor]:
        """Loss of a batch, summed over the levels, and the share found right at each (levels,)."""
        losses, shares = [], []
        moves, sounds = pyramid(motion, len(self.syncers)), pyramid(sound, len(self.syncers))
        for n, net in enumerate(self.syncers):
            seen, heard = net.embed_motion(moves[n]), net.embed_audio(sounds[n])  # type: ignore[operator]
            count = min(seen.shape[1], heard.shape[1])
            cosines, there = scores(seen[:, :count], heard[:, :count], min(MAX_OFFSET, count - 1))
            if part == "head":
                loss, share = triplet_loss(cosines, there, settings.margin)
            else:
                windows = max(3, settings.stretch // 2**n)
                loss, share = stretch_loss(cosines, there, windows, self.log_sharpness[n].exp())
                loss = loss + window_loss(cosines, there, settings.temperature)
            losses.append(loss)
            shares.append(share)
        return torch.stack(losses).sum(), torch.stack(shares)


@dataclass
class Stage:
    """A training of its own: its name, the part it is of, whom it sees, how many levels and steps it has."""

    name: str
    part: str
    train: list[Example]
    val: list[Example]
    levels: int
    steps: int


def train(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) the meter in four stages; returns the model file ``meter.safetensors``.

    Two halves of the people measure each other's clips (offsets.json), then lips, then head; last the levels are
    weighed and the probability calibrated on the `val` split. Raises InputError when `data` is not a prepared
    folder, or has no `val` split; and when the time is over before the last stage: start again to go on.
    """
    settings = config.meter_training
    minutes = max_minutes or settings.max_minutes
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    fabric = launched()
    clips, checks = read_clips(data, "train"), read_clips(data, "val")
    skull = mean_skull(np.concatenate([clip.landmarks[::FPS] for clip in clips]))
    lips, lips_val = ([_example(clip, "lips", skull) for clip in split] for split in (clips, checks))

    def fit(stage: Stage) -> list[Syncer]:
        return fit_stage(stage, config, fabric, run_dir, deadline)

    late = _measured(lips, lips_val, settings, fit, Path(run_dir))
    meter = SyncMeter(**asdict(config.meter))
    lips, lips_val = ([replace(e, late=late[e.name]) for e in some if e.name in late] for some in (lips, lips_val))
    trained = {"lips": fit(Stage("lips", "lips", lips, lips_val, LEVELS, settings.steps))}
    # The head tells little, so that it learns from every clip: one whose lips could not be measured counts as in time.
    free, free_val = (
        [replace(_example(clip, "head", skull), late=late.get(clip.entry.name, 0.0)) for clip in split if _moves(clip)]
        for split in (clips, checks)
    )
    trained["head"] = fit(Stage("head", "head", free, free_val, HEAD_LEVELS, settings.head_steps))
    for part, syncers in trained.items():
        for own, new in zip(cast(nn.ModuleList, meter.parts[part]), syncers, strict=True):
            own.load_state_dict(new.state_dict())
    meter.skull.copy_(torch.from_numpy(skull))
    figures = calibrate(meter.eval(), checks)
    path = Path(run_dir) / "meter.safetensors"
    if fabric.is_global_zero:
        save_model(path, meter, "meter", asdict(config.meter), figures)
    return path


def _moves(clip: Clip) -> bool:
    """Whether the head moves in the picture, as nobody held it in place."""
    return not clip.entry.stabilised


def _example(clip: Clip, part: str, skull: np.ndarray) -> Example:
    motion = head_motion(clip.landmarks) if part == "head" else mouth_motion(clip.landmarks, skull)
    mirrored = mirrored_motion(motion, HEAD if part == "head" else MOUTH)
    sound = sound_features(clip.waveform, len(clip))
    return Example(clip.entry.name, clip.entry.identity, motion, mirrored, sound)


def fit_stage(stage: Stage, config: Config, fabric: Any, run_dir: str | Path, deadline: float) -> list[Syncer]:
    """Train one stage to its end; returns the averaged networks, those best on `val` if there is one."""
    settings = config.meter_training
    left = (deadline - time.monotonic()) / 60
    run = Run(run_dir, f"meter_{stage.name}", None if math.isinf(left) else max(left, 1e-6), fabric)
    torch.manual_seed(zlib.crc32(stage.name.encode()))
    width = config.meter.head_width if stage.part == "head" else config.meter.lips_width
    size = stage.train[0].motion.shape[1]
    levels = Levels([Syncer(size, width, config.meter.embedding, settings.dropout) for _ in range(stage.levels)])
    _set_statistics(levels, stage.train)
    batches = Pieces(stage.train, settings, seed=1)
    held_out = Pieces(stage.val, settings, seed=2, augment=False) if stage.val else None
    checks = [held_out(n) for n in range(VALIDATION_BATCHES)] if held_out else []
    optimizer = torch.optim.AdamW(levels.parameters(), settings.lr, weight_decay=settings.weight_decay)
    average, best = Average(levels, settings.average), Average(levels, 1.0)
    kept = {"model": levels, "optimizer": optimizer, "average": average.model, "best": best.model}
    numbers = run.restore(kept)
    start, least = int(numbers.get("step", 0)), float(numbers.get("least", math.inf))
    wrapped, optimizer = fabric.setup(levels, optimizer)
    done = start
    for step in run.steps(start, stage.steps):
        torch.manual_seed(step * fabric.world_size + fabric.global_rank)  # dropout: the same after a stop
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_rate(step, stage.steps, WARMUP)
        motion, sound = (x.to(fabric.device) for x in batches(step * fabric.world_size + fabric.global_rank))
        loss, shares = wrapped(motion, sound, settings, stage.part)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(levels, step)
        done = step + 1
        run.log(step, {"loss": float(loss.detach())} | _by_level("right", shares))
        if done % VALIDATE_EVERY == 0 or done == stage.steps:
            value = _validate(run, average.model, checks, settings, stage.part, step) if checks else math.inf
            if value < least:
                least = value
                best.model.load_state_dict(average.model.state_dict())
            run.save(kept, step=done, least=least)
    if done < stage.steps:
        run.save(kept, step=done, least=least)
        raise InputError(
            f"{run_dir}: stopped after {done} of {stage.steps} steps of {stage.name}; start again to go on"
        )
    chosen = best if checks else average
    return [syncer.cpu() for syncer in chosen.model.syncers]  # type: ignore[union-attr]


@torch.no_grad()
def _validate(
    run: Run, levels: Any, checks: list[tuple[Tensor, Tensor]], settings: MeterTraining, part: str, step: int
) -> float:
    losses, right = zip(
        *(levels(m.to(run.fabric.device), s.to(run.fabric.device), settings, part) for m, s in checks), strict=True
    )
    value = float(torch.stack(losses).mean())
    run.log(step, {"val_loss": value} | _by_level("val_right", torch.stack(right).mean(0)), every=0)
    return value


def _by_level(name: str, shares: Tensor) -> dict[str, float]:
    return {f"{name}{n}": float(share) for n, share in enumerate(shares.detach(), start=1)}


def _set_statistics(levels: Levels, examples: list[Example]) -> None:
    """Mean and deviation of every level's motion and sound, over all examples."""
    count = len(levels.syncers)
    motion: list[list[Tensor]] = [[] for _ in range(count)]
    sound: list[list[Tensor]] = [[] for _ in range(count)]
    for example in examples:
        for kept, values in ((motion, example.motion), (sound, example.sound)):
            for level, x in zip(kept, pyramid(torch.from_numpy(values)[None], count), strict=True):
                level.append(x[0])
    for net, moves, sounds in zip(levels.syncers, motion, sound, strict=True):
        for norm, rows in ((net.motion_norm, torch.cat(moves)), (net.audio_norm, torch.cat(sounds))):
            norm.set_statistics(rows.mean(0), rows.std(0))  # type: ignore[operator, union-attr]


# Offsets of the training clips


def _measured(
    examples: list[Example],
    val: list[Example],
    settings: MeterTraining,
    fit: Callable[[Stage], list[Syncer]],
    run: Path,
) -> dict[str, float]:
    """By how many frames the sound of each clip is late, by name; without clips in which lips and sound do not fit.

    Networks of level 1, each trained on half of the people, measure the other half's clips. What they agree on, the
    median over people, is taken for zero.
    """
    table = run / OFFSETS
    if table.exists():
        return json.loads(table.read_text(encoding="utf-8"))
    halves = [[e for e in examples if zlib.crc32(e.identity.encode()) % 2 == half] for half in (0, 1)]
    if not settings.measure_steps or not all(halves):
        return {e.name: 0.0 for e in [*examples, *val]}
    late: dict[str, float] = {}
    for half, measured in ((0, halves[1] + val), (1, halves[0])):
        nets = fit(Stage(f"half{half}", "lips", halves[half], [], 1, settings.measure_steps))
        for example in measured:
            sums = level_sums(nets, example.motion, example.sound, np.ones(len(example), bool))
            reading = Comparison({"lips": sums}).reading()
            if reading.probability > TRUSTED:
                late[example.name] = -reading.milliseconds / FRAME_MS
    people: dict[str, list[float]] = {}
    for example in examples:
        people.setdefault(example.identity, []).extend([late[example.name]] if example.name in late else [])
    if not late:
        raise InputError("the sound fits the lips in no clip; raise meter_training.measure_steps, or set it to 0")
    zero = float(np.median([np.median(values) for values in people.values() if values]))
    late = {name: round(value - zero, 2) for name, value in late.items()}
    with written_whole(table, ".json") as temporary:
        temporary.write_text(json.dumps(late, indent=1, sort_keys=True), encoding="utf-8")
    return late


# Weights of the levels, and the probability


def calibrate(meter: SyncMeter, clips: list[Clip]) -> dict[str, float]:
    """Set weights and calibration of a meter by clips that it was not trained on; returns how well that went.

    What all seconds of a clip say together is taken for true. The weights make that likely from two seconds; the
    probability is that of being within a frame of it from pieces of 2, 4 and 8 seconds, where as many pieces have
    somebody else's sound, of which nothing can be true.
    """
    own, strange = [], []
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        count = min(len(clip), len(other))
        own.append(meter.compare(clip.landmarks, clip.waveform, parts=("lips",)))
        strange.append(meter.compare(clip.landmarks[:count], other.waveform, parts=("lips",)))
    true = [located(np.tensordot(np.ones(LEVELS), c.evidence(), 1), 1.0)[0] for c in own]
    weights = _fitted_weights([c.evidence() for c in own], true)
    meter.weights.copy_(torch.from_numpy(weights))
    weighed = [[np.tensordot(weights, c.evidence(), 1) for c in group] for group in (own, strange)]
    true = [located(evidence, 1.0)[0] for evidence in weighed[0]]
    expected = float(np.sqrt(np.mean([_deviation(e) ** 2 for e in weighed[0] if len(e) > 1])))
    clear, right = [], []
    for evidence, offset in zip(weighed[0] + weighed[1], [*true, *[math.nan] * len(true)], strict=True):
        for length in PIECES:
            for start in range(0, len(evidence) - length + 1, length):
                found, clearness = located(evidence[start : start + length], expected)
                clear.append(clearness)
                right.append(abs(found - offset) <= FRAME_MS)
    slope, base = _logistic(np.array(clear), np.array(right, float))
    meter.calibration.copy_(torch.tensor([slope, base, expected]))
    sure = 1 / (1 + np.exp(-slope * np.array(clear) - base)) >= SURE
    return {
        "val_pieces": len(clear), "val_sure": round(float(sure.mean()), 3),
        "val_right_where_sure": round(float(np.mean(np.array(right)[sure])), 3) if sure.any() else 0.0,
    }  # fmt: skip


def _deviation(evidence: np.ndarray) -> float:
    total = evidence.sum(0)
    return float((evidence[:, int(total.argmax())] - np.median(evidence, 1)).std())


def _fitted_weights(evidence: list[np.ndarray], true: list[float]) -> np.ndarray:
    """(levels,) factors that make the true offsets (ms) of clips likeliest; evidence: (levels, seconds, offsets)."""
    pieces, targets = [], []
    for found, offset in zip(evidence, true, strict=True):
        at = round(offset / STEP_MS) + found.shape[2] // 2
        for start in range(0, found.shape[1] - 1, 2):
            pieces.append(found[:, start : start + 2].sum(1))
            targets.append(at)
    stacked, target = torch.tensor(np.stack(pieces)), torch.tensor(targets)
    logs = torch.zeros(stacked.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.einsum("l,blo->bo", logs.exp(), stacked), target)
        value.backward()
        return value

    optimizer.step(loss)
    return logs.detach().exp().numpy()


def _logistic(x: np.ndarray, right: np.ndarray, rounds: int = 50) -> tuple[float, float]:
    """Slope and base of the probability 1 / (1 + exp(-slope x - base)) of `right`, by Newton's method."""
    design, parameters = np.stack([x, np.ones_like(x)], 1), np.zeros(2)
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-design @ parameters))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        parameters += np.linalg.solve(hessian, design.T @ (right - p))
    return float(parameters[0]), float(parameters[1])
