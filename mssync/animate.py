"""From a portrait and speech to frames: the crop, the generator, the reenactor, the full picture.

A `Pipeline` holds the models; `load()` makes one. A clip's motion is held whole (240 bytes a frame), its
pictures never: motion and frames are made in small batches while they are asked for, however long the recording is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync import face1, weights
from mssync.audio import SAMPLE_RATE, features, is_silent, n_video_frames
from mssync.cores import Cores
from mssync.driving import Shot, crops, find_shots, joined
from mssync.errors import InputError, PathLike, as_path
from mssync.face.analyser import FaceMesh
from mssync.face1 import NUMBERS, SPACE, FaceSpace, neutral, read
from mssync.faces import Box, crop, crop_box, in_crop, paste
from mssync.inputs import (
    Array,
    Media,
    Picture,
    Speech,
    array_of,
    is_path,
    local_file,
    name_of,
    type_name,
)
from mssync.inputs import picture as read_picture
from mssync.motion import (
    KEYPOINTS,
    VALUES,
    best_start,
    check_motion,
    control,
    gaussian,
    load_motion,
    relative,
    save_motion,
    space_name,
)
from mssync.pictures import reduced
from mssync.portraits import find_face
from mssync.precision import choose
from mssync.reenact import SIZE, Reenactor, SizedReenactor, to_bytes, to_tensor
from mssync.reenact.detector import BODY
from mssync.render.carry import carried
from mssync.soundtrack import Sound
from mssync.speech import FILE as EARS_FILE
from mssync.speech import FILE_AHEAD, LIVE_AHEAD, SpeechEncoder
from mssync.video import FPS, VideoReader, write_video

if TYPE_CHECKING:
    from mssync.face_generator import FaceGenerator
    from mssync.generator import Generator as MotionGenerator
    from mssync.signing import Signer

T = TypeVar("T")

MODELS = {"compact": weights.SHIPPED}  # a model is a folder with these files
REENACTOR_FILE, GENERATOR_FILE = "reenactor.safetensors", "generator.safetensors"
REENACTORS = ("layered", "fomm")  # kinds of model files that draw faces
DEVICES = ("cpu", "cuda", "mps")

BATCH = 3  # frames that a core draws at once: with more, memory is asked for anew each time
MIN_SECONDS = 0.2  # the shortest speech: one window of the finest syncer
MAX_SEARCHED = 4096  # longest side of a picture in which the face is looked for, in pixels
DRAWN = 512  # side of a video's frames, unless another is wanted
LARGE = 800 * 800  # pixels of a frame from which one is drawn at a time: memory
MAX_PICTURE = 2160  # longest side of a video with the full picture, in pixels

READ_TAPS = 3  # frames over which motion that is read from videos is smoothed
HALF = 0.5  # of a pixel: landmarks are whole numbers at pixels' centres

MAX_FACTOR = 2.0  # of head motion and expression
MAX_SMOOTH = float(FPS)  # frames
SIZES = (64, MAX_PICTURE)  # least and greatest side of a video, in pixels

Progress = Callable[[int, int], object]  # done, total; what it raises ends the work


@dataclass(frozen=True)
class Portrait:
    """A picture made ready for any number of clips; see `Pipeline.portrait`."""

    picture: np.ndarray  # (H, W, 3) uint8, turned upright, at most MAX_PICTURE on its longest side
    box: Box  # the part of it that is animated
    pose: np.ndarray  # (10, 6)
    state: Any  # what the reenactor computed of it once
    size: tuple[int, int]  # height and width of the picture as it came
    mesh: np.ndarray | None = None  # (478, 3) float32, of the face in the box's [-1, 1], where it is known

    @cached_property
    def rest(self) -> np.ndarray:
        """The face at rest, (478, 3) float32 (`face1.neutral`), where the mesh is known."""
        assert self.mesh is not None
        return neutral(self.mesh)

    @cached_property
    def start(self) -> np.ndarray:
        """What makes the mesh of it, (50,) float32."""
        assert self.mesh is not None
        return read(self.mesh, self.rest)


class Frames(Iterator[np.ndarray]):
    """Frames of a video, uint8 (height, width, 3) RGB at 25 a second, made as they are asked for.

    `len(frames)` is their number in all, `motion` what they show, (T, 10, 6) keypoints or (T, 50) of the space face-1
    (what is not made yet is made when it is asked for), `space` its name. `audio` is the `Sound` that belongs to them,
    as it was given, or None, `model` the name of the reenactor and `precision` that of its drawing, which the video's
    metadata mention. `close` ends the drawing early; so does leaving a `with` block.
    """

    def __init__(
        self,
        frames: Generator[np.ndarray, None, None],
        motion: GrowingMotion,
        audio: Sound | None,
        pipeline: Pipeline,
        source_size: tuple[int, int],
    ) -> None:
        self._frames, self._motion, self.audio = frames, motion, audio
        self.model, self.precision = pipeline.name, pipeline.reenactor.precision
        self.space = SPACE if motion.frame == (NUMBERS,) else pipeline.reenactor.space
        self._source_size = source_size
        self._begun = False

    def __len__(self) -> int:
        return len(self._motion)

    @property
    def motion(self) -> np.ndarray:
        return self._motion[: len(self)]

    def __next__(self) -> np.ndarray:
        self._begun = True
        return next(self._frames)

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the drawing: waits for the frames under way, drops them, and gives no more.

        For the thread that takes the frames; another one ends them by what `progress` raises.
        """
        self._begun = True
        self._frames.close()

    def save(
        self, path: PathLike, *, badge: bool = False, signer: Signer | None = None, progress: Progress | None = None
    ) -> int:
        """Write all frames with their sound to an MP4, marked as generated; return their number.

        path: must end in .mp4; an existing file is replaced, once the new one is complete.
        badge: draw a small mark, AI, into the lower right corner.
        signer: signs the file (C2PA).
        progress: called as progress(done, total) after every frame. What it raises ends the drawing, comes out here
            and leaves no file; so do Ctrl-C and a full disk.
        Raises InputError: the output cannot be written, frames have been taken or the drawing was ended before.
        """
        from mssync.provenance import badged

        if self._begun:
            raise InputError("some of these frames have been taken already; make new ones to save them all")
        pictures = badged(self) if badge else self
        try:
            return write_video(
                path,
                _told(pictures, len(self), progress),
                self.audio,
                model=self.model,
                precision=self.precision,
                signer=signer,
            )
        except BaseException:
            if self._begun:
                self.close()
            raise

    def save_motion(self, path: PathLike) -> None:
        """Write the motion to a file that `Pipeline.render` and `mssync render` take."""
        save_motion(path, self.motion, space=self.space, source_size=self._source_size)


def _expected(reader: VideoReader) -> int:
    """About how many frames a video has."""
    return max(1, round(FPS * reader.duration))


def _told(
    items: Iterable[np.ndarray], count: int, progress: Progress | None, turn: int = 0, turns: int = 1
) -> Iterator[np.ndarray]:
    """The items, about `count`; `progress` is told before the first and after each was used that it was.

    turn: which of the `turns` this is in which as many items are used.
    """
    if progress is None:
        yield from items
        return
    progress(turn * count, turns * count)
    for done, item in enumerate(items, start=1):
        yield item
        progress(turn * count + min(done, count), turns * count)


class GrowingMotion:
    """Motion (T, *frame), float32, of which what is asked for and what comes before it is made first.

    parts: arrays (n, *frame) with T frames together; frame: (10, 6), or (50,) in the space face-1. May be asked by
    several threads; what goes wrong is raised for all that ask for what was not made.
    """

    def __init__(self, parts: Iterable[np.ndarray], count: int, frame: tuple[int, ...]) -> None:
        self._parts, self._known, self._lock = iter(parts), 0, Lock()
        self._error: BaseException | None = None
        self.frame, self._motion = frame, np.empty((count, *frame), np.float32)

    def __len__(self) -> int:
        return len(self._motion)

    def __getitem__(self, times: slice) -> np.ndarray:
        start, stop, _ = times.indices(len(self))
        with self._lock:
            while self._known < stop:
                part = self._next()
                self._motion[self._known : self._known + len(part)] = part
                self._known += len(part)
        return self._motion[start:stop]

    def _next(self) -> np.ndarray:
        if self._error is None:
            try:
                return next(self._parts)
            except BaseException as error:
                self._error = error
        raise self._error


def load(
    model: PathLike = "compact", device: str | torch.device = "cpu", live: bool = False, precision: str | None = None
) -> Pipeline:
    """Load a model.

    model: "compact", which the package ships; or a folder with reenactor.safetensors and
        generator.safetensors; or a reenactor's file alone (see `mssync convert`), which cannot animate, but
        reenact.
    device: "cpu", "cuda" (also "cuda:1", …), "mps", or "auto": cuda or mps where there is one, else cpu.
    live: for `stream.StreamingAnimator`: hear no more of the future than a conversation bears.
    precision: of drawing, "float32", "bfloat16", or "auto": bfloat16 where the processor multiplies in it. Unless
        given, the environment variable MSSYNC_PRECISION is asked, then "auto".
    Raises InputError for an unknown model, device or precision.
    """
    place = _device(device)
    drawn_in = choose(precision, place)
    reenactor_file, generator_file = model_files(model)
    reenactor: Any
    generator: Any = None
    kind = "logfbank"
    reenactor, metadata = weights.load_model(reenactor_file, place, REENACTORS)
    if generator_file is not None:
        generator, about = weights.load_model(generator_file, place, ("generator",))
        kind = about["config"].get("audio", kind)
        space = space_name(str(about["config"].get("motion_space")))
        if space not in drawn_spaces(reenactor):
            raise InputError(
                f"{generator_file} was trained on motion of the space {space!r}, and {reenactor_file} draws "
                f"{reenactor.space!r}; train one on this motion (`mssync extract`, `mssync train generator`)"
            )
    ears = None
    if generator_file is not None and generator.config.hears == "speech":
        ears = SpeechEncoder.load(generator_file.parent / EARS_FILE)
    drawing = reenactor.for_rendering(drawn_in)
    return Pipeline(drawing, generator, audio_kind=kind, ears=ears, live=live, name=metadata["kind"], device=place)


def drawn_spaces(reenactor: Reenactor) -> tuple[str, ...]:
    """Names of the motion spaces that a reenactor draws: its keypoints', and face-1 where it draws meshes."""
    return (reenactor.space, SPACE) if getattr(reenactor, "any_size", False) else (reenactor.space,)


def model_files(model: PathLike) -> tuple[Path, Path | None]:
    """The files of a model's reenactor and of its generator (None: it has none). Raises InputError as `load`."""
    if not is_path(model):
        raise InputError(f"a model is given by its name or its path, not as {type_name(model)}")
    path = MODELS.get(str(model), as_path(model))
    if path.is_file():
        return path, None
    if str(model) not in MODELS and not (path / REENACTOR_FILE).is_file():
        known = ", ".join(sorted(MODELS))
        raise InputError(
            f"no model {str(model)!r}: give one of: {known}, a folder with {REENACTOR_FILE}, or such a file"
        )
    generator = path / GENERATOR_FILE
    return path / REENACTOR_FILE, generator if generator.is_file() else None


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(_fastest() if name == "auto" else name)
        if device.type not in DEVICES:
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {str(name)!r} is not available here; try cpu") from error
    return device


def _fastest() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Pipeline:
    """Makes portraits speak and move. `load()` is the usual way to one. Any number of threads may use it at once."""

    def __init__(
        self,
        reenactor: Reenactor,
        generator: MotionGenerator | None,
        *,
        audio_kind: str = "logfbank",
        ears: SpeechEncoder | None = None,
        live: bool = False,
        name: str = "layered",
        device: torch.device | str = "cpu",
        face_mesh: FaceMesh | None = None,
    ) -> None:
        """reenactor, generator: in eval mode, on `device`; without a generator `animate` is refused.

        audio_kind: the features that the generator was trained on, "logfbank" or "mfcc".
        ears: the encoder of a generator that hears speech instead; live: whether that hears as a live session does.
        name: of the reenactor, for the metadata of videos.
        """
        self.reenactor, self.generator = reenactor, generator
        self.audio_kind, self.ears, self.name, self.device = audio_kind, ears, name, torch.device(device)
        self._live = live
        self.face_mesh = FaceMesh() if face_mesh is None else face_mesh
        self.cores, self.space = Cores(self.device), FaceSpace()

    @property
    def sized(self) -> SizedReenactor | None:
        """The reenactor, where it draws pictures in their own size; others draw squares of 256 pixels."""
        return cast(SizedReenactor, self.reenactor) if getattr(self.reenactor, "any_size", False) else None

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces of motion that can be drawn, the best one last."""
        return drawn_spaces(self.reenactor)

    @property
    def live(self) -> bool:
        """Whether it is for speech that is still arriving."""
        return self._live and self.ears is not None

    @property
    def ahead(self) -> int:
        """How far the features of speech look ahead, ms after the end of a frame, where there are `ears`."""
        return LIVE_AHEAD if self.live else FILE_AHEAD

    def live_generator(self) -> MotionGenerator:
        """The generator, where it can speak live. Raises InputError where there is none, or another one."""
        if self.generator is None or not self.live:
            raise InputError(
                "no generator that can speak live is loaded: use `load(model, live=True)`, "
                "and where the model has none, train it: mssync train generator --config face"
            )
        return self.generator

    # What users call

    def animate(
        self,
        image: Picture | Portrait,
        audio: Speech,
        *,
        sample_rate: int | None = None,
        head_motion: float = 1.0,
        expression: float = 1.0,
        smooth: float = 0.0,
        seed: int = 0,
        size: int = DRAWN,
        paste_back: bool = False,
    ) -> Frames:
        """Make a portrait speak: round(25 × seconds) frames.

        Everything is checked before the first frame is asked for.

        image: a picture, or a `portrait()`. A picture is a path, the content of a file (bytes), a file object, a PIL
            image, or a numpy or torch array (H, W), (H, W, 1, 3 or 4) or channels first: uint8, uint16, or floating
            point in [0, 1]; grey, RGB or RGBA.
        audio: a recording or a video: a path, bytes, a file object; or an array (n,), (n, channels) or (channels, n):
            floating point with full scale at 1, int16, int32 or uint8.
        sample_rate: of an array, in Hz; must be given with one, and with nothing else.
        head_motion: 0 keeps the head still, 1 as generated, at most 2. expression: the same for the face.
        smooth: standard deviation of Gaussian smoothing in frames, 0 (off) to 25.
        seed: of turns of the head, blinks and saccades, of which speech tells nothing. The same seed gives the same
            video on the same machine; on another one, or with other versions of libraries, the same but for what cannot
            be seen (motion to 1e-5, frames to less than a grey level on the mean).
        size: side of the square frames in pixels, even, 64 to 2160. More than the picture itself has enlarges it.
        paste_back: put the animated face back into the full picture; frames then have the picture's size (at
            most 2160 pixels on the longest side), and `size` is not used.

        Silent audio gives a quiet face, with a warning. Raises InputError for values out of range, what is no picture
        or sound, a picture without a face, audio shorter than 0.2 s or with samples that are not finite.
        """
        check_options(head_motion=head_motion, expression=expression, smooth=smooth, seed=seed, size=size)
        if self.generator is None:
            raise InputError(
                f"this model has no {GENERATOR_FILE}, so it cannot speak; "
                "train one on its motion, or use the model 'compact'"
            )
        sound = Sound.given(audio, sample_rate, MIN_SECONDS)
        waveform = sound.speech
        if is_silent(waveform) and not self.live:
            warnings.warn(f"{sound.name} is silent: the face stays quiet", stacklevel=1)
            expression = expression if self.faces else 0.0
        portrait = self.portrait(image)
        parts: Iterable[np.ndarray] = self.cores.one_by_one(self._motions(self.first(portrait), waveform, seed))
        if smooth:  # which needs what is to come
            parts = [gaussian(np.concatenate(list(parts)), smooth)]
        motion = (self.controlled(portrait, part, head_motion, expression) for part in parts)
        frame = self.first(portrait).shape
        growing = GrowingMotion(motion, n_video_frames(len(waveform)), frame)
        return self._render(portrait, growing, sound, size, paste_back)

    def reenact(
        self,
        image: Picture | Portrait,
        video: Media,
        *,
        absolute: bool = False,
        best_frame: bool = True,
        size: int = DRAWN,
        paste_back: bool = False,
        progress: Progress | None = None,
    ) -> Frames:
        """Move a portrait like the face of a driving video, as many frames as the video has at 25 fps.

        image, size, paste_back: as in `animate`.
        video: a path, the content of a file (bytes), or a file object. Its sound comes along as `Frames.audio`.
        absolute: take the driving face's keypoints as they are, and with them its proportions and its place, instead
            of adding its changes to the portrait's own shape and pose.
        best_frame: count changes from the frame that resembles the portrait most, instead of from the first; of no
            meaning to `absolute`.
        progress: called as progress(done, total) while the video is watched, which takes two turns: total is twice its
            frames. What it raises ends that, and comes out.

        Raises InputError for values out of range, and where there is no face.
        """
        check_options(size=size)
        portrait = self.portrait(image)
        with ExitStack() as opened:
            driving = opened.enter_context(local_file(video, "the video"))
            reader = VideoReader(driving.path)
            shots, motions = self._watched(reader, driving.name, progress)
            sound = Sound.read(driving.path, name=driving.name).keeping(opened) if reader.has_audio else None
        known = self.sized is not None and portrait.mesh is not None
        meshes = [in_crop(shot.landmarks, shot.box)[..., :2] for shot in shots[0]] if known else []
        if not absolute:
            starts = [best_start(motion, portrait.pose) if best_frame else 0 for motion in motions]
            motions = [relative(m, m[k], portrait.pose) for m, k in zip(motions, starts, strict=True)]
            if portrait.mesh is not None and meshes:
                meshes = [carried(portrait.mesh[:, :2], mesh, k) for mesh, k in zip(meshes, starts, strict=True)]
        mesh = joined(meshes, *shots) if meshes else None
        return self._render(portrait, joined(motions, *shots), sound, size, paste_back, mesh)

    def render(
        self,
        image: Picture | Portrait,
        motion: Media | Array,
        *,
        size: int = DRAWN,
        paste_back: bool = False,
    ) -> Frames:
        """Draw a portrait under a motion, taken as it is.

        motion: a motion file (a path, bytes, a file object), or a numpy or torch array (T, 10, 6), or (T, 50) of the
            space face-1.
        image, size, paste_back: as in `animate`.
        Raises InputError also for the motion of another reenactor.
        """
        check_options(size=size)
        if isinstance(motion, np.ndarray | Tensor):
            values = array_of(motion)
            check_motion(values, "the given motion", SPACE if values.ndim == 2 and self.sized else self.reenactor.space)
            return self._render(self.portrait(image), values.astype(np.float32), None, size, paste_back)
        with local_file(motion, "the motion") as file:
            loaded = load_motion(file.path)
        if loaded.space not in (*self.spaces, self.name):
            raise InputError(
                f"{file.name}: motion of the space {loaded.space!r}; this model draws {self.reenactor.space!r}"
            )
        return self._render(self.portrait(image), loaded.motion, None, size, paste_back)

    def motion(self, video: Media, *, space: str | None = None, progress: Progress | None = None) -> np.ndarray:
        """Motion of the face in a video: (T, 50) of the space face-1, of which each shot has its own face at rest, or
        keypoints (T, 10, 6).

        space: "face-1", or that of the reenactor's keypoints; unless given face-1, where the model draws it.
        video, progress: as in `reenact`; face-1 takes one turn.
        Raises InputError when the video shows no face, and for a space that this model does not know.
        """
        space = self.spaces[-1] if space is None else space
        if space not in self.spaces:
            raise InputError(f"motion of the space {space!r}; this model knows {' and '.join(map(repr, self.spaces))}")
        with local_file(video, "the video") as file:
            reader = VideoReader(file.path)
            if space != SPACE:
                shots, motions = self._watched(reader, file.name, progress)
                return joined(motions, *shots)
            shots = self._shots(reader, file.name, progress)
        meshes = (in_crop(shot.landmarks, shot.box) for shot in shots[0])
        return joined([face1.clip_motion(mesh, READ_TAPS)[0] for mesh in meshes], *shots)

    def speak(self, audio: Speech, *, sample_rate: int | None = None, seed: int = 0) -> np.ndarray:
        """Motion (T, 50) of the space face-1 of a face without a portrait that speaks: what moves a 3-D avatar
        (`blendshapes`). It begins at rest, in the middle, and looks straight ahead.

        audio, sample_rate, seed: as in `animate`. Raises InputError as `animate`, and where the model's generator does
        not make this motion.
        """
        check_options(seed=seed)
        if not self.faces:
            raise InputError("this model's generator makes no motion of the space face-1; use the model 'compact'")
        start = cast("FaceGenerator", self.generator).nobody()
        sound = Sound.given(audio, sample_rate, MIN_SECONDS)
        return np.concatenate(list(self._motions(start, sound.speech, seed)))

    def _shots(
        self, reader: VideoReader, name: str, progress: Progress | None, turns: int = 1
    ) -> tuple[list[Shot], int]:
        """Shots of a video and the number of its frames: the first of so many turns."""
        frames = _told(reader, _expected(reader), progress, 0, turns)
        return find_shots(frames, self.face_mesh, reader.width, reader.height, name)

    def _watched(
        self, reader: VideoReader, name: str, progress: Progress | None
    ) -> tuple[tuple[list[Shot], int], list[np.ndarray]]:
        """Shots of a video and the number of its frames, and the motion (n, 10, 6) of each shot. Takes two turns: the
        first finds the faces, the second sees them in their crops."""
        found = self._shots(reader, name, progress, 2)
        seen: list[list[np.ndarray]] = [[] for _ in found[0]]
        for batch in _batches(crops(_told(reader, _expected(reader), progress, 1, 2), found[0], SIZE), BATCH):
            numbers, images, landmarks = zip(*batch, strict=True)
            poses = self.keypoints(np.stack(images), np.stack(landmarks))
            for number, pose in zip(numbers, poses, strict=True):
                seen[number].append(pose)
        return found, [np.stack(poses) for poses in seen]

    def portrait(self, image: Picture | Portrait) -> Portrait:
        """Find the face of a picture (the largest, when there are several), crop it, prepare its rendering.

        A portrait may be given wherever a picture is asked for, so that it is prepared once for many clips. A picture
        in which the face lies on its side or upside down is turned. Warns of that, and of what makes bad videos: see
        `portraits.find_face`. Raises InputError when there is no face, or nothing good could come of it.
        """
        if isinstance(image, Portrait):
            return image
        name = name_of(image, "the image")
        picture, size = read_picture(image, name, MAX_SEARCHED)
        picture, found = find_face(self.face_mesh, picture, name)
        height, width = picture.shape[:2]
        box = crop_box([found], width, height)
        face, mesh = crop(picture, box, SIZE)[None], in_crop(found.landmarks, box)
        pose = self.keypoints(face, mesh[None])
        small = reduced(picture, MAX_PICTURE)
        scale = small.shape[1] / width
        small_box = Box(box.x0 * scale, box.y0 * scale, box.side * scale)
        state = self.prepared(small, small_box, (found.landmarks + HALF) * scale - HALF, pose)
        return Portrait(small, small_box, pose[0], state, size, mesh)

    # Models

    def _motions(self, start: np.ndarray, waveform: np.ndarray, seed: int) -> Iterator[np.ndarray]:
        """Motion (n, *frame) from a first frame (*frame) on, in parts of BATCH frames."""
        assert self.generator is not None
        first = torch.from_numpy(start).flatten().to(self.device)
        if self.ears is not None:
            frames = self._spoken(self.ears, first, waveform, seed)
        else:
            audio = features(torch.from_numpy(waveform), self.audio_kind, n_video_frames(len(waveform)))
            frames = self.generator.stream(first, audio.to(self.device), seed)
        while batch := list(islice(frames, BATCH)):
            yield self.moves(torch.stack(batch))

    @property
    def faces(self) -> bool:
        """Whether the generator makes motion of the space face-1."""
        return self.generator is not None and self.generator.config.space == SPACE

    def first(self, portrait: Portrait) -> np.ndarray:
        """A portrait's own frame in the generator's space: (10, 6), or (50,)."""
        return portrait.start if self.faces else portrait.pose

    def moves(self, made: Tensor) -> np.ndarray:
        """What the generator made, (n, D), as motion (n, *frame)."""
        motion = made.cpu().numpy()
        return motion if self.faces else motion.reshape(len(motion), KEYPOINTS, VALUES)

    def controlled(self, portrait: Portrait, motion: np.ndarray, head: float, expression: float) -> np.ndarray:
        """Motion (n, *frame) of `animate` with more or less of the head's motion, and of expression."""
        if self.faces:
            return face1.control(self.first(portrait), motion, head=head, expression=expression)
        return control(portrait.pose, motion, self.reenactor.rigid, head=head, expression=expression)

    @torch.inference_mode()
    def shown(self, portrait: Portrait, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (n, 10, 6) and meshes (n, 478, 2) of motion (n, 50) of the space face-1 on a portrait's face."""
        start, rest = torch.from_numpy(portrait.start), torch.from_numpy(portrait.rest)
        numbers, body = torch.from_numpy(motion), torch.from_numpy(portrait.pose[BODY])
        mesh = self.space.mesh(numbers, rest)
        keypoints = self.space.seen(mesh, numbers, start, body).unflatten(-1, (KEYPOINTS, VALUES))
        return keypoints.numpy(), mesh.numpy()

    def _spoken(self, ears: SpeechEncoder, first: Tensor, waveform: np.ndarray, seed: int) -> Iterator[Tensor]:
        """Motion, frame by frame (60,): what a live session makes, a second of sound at a time."""
        assert self.generator is not None
        hearing, listener = ears.start(self.ahead), self.generator.listen(first[None], seed)
        for at in range(0, len(waveform), SAMPLE_RATE):
            said = hearing.push(waveform[at : at + SAMPLE_RATE])
            yield from (frame[0] for frame in listener.push(said[None].to(self.device)))
        last = hearing.flush()[None].to(self.device)
        yield from (frame[0] for frame in listener.push(last))

    @torch.inference_mode()
    def keypoints(self, images: np.ndarray, landmarks: np.ndarray | None = None) -> np.ndarray:
        """Motion (B, 10, 6) of faces (B, 256, 256, 3) uint8; landmarks (B, 478, 3) in [-1, 1], where they are known."""
        points = None if landmarks is None else torch.from_numpy(landmarks).to(self.device)
        return self.reenactor.keypoints(to_tensor(images, self.device), points).cpu().numpy()

    @torch.inference_mode()
    def prepared(self, picture: np.ndarray, box: Box, landmarks: np.ndarray, motion: np.ndarray) -> Any:
        """What the reenactor computes of a portrait once, its `Portrait.state`.

        picture (H, W, 3) uint8; box: the part that is animated; landmarks (478, 3) in the picture's pixels; motion
        (1, 10, 6): the keypoints of the box.
        """
        pose = torch.from_numpy(motion).to(self.device)
        if self.sized is not None:
            return self.sized.prepare_picture(picture, box, landmarks.astype(np.float32), pose)
        return self.reenactor.prepare(to_tensor(crop(picture, box, SIZE)[None], self.device), pose)

    def draw(self, portrait: Portrait, motion: np.ndarray, size: int) -> np.ndarray:
        """Frames (B, size, size, 3) uint8 for motion (B, 10, 6), or (B, 50) of face-1, drawn on all cores.

        One by one: so a frame does not depend on how many cores there are, or how many frames are asked for at once.
        """
        return np.concatenate(list(self.cores.map(lambda pose: self.draw_here(portrait, pose[None], size), motion)))

    @torch.inference_mode()
    def draw_here(
        self, portrait: Portrait, motion: np.ndarray, size: int | None, mesh: np.ndarray | None = None
    ) -> np.ndarray:
        """The same, in this thread; size None: full pictures (B, H, W, 3). mesh: (B, 478, 2), see `_render`."""
        if motion.ndim == 2:
            motion, mesh = self.shown(portrait, motion)
        poses = torch.from_numpy(motion).to(self.device)
        if self.sized is not None:
            points = None if mesh is None else torch.from_numpy(mesh).to(self.device)
            return self.sized.draw(portrait.state, poses, size, points).cpu().numpy()
        frames = self.reenactor.render(portrait.state, poses)
        if size not in (None, SIZE):
            frames = F.interpolate(frames, (size, size), mode="bicubic", antialias=size < SIZE)
        drawn = to_bytes(frames).cpu().numpy()
        if size is None:
            drawn = np.stack([paste(portrait.picture, portrait.box, frame) for frame in drawn])
        return drawn

    def _render(
        self,
        portrait: Portrait,
        motion: np.ndarray | GrowingMotion,
        audio: Sound | None,
        size: int,
        paste_back: bool,
        mesh: np.ndarray | None = None,
    ) -> Frames:
        """mesh: (T, 478, 2) in the portrait's [-1, 1], where it is known; else it follows from the motion."""
        if isinstance(motion, np.ndarray):
            motion = GrowingMotion([motion], len(motion), motion.shape[1:])
        frames = self._frames(portrait, motion, None if paste_back else size, mesh)
        return Frames(frames, motion, audio, self, portrait.size)

    def _frames(
        self, portrait: Portrait, motion: GrowingMotion, size: int | None, mesh: np.ndarray | None
    ) -> Generator[np.ndarray, None, None]:
        height, width = portrait.picture.shape[:2]
        pixels = height * width if size is None else size * size
        count = BATCH if pixels < LARGE else 1
        if self.sized is not None:
            self.sized.ready(portrait.state, size)

        def drawn(start: int) -> np.ndarray:
            times = slice(start, start + count)
            return self.draw_here(portrait, motion[times], size, None if mesh is None else mesh[times])

        for frames in self.cores.map(drawn, range(0, len(motion), count)):
            yield from frames


# Checks


def check_options(
    *,
    head_motion: float = 1.0,
    expression: float = 1.0,
    smooth: float = 0.0,
    seed: int = 0,
    size: int = DRAWN,
) -> None:
    """Raise InputError for a value that `Pipeline.animate` does not take."""
    ranges = {
        "head motion": (head_motion, 0.0, MAX_FACTOR),
        "expression": (expression, 0.0, MAX_FACTOR),
        "smooth": (smooth, 0.0, MAX_SMOOTH),
        "seed": (seed, 0, 2**63 - 1),
        "size": (size, *SIZES),
    }
    for name, (value, low, high) in ranges.items():
        kind, words = (Integral, "a whole number") if isinstance(low, int) else (Real, "a number")
        if not isinstance(value, kind):
            raise InputError(f"{name} must be {words}, not {value!r}")
        if not low <= value <= high:  # false for NaN too
            raise InputError(f"{name} must be between {low:g} and {high:g}, got {value:g}")
    if size % 2:
        raise InputError(f"size must be even, as videos are stored in blocks of 2 × 2 pixels; got {size}")


# Arrays


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
