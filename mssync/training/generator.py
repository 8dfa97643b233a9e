"""Adversarial training of the generator under the frozen pyramid of syncers (section 3.3, eq. 11-16)."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.audio import SAMPLE_RATE
from mssync.config import Config, GeneratorTraining
from mssync.data.sequences import Sequence, SequenceBatches, listening, read_sequences, validation_batches
from mssync.discriminator import (
    FrameDiscriminator,
    SequenceDiscriminator,
    discriminator_loss,
    generator_loss,
)
from mssync.errors import InputError
from mssync.generator import Generator
from mssync.speech import FILE, FILE_AHEAD, LIVE_AHEAD, SpeechEncoder
from mssync.syncer import MultiScaleSyncLoss, SyncerPyramid
from mssync.training.common import Average, Run, launched
from mssync.training.face import FaceLosses
from mssync.training.spontaneous import spontaneous_motion
from mssync.weights import find, load_model, save_model

FACE_TERMS = ("lips", "shape", "pose", "mouth", "contact")  # losses of `FaceLosses`, and their lambdas
VALIDATE_EVERY = 250  # steps
VALIDATION_BATCHES = 4
EARS = ("audio_encoder.", "branches.audio_weight", "told.")  # not taken over from what hears something else
SILENCE = 8  # seconds, in whose middle a speech encoder says the same for ever
SLOWLY = 0.1  # of the rate: what is known by regression already
RIDGE = 0.03  # of the mean square of features: what a larger weight of one of them costs
SPEAKING = 16  # frames after which pieces fall silent, where some do
CLOSING = 6  # frames that a mouth then has to close


@dataclass
class _Parts:
    """What is trained, and what it is trained with."""

    generator: Any
    frame: Any
    sequence: Any
    generator_optimizer: Any
    discriminator_optimizer: Any
    synchrony: MultiScaleSyncLoss
    average: Average
    face: FaceLosses | None


def reconstruction_loss(motion: Tensor, generated: Tensor) -> Tensor:
    """Eq. 14: squared L2 distance of whole sequences (B, T, 60), mean over the batch."""
    return (motion - generated).square().sum((1, 2)).mean()


def train(
    config: Config,
    data: str | Path,
    syncers: str | Path,
    run_dir: str | Path,
    max_minutes: float | None = None,
) -> Path:
    """Train (or go on training) the generator and its discriminators; returns ``generator.safetensors``.

    data: prepared folder with motion; syncers: folder with syncer1 … syncer4.safetensors. The file holds a
    moving average of the weights. Raises InputError for a folder that lacks what is needed.
    """
    settings = config.generator_training
    fabric = launched()
    run = Run(run_dir, "generator", max_minutes or settings.max_minutes, fabric)
    ears = _ears(config, run)
    torch.manual_seed(0)
    hear = listening(config.generator, ears)
    sequences = read_sequences(data, "train", settings.frames, config.augmentation.smooth, hear)
    pyramid = SyncerPyramid.load(syncers, settings.sync_levels)
    pyramid.check_space(sequences[0].space)
    if hear is not None and not all(s.heard for s in sequences):
        raise InputError(f"{data}: motion of your own comes without sound, which this generator hears")
    parts = _build(config, sequences, MultiScaleSyncLoss(pyramid, settings.sync_reduction), ears)
    generator: Generator = parts.generator
    around = None if hear is None else (generator.lead, generator.follow)
    start = int(run.restore(_stored(parts)).get("step", 0))
    parts = _distribute(fabric, parts)
    batches = SequenceBatches(_moving(sequences), settings.frames, settings.batch, 0, config.augmentation, around)
    checks = validation_batches(
        data, sequences, settings.frames, settings.batch, VALIDATION_BATCHES, config.augmentation.smooth, around, hear
    )
    total, done = settings.iterations + settings.decay_iterations, start
    for step in run.steps(start, total):
        rate = 1.0 if step < settings.iterations else settings.decay
        _set_rates(parts, settings.lr_generator * rate, settings.lr_discriminator * rate)
        batch = batches(step * fabric.world_size + fabric.global_rank)
        values = _step(fabric, parts, [x.to(fabric.device) for x in batch], config)
        parts.average.update(_bare(parts.generator), step)
        done = step + 1
        run.log(step, values)
        if done % VALIDATE_EVERY == 0:
            run.log(step, _validate(parts, checks), every=0)
            _save(run, parts, config, done, sequences[0])
    _save(run, parts, config, done, sequences[0], _validate(parts, checks))
    return run.folder / "generator.safetensors"


def _ears(config: Config, run: Run) -> Path:
    """The speech encoder of a run: a copy of it beside the generator, from the first step on."""
    own, given = run.folder / FILE, config.generator_training.ears
    if config.generator.hears == "speech" and not own.is_file():
        if given is None:
            raise InputError(
                "generator_training.ears: name the file of the speech encoder that the generator hears with"
            )
        if run.fabric.is_global_zero:
            shutil.copyfile(find(given), own)
    run.fabric.barrier()
    return own


def _build(
    config: Config, sequences: list[Sequence], synchrony: MultiScaleSyncLoss, ears: Path | None = None
) -> _Parts:
    settings = config.generator_training
    generator = Generator(config.generator)
    frame, sequence = FrameDiscriminator(config.discriminator), SequenceDiscriminator(config.discriminator)
    if settings.quiet and not settings.lambda_lips:
        raise InputError("generator_training.quiet closes lips, so it needs generator_training.lambda_lips above zero")
    if config.generator.spontaneous and not settings.lambda_lips:
        raise InputError("generator.spontaneous reads faces, so it needs generator_training.lambda_lips above zero")
    motion = torch.cat([s.motion for s in sequences])
    audio = torch.cat([sound for s in sequences for sound in s.heard or (s.audio,)])
    generator.set_statistics(motion.mean(0), motion.std(0), audio.mean(0), audio.std(0))
    if ears is not None and generator.told is not None:
        generator.audio_encoder.silence.copy_(_silence(ears))
        tell(generator, _moving(sequences))
    if settings.start is not None:
        _begin_from(generator, settings.start)
    if config.generator.spontaneous:
        generator.spontaneous_motion.copy_(spontaneous_motion([s.motion for s in _moving(sequences)]))
    for discriminator in (frame, sequence):
        discriminator.motion_norm.set_statistics(motion.mean(0), motion.std(0))
    both = [*frame.parameters(), *sequence.parameters()]
    told = [] if generator.told is None else list(generator.told.parameters())
    others = [parameter for parameter in generator.parameters() if all(parameter is not other for other in told)]
    groups = [{"params": others, "share": 1.0}, *([{"params": told, "share": SLOWLY}] if told else [])]
    return _Parts(
        generator,
        frame,
        sequence,
        torch.optim.Adam(groups, settings.lr_generator, betas=settings.betas),
        torch.optim.Adam([{"params": both, "share": 1.0}], settings.lr_discriminator, betas=settings.betas),
        synchrony,
        Average(generator, settings.average),
        FaceLosses() if settings.lambda_lips else None,
    )


@torch.no_grad()
def tell(generator: Generator, sequences: list[Sequence]) -> None:
    """Set what features tell by themselves (`generator.Told`) by ridge regression: motion around its mean in a clip."""
    assert generator.told is not None
    layer = generator.told.layer
    size = layer.in_channels * layer.kernel_size[0]
    square, product = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, layer.out_channels).double()
    for sequence in sequences:
        moved = (sequence.motion - sequence.motion.mean(0)) / generator.motion_norm.std
        for sound in sequence.heard:
            x = F.pad(generator.audio_encoder.norm(sound).T, (layer.kernel_size[0] - layer.stride[0], 0))
            windows = x.unfold(1, layer.kernel_size[0], layer.stride[0]).permute(1, 0, 2).flatten(1)
            windows = (windows - windows.mean(0)).double()
            square, product = square + windows.T @ windows, product + windows.T @ moved.double()
    square = square + RIDGE * square.diagonal().mean() * torch.eye(size)
    layer.weight.copy_(torch.linalg.solve(square, product).T.unflatten(1, layer.weight.shape[1:]))


def _silence(ears: Path) -> Tensor:
    """What a speech encoder says (2, 104), live and of files, in the middle of a long silence."""
    encoder, nothing = SpeechEncoder.load(ears), np.zeros(SILENCE * SAMPLE_RATE, np.float32)
    found = [encoder.features(nothing, ahead) for ahead in (LIVE_AHEAD, FILE_AHEAD)]
    return torch.stack([said[len(said) // 2] for said in found])


def _moving(sequences: list[Sequence]) -> list[Sequence]:
    """A stabilised clip has no head motion to learn from; where there are no others, faces are all that moves."""
    return [s for s in sequences if not s.stabilised] or sequences


def _begin_from(generator: Generator, start: str) -> None:
    """Take over the weights of another generator. Raises InputError when it has other sizes."""
    other = load_model(start, kinds=("generator",))[0]
    weights, own = other.state_dict(), generator.state_dict()
    for name, buffer in generator.named_buffers():  # of the data, not of the other generator
        weights[name] = buffer
    if other.config.hears != generator.config.hears:  # type: ignore[union-attr]
        weights = {name: value for name, value in weights.items() if not name.startswith(EARS)}
        weights |= {name: value for name, value in own.items() if name.startswith(EARS)}
    try:
        generator.load_state_dict(weights)
    except RuntimeError:
        raise InputError(f"generator_training.start: {start} has other sizes than this configuration") from None


def hearing(generator: Any, batch: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """What a generator hears of a batch of `SequenceBatches`: audio (B, 4T, 26), and around it where it is live."""
    if len(batch) < 5:
        return batch[1], None
    frames = batch[0].shape[1]
    sizes = [generator.rows * count for count in (generator.lead, frames, generator.follow)]
    before, audio, after = batch[4].split(sizes, dim=1)
    return audio, (before, after)


def hushed(
    generator: Any, heard: Tensor, around: tuple[Tensor, Tensor] | None, quiet: int
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """What is heard (B, 4T, 26), and around it, when the last `quiet` pieces of a batch fall silent.

    Silence is from the quietest moment of a piece, the noise of its room, to none at all, which is digital silence; to
    a speech encoder they are the same.
    """
    if not quiet:
        return heard, around
    if generator.config.hears == "speech":
        both = generator.audio_encoder.silence
        silence = both[torch.arange(quiet, device=both.device) % len(both)][:, None]
    else:
        norm = generator.audio_encoder.norm
        nothing = norm.mean - norm.limit * norm.std
        share = torch.linspace(0, 1, quiet, device=heard.device)[:, None, None]
        silence = torch.lerp(torch.maximum(heard[-quiet:].amin(1, keepdim=True), nothing), nothing, share)
    heard = heard.clone()
    heard[-quiet:, generator.rows * SPEAKING :] = silence
    if around is not None:
        after = around[1].clone()
        after[-quiet:] = silence
        around = around[0], after
    return heard, around


def _distribute(fabric: Any, parts: _Parts) -> _Parts:
    generator, generator_optimizer = fabric.setup(parts.generator, parts.generator_optimizer)
    frame, sequence = fabric.setup_module(parts.frame), fabric.setup_module(parts.sequence)
    discriminator_optimizer = fabric.setup_optimizers(parts.discriminator_optimizer)
    parts.average.model.to(fabric.device)
    synchrony = parts.synchrony.to(fabric.device)
    face = None if parts.face is None else parts.face.to(fabric.device)
    return _Parts(
        generator, frame, sequence, generator_optimizer, discriminator_optimizer, synchrony, parts.average, face
    )


def _bare(module: Any) -> Any:
    """The module itself, whether Fabric wraps it or not."""
    return getattr(module, "module", module)


def _set_rates(parts: _Parts, generator: float, discriminator: float) -> None:
    for optimizer, rate in (
        (parts.generator_optimizer, generator),
        (parts.discriminator_optimizer, discriminator),
    ):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]


def _step(fabric: Any, parts: _Parts, batch: list[Tensor], config: Config) -> dict[str, float]:
    """One step of the discriminators (eq. 15), one of the generator (eq. 16)."""
    settings = config.generator_training
    motion, audio, other = batch[:3]
    quiet = round(settings.quiet * len(motion))
    heard, around = hearing(parts.average.model, batch)
    heard, around = hushed(parts.average.model, heard, around, quiet)
    generated = parts.generator(motion[:, 0], heard, other if settings.random_origin else None, around)

    frame_loss = discriminator_loss(parts.frame(motion[:, 1:]), parts.frame(generated[:, 1:].detach()))
    sequence_loss = discriminator_loss(parts.sequence(motion), parts.sequence(generated.detach()))
    parts.discriminator_optimizer.zero_grad(set_to_none=True)
    fabric.backward(frame_loss + sequence_loss)
    parts.discriminator_optimizer.step()

    adversarial = _judged(parts, generated)
    speaking = len(motion) - quiet
    silent, motion, audio, generated = generated[speaking:], motion[:speaking], audio[:speaking], generated[:speaking]
    synchrony, levels = _synchrony(parts, settings, motion, generated, audio)
    reconstruction = reconstruction_loss(motion, generated)
    loss = settings.lambda_av * synchrony + settings.lambda_adv * adversarial + settings.lambda_rec * reconstruction
    values = {"rec": reconstruction, "adv": adversarial, "d_frame": frame_loss, "d_seq": sequence_loss}
    if parts.face is not None:
        more, terms = _face_loss(parts.face, settings, motion, generated, silent)
        loss, values = loss + more, values | terms
    parts.generator_optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if settings.max_gradient is not None:
        torch.nn.utils.clip_grad_norm_(parts.generator.parameters(), settings.max_gradient)
    parts.generator_optimizer.step()
    values |= {f"sync{i + 1}": -level for i, level in enumerate(levels)}
    return {name: float(value.detach()) for name, value in values.items()}


def _face_loss(
    face: FaceLosses, settings: GeneratorTraining, motion: Tensor, generated: Tensor, silent: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of what `training.face` asks for, and its terms, those without weight left out; silent:
    (B, T, 60) that fell silent."""
    weights = {name: getattr(settings, f"lambda_{name}") for name in FACE_TERMS}
    weights = {name: weight for name, weight in weights.items() if weight}
    terms = {name: getattr(face, f"{name}_loss")(motion, generated) for name in weights}
    if len(silent):
        terms["closing"], weights["closing"] = face.closing_loss(silent[:, SPEAKING + CLOSING :]), settings.lambda_lips
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum(), terms


def _synchrony(
    parts: _Parts, settings: GeneratorTraining, motion: Tensor, generated: Tensor, audio: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The synchrony loss (eq. 6) and its terms; a term better than the ceiling has no slope."""
    total, terms = parts.synchrony(generated, audio)
    if settings.sync_ceiling is None:
        return total, terms
    with torch.no_grad():
        real = parts.synchrony(motion, audio)[1]
    held = torch.stack([torch.maximum(a, settings.sync_ceiling * b) for a, b in zip(terms, real, strict=True)])
    return (held.mean() if settings.sync_reduction == "mean" else held.sum()), terms


def _judged(parts: _Parts, generated: Tensor) -> Tensor:
    """The generator's loss under both discriminators; what they would learn from it is not computed."""
    judges = [_bare(parts.frame), _bare(parts.sequence)]
    for judge in judges:
        judge.requires_grad_(False)
    loss = generator_loss(judges[0](generated[:, 1:])) + generator_loss(judges[1](generated))
    for judge in judges:
        judge.requires_grad_(True)
    return loss


@torch.no_grad()
def _validate(parts: _Parts, checks: list[tuple[Tensor, ...]]) -> dict[str, float]:
    """Scores of the levels on held-out speech: generated motion, real motion, and generated against other speech."""
    device, generator = next(parts.average.model.parameters()).device, parts.average.model
    rows = []
    for check in checks:
        batch = [x.to(device) for x in check]
        motion, audio = batch[:2]
        heard, around = hearing(generator, batch)
        generated = generator(motion[:, 0], heard, around=around)
        scored = {"val_gen": generated, "val_real": motion, "val_shuffled": generated.roll(1, 0)}
        row = {f"{k}{i + 1}": -float(v) for k, x in scored.items() for i, v in enumerate(parts.synchrony(x, audio)[1])}
        row["val_rec"] = float(reconstruction_loss(motion, generated))
        if parts.face is not None:
            row["val_pose"] = float(parts.face.pose_loss(motion, generated))
            row["val_spread"] = float(_spread(parts.face.pose(generated)) / _spread(parts.face.pose(motion)))
            row["val_mouth"] = _correlation(parts.face.opening(motion), parts.face.opening(generated))
            row["val_contact"] = float(parts.face.contact_loss(motion, generated))
            row["val_gape"] = float((parts.face.opening(generated).std(1) / parts.face.opening(motion).std(1)).mean())
        row["val_speed"] = float(generated.diff(dim=1).abs().mean() / motion.diff(dim=1).abs().mean())
        rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _spread(poses: Tensor) -> Tensor:
    """Deviation over time of poses (B, T, n), over the batch."""
    return poses.std(1).square().mean().sqrt()


def _correlation(a: Tensor, b: Tensor) -> float:
    """Mean over the batch of the correlation over time of (B, T) each."""
    return float(F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1).mean())


def _stored(parts: _Parts) -> dict[str, Any]:
    return {
        "generator": _bare(parts.generator),
        "frame": _bare(parts.frame),
        "sequence": _bare(parts.sequence),
        "generator_optimizer": parts.generator_optimizer,
        "discriminator_optimizer": parts.discriminator_optimizer,
        "average": parts.average.model,
    }


def _save(
    run: Run, parts: _Parts, config: Config, step: int, motion: Sequence, figures: dict[str, float] | None = None
) -> None:
    run.save(_stored(parts), step=step)
    description = asdict(config.generator) | {"audio": motion.features, "motion_space": motion.space}
    rounded = {name: round(value, 4) for name, value in (figures or {}).items()}
    path = run.folder / "generator.safetensors"
    if run.fabric.is_global_zero:
        save_model(path, parts.average.model, "generator", description, {"steps": step, **rounded})
