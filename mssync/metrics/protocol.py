"""The paper's protocol for talking videos, the same for any system: Tables 1, 2 and 3 of a folder of videos.

A system is a folder with one video a clip; the real videos, where there are any, lie in another folder under the same
names. Of the real videos three rows are made that bound what any system can reach: they themselves ("Ground truth"),
they with the sound of another clip ("Random"), and their first frame with their sound ("Still").
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mssync.audio import SAMPLES_PER_VIDEO
from mssync.data.readers import VIDEOS
from mssync.errors import InputError
from mssync.meter import Watched, watch
from mssync.metrics.tables import Cell, Row, Table, cell
from mssync.pixels import shrunk
from mssync.video import FPS, VideoReader

if TYPE_CHECKING:
    from torch import nn

    from mssync.meter import SyncMeter
    from mssync.metrics.identity import FaceEmbedding
    from mssync.metrics.syncnet import SyncNet

SYNC_FRAMES = 40  # Table 1: the first frames of a clip, or all of a shorter one
HEAD_FRAMES = 80  # Table 2: exactly so many
PICTURE_FRAMES = 120  # Table 3: the first frames of a clip, or all of a shorter one
HEAD_LEVELS = 3

P_NOTE = "p: ground truth against random, a paired permutation test over clips, two-sided."

GROUND_TRUTH, RANDOM, STILL = "Ground truth", "Random", "Still"

SIZE = 256  # pixels: the side of the pictures that are compared in Table 3
COMPARED_EVERY = 5  # frames, for SSIM and PSNR: frames in a row tell much the same
EMBEDDED_EVERY = 25  # frames, for identity
PERMUTATIONS = 9999
MIN_POSE = 25  # frames with a face, below which a clip tells nothing of head motion

T = TypeVar("T")
Figures = dict[str, float]  # of one take, by the names of tables.COLUMNS


@dataclass(frozen=True)
class Take:
    """A stretch of a video that is scored.

    path, start: the file, and its frame that the stretch starts with; landmarks (T, 478, 3) in pixels, found (T,),
    waveform (n,): the stretch's; size: height and width of its pictures. still: the first frame is shown throughout.
    """

    path: Path
    start: int
    landmarks: np.ndarray
    found: np.ndarray
    waveform: np.ndarray
    size: tuple[int, int]
    still: bool = False

    def __len__(self) -> int:
        return len(self.landmarks)

    def frames(self) -> Iterator[np.ndarray]:
        """The stretch's pictures (H, W, 3) uint8."""
        begin = self.start / FPS
        frames = iter(VideoReader(self.path, begin, begin + len(self) / FPS))
        if not self.still:
            return frames
        first = next(frames)
        return (first for _ in range(len(self)))


Takes = dict[str, list[Take]]  # by clip


# Reading


def find_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by their names without suffix. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a folder of videos, one a clip")
    found = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEOS and not p.name.startswith(".")}
    if not found:
        raise InputError(f"{folder} holds no videos ({', '.join(sorted(VIDEOS))})")
    return found


def matched(systems: Mapping[str, Path], reference: Path | None) -> tuple[dict[str, dict[str, Path]], dict[str, Path]]:
    """Every system's videos and the real ones, by clip, without those that have no real one (or all: no reference).

    Warns of what is left out. Raises InputError where nothing is left of a system, or its name is that of a row.
    """
    real = {} if reference is None else find_videos(reference)
    found = {}
    for name, folder in systems.items():
        if name in (GROUND_TRUTH, RANDOM, STILL):
            raise InputError(f"a system cannot be called {name!r}: there is a row of that name; use another one")
        videos = find_videos(folder)
        if reference is not None:
            odd, absent = sorted(set(videos) - set(real)), sorted(set(real) - set(videos))
            videos = {clip: path for clip, path in videos.items() if clip in real}
            if not videos:
                raise InputError(
                    f"{folder} and {reference} have no file names in common; videos are matched by their names"
                )
            if odd:
                warnings.warn(f"{folder}: no real video for {_some(odd)}, which are left out", stacklevel=2)
            if absent:
                warnings.warn(f"{folder}: no video for {_some(absent)}; its row counts fewer clips", stacklevel=2)
        found[name] = videos
    return found, real


def _followed(items: Mapping[str, T], label: str) -> Iterator[tuple[str, T]]:
    """Items with a progress bar on stderr, where somebody watches: the table goes to stdout."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    shown = {"console": console, "disable": not console.is_terminal, "transient": True}
    return iter(track(items.items(), label, total=len(items), **shown))  # type: ignore[arg-type]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_takes(videos: Mapping[str, Path], frames: int, label: str, whole: bool = False, every: bool = False) -> Takes:
    """The stretches of videos that are scored: the first `frames` frames of each.

    whole: leave out shorter videos, instead of taking all of them; every: take also what follows, `frames` by
    `frames`. Warns of videos that cannot be scored. Raises InputError where none can.
    """
    takes: Takes = {}
    for clip, path in _followed(videos, f"watching {label}"):
        try:
            seen = watch(path)
        except InputError as error:
            warnings.warn(f"{error}; left out", stacklevel=2)
            continue
        count = len(seen) // frames if every or whole else 1
        if count == 0:
            warnings.warn(f"{path} has {len(seen)} frames, {frames} are needed; left out", stacklevel=2)
            continue
        video = VideoReader(path)
        size = (video.height, video.width)
        takes[clip] = [_take(seen, i * frames, frames, size) for i in range(count if every else 1)]
    if not takes:
        raise InputError(f"none of the videos of {label} can be scored; see the warnings")
    return takes


def _take(seen: Watched, start: int, frames: int, size: tuple[int, int]) -> Take:
    at = slice(start, start + frames)
    sound = slice(start * SAMPLES_PER_VIDEO, (start + frames) * SAMPLES_PER_VIDEO)
    return Take(seen.path, start, seen.landmarks[at].copy(), seen.found[at], seen.waveform[sound].copy(), size)


def with_other_sound(takes: Takes) -> Takes:
    """Every take with the sound of a take of another clip that is as long; empty for a single clip.

    The other is the one half-way around the list of clips, so that it is mostly another speaker's, always the same.
    """
    flat = [(clip, take) for clip, own in takes.items() for take in own]
    shuffled: Takes = {}
    for i, (clip, take) in enumerate(flat):
        others = [flat[(i + len(flat) // 2 + k) % len(flat)] for k in range(len(flat))]
        sounds = [other.waveform for name, other in others if name != clip]
        if sounds:
            need = len(take.waveform)
            sound = next((s for s in sounds if len(s) >= need), max(sounds, key=len))
            shuffled.setdefault(clip, []).append(replace(take, waveform=sound[:need]))
    return shuffled


def held_still(takes: Takes) -> Takes:
    """Every take with its first frame in place of its pictures."""
    return {
        clip: [
            replace(
                take, landmarks=np.repeat(take.landmarks[:1], len(take), 0), found=np.ones_like(take.found), still=True
            )
            for take in own
        ]
        for clip, own in takes.items()
    }


# Tables


def sync_table(
    systems: Mapping[str, Path],
    reference: Path | None = None,
    meter: SyncMeter | None = None,
    syncnet: SyncNet | None = None,
) -> Table:
    """Table 1: |AV-Off| and AV-Conf in the picture, LMD to the real video; the first 40 frames of each clip.

    By SyncNet where it is given, by the lip meter at 200 ms otherwise. Raises InputError as the functions above.
    """
    videos, real = matched(systems, reference)
    truth, made = _read_all(videos, real, SYNC_FRAMES)
    rows = [(GROUND_TRUTH, truth), (RANDOM, with_other_sound(truth)), (STILL, held_still(truth)), *made]

    def score(row: str, clip: str, number: int, take: Take) -> Figures:
        figures = _by_syncnet(syncnet, take) if syncnet else _by_meter(meter, take)
        compared = clip in truth and row != RANDOM  # which has the real pictures
        return figures | (_mouth_distance(take, truth[clip][number]) if compared else {})

    scored = _scored(rows, score)
    table = Table("Table 1: audio-visual synchrony in the picture", _rows(scored, videos))
    judge = "SyncNet, ±15 frames" if syncnet else "the lip meter at 200 ms, ±15 frames (not SyncNet: give --syncnet)"
    table.notes.append(
        f"The first {SYNC_FRAMES} frames of each clip. |AV-Off| in frames of 40 ms and AV-Conf by {judge}. "
        "LMD: frontalised mouth landmarks against the real video, in pixels of a 256-pixel picture, and relative to "
        "the distance of the outer eye corners. Mouth r: correlation over time of how far the mouth is open with the "
        f"real video. {_counted(scored)}"
    )
    return table


def head_table(systems: Mapping[str, Path], reference: Path | None, meter: SyncMeter, every: bool = False) -> Table:
    """Table 2: |AV-Off| of eyes and nose alone at 200, 400 and 800 ms; 80 frames of each clip.

    every: all stretches of 80 frames, as the paper takes them from HDTF, instead of the first one of a clip.
    """
    videos, real = matched(systems, reference)
    truth, made = _read_all(videos, real, HEAD_FRAMES, whole=True, every=every)
    rows = [(RANDOM, with_other_sound(truth)), (GROUND_TRUTH, truth), *made]

    def score(row: str, clip: str, number: int, take: Take) -> Figures:
        levels = meter.compare(take.landmarks, take.waveform, take.found, parts=("head",)).head
        return {f"head_{level.level}": float(abs(level.offset)) for level in levels if level.level <= HEAD_LEVELS}

    scored = _scored(rows, score)
    table = Table("Table 2: synchrony of rigid head motion at several time scales", _rows(scored, videos))
    table.p = _p_values(scored)
    table.notes.append(
        f"{'Every' if every else 'The first'} {HEAD_FRAMES} frames of each clip. |AV-Off| in frames of 40, 80 and "
        f"160 ms, at most 15, by syncers on eyes and nose. {_counted(scored)}"
    )
    if table.p:
        table.notes.append(
            f"{P_NOTE} Differences of means, ground truth less random, with 95 % intervals over clips: "
            + ", ".join(f"{_difference(scored, name)} ({name[-1]})" for name in table.p)
        )
    return table


def picture_table(
    systems: Mapping[str, Path],
    reference: Path | None,
    features: Mapping[str, nn.Module],
    embedding: FaceEmbedding | None = None,
) -> Table:
    """Table 3: Fréchet distances of pictures, likeness to the real video, head motion; 120 frames of each clip.

    features: networks by the column that their distance goes into (fid, fd_efficientnet); embedding: of faces, for
    the identity column. Raises InputError without a reference, and as the functions above.
    """
    if reference is None:
        raise InputError("table 3 compares with real videos; give their folder with --reference")
    from mssync.metrics.frechet import add_pictures, frechet_metric
    from mssync.metrics.head import PoseDistance, head_figures, head_poses

    videos, real = matched(systems, reference)
    truth, made = _read_all(videos, real, PICTURE_FRAMES)
    rows = [(GROUND_TRUTH, truth), (STILL, held_still(truth)), *made]
    frechet = {name: frechet_metric(network) for name, network in features.items()}
    first: dict[str, np.ndarray] = {}  # embeddings of the real faces

    def score(row: str, clip: str, number: int, take: Take) -> Figures:
        shown = _pictures(take)
        own = row == GROUND_TRUTH
        for metric in frechet.values():
            add_pictures(metric, shown, real=own)
        figures: Figures = {}
        if take.found.sum() >= MIN_POSE:
            figures |= asdict(head_figures(head_poses(take.landmarks)))
        if embedding is not None:
            faces = [
                embedding(shown[t], _scaled(take, t)) for t in range(0, len(shown), EMBEDDED_EVERY) if take.found[t]
            ]
            if own and faces:
                first[clip] = faces[0]
            if clip in first and faces:
                figures["identity"] = float(np.mean([np.linalg.norm(face - first[clip]) for face in faces]))
        if not own:
            figures |= _likeness(shown, _pictures(truth[clip][0]))
        return figures

    scored: Scored = {}
    table_rows = []
    for name, takes in rows:
        scored |= _scored([(name, takes)], score)
        (row,) = _rows({name: scored[name]}, videos)
        if name != GROUND_TRUTH:
            row.cells |= {column: Cell(float(metric.compute())) for column, metric in frechet.items()}
        distance = PoseDistance()
        for kind, clips in ((True, truth), (False, takes)):
            for own in clips.values():
                distance.update(head_poses(own[0].landmarks), real=kind)
        row.cells["pose_distance"] = Cell(float(distance.compute()))
        for metric in frechet.values():
            metric.reset()
        table_rows.append(row)
    table = Table("Table 3: quality of the picture and motion of the head", table_rows)
    names = {"fid": "FID", "fd_efficientnet": "FD-EfficientNet (not the FID: features of EfficientNet-lite0)"}
    table.notes.append(
        f"The first {PICTURE_FRAMES} frames of each clip at {SIZE}×{SIZE}. {', '.join(names[n] for n in features)}: "
        "Fréchet distance to the real frames, all clips together. SSIM and PSNR tell little where the head may move "
        "freely. Yaw, pitch, roll: range from the 5th to the 95th percentile. Pose FD: Fréchet distance of 1 s of "
        f"head pose to the real ones. {_counted(scored)}"
    )
    return table


def _read_all(
    videos: Mapping[str, Mapping[str, Path]], real: Mapping[str, Path], frames: int, **which: bool
) -> tuple[Takes, list[tuple[str, Takes]]]:
    """Takes of the real videos, and of every system those whose real video can be scored."""
    truth = read_takes(real, frames, GROUND_TRUTH, **which) if real else {}
    made = []
    for name, found in videos.items():
        kept = {clip: path for clip, path in found.items() if clip in truth or not real}
        made.append((name, read_takes(kept, frames, name, **which)))
    return truth, made


# Figures of a take


def _by_syncnet(model: SyncNet, take: Take) -> Figures:
    from mssync.metrics.syncnet import face_crops, score_clip

    found = score_clip(model, face_crops(take.frames(), take.landmarks), take.waveform)
    return {"av_off": float(abs(found.offset)), "av_conf": found.confidence, "lse_d": found.distance}


def _by_meter(meter: SyncMeter | None, take: Take) -> Figures:
    assert meter is not None
    found = meter.compare(take.landmarks, take.waveform, take.found, parts=("lips",)).lips[0]
    return {"lips_off": float(abs(found.offset)), "lips_conf": found.confidence}


def _mouth_distance(take: Take, real: Take) -> Figures:
    from mssync.metrics.lmd import mouth_distances, opening_correlation, unit_in_pixels

    count = min(len(take), len(real))
    both = take.found[:count] & real.found[:count]
    if not both.any():
        return {}
    here, wanted = take.landmarks[:count][both], real.landmarks[:count][both]
    distance = float(mouth_distances(here, wanted).mean())
    figures = {"lmd": distance * unit_in_pixels(wanted, real.size[0]), "lmd_eyes": 100 * distance}
    together = opening_correlation(here, wanted)
    return figures if math.isnan(together) else figures | {"mouth_r": together}


def _pictures(take: Take) -> np.ndarray:
    """(T, 256, 256, 3) uint8."""
    return np.stack([shrunk(frame, SIZE, SIZE) for frame in islice(take.frames(), len(take))])


def _scaled(take: Take, t: int) -> np.ndarray:
    """Landmarks (478, 2) of frame t in a picture of 256 × 256."""
    height, width = take.size
    return take.landmarks[t, :, :2] * np.array([SIZE / width, SIZE / height])


def _likeness(shown: np.ndarray, wanted: np.ndarray) -> Figures:
    """Mean SSIM and PSNR of some of the pictures (T, s, s, 3) uint8 against the real ones of the same times."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    from mssync.metrics.pictures import psnr
    from mssync.reenact import to_tensor

    times = range(0, min(len(shown), len(wanted)), COMPARED_EVERY)
    pairs = [(to_tensor(shown[t : t + 1]), to_tensor(wanted[t : t + 1])) for t in times]
    ssim = [float(structural_similarity_index_measure(a, b, data_range=1.0)) for a, b in pairs]  # type: ignore[arg-type]
    return {"ssim": float(np.mean(ssim)), "psnr": float(np.mean([psnr(a, b) for a, b in pairs]))}


# Rows


Scored = dict[str, list[tuple[str, Figures]]]  # by row: clip and figures of each take


def _scored(rows: list[tuple[str, Takes]], score: Callable[[str, str, int, Take], Figures]) -> Scored:
    """Figures of every take of every row that has takes; warns of takes that cannot be scored."""
    found: Scored = {}
    for name, takes in rows:
        if not takes:
            continue
        found[name] = []
        for clip, own in _followed(takes, f"scoring {name}"):
            for number, take in enumerate(own):
                try:
                    found[name].append((clip, score(name, clip, number, take)))
                except InputError as error:
                    warnings.warn(f"{name}, {clip}: {error}", stacklevel=2)
    return found


def _rows(scored: Scored, systems: Mapping[str, object]) -> list[Row]:
    """Means and deviations over the takes of every row."""
    rows = []
    for name, takes in scored.items():
        columns = {column: None for _, figures in takes for column in figures}
        cells = {column: cell(figures.get(column, math.nan) for _, figures in takes) for column in columns}
        rows.append(Row(name, cells, ranked=name in systems))
    return rows


def _counted(scored: Scored) -> str:
    counts = {name: (len({clip for clip, _ in takes}), len(takes)) for name, takes in scored.items()}
    if len(set(counts.values())) == 1:
        clips, takes = next(iter(counts.values()))
        return f"{clips} clips." if clips == takes else f"{takes} stretches of {clips} clips."
    return "Clips: " + ", ".join(f"{name} {clips}" for name, (clips, _) in counts.items()) + "."


def _of_clips(scored: Scored, column: str) -> np.ndarray:
    """Means over each clip's takes of ground truth and random, (clips, 2)."""
    means = []
    for row in (GROUND_TRUTH, RANDOM):
        values: dict[str, list[float]] = {}
        for clip, figures in scored.get(row, []):
            if column in figures:
                values.setdefault(clip, []).append(figures[column])
        means.append({clip: float(np.mean(found)) for clip, found in values.items()})
    both = [clip for clip in means[0] if clip in means[1]]
    return np.array([[m[clip] for m in means] for clip in both]).reshape(-1, 2)


def _p_values(scored: Scored) -> dict[str, float]:
    """Of each time scale, that ground truth and random differ as they do by chance; where there are 3 clips or more."""
    found = {}
    for level in range(1, HEAD_LEVELS + 1):
        pairs = _of_clips(scored, f"head_{level}")
        if len(pairs) >= 3:
            found[f"head_{level}"] = sign_flip_p(pairs[:, 0] - pairs[:, 1])
    return found


def sign_flip_p(differences: np.ndarray) -> float:
    """Probability of a mean as far from 0 as that of paired differences (n,), were their signs a matter of chance."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PERMUTATIONS, len(differences)))
    beyond = np.abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12
    return float((1 + beyond.sum()) / (1 + PERMUTATIONS))


def _difference(scored: Scored, column: str) -> str:
    pairs = _of_clips(scored, column)
    found = cell(pairs[:, 0] - pairs[:, 1])
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
