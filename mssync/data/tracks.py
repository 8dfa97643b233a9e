"""Tracks: who is seen when in a video, and what speaks against learning from it.

A track is one person in one scene: a face that is followed from frame to frame, without a cut, a gap of more than
a second or a jump.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from PIL import Image

from mssync.face.analyser import FaceMesh, Follower
from mssync.faces import CROP_SCALE, Box, Face, crop, crop_box
from mssync.motion import gaussian
from mssync.pictures import RGB
from mssync.pixels import laplacian, shrunk
from mssync.video import FPS

# Scene cuts: a frame whose small picture differs from the one before by more than MIN_CUT grey levels and CUT_RATIO
# times as much as its neighbours differ, and that stays away from what was before: a flash is no cut.
SMALL = (48, 27)  # size of the small picture
MIN_CUT, CUT_RATIO = 10.0, 4.0
LOOK = 5  # frames to both sides
LASTING = 3  # frames after a cut at which the picture must still differ from as many before it

# Tracks
CHECK, SEARCH = 12, 4  # a picture is searched for faces every so many frames; the second while one is missing
MAX_GAP = FPS  # frames without the face after which its track ends
MIN_OVERLAP = 0.3  # intersection over union of a face in two frames in a row: less is another face
NEAR = 0.1  # likewise of a face that was lost and one that is found: more is the same face
SAME_FACE = 0.5  # of two tracks' faces in one frame: more is the same face, tracked twice
LONGEST = 120 * FPS  # frames: longer tracks are parted evenly, so that a sample fits into memory

# Quality
SHARP_SIDE = 128  # faces are compared in sharpness at this size, in pixels
MAX_MISSING = 0.1  # share of frames without a found face above which a track is dropped
COMPARABLE = 0.5  # another face of this share of the height may be the one who speaks ...
MAX_OTHERS = 0.2  # ... if it is there in more than this share of the frames
STEADY = 8.0  # standard deviation in frames of the smoothing of boxes that follow a face


@dataclass
class Track:
    """A face from frame `start` on: landmarks (T, 478, 3) float32 in pixels (gaps interpolated), and what it is like.

    missing: share of frames in which it was not found. others: share of frames in which another face of comparable
    size is there. sharpness: median variance of the Laplacian over the face at 128 × 128, 8-bit grey. offset: frames
    by which its sound leads, as far as somebody measured and found out.
    """

    start: int
    landmarks: np.ndarray
    missing: float
    sharpness: float
    others: float = 0.0
    offset: float = 0.0

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def stop(self) -> int:
        return self.start + len(self)

    @property
    def heights(self) -> np.ndarray:
        """(T,) heights of the face in pixels."""
        return self.landmarks[..., 1].max(1) - self.landmarks[..., 1].min(1)

    @property
    def face(self) -> float:
        """Median height of the face in pixels."""
        return float(np.median(self.heights))


def find_tracks(
    frames: Iterable[RGB], mesh: FaceMesh, cuts: list[int] | None = None, part: bool = True
) -> tuple[list[Track], int]:
    """Tracks of a video, sorted by start, then the largest face first; and the number of frames. Streams.

    frames: (H, W, 3) uint8 RGB at 25 a second, of one size. cuts: gets the frames with which new scenes begin.
    part: whether tracks of more than LONGEST frames are parted.
    """
    search, count = _Search(mesh), 0
    for frame, cut in scenes(frames):
        if cut:
            search.end_all()
            if cuts is not None:
                cuts.append(count)
        search(frame)
        count += 1
    search.end_all()
    tracks = [piece for track in search.done for piece in (_parted(track) if part else [track])]
    for track in tracks:
        track.others = _others(track, tracks)
    return sorted(tracks, key=lambda t: (t.start, -t.face)), count


# Scene cuts


def scenes(frames: Iterable[RGB]) -> Iterator[tuple[RGB, bool]]:
    """Frames, each with whether it begins a new scene (the first one does not). A few frames behind."""
    ahead: deque[tuple[RGB, np.ndarray, float]] = deque()  # frame, small picture, change from the one before
    changes: deque[float] = deque(maxlen=LOOK)  # of the frames before the first of `ahead`
    before: deque[np.ndarray] = deque(maxlen=LASTING)  # their small pictures
    last: np.ndarray | None = None

    def leave() -> tuple[RGB, bool]:
        frame, small, change = ahead.popleft()
        after = ahead[min(LASTING, len(ahead)) - 1][1] if ahead else small
        lasting = min((_difference(after, picture) for picture in before), default=0.0)
        cut = _is_cut(change, [*changes, *(c for _, _, c in ahead)], lasting)
        changes.append(change)
        before.append(small)
        return frame, cut

    for frame in frames:
        small = _small(frame)
        ahead.append((frame, small, 0.0 if last is None else _difference(small, last)))
        last = small
        if len(ahead) > LOOK:
            yield leave()
    while ahead:
        yield leave()


def _is_cut(change: float, around: list[float], lasting: float) -> bool:
    if change < MIN_CUT or lasting < 0.5 * change:
        return False
    quiet = sorted(around)[:-1] or [0.0]  # another cut may be near
    return change > CUT_RATIO * float(np.mean(quiet))


def _small(frame: RGB) -> np.ndarray:
    # Every other pixel of large pictures: averaging all of them would take longer than looking for cuts is worth.
    step = max(1, min(frame.shape[0], frame.shape[1]) // 200)
    return shrunk(frame[::step, ::step], *SMALL).astype(np.float32)


def _difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one - two).mean())


# Following faces


@dataclass
class _Run:
    """A track in the making: landmarks of a follower from frame `start` on, None where the face was not found."""

    follower: Follower
    start: int
    points: list[np.ndarray | None] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)

    @property
    def last(self) -> np.ndarray | None:
        return next((p for p in reversed(self.points) if p is not None), None)

    @property
    def lost(self) -> int:
        """Frames since the face was last found."""
        return next((n for n, p in enumerate(reversed(self.points)) if p is not None), len(self.points))


class _Search:
    """Finds and follows the faces of one video, frame by frame; `done` are the tracks that have ended."""

    def __init__(self, mesh: FaceMesh) -> None:
        self.mesh = mesh
        self.done: list[Track] = []
        self.runs: list[_Run] = []
        self.time = 0
        self.due = 0  # when to search the whole picture next

    def __call__(self, frame: RGB) -> None:
        if self.time >= self.due:
            self._look_for_faces(frame)
        for run in list(self.runs):
            self._step(run, frame)
        self._drop_doubles()
        missing = not self.runs or any(run.points[-1] is None for run in self.runs)
        self.due = min(self.due, self.time + SEARCH) if missing else self.due
        self.time += 1

    def end_all(self) -> None:
        """End every track: the video does, or its scene."""
        for run in list(self.runs):
            self._end(run)
        self.due = self.time

    def _look_for_faces(self, frame: RGB) -> None:
        self.due = self.time + CHECK
        for box in self.mesh.detect(frame):
            centre = np.array([box.x0, box.y0]) + box.side / 2
            if any(_holds(bounds(run.last), centre) for run in self.runs if run.last is not None and not run.lost):
                continue
            gone = next((r for r in self.runs if r.lost and _is_near(box, r.last)), None)
            if gone is None:
                gone = _Run(self.mesh.follower(), self.time)
                self.runs.append(gone)
            gone.follower.start(box)

    def _step(self, run: _Run, frame: RGB) -> None:
        points, before = run.follower(frame), run.last
        if points is not None and before is not None and overlap(bounds(points), bounds(before)) < MIN_OVERLAP:
            run = self._jumped(run)
        run.points.append(points)
        if points is not None and len(run.points) % CHECK == 1:
            run.sharpness.append(sharpness(frame, points))
        if run.lost > MAX_GAP:
            self._end(run)

    def _jumped(self, run: _Run) -> _Run:
        """What is followed is another face from here on (a cut that was not seen, say): a new track."""
        self._close(run)
        self.runs.append(_Run(run.follower, self.time))
        return self.runs[-1]

    def _drop_doubles(self) -> None:
        for run in sorted(self.runs, key=lambda r: r.start, reverse=True):  # of two, the younger
            others = [r for r in self.runs if r is not run and not r.lost and r.last is not None]
            if run.lost or run.last is None:
                continue
            if any(overlap(bounds(run.last), bounds(other.last)) > SAME_FACE for other in others):
                self._end(run)

    def _end(self, run: _Run) -> None:
        self._close(run)

    def _close(self, run: _Run) -> None:
        self.runs.remove(run)
        length = len(run.points) - run.lost
        first = next((n for n, p in enumerate(run.points) if p is not None), length)
        points = run.points[first:length]
        if points:
            found = np.array([p is not None for p in points])
            blur = float(np.median(run.sharpness)) if run.sharpness else 0.0
            self.done.append(Track(run.start + first, fill_gaps(points), float(1 - found.mean()), blur))


def bounds(points: np.ndarray | None) -> np.ndarray:
    """(x0, y0, x1, y1) of landmarks."""
    assert points is not None
    return np.concatenate([points[:, :2].min(0), points[:, :2].max(0)])


def _is_near(box: Box, points: np.ndarray | None) -> bool:
    """Whether a detection may be the face that was last seen with these landmarks."""
    corner = np.array([box.x0, box.y0]) + box.side / 4  # the face fills half of the box
    return points is not None and overlap(np.concatenate([corner, corner + box.side / 2]), bounds(points)) > NEAR


def _holds(bounds: np.ndarray, point: np.ndarray) -> bool:
    return bool((bounds[:2] <= point).all() and (point <= bounds[2:]).all())


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    shared = float(sides.clip(min=0).prod())
    return shared / float((one[2:] - one[:2]).prod() + (two[2:] - two[:2]).prod() - shared + 1e-6)


def fill_gaps(points: list[np.ndarray | None]) -> np.ndarray:
    """Landmarks (T, 478, 3) with gaps interpolated; beyond the outermost found ones these are repeated."""
    found = np.array([p is not None for p in points])
    known = np.stack([p for p in points if p is not None])
    at, where = np.arange(len(points)), np.flatnonzero(found)
    right = np.clip(np.searchsorted(where, at), 0, len(where) - 1)
    left = np.clip(right - (where[right] > at), 0, len(where) - 1)
    span = np.maximum(where[right] - where[left], 1)
    weight = np.clip((at - where[left]) / span, 0, 1)[:, None, None].astype(np.float32)
    return known[left] * (1 - weight) + known[right] * weight


def sharpness(frame: RGB, points: np.ndarray) -> float:
    """Variance of the Laplacian over the face that landmarks (478, 3) tell, at 128 × 128 in 8-bit grey."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    side = float((high - low).max())
    x, y = (low + high) / 2 - side / 2
    face = crop(frame, Box(float(x), float(y), side), SHARP_SIDE)
    return float(laplacian(np.asarray(Image.fromarray(face).convert("L"))).var())


def _parted(track: Track) -> list[Track]:
    """A track in equal parts of at most LONGEST frames."""
    bounds = np.linspace(0, len(track), -(-len(track) // LONGEST) + 1).astype(int)
    return [
        Track(track.start + int(a), track.landmarks[a:b], track.missing, track.sharpness) for a, b in pairwise(bounds)
    ]


def _others(track: Track, tracks: list[Track]) -> float:
    """Share of a track's frames in which another one has a face of comparable height."""
    heights, seen = track.heights, np.zeros(len(track), bool)
    for other in tracks:
        start, stop = max(track.start, other.start), min(track.stop, other.stop)
        if other is not track and start < stop:
            theirs = other.heights[start - other.start : stop - other.start]
            here = slice(start - track.start, stop - track.start)
            seen[here] |= theirs >= COMPARABLE * heights[here]
    return float(seen.mean())


# Quality


@dataclass(frozen=True)
class Limits:
    """What a track must be like to be kept.

    min_seconds: length. min_face: median height of the face in the source's pixels. min_sharpness: see Track.
    single: whether there must be no other face of comparable size, who might be the one that speaks. max_offset:
    frames that lips and sound may be apart; None: they are not measured.
    """

    min_seconds: float = 2.0
    min_face: int = 48
    min_sharpness: float = 15.0
    single: bool = True
    max_offset: float | None = None


@dataclass(frozen=True)
class _Filter:
    reason: str
    measure: Callable[[Track], float]
    unit: str
    fails: Callable[[float, Limits], bool]


# In the order in which they are asked.
FILTERS = (
    _Filter("too short", lambda t: len(t) / FPS, "s", lambda v, limits: v < limits.min_seconds),
    _Filter("face often missing", lambda t: 100 * t.missing, "% of frames", lambda v, limits: v > 100 * MAX_MISSING),
    _Filter("face too small", lambda t: t.face, "pixels", lambda v, limits: v < limits.min_face),
    _Filter("not sharp", lambda t: t.sharpness, "sharpness", lambda v, limits: v < limits.min_sharpness),
    _Filter(
        "more than one face",
        lambda t: 100 * t.others,
        "% of frames",
        lambda v, limits: limits.single and v > 100 * MAX_OTHERS,
    ),
    _Filter(
        "sound not in time",
        lambda t: t.offset,
        "frames",
        lambda v, limits: limits.max_offset is not None and abs(v) > limits.max_offset,
    ),
)


def objection(track: Track, limits: Limits) -> tuple[str, str] | None:
    """Why a track is dropped (the reason, and what was measured); None when it is kept."""
    for check in FILTERS:
        value = check.measure(track)
        if check.fails(value, limits):
            return check.reason, f"{value:.3g} {check.unit}"
    return None


# Boxes


def fixed_boxes(track: Track, width: int, height: int) -> np.ndarray:
    """The one reference box of a track in a width × height picture, for every frame (T, 3): x0, y0, side.

    The head moves inside the picture, as in the paper's VoxCeleb2 (II).
    """
    box = crop_box([Face(points) for points in track.landmarks], width, height)
    return np.tile(np.array([box.x0, box.y0, box.side], np.float32), (len(track), 1))


def centred_boxes(track: Track, width: int, height: int) -> np.ndarray:
    """A box (T, 3) that follows the smoothed face, which stays in the middle: the paper's VoxCeleb2 (I)."""
    low, high = track.landmarks[..., :2].min(1), track.landmarks[..., :2].max(1)
    side = gaussian(CROP_SCALE * (high - low)[:, 1:], STEADY)
    corner = gaussian((low + high) / 2, STEADY) - side / 2
    corner[:, 1:] -= 0.04 * side  # room for the hair, as in `crop_box`
    return np.concatenate([corner, side], 1).astype(np.float32)


BOXES = {"fixed": fixed_boxes, "centred": centred_boxes}
