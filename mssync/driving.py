"""Who drives: the face in a video that a portrait moves like, shot by shot.

A video is parted at its cuts. In each shot one person is followed, in a crop of the shot's own: after a cut the camera
is nearer, or somebody else is seen, and places and sizes before and after it have nothing to do with each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mssync.data.tracks import COMPARABLE, Track, bounds, fill_gaps, find_tracks, overlap
from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import Box, Face, crop, crop_box, in_crop
from mssync.video import FPS, RGB

SAME_PLACE = 0.2  # intersection over union of a face that is lost and one that is found: more is the same person
SHORTEST = 0.2  # share of the longest that is seen in a shot, below which nobody is taken for the one who drives
NAMED = 5  # cuts whose times are told


@dataclass(frozen=True)
class Shot:
    """One person between two cuts.

    start: its first frame; landmarks: (n, 478, 3) float32 in pixels, gaps filled; box: the crop of all its frames.
    """

    start: int
    landmarks: np.ndarray
    box: Box

    @property
    def stop(self) -> int:
        return self.start + len(self.landmarks)


def find_shots(frames: Iterable[RGB], mesh: FaceMesh, width: int, height: int, name: str) -> tuple[list[Shot], int]:
    """The shots of a video in which somebody is seen, in order, and the number of its frames. Streams.

    frames: (H, W, 3) uint8 RGB at 25 a second. name: what messages call the video.
    Warns of several people, of cuts, and of stretches in which nobody is found. Raises InputError: nobody is seen.
    """
    cuts: list[int] = []
    tracks, count = find_tracks(frames, mesh, cuts, part=False)
    shots, several, side = [], 0, ""
    for start, stop in pairwise([0, *cuts, count]):
        people = _people([track for track in tracks if start <= track.start < stop])
        if len(people) > several:
            several, side = len(people), _side(people[0], width)
        if people:
            shots.append(_shot(people[0], start, stop, width, height))
    if not shots:
        raise InputError(f"{name}: no face found; use a video of one person facing the camera")
    if several > 1:
        warnings.warn(f"{name}: {several} faces are seen at once; the largest one, {side}, is followed", stacklevel=3)
    if len(shots) > 1:
        times = ", ".join(f"{cut / FPS:.1f}" for cut in cuts[:NAMED]) + (" …" if len(cuts) > NAMED else "")
        warnings.warn(f"{name}: cuts at {times} s; each shot is taken by itself, whoever is seen in it", stacklevel=3)
    missing = count - sum(shot.stop - shot.start for shot in shots)
    if missing > FPS:
        warnings.warn(f"{name}: no face for {missing / FPS:.1f} s in all; the portrait rests there", stacklevel=3)
    return shots, count


def _people(tracks: list[Track]) -> list[list[Track]]:
    """Tracks of one shot by person, the largest face first; those who are seen for a moment only come to nothing."""
    people: list[list[Track]] = []
    for track in sorted(tracks, key=lambda t: t.start):
        begins = bounds(track.landmarks[0])
        known = [
            p for p in people if p[-1].stop <= track.start and overlap(bounds(p[-1].landmarks[-1]), begins) > SAME_PLACE
        ]
        if known:
            known[0].append(track)
        else:
            people.append([track])
    lengths = [sum(map(len, person)) for person in people]
    kept = [p for p, n in zip(people, lengths, strict=True) if n >= SHORTEST * max(lengths)]
    kept.sort(key=lambda person: -_size(person))
    return [person for person in kept if _size(person) >= COMPARABLE * _size(kept[0])]


def _side(person: list[Track], width: int) -> str:
    """Where in the picture somebody is."""
    at = float(np.median(np.concatenate([track.landmarks[..., 0].mean(1) for track in person]))) / width
    return "on the left" if at < 0.4 else "on the right" if at > 0.6 else "in the middle"


def _size(person: list[Track]) -> float:
    return float(np.median(np.concatenate([track.heights for track in person])))


def _shot(person: list[Track], start: int, stop: int, width: int, height: int) -> Shot:
    """From the first to the last frame of a person in a shot; to the shot's own where little is missing."""
    first, last = person[0].start, min(person[-1].stop, stop)
    points: list[np.ndarray | None] = [None] * (last - first)
    for track in person:
        for k, landmarks in enumerate(track.landmarks[: last - track.start]):
            points[track.start - first + k] = landmarks
    early, late = (first - start, stop - last)
    points = [None] * (early if early <= FPS else 0) + points + [None] * (late if late <= FPS else 0)
    whole = fill_gaps(points)
    box = crop_box([Face(landmarks) for landmarks in whole], width, height)
    return Shot(first - (early if early <= FPS else 0), whole, box)


def crops(frames: Iterable[RGB], shots: list[Shot], size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of every frame that is in a shot: the shot's number, its crop (size, size, 3), landmarks (478, 3) in the crop's
    [-1, 1]. Streams."""
    number = 0
    for time, frame in enumerate(frames):
        while number < len(shots) and time >= shots[number].stop:
            number += 1
        if number == len(shots):
            return
        shot = shots[number]
        if time >= shot.start:
            yield number, crop(frame, shot.box, size), in_crop(shot.landmarks[time - shot.start], shot.box)


def joined(motions: list[np.ndarray], shots: list[Shot], count: int) -> np.ndarray:
    """Motion (count, 10, 6) of a whole video from that of its shots: where nobody is seen the last pose is held, or the
    first one waits."""
    whole = np.repeat(motions[0][:1], count, 0)
    for motion, shot in zip(motions, shots, strict=True):
        whole[shot.start : shot.stop] = motion
        whole[shot.stop :] = motion[-1]
    return whole
