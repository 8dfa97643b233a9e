"""Adversarial training of the generator under the frozen pyramid of syncers (section 3.3, eq. 11-16)."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mssync.audio import SAMPLE_RATE
from mssync.config import AugmentationConfig, Config, GeneratorTraining, SpeechTraining
from mssync.data.sequences import Hear, Sequence, SequenceBatches, listening, read_sequences, validation_batches
from mssync.discriminator import (
    FrameDiscriminator,
    SequenceDiscriminator,
    discriminator_loss,
    generator_loss,
)
from mssync.errors import InputError
from mssync.face1 import EXPRESSION, GAZE, HEAD, SPACE, FaceSpace
from mssync.face_generator import Expression, FaceGenerator
from mssync.generator import REACH, new_generator
from mssync.reenact import N_KEYPOINTS, N_VALUES
from mssync.reenact.mesh import LOWER_LIP, UPPER_LIP
from mssync.speech import COMPONENTS, FILE, FILE_AHEAD, LIVE_AHEAD, SpeechEncoder
from mssync.syncer import MultiScaleSyncLoss, SyncerPyramid
from mssync.training.common import Average, Run, cosine_rate, launched
from mssync.training.face import UNIT, FaceLosses
from mssync.training.speech import disturbed
from mssync.training.spontaneous import spontaneous_motion
from mssync.weights import find, load_model, save_model

FACE_TERMS = ("lips", "shape", "pose", "mouth", "contact")  # losses of `FaceLosses`, and their lambdas
HEAD_TERMS = ("pose",)  # those of motion of face-1, where the others belong to `tell`
N_MOTION, GAZES = N_KEYPOINTS * N_VALUES, GAZE.stop - GAZE.start  # numbers of what is judged, in face-1
VALIDATE_EVERY = 250  # steps
VALIDATION_BATCHES = 4
EARS = ("audio_encoder.", "branches.audio_weight")  # not taken over from what hears something else
SILENCE, SETTLED = 12, 200  # seconds of it, and the features after which an encoder has forgotten its beginning
NOISES = (-60.0, -45.0, -30.0)  # dB: levels of the noise of rooms in which nobody speaks
RIDGE = 0.03  # of the mean square of features: what a larger weight of one of them costs
TOLD_STEPS, TOLD_BATCH, TOLD_RATE, TOLD_DECAY = 400, 32, 1e-3, 0.05  # of the training of expressions
TOLD_AVERAGE = 0.98  # decay of the moving average of the weights that is kept of it
# On clips that it was trained on an encoder is surer of lips than on others, by about that: what the same linear map
# makes of it varies 0.87 times as much as real openings there, and 0.61 times on `val`.
SURER = 1.35
PLAIN = 0.05  # weight of expressions as they are, beside what they do to the lips
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
    space: FaceSpace | None  # where motion is that of face-1
    silence: Tensor | None  # (n, rows, 104): what a generator of speech hears where nobody speaks, live and of files


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
    faces = config.generator.space == SPACE
    taps = config.augmentation.smooth
    heard = _through_noise(hear) if hear is not None and config.generator.hears == "speech" else hear
    sequences = read_sequences(data, "train", settings.frames, taps, heard, faces)
    pyramid = SyncerPyramid.load(syncers, settings.sync_levels)
    pyramid.check_space(sequences[0].space)
    if hear is not None and not all(s.heard for s in sequences):
        raise InputError(f"{data}: motion of your own comes without sound, which this generator hears")
    parts = _build(config, sequences, MultiScaleSyncLoss(pyramid, settings.sync_reduction), ears)
    generator: Any = parts.generator
    before = None if hear is None else generator.lead
    start = int(run.restore(_stored(parts)).get("step", 0))
    parts = _distribute(fabric, parts)
    batches = SequenceBatches(_moving(sequences), settings.frames, settings.batch, 0, config.augmentation, before)
    checks = validation_batches(
        data, sequences, settings.frames, settings.batch, VALIDATION_BATCHES, taps, before, hear, faces
    )
    total, done = settings.iterations + settings.decay_iterations, start
    for step in run.steps(start, total):
        rate = 1.0 if step < settings.iterations else settings.decay
        _set_rates(parts, settings.lr_generator * rate, settings.lr_discriminator * rate)
        number = step * fabric.world_size + fabric.global_rank
        batch = batches(number)
        torch.manual_seed(number)  # what is dropped is the same in a run that was stopped and goes on
        values = _step(fabric, parts, [x.to(fabric.device) for x in batch], config)
        parts.average.update(_bare(parts.generator), step)
        done = step + 1
        run.log(step, values)
        if done % VALIDATE_EVERY == 0:
            run.log(step, _validate(parts, checks), every=0)
            _save(run, parts, config, done, sequences[0])
    _save(run, parts, config, done, sequences[0], _validate(parts, checks))
    return run.folder / "generator.safetensors"


def _through_noise(hear: Hear) -> Hear:
    """The same, and what is heard of the sound in another place (`training.speech.disturbed`): of the clips that it was
    trained on, an encoder knows more than it will of others."""

    def both(waveform: NDArray[np.float32], kind: str, frames: int) -> list[Tensor]:
        rng = np.random.default_rng(len(waveform))
        elsewhere = disturbed(waveform, None, SpeechTraining(), rng)
        return [*hear(waveform, kind, frames), *hear(elsewhere, kind, frames)]

    return both


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
    generator: Any = new_generator(config.generator)
    faces = config.generator.space == SPACE
    sizes = replace(config.discriminator, motion_dim=N_MOTION + GAZES) if faces else config.discriminator
    frame, sequence = FrameDiscriminator(sizes), SequenceDiscriminator(sizes)
    if settings.quiet and not settings.lambda_lips:
        raise InputError("generator_training.quiet closes lips, so it needs generator_training.lambda_lips above zero")
    if config.generator.spontaneous and not settings.lambda_lips:
        raise InputError("generator.spontaneous reads faces, so it needs generator_training.lambda_lips above zero")
    motion = torch.cat([_motion(s) for s in sequences])
    audio = torch.cat([sound for s in sequences for sound in s.heard or (s.audio,)])
    generator.set_statistics(motion.mean(0), motion.std(0), audio.mean(0), audio.std(0))
    silence = _silence(ears) if ears is not None and config.generator.hears == "speech" else None
    if settings.start is not None:
        _begin_from(generator, settings.start)
    if faces:
        assert silence is not None
        tell(generator, _moving(sequences), settings, silence)
    if config.generator.spontaneous:
        moving = _moving(sequences)
        found = spontaneous_motion([s.motion for s in moving], [_motion(s) for s in moving])
        generator.spontaneous_motion.copy_(found)
    seen = torch.cat([s.motion for s in sequences])
    if faces:
        seen = torch.cat([seen, motion[:, GAZE]], 1)
    for discriminator in (frame, sequence):
        discriminator.motion_norm.set_statistics(seen.mean(0), seen.std(0))
    both = [*frame.parameters(), *sequence.parameters()]
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    return _Parts(
        generator,
        frame,
        sequence,
        torch.optim.Adam(trained, settings.lr_generator, betas=settings.betas),
        torch.optim.Adam(both, settings.lr_discriminator, betas=settings.betas),
        synchrony,
        Average(generator, settings.average),
        FaceLosses() if settings.lambda_lips else None,
        FaceSpace() if faces else None,
        silence,
    )


def _motion(sequence: Sequence) -> Tensor:
    """What is generated of a sequence, (T, D)."""
    return sequence.motion if sequence.faces is None else sequence.faces[0].motion


def tell(generator: FaceGenerator, sequences: list[Sequence], settings: GeneratorTraining, silence: Tensor) -> None:
    """Let a generator know what speech tells of expressions: what is linear in it by regression, then all of it.

    What is least: squared distances of the lips' points in the head's frame, in UNIT, and PLAIN times those of
    expressions; `mouth_loss`, `contact_loss` and `closing_loss` of the mouth under the real head; over pieces of the
    sequences, the last of which fall silent, silence (n, rows, 104). Expressions are not trained any more after that.
    """
    network, space, face, lips = generator.expression, FaceSpace(), FaceLosses(), _lip_basis()
    _tell_linearly(network, sequences)
    average = Average(network, TOLD_AVERAGE)
    batches = SequenceBatches(sequences, settings.frames, TOLD_BATCH, 1, AugmentationConfig(), generator.lead)
    optimizer = torch.optim.AdamW(network.parameters(), TOLD_RATE, weight_decay=TOLD_DECAY)
    speaking = TOLD_BATCH - round(settings.quiet * TOLD_BATCH)
    for step in range(TOLD_STEPS):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = TOLD_RATE * cosine_rate(step, TOLD_STEPS, TOLD_STEPS // 10)
        motion, _, other, _, heard, rest, body = batches(step)
        after = heard[:, generator.rows * generator.lead :]
        heard = torch.cat(
            [heard[:, : -after.shape[1]], hushed(generator, after, TOLD_BATCH - speaking, silence)], dim=1
        )
        said = network(heard, other[:, EXPRESSION])[:, generator.lead :]
        made = torch.cat([motion[..., :HEAD], said], -1)
        real, seen = (space.keypoints(x, rest[:, None], motion[:, :1], body[:, None]) for x in (motion, made))
        apart = (said - motion[..., EXPRESSION])[:speaking]
        loss = settings.lambda_lips * ((apart @ lips) / UNIT).square().mean() + PLAIN * apart.square().mean()
        if settings.lambda_mouth:
            loss = loss + settings.lambda_mouth * face.mouth_loss(real[:speaking], seen[:speaking], SURER)
        if settings.lambda_contact:
            loss = (
                loss + settings.lambda_contact * face.contact_loss(real[:speaking], seen[:speaking]) / settings.frames
            )
        if speaking < TOLD_BATCH:
            closing = face.closing_loss(seen[speaking:, SPEAKING + REACH :])
            loss = loss + settings.lambda_lips * closing / settings.frames
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update(network, step)
    network.load_state_dict(average.model.state_dict())
    network.requires_grad_(False).eval()


@torch.no_grad()
def _tell_linearly(network: Expression, sequences: list[Sequence]) -> None:
    """Set `Expression.direct` by ridge regression of expressions around their mean in a clip."""
    layer = network.direct
    size = layer.in_channels * layer.kernel_size[0]
    square, product = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, layer.out_channels).double()
    left = []
    for sequence in sequences:
        said = _motion(sequence)[:, EXPRESSION]
        for sound in sequence.heard:
            given = network.windows(sound[None, :, COMPONENTS:])[0]
            windows = given.unfold(1, layer.kernel_size[0], layer.stride[0]).permute(1, 0, 2).flatten(1)
            left.append((said.mean(0), windows.mean(0)))
            windows = (windows - windows.mean(0)).double()
            square, product = square + windows.T @ windows, product + windows.T @ (said - said.mean(0)).double()
    square = square + RIDGE * square.diagonal().mean() * torch.eye(size)
    weight = torch.linalg.solve(square, product).float()
    layer.weight.copy_(weight.T.unflatten(1, layer.weight.shape[1:]))
    assert layer.bias is not None
    layer.bias.copy_(torch.stack([mean - given @ weight for mean, given in left]).mean(0))


def _lip_basis() -> Tensor:
    """What expressions do to the points of the lips, less their mean: (40, 2 n), in outer eye distances."""
    lips = FaceSpace().basis.unflatten(1, (-1, 3))[:, sorted({*UPPER_LIP, *LOWER_LIP}), :2]
    return (lips - lips.mean(1, keepdim=True)).flatten(1)


def _silence(ears: Path) -> Tensor:
    """What a speech encoder says (n, rows, 104), live and of files, where nobody speaks: of nothing, and of noise
    whose energy falls with frequency f by 1, 1 / f and 1 / f², as that of rooms, at several levels."""
    encoder, rng = SpeechEncoder.load(ears), np.random.default_rng(0)
    size = SILENCE * SAMPLE_RATE
    sounds = [np.zeros(size, np.float32)]
    for slope in (0.0, 0.5, 1.0):
        spectrum = np.fft.rfft(rng.standard_normal(size)) / np.maximum(np.arange(size // 2 + 1), SILENCE * 20) ** slope
        noise = np.fft.irfft(spectrum, size)
        sounds += [(10 ** (level / 20) * noise / noise.std()).astype(np.float32) for level in NOISES]
    said = [encoder.features(sound, ahead) for sound in sounds for ahead in (LIVE_AHEAD, FILE_AHEAD)]
    return torch.stack(said)[:, SETTLED:]


def _moving(sequences: list[Sequence]) -> list[Sequence]:
    """A stabilised clip has no head motion to learn from; where there are no others, faces are all that moves."""
    return [s for s in sequences if not s.stabilised] or sequences


def _begin_from(generator: Any, start: str) -> None:
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


def hearing(generator: Any, batch: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """What a generator hears of a batch of `SequenceBatches`: audio (B, 4T, 26), and what comes before it, where it is
    live."""
    if len(batch) < 5:
        return batch[1], None
    before, audio = batch[4].split([generator.rows * count for count in (generator.lead, batch[0].shape[1])], dim=1)
    return audio, before


def hushed(generator: Any, heard: Tensor, quiet: int, silent: Tensor | None) -> Tensor:
    """What is heard (B, 4T, 26) when the last `quiet` pieces of a batch fall silent.

    Silence is from the quietest moment of a piece, the noise of its room, to none at all, which is digital silence; to
    a speech encoder they are the same, and what it says where nobody speaks is silent (n, rows, 104).
    """
    if not quiet:
        return heard
    count = heard.shape[1] - generator.rows * SPEAKING
    if silent is not None:
        kinds = torch.randint(len(silent), (quiet,))
        silence = silent.to(heard)[kinds][:, torch.arange(count) % silent.shape[1]]
    else:
        norm = generator.audio_encoder.norm
        nothing = norm.mean - norm.limit * norm.std
        share = torch.linspace(0, 1, quiet, device=heard.device)[:, None, None]
        silence = torch.lerp(torch.maximum(heard[-quiet:].amin(1, keepdim=True), nothing), nothing, share)
    heard = heard.clone()
    heard[-quiet:, generator.rows * SPEAKING :] = silence
    return heard


def _seen(parts: _Parts, motion: Tensor, batch: list[Tensor]) -> Tensor:
    """Motion (B, T, D) of a batch as it is judged: itself; of the space face-1 the keypoints (60 numbers) of the space
    compact-1, which syncers and `FaceLosses` read, and then the gaze."""
    if parts.space is None:
        return motion
    rest, body = batch[-2:]
    keypoints = parts.space.keypoints(motion, rest[:, None], motion[:, :1], body[:, None])
    return torch.cat([keypoints, motion[..., GAZE]], -1)


def _distribute(fabric: Any, parts: _Parts) -> _Parts:
    generator, generator_optimizer = fabric.setup(parts.generator, parts.generator_optimizer)
    frame, sequence = fabric.setup_module(parts.frame), fabric.setup_module(parts.sequence)
    discriminator_optimizer = fabric.setup_optimizers(parts.discriminator_optimizer)
    parts.average.model.to(fabric.device)
    synchrony = parts.synchrony.to(fabric.device)
    face = None if parts.face is None else parts.face.to(fabric.device)
    space = None if parts.space is None else parts.space.to(fabric.device)
    both = generator_optimizer, discriminator_optimizer
    return _Parts(generator, frame, sequence, *both, synchrony, parts.average, face, space, parts.silence)


def _bare(module: Any) -> Any:
    """The module itself, whether Fabric wraps it or not."""
    return getattr(module, "module", module)


def _set_rates(parts: _Parts, generator: float, discriminator: float) -> None:
    for optimizer, rate in (
        (parts.generator_optimizer, generator),
        (parts.discriminator_optimizer, discriminator),
    ):
        for group in optimizer.param_groups:
            group["lr"] = rate


def _step(fabric: Any, parts: _Parts, batch: list[Tensor], config: Config) -> dict[str, float]:
    """One step of the discriminators (eq. 15), one of the generator (eq. 16)."""
    settings = config.generator_training
    motion, audio, other = batch[:3]
    quiet = round(settings.quiet * len(motion))
    heard, before = hearing(parts.average.model, batch)
    heard = hushed(parts.average.model, heard, quiet, parts.silence)
    generated = parts.generator(motion[:, 0], heard, other if settings.random_origin else None, before)

    if parts.space is not None:  # expressions are not trained here: what is judged is the head, with the real ones
        generated = torch.cat([generated[..., :HEAD], motion[..., EXPRESSION]], -1)
    motion, generated = (_seen(parts, x, batch) for x in (motion, generated))
    frame_loss = discriminator_loss(parts.frame(motion[:, 1:]), parts.frame(generated[:, 1:].detach()))
    sequence_loss = discriminator_loss(parts.sequence(motion), parts.sequence(generated.detach()))
    parts.discriminator_optimizer.zero_grad(set_to_none=True)
    fabric.backward(frame_loss + sequence_loss)
    parts.discriminator_optimizer.step()

    adversarial = _judged(parts, generated)
    if parts.space is not None:
        motion, generated = motion[..., :N_MOTION], generated[..., :N_MOTION]
    speaking = len(motion) - quiet
    silent, motion, audio, generated = generated[speaking:], motion[:speaking], audio[:speaking], generated[:speaking]
    synchrony, levels = _synchrony(parts, settings, motion, generated, audio)
    reconstruction = reconstruction_loss(motion, generated)
    loss = settings.lambda_av * synchrony + settings.lambda_adv * adversarial + settings.lambda_rec * reconstruction
    values = {"rec": reconstruction, "adv": adversarial, "d_frame": frame_loss, "d_seq": sequence_loss}
    if parts.face is not None:
        names = FACE_TERMS if parts.space is None else HEAD_TERMS
        more, terms = _face_loss(parts.face, settings, names, motion, generated, silent)
        loss, values = loss + more, values | terms
    parts.generator_optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if settings.max_gradient is not None:
        torch.nn.utils.clip_grad_norm_(parts.generator.parameters(), settings.max_gradient)
    parts.generator_optimizer.step()
    values |= {f"sync{i + 1}": -level for i, level in enumerate(levels)}
    return {name: float(value.detach()) for name, value in values.items()}


def _face_loss(
    face: FaceLosses,
    settings: GeneratorTraining,
    names: tuple[str, ...],
    motion: Tensor,
    generated: Tensor,
    silent: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of what `training.face` asks for, and its terms, those without weight left out; silent:
    (B, T, 60) that fell silent, whose mouths have to close where the lips are asked for at all."""
    weights = {name: getattr(settings, f"lambda_{name}") for name in names}
    weights = {name: weight for name, weight in weights.items() if weight}
    terms = {name: getattr(face, f"{name}_loss")(motion, generated) for name in weights}
    if len(silent) and "lips" in weights:
        terms["closing"], weights["closing"] = face.closing_loss(silent[:, SPEAKING + CLOSING :]), settings.lambda_lips
    return sum((weights[name] * term for name, term in terms.items()), motion.new_zeros(())), terms


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
        heard, before = hearing(generator, batch)
        generated = generator(motion[:, 0], heard, before=before)
        motion, generated = (_seen(parts, x, batch) for x in (motion, generated))
        if parts.space is not None:
            motion, generated = motion[..., :N_MOTION], generated[..., :N_MOTION]
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
    if config.generator.space == SPACE:
        description["motion_space"] = SPACE
    path = run.folder / "generator.safetensors"
    if run.fabric.is_global_zero:
        save_model(path, parts.average.model, "generator", description, {"steps": step, **rounded})
