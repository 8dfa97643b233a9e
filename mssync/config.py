"""Configuration: typed sections, read from YAML and changed with `section.key=value`.

The defaults are the paper's (section 4.1), so a file states only what differs; `configs/paper.yaml` spells
them out, `configs/compact.yaml` is what the shipped weights are trained with. A file that begins with `base: NAME`
states only what differs from that one (`configs/ablations/`). A new section is a dataclass
and a field of `Config`. Values marked (ours) are given neither by the paper nor by its authors' code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from mssync.errors import InputError, PathLike

BASE = "base"  # key of a file that names the file it differs from
_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


@dataclass
class AudioConfig:
    """Audio features: log energies of 26 mel filters ("logfbank", ref) or MFCC ("mfcc", in the paper)."""

    kind: Literal["logfbank", "mfcc"] = "logfbank"


@dataclass
class SyncerConfig:
    """Size of a syncer: keyword arguments of `syncer.Syncer`. How many numbers a frame has, the data says."""

    width: int = 512  # (ours)
    embedding: int = 512


@dataclass
class GeneratorConfig:
    """Size and options of `generator.Generator`, and of `face_generator.FaceGenerator` where the space is face-1."""

    space: Literal["keypoints", "face-1"] = "keypoints"  # keypoints are the paper's (ref); see `face1` (ours)
    keypoints: int = 10
    values: int = 6  # of a keypoint: two coordinates, four of the Jacobian
    layers: int = 4
    heads: int = 8
    width: int = 512
    feed_forward: int = 1024
    context: int = 40  # frames that attention looks back, the current one included
    audio_width: int = 512
    expression_width: int = 64  # channels that tell expressions, in face-1 (ours)
    branch_hidden: int = 512  # (ours)
    audio_free_branch: bool = False  # ref: a fifth branch that hears nothing
    final_linear: bool = False  # ref: a linear layer merges the masked branches in place of their sum
    soft_masks: bool = True  # eq. 10; without, every level has the same share
    hears: Literal["energies", "speech"] = "energies"  # filter energies (ref), or features of `speech.py` (ours)
    warmup_frames: int = 0  # ref: 3, the first frame repeated over mirrored audio
    leak: float = 0.0  # share of the distance from x_0 that a frame loses: long roll-outs do not drift (ours)
    relative_input: bool = False  # feed x_t - x_0 beside x_t, for identities that were not trained on (ours)
    spontaneous: bool = False  # add turns, blinks and saccades; needs lambda_lips (ours)


@dataclass
class DiscriminatorConfig:
    """Size of `discriminator.FrameDiscriminator` and `SequenceDiscriminator`."""

    motion_dim: int = 60
    frame_hidden: int = 512  # (ours)
    frame_layers: int = 3  # hidden layers (ours)
    sequence_hidden: int = 512  # (ours)
    lengths: list[int] = field(default_factory=lambda: [5, 10, 20, 40])  # frames of a window (ref)
    beta: float = 5.0  # of the distance weight d^(-1/β) (ref: its starting value)


@dataclass
class AugmentationConfig:
    """Augmentation of the training motion and audio (ref)."""

    smooth: int = 3  # frames of the moving average over keypoints, odd; 1 = none
    flip: float = 0.5  # probability of a horizontal flip
    scale: float = 0.1  # all motion values × U(1 - scale, 1 + scale)
    shift: float = 0.16  # coordinates + U(-shift, shift) per axis
    energy: float = 0.1  # audio features + U(± energy · range of the clip)


@dataclass
class SyncerTraining:
    """Training of one syncer."""

    batch: int = 32  # (ours)
    frames: int = 80  # of a training sequence at level 1 (ours)
    negatives: list[int] = field(default_factory=lambda: [12, 12, 12, 48])  # N of eq. 2, one a level
    own_levels: int = 3  # levels whose negatives are misaligned windows of the same sequence; above, of other sequences
    temperature: float = 1.0  # of the InfoNCE loss; 1 = eq. 2
    stretch: int = 0  # windows of level 1 of which the offset has to be found beside eq. 2; 0: eq. 2 alone (ours)
    strangers: bool = False  # pieces move around the mean of other clips: faces cannot be told apart (ours)
    dropout: float = 0.0  # (ours)
    tilt: float = 0.0  # deviation of the level of audio bands, log energy (ours)
    noise: float = 0.0  # probability of noise in the audio (ours)
    mask: float = 0.0  # probability that a moment, or some bands, of the audio are missing (ours)
    average: float = 0.0  # decay of the moving average of the weights that is kept (ours)
    lr: float = 1e-4  # (ours)
    betas: tuple[float, float] = (0.9, 0.999)  # (ours)
    weight_decay: float = 0.01  # (ours)
    iterations: int = 50_000  # (ours)
    max_minutes: float | None = None  # stop early after this much time


@dataclass
class GeneratorTraining:
    """Adversarial training of the generator (section 3.3, eq. 14-16)."""

    batch: int = 50
    frames: int = 40
    lr_generator: float = 2e-5
    lr_discriminator: float = 1e-5
    betas: tuple[float, float] = (0.0, 0.999)
    iterations: int = 70_000
    decay_iterations: int = 5_000  # after `iterations`, with both rates × decay
    decay: float = 0.1
    lambda_av: float = 8.0
    lambda_adv: float = 0.1
    lambda_rec: float = 1.0
    lambda_lips: float = 0.0  # shape of the lips, of the spaces compact-1 and face-1 alone (ours)
    lambda_shape: float = 0.0  # shape of the face; needs lambda_lips (ours)
    lambda_contact: float = 0.0  # lips that touch when real ones do, and only then; needs lambda_lips (ours)
    lambda_mouth: float = 0.0  # how much and how fast lips move; needs lambda_lips (ours)
    lambda_pose: float = 0.0  # how much and how fast the head moves; needs lambda_lips (ours)
    quiet: float = (
        0.0  # share of a batch that falls silent half way, where mouths have to close; needs lambda_lips (ours)
    )
    sync_reduction: Literal["sum", "mean"] = "sum"  # over levels: eq. 6, or ref
    sync_levels: int = 4  # levels of the synchrony loss, from the finest on; 1: the single-scale loss
    sync_ceiling: float | None = None  # times the score of real motion: more synchrony is not rewarded (ours)
    start: str | None = None  # a generator of the same sizes to begin from: a shipped one's name or a file (ours)
    ears: str | None = None  # the speech encoder of a generator that hears speech, a file
    random_origin: bool = False  # x_0 of the relative input is any frame of the clip: long runs stay near it (ours)
    average: float = 0.999  # decay of the moving average of the generator that is kept (ours)
    max_gradient: float | None = None  # norm above which the generator's gradient is scaled down (ours)
    max_minutes: float | None = None  # stop early after this much time


@dataclass
class SpeechConfig:
    """Size of the speech encoder: keyword arguments of `speech.SpeechEncoder` (ours)."""

    width: int = 256
    layers: int = 8  # each looks up to 80 ms ahead
    expansion: int = 3
    left: int = 12  # frames of 20 ms that a layer sees before the current one


@dataclass
class SpeechTraining:
    """Training of the speech encoder (ours). See training/speech.py."""

    steps: int = 8000
    batch: int = 16
    seconds: float = 8.0  # of a piece
    lr: float = 2e-3
    weight_decay: float = 0.05
    average: float = 0.998  # decay of the moving average of the weights that is kept
    speed: float = 0.1  # pieces run by up to this share faster or slower
    lips: float = 0.5  # share of lips in the loss; the rest is the teacher's components
    rooms: float = 0.3  # probability of a room's echo
    voices: float = 0.15  # probability of another voice, 5 to 25 dB below
    noise: float = 0.4  # probability of noise, 0 to 30 dB below
    tilt: float = 2.0  # deviation of the microphone's gain from octave to octave, dB
    bands: float = 0.2  # probability of a telephone's band, or of one that ends early
    clipping: float = 0.05  # probability
    mask: float = 0.2  # probability that some bands, or a moment, are missing
    throats: float = 0.12  # spectra are stretched by up to this share, as of longer and shorter throats
    dropout: float = 0.1  # share of a block's channels that are dropped
    seed: int = 0


@dataclass
class MatteTraining:
    """Training of the matte network (ours). See training/matte.py."""

    steps: int = 9600
    batch: int = 8
    size: int = 320  # pixels
    lr: float = 2e-3
    average: float = 0.995
    seed: int = 0


@dataclass
class PainterTraining:
    """Training of the painters of mouth and eyes (ours). See training/painter.py."""

    steps: int = 8000
    batch: int = 16
    lr: float = 1e-3
    critic_lr: float = 4e-4
    average: float = 0.998  # decay of the moving average of the weights that is kept
    critic_from: float = 0.4  # share of the steps after which the discriminator joins
    reconstruction: float = 10.0
    tint: float = 10.0  # the same of low-passed colours
    perceptual: float = 0.5
    adversarial: float = 0.03
    matching: float = 1.0  # of the discriminator's features
    seed: int = 0


@dataclass
class ResidualTraining:
    """Training of the renderer's residual layer (ours). See training/residual.py."""

    steps: int = 9000
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.05
    average: float = 0.998  # decay of the moving average of the weights that is kept
    reconstruction: float = 10.0
    smoothness: float = 50.0  # of the field, where it would tear
    light: float = 0.2  # of the logarithm of gains
    seed: int = 0


@dataclass
class MeshTraining:
    """Training of the face's mesh network (ours). See training/perception.py."""

    steps: int = 18000
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    average: float = 0.995  # decay of the moving average of the weights that is kept
    tilted: float = 0.15  # share of views whose roll is known to 60 degrees only
    exact: float = 0.3  # how wrong views are in the end, of how wrong they are at first
    face: float = 0.05  # weight of telling faces from what is none
    seed: int = 0


@dataclass
class FinderTraining:
    """Training of the face detector (ours). See training/finder.py."""

    steps: int = 5500
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 1e-4
    average: float = 0.995  # decay of the moving average of the weights that is kept
    seed: int = 0


@dataclass
class MeterConfig:
    """Sizes of the sync meter's networks: lips and rigid head (ours)."""

    lips_width: int = 160
    head_width: int = 64
    embedding: int = 96


@dataclass
class MeterTraining:
    """Training of the sync meter (ours). See training/meter.py."""

    batch: int = 32
    frames: int = 66  # of a piece: clips of 3 s are used
    temperature: float = 0.1  # of InfoNCE
    stretch: int = 22  # windows of which the offset has to be found
    margin: float = 0.3  # of the head's triplet loss
    lr: float = 1.0e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    average: float = 0.998
    measure_steps: int = 700  # of each half that measures the other's clips; 0: clips are taken as they are
    steps: int = 4000  # of the lips
    head_steps: int = 1500
    speed: float = 0.1  # pieces run by up to this share faster or slower
    liveliness: float = 0.3  # motion is up to this share larger or smaller
    landmark_noise: float = 0.01  # distances of the eye corners
    tilt: float = 0.4  # deviation of the level of bands, log energy
    noise: float = 0.4  # probability of noise
    mask: float = 0.3  # probability that a moment, or some bands, are missing
    max_minutes: float | None = None


@dataclass
class Config:
    """Everything that a training run or a model is made from."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    syncer: SyncerConfig = field(default_factory=SyncerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    syncer_training: SyncerTraining = field(default_factory=SyncerTraining)
    generator_training: GeneratorTraining = field(default_factory=GeneratorTraining)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    speech_training: SpeechTraining = field(default_factory=SpeechTraining)
    matte_training: MatteTraining = field(default_factory=MatteTraining)
    painter_training: PainterTraining = field(default_factory=PainterTraining)
    residual_training: ResidualTraining = field(default_factory=ResidualTraining)
    mesh_training: MeshTraining = field(default_factory=MeshTraining)
    finder_training: FinderTraining = field(default_factory=FinderTraining)
    meter: MeterConfig = field(default_factory=MeterConfig)
    meter_training: MeterTraining = field(default_factory=MeterTraining)


def load_config(name_or_path: PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration and apply overrides such as "generator.width=256".

    `name_or_path` is a YAML file or the name of a shipped one ("paper", "compact").
    Raises InputError: no such file, bad YAML, unknown key (names the nearest valid one), wrong type.
    """
    # Here, so that `import mssync` does not pay for it.
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _find(name_or_path)
    config = OmegaConf.structured(Config)
    source = str(path)
    try:
        for file, loaded in reversed(_with_bases(path).items()):
            source = str(file)
            if isinstance(loaded, DictConfig):
                loaded.pop(BASE, None)
            _check_keys(OmegaConf.to_container(loaded), source)
            config = OmegaConf.merge(config, loaded)
        for override in overrides:
            source = f'override "{override}"'
            if "=" not in override:
                raise InputError(f'{source} must have the form "section.key=value"')
            change = OmegaConf.from_dotlist([override])
            _check_keys(OmegaConf.to_container(change), source)
            config = OmegaConf.merge(config, change)
        source = str(path)
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise InputError(f"{source}: {error.full_key or 'configuration'}: {reason}") from None
    except YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read as a configuration: {error}") from None


def _with_bases(path: Path) -> dict[Path, Any]:
    """What a file holds, its base, the base of that, and so on. Raises InputError for a base of a base of … itself."""
    from omegaconf import DictConfig, OmegaConf

    loaded = OmegaConf.load(path)
    chain = {path: loaded}
    while isinstance(loaded, DictConfig) and loaded.get(BASE) is not None:
        base = _find(str(loaded[BASE]))
        if base in chain:
            raise InputError(f"{path}: {base} is its own base")
        chain[base] = loaded = OmegaConf.load(base)
    return chain


def _find(name_or_path: PathLike) -> Path:
    """The path itself if it is a file, else the shipped configuration of that name."""
    given = Path(name_or_path)
    for path in (given, *(folder / f"{given}.yaml" for folder in _FOLDERS)):
        if path.is_file():
            return path
    found = {path.relative_to(folder).as_posix() for folder in _FOLDERS for path in folder.rglob("*.yaml")}
    names = sorted(name.removesuffix(".yaml") for name in found)
    raise InputError(f"no configuration {given}: give a YAML file or one of {', '.join(names)}")


def _check_keys(given: Any, source: str) -> None:
    """Refuse keys that the schema lacks, naming the nearest one that it has."""
    if not isinstance(given, dict):
        raise InputError(f"{source} must hold sections with keys, such as generator: {{width: 256}}")
    valid = list(_keys(Config))
    for key in _given_keys(given):
        if key not in valid:
            raise InputError(f"{source}: there is no key {key}; the nearest is {_nearest(key, valid)}")


def _nearest(key: str, valid: Iterable[str]) -> str:
    """The valid key most like `key`; without a section, "lamda_av" finds "generator_training.lambda_av"."""

    def likeness(candidate: str) -> float:
        compared = candidate if "." in key else candidate.split(".")[-1]
        return difflib.SequenceMatcher(None, key, compared).ratio()

    return max(valid, key=likeness)


def _keys(section: type) -> Iterator[str]:
    """All dotted keys of a configuration class, sections included."""
    for item in fields(section):
        yield item.name
        if is_dataclass(item.default_factory):
            yield from (f"{item.name}.{key}" for key in _keys(item.default_factory))


def _given_keys(given: dict[Any, Any]) -> Iterator[str]:
    """All dotted keys of a nested dictionary, sections included."""
    for name, value in given.items():
        yield str(name)
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key in _given_keys(value))
