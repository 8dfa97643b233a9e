"""How well the sync meter recovers known offsets: of prepared clips whose sound is shifted, and of real files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from mssync.audio import SAMPLES_PER_VIDEO
from mssync.data.clips import Clip
from mssync.meter import FRAME_MS, Comparison, Reading, SyncMeter
from mssync.metrics.disturbances import Sound, music, telephone, under
from mssync.metrics.estimates import Estimate, mean
from mssync.video import FPS

SHIFTS = tuple(range(-8, 9))  # frames
HALF = 0.5  # frames: less is within the error of both measurements
LONG = 4.0  # seconds of speech from which on an offset should be found
SHIFTED_ODD = "other's sound"  # the condition of clips that get somebody else's sound
FEW_SHIFTS = (-7, -3, 2, 6)  # frames, of disturbed sound
DISTURBED: dict[str, Callable[[Sound, Sound, np.random.Generator], Sound]] = {  # a clip's sound, another's -> heard
    "music 10 dB below": lambda own, _, rng: under(own, music(len(own), rng)),
    "a voice 10 dB below": lambda own, other, _: under(own, other),
    "telephone": lambda own, *_: telephone(own),
}


@dataclass(frozen=True)
class Trial:
    """One measurement. shift: frames by which the sound was made to lead. measured: frames; own: what the clip
    measures without a shift. probability: see `meter.Reading`; sure: whether it is told at all.
    """

    name: str
    corpus: str
    condition: str
    seconds: float
    shift: int
    measured: float
    own: float
    probability: float
    sure: bool

    @property
    def error(self) -> int:
        """Whole frames from the shift, as if the clip itself were in time."""
        return round(self.measured) - self.shift

    @property
    def own_error(self) -> int:
        """Whole frames from the shift, counted from the clip's own offset."""
        return round(self.measured - self.own) - self.shift


def shifted(landmarks: np.ndarray, waveform: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip (T, 478, 3), (n,) whose sound leads by `shift` frames more; what has no partner is cut."""
    if shift >= 0:
        return landmarks[: len(landmarks) - shift], waveform[shift * SAMPLES_PER_VIDEO :]
    return landmarks[-shift:], waveform[: (len(landmarks) + shift) * SAMPLES_PER_VIDEO]


def recover(meter: SyncMeter, clips: Sequence[Clip], shifts: Sequence[int] = SHIFTS) -> Iterator[Trial]:
    """Measure every clip under every shift, with disturbed sound under a few, and with the sound of the next clip."""
    for number, (clip, other) in enumerate(zip(clips, [*clips[1:], *clips[:1]], strict=True)):
        own = meter.offset(clip.landmarks, clip.waveform)
        for shift in shifts:
            found = meter.offset(*shifted(clip.landmarks, clip.waveform, shift)) if shift else own
            yield _trial(clip.entry.name, clip.entry.corpus, "shifted", len(clip) / FPS, shift, found, own)
        for condition, disturb in DISTURBED.items():
            sound = disturb(clip.waveform, other.waveform, np.random.default_rng(number))
            for shift in FEW_SHIFTS:
                found = meter.offset(*shifted(clip.landmarks, sound, shift))
                yield _trial(clip.entry.name, clip.entry.corpus, condition, len(clip) / FPS, shift, found, own)
        count = min(len(clip), len(other))
        found = meter.offset(clip.landmarks[:count], other.waveform[: count * SAMPLES_PER_VIDEO])
        yield _trial(clip.entry.name, clip.entry.corpus, SHIFTED_ODD, count / FPS, 0, found, own)


def _trial(name: str, corpus: str, condition: str, seconds: float, shift: int, found: Reading, own: Reading) -> Trial:
    return Trial(
        name, corpus, condition, seconds, shift,
        found.milliseconds / FRAME_MS, own.milliseconds / FRAME_MS, found.probability, found.sure,
    )  # fmt: skip


def summary(trials: Sequence[Trial]) -> dict[str, dict[str, Estimate]]:
    """Figures by group of clips, means over clips. "within 1" is of whole frames; "own" counts from the clip's own
    offset; "sure" is the share of measurements that are told, and "right" the share of those within 1 of own."""
    apart = {SHIFTED_ODD, *DISTURBED}
    groups: dict[str, Callable[[Trial], bool]] = {
        "all": lambda t: t.condition not in apart,
        f"{LONG:g} s or more": lambda t: t.condition not in apart and t.seconds >= LONG,
    }
    conditions = sorted({t.condition for t in trials} - {"shifted", SHIFTED_ODD})
    groups |= {condition: (lambda t, c=condition: t.condition == c) for condition in conditions}  # type: ignore[misc]
    table = {name: _figures([t for t in trials if belongs(t)]) for name, belongs in groups.items()}
    odd = [t for t in trials if t.condition == SHIFTED_ODD]
    if odd:
        table[SHIFTED_ODD] = {"sure": _by_clip(odd, lambda t: t.sure)}
    return {name: figures for name, figures in table.items() if figures["sure"].clips}


def _figures(trials: list[Trial]) -> dict[str, Estimate]:
    return {
        "within 1": _by_clip(trials, lambda t: abs(t.error) <= 1),
        "within 1 of own": _by_clip(trials, lambda t: abs(t.own_error) <= 1),
        "mean |error|": _by_clip(trials, lambda t: abs(t.error)),
        "sure": _by_clip(trials, lambda t: t.sure),
        "right where sure": _by_clip([t for t in trials if t.sure], lambda t: abs(t.own_error) <= 1),
    }


def _by_clip(trials: Sequence[Trial], value: Callable[[Trial], float]) -> Estimate:
    """Mean over clips of a clip's mean."""
    clips: dict[str, list[float]] = {}
    for trial in trials:
        clips.setdefault(trial.name, []).append(float(value(trial)))
    return mean(np.array([np.mean(values) for values in clips.values()]))


def plot_confusion(trials: Sequence[Trial], path: Path) -> None:
    """A picture: share of clips (colour) that measure so many frames (down) under a shift (across)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [t for t in trials if t.condition == "shifted"]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, own in zip(figure.subplots(1, 2), (False, True), strict=True):
        counts = np.zeros((31, len(SHIFTS)))
        for t in shown:
            measured = round(t.measured - t.own if own else t.measured)
            counts[np.clip(measured, -15, 15) + 15, SHIFTS.index(t.shift)] += 1
        image = panel.imshow(
            counts / counts.sum(0).clip(min=1), origin="lower", cmap="Blues", vmin=0, vmax=1,
            extent=(-8.5, 8.5, -15.5, 15.5), aspect="auto",
        )  # fmt: skip
        panel.set(xlabel="shift of the sound, frames", ylabel="measured, frames")
        panel.set_title("from the clip's own offset" if own else "as measured", fontsize=10)
    figure.colorbar(image, label="share of clips")
    figure.savefig(path, dpi=110)


# Real files


@dataclass(frozen=True)
class Condition:
    """How a file is encoded again. rate: frames a second; bitrate: of the picture, 0 for good quality; gaps: share of
    frames left out at random (a variable rate)."""

    rate: Fraction
    bitrate: int = 0
    gaps: float = 0.0


CONDITIONS = {
    "25 fps": Condition(Fraction(25)),
    "24 fps": Condition(Fraction(24)),
    "29.97 fps": Condition(Fraction(30000, 1001)),
    "30 fps": Condition(Fraction(30)),
    "50 fps": Condition(Fraction(50)),
    "60 fps": Condition(Fraction(60)),
    "variable": Condition(Fraction(30), gaps=0.3),
    "150 kb/s": Condition(Fraction(25), bitrate=150_000),
}


def encode_again(path: Path, output: Path, condition: Condition, seed: int = 0) -> None:
    """Write a file under a condition: of its 25 fps frames the nearest one in time; the sound from the start."""
    import av

    from mssync.audio import SAMPLE_RATE, load_audio
    from mssync.video import VideoReader

    frames, sound, rng = VideoReader(path), load_audio(path), np.random.default_rng(seed)
    with av.open(str(output), "w") as container:
        stream = container.add_stream("libx264", rate=condition.rate)
        stream.width, stream.height = frames.width // 2 * 2, frames.height // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        if condition.bitrate:
            stream.options, stream.bit_rate = {}, condition.bitrate
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        count = 0
        for t, picture in enumerate(frames):
            # All output times that are nearer to this frame than to the next.
            while count / condition.rate < Fraction(2 * t + 1, 2 * FPS):
                if count == 0 or rng.random() >= condition.gaps:
                    frame = av.VideoFrame.from_ndarray(
                        np.ascontiguousarray(picture[: stream.height, : stream.width]), format="rgb24"
                    )
                    frame.pts, frame.time_base = count, 1 / condition.rate
                    container.mux(stream.encode(frame))
                count += 1
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(track.encode(block))
        container.mux(stream.encode(None))
        container.mux(track.encode(None))


def recover_files(meter: SyncMeter, files: Sequence[Path]) -> Iterator[tuple[Trial, Trial | None]]:
    """Encode every file under every condition, shift its sound at random, measure, mend it and measure again.

    Yields the trial, and the one after `resync` (None where that refuses), whose shift is 0.
    """
    from mssync.meter import POINTS, watch
    from mssync.sync.resync import shift_sound

    def measured(path: Path) -> tuple[Reading, float]:
        seen = watch(path, POINTS, meter.fit)
        compared: Comparison = meter.compare(seen.landmarks, seen.waveform, seen.found, parts=("lips",))
        return compared.reading(), len(seen) / FPS

    for number, file in enumerate(files):
        own, seconds = measured(file)
        rng = np.random.default_rng(number)
        with tempfile.TemporaryDirectory() as folder:
            plain, moved, mended = (Path(folder) / f"{name}.mp4" for name in ("plain", "moved", "mended"))
            for name, condition in CONDITIONS.items():
                shift = int(rng.choice(SHIFTS))
                encode_again(file, plain, condition, seed=number)
                shift_sound(plain, moved, -shift * FRAME_MS)
                found, _ = measured(moved)
                after = None
                if found.sure:  # as `resync.resync`, which would watch it once more
                    shift_sound(moved, mended, found.milliseconds)
                    after = _trial(file.stem, "", f"{name}, mended", seconds, 0, measured(mended)[0], own)
                yield _trial(file.stem, "", name, seconds, shift, found, own), after


def mending(pairs: Sequence[tuple[Trial, Trial | None]]) -> dict[str, Estimate]:
    """What mending did, over files: the share that is not refused; of those, the share measured within 40 ms of sync
    afterwards, and the share that is further from the original file's sync than it was before."""
    done = [(before, after) for before, after in pairs if after is not None]
    left = {(t.name, t.condition): t.shift + t.own - t.measured for t, _ in done}
    return {
        "mended": _by_clip([t for t, _ in pairs], lambda t: t.sure),
        "within 40 ms": _by_clip([after for _, after in done], lambda t: abs(t.measured) <= 1),
        "made worse": _by_clip(
            [t for t, _ in done],
            lambda t: abs(left[t.name, t.condition]) > abs(t.shift + t.own) + HALF,
        ),
    }
