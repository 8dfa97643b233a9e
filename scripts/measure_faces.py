"""Measure the networks of `mssync.face` beside their teacher: `python scripts/measure_faces.py KINDS.csv`.

KINDS.csv has the columns file (relative to it) and kind (as one likes; several, separated by blanks); of videos every
VIDEO_EVERYth frame is taken. Needs `pip install "mssync[teachers]"`. Prints four tables:

1. Found faces, and mean distance of points in % of the distance of the eyes' outer corners, by kind, by how far heads
   are turned, and of pictures made worse. Of these the teacher's points in the unspoilt picture count. "mirrored": of
   the teacher's points in the mirrored picture, turned back, to those in the picture itself.
2. Expressions along videos, FOLLOWED frames of each: r of mouth opening, lids and gaze with the teacher's, and their
   deviation over the teacher's; beside that the same of the teacher in the mirrored pictures.
3. Jitter: deviation of points over FRAMES frames of a still picture with noise and JPEG's traces.
4. Lag: of a picture that is moved to and fro.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps

from mssync.data.frames import STILLS
from mssync.face.analyser import FaceMesh
from mssync.faces import LIPS, Face, eye_distance, eye_opening, head_pose, mirrored_landmarks, mouth_opening
from mssync.metrics.appearance import MIN_SPREAD, gaze
from mssync.metrics.estimates import correlation
from mssync.pictures import read_image
from mssync.pixels import decode_jpeg, encode_jpeg
from mssync.training.perception import IRISES, LIDS
from mssync.training.teacher import Teacher
from mssync.video import RGB, VideoReader

VIDEO_EVERY = 50
LARGEST = 640  # pixels of a picture
PARTS = {"points": list(range(478)), "lips": list(LIPS), "lids": list(LIDS), "irises": list(IRISES)}
EXPRESSIONS = {"mouth": mouth_opening, "lids": eye_opening, "gaze": gaze}
TURNED = (20, 40)  # degrees of yaw, between frontal, turned and profile
SHAKEN = 6  # pictures that jitter
FOLLOWED = 60  # frames of each video in which expressions are compared
FRAMES, NOISE, QUALITIES = 100, 4.0, (40, 70)  # of jitter: deviation of the noise in grey levels, JPEG's qualities
MOVED, PERIOD = 12.0, 20  # pixels and frames, of lag
SMALL = 48  # pixels of a small face, forehead to chin
Spoil = Callable[[RGB, Face], RGB]


def main(table: str) -> None:
    mesh, teacher = FaceMesh(), Teacher(agreed=False)
    seen = [(kinds, picture, face) for kinds, picture, face in pictures(table, teacher)]
    points(seen, mesh, teacher)
    expressions(table, mesh, teacher)
    chosen = [(picture, face) for _, picture, face in seen if face][:: max(1, len(seen) // SHAKEN)]
    print(f"\njitter, % of the eyes' distance: ours {jitter(chosen, mesh):.2f}  teacher {jitter(chosen, teacher):.2f}")
    print(f"lag, frames: {np.mean([lag(picture, face, mesh) for picture, face in chosen]):+.2f}")


def pictures(table: str, teacher: Teacher) -> Iterator[tuple[list[str], RGB, Face | None]]:
    for path, kinds in listed(table):
        if path.suffix.lower() in STILLS:
            frames = [read_image(path)]
        else:
            frames = [frame for k, frame in enumerate(VideoReader(path)) if k % VIDEO_EVERY == VIDEO_EVERY // 2]
        for frame in frames:
            height, width = frame.shape[:2]
            if (shrink := LARGEST / max(height, width)) < 1:
                frame = resized(frame, round(height * shrink), round(width * shrink))
            yield kinds, frame, next(iter(teacher(frame)), None)


def listed(table: str) -> list[tuple[Path, list[str]]]:
    """Files and their kinds."""
    with open(table, newline="", encoding="utf-8") as file:
        return [(Path(table).parent / row["file"], row["kind"].split()) for row in csv.DictReader(file)]


def points(seen: list[tuple[list[str], RGB, Face | None]], mesh: FaceMesh, teacher: Teacher) -> None:
    found: dict[str, list[float]] = defaultdict(list)  # 1 or 0, of the teacher's faces
    ours, mirrored = defaultdict(list), defaultdict(list)
    more = sum(len(mesh(picture)) for _, picture, face in seen if face is None)
    for kinds, picture, face in seen:
        if face is None:
            continue
        for kind, worse in {"": None, **SPOILT}.items():
            spoilt = worse(picture, face) if worse else picture
            names = [kind] if worse else ["all", turned(face), *kinds]
            hit = next((one for one in mesh(spoilt) if near(one, face)), None)
            for name in names:
                found[name].append(hit is not None)
                if hit is not None:
                    ours[name].append(distances(hit.landmarks, face.landmarks))
        other = next(iter(teacher(np.ascontiguousarray(picture[:, ::-1]))), None)
        if other is not None:
            back = mirrored_landmarks(other.landmarks) + np.array([picture.shape[1] - 1, 0, 0])
            if near(Face(back), face):
                for name in ("all", turned(face), *kinds):
                    mirrored[name].append(distances(back, face.landmarks))
    print(f"{'':12}{'faces':>6}{'found':>7}" + "".join(f"{part:>8}" for part in PARTS) + f"{'median':>8}   mirrored")
    for name, hits in found.items():
        means = np.mean(ours[name], 0)
        told = "".join(f"{value:8.2f}" for value in [*means, np.median(np.array(ours[name])[:, 0])])
        of_teacher = "".join(f"{value:6.2f}" for value in np.mean(mirrored[name], 0)) if mirrored[name] else ""
        print(f"{name:12}{len(hits):6}{np.mean(hits):7.3f}{told}   {of_teacher}")
    print(f"faces in the {sum(face is None for *_, face in seen)} pictures in which the teacher sees none: {more}")


def near(one: Face, other: Face) -> bool:
    return bool(np.linalg.norm((one.landmarks - other.landmarks)[:, :2].mean(0)) < eye_distance(other.landmarks))


def distances(found: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Mean distances by PARTS, %."""
    error = 100 * np.linalg.norm((found - wanted)[:, :2], axis=1) / eye_distance(wanted)
    return [float(error[part].mean()) for part in PARTS.values()]


def turned(face: Face) -> str:
    yaw = abs(head_pose(face.landmarks)[0])
    return ("frontal", "turned", "profile")[int(np.searchsorted(TURNED, yaw))]


# Pictures made worse


def resized(picture: RGB, height: int, width: int) -> RGB:
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    small = F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0).round().byte().numpy()


def small(picture: RGB, face: Face) -> RGB:
    """The face SMALL pixels high, shown as large as before."""
    scale = SMALL / (face.box[3] - face.box[1])
    if scale >= 1:
        return picture
    height, width = picture.shape[:2]
    return resized(resized(picture, max(1, round(height * scale)), max(1, round(width * scale))), height, width)


def blurred(picture: RGB, face: Face) -> RGB:
    """By a Gaussian of a deviation of a thirtieth of the eyes' distance."""
    deviation = eye_distance(face.landmarks) / 30
    reach = int(np.ceil(3 * deviation))
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    planes = torch.from_numpy(picture).permute(2, 0, 1)[:, None].float()
    planes = F.pad(planes, (reach,) * 4, mode="replicate")
    taps = taps / taps.sum()
    planes = F.conv2d(F.conv2d(planes, taps[None, None, None]), taps[None, None, :, None])
    return planes[:, 0].permute(1, 2, 0).byte().numpy()


def painted(picture: RGB, face: Face) -> RGB:
    """As by a coarse brush: the median of what is around each pixel, in eight tones a colour."""
    brush = 2 * max(1, round(eye_distance(face.landmarks) / 40)) + 1
    return np.array(ImageOps.posterize(Image.fromarray(picture).filter(ImageFilter.MedianFilter(brush)), 3))


SPOILT: dict[str, Spoil] = {
    "dark": lambda picture, _: (picture * 0.2).astype(np.uint8),
    "48 px": small,
    "blurred": blurred,
    "grey": lambda picture, _: np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8),
    "brush": painted,
}


# Along videos


def expressions(table: str, mesh: FaceMesh, teacher: Teacher) -> None:
    found = {who: {name: [] for name in EXPRESSIONS} for who in ("ours", "mirrored")}
    for path, _ in listed(table):
        if path.suffix.lower() in STILLS:
            continue
        frames = list(islice(VideoReader(path), FOLLOWED))
        mirrored = (np.ascontiguousarray(frame[:, ::-1]) for frame in frames)
        tracks = [
            list(who.track(iter(shown))) for who, shown in ((teacher, frames), (mesh, frames), (teacher, mirrored))
        ]
        seen = [faces for faces in zip(*tracks, strict=True) if None not in faces]
        if len(seen) < FOLLOWED // 2:
            continue
        wanted, ours, back = (np.array([face.landmarks for face in track]) for track in zip(*seen, strict=True))
        for name, measure in EXPRESSIONS.items():
            right = measure(wanted)
            if right.std() > MIN_SPREAD[name]:
                for who, landmarks in (("ours", ours), ("mirrored", mirrored_landmarks(back))):
                    said = measure(landmarks)
                    found[who][name].append((correlation(right, said), said.std() / right.std()))
    print(f"\n{'':12}{'videos':>7}{'r':>7}{'spread':>8}   mirrored: r  spread")
    for name in EXPRESSIONS:
        ours, back = (np.mean(found[who][name], 0) for who in found)
        print(f"{name:12}{len(found['ours'][name]):7}{ours[0]:7.3f}{ours[1]:8.2f}{back[0]:14.3f}{back[1]:8.2f}")


def jitter(chosen: list[tuple[RGB, Face]], follow: FaceMesh | Teacher) -> float:
    """Deviation of points over FRAMES noisy frames of the same picture, mean over pictures."""
    rng, found = np.random.default_rng(0), []
    for picture, face in chosen:
        frames = []
        for _ in range(FRAMES):
            noisy = (picture + rng.normal(0, NOISE, picture.shape)).clip(0, 255).astype(np.uint8)
            frames.append(decode_jpeg(encode_jpeg(noisy, int(rng.integers(*QUALITIES)), "4:2:0")))
        meshes = np.array([one.landmarks[:, :2] for one in follow.track(iter(frames)) if one is not None])
        found.append(100 * np.sqrt(meshes.var(0).sum(-1)).mean() / eye_distance(face.landmarks))
    return float(np.mean(found))


def lag(picture: RGB, face: Face, mesh: FaceMesh) -> float:
    """Frames by which points are behind a picture that is moved to and fro, by the phase of both."""
    way = np.rint(MOVED * np.sin(2 * np.pi * np.arange(4 * PERIOD) / PERIOD)).astype(int)
    tracked = mesh.track(np.roll(picture, int(step), axis=1) for step in way)
    places = np.array([np.nan if one is None else one.landmarks[:, 0].mean() for one in tracked])
    turn = np.exp(-2j * np.pi * np.arange(len(way)) / PERIOD)
    apart = np.angle(np.sum((places - places.mean()) * turn)) - np.angle(np.sum(way * turn))
    return float(-apart * PERIOD / (2 * np.pi))


if __name__ == "__main__":
    main(sys.argv[1])
