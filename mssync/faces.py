"""Faces: detection and dense landmarks (mediapipe), the fixed crop, measures on landmarks, paste-back.

Landmarks are mediapipe's 478 face-mesh points. In pictures they are (478, 3) float32 pixels (x right, y down,
z in the same unit, growing away from the camera); in prepared clips they are normalised to the crop, [-1, 1].
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from mssync.errors import InputError
from mssync.pixels import Places, resampled, shrunk

N_LANDMARKS = 478
N_SKIN = 468  # of them are on the face; the others are the irises'
CROP_SCALE = 1.9  # side of the crop in heights of the face: a face of VoxCeleb's proportions
MIN_CROP_SCALE = 1.35  # a crop is never tighter than this around everything the face reaches
MAX_FACES = 5

# Detectors look at a picture in 192 pixels, so one that shows no face as a whole is searched in overlapping tiles.
TILE_PARTS = (2, 4)  # tiles are the longest side over this, one size after the other until a face is found
MIN_TILE = 256  # pixels: a face found only in smaller tiles has too few to work with
TILE_CONFIDENCE = 0.7  # higher than for the whole picture: every tile is a chance to take texture for a face
OTHERS_CONFIDENCE = 0.7  # likewise of every face beside the surest one: a fold of a shirt may look like one, and larger

# Mesh indices, "left" and "right" as seen in the picture.
EYE_CORNERS = (33, 263)
LEFT_EYE_LIDS, RIGHT_EYE_LIDS = (159, 145), (386, 374)
LEFT_EYE_WIDTH, RIGHT_EYE_WIDTH = (33, 133), (362, 263)
INNER_LIPS, MOUTH_CORNERS = (13, 14), (61, 291)
FOREHEAD, SUBNASALE, CHIN = 10, 2, 152

CANONICAL_FILE = Path(__file__).parent / "assets" / "canonical_face.npy"  # a symmetric mean face (478, 2)
MIRROR_FILE = CANONICAL_FILE.with_name("mirror_points.npy")  # `find_mirror_points`

WINDOW_SCALE = 1.9  # side of the window in which a face is followed, in heights of the face
WINDOW_MARGIN = 0.03  # a face nearer than this to its window's edge (in sides) gets a new window
WINDOW_SHARES = (0.35, 0.85)  # so does one whose height is less or more of the window's side
WINDOW_PIXELS = (192, 384)  # the mesh sees 192 pixels around the face


@dataclass(frozen=True)
class Box:
    """A square in pixels: top-left corner and side. It may reach outside the picture."""

    x0: float
    y0: float
    side: float


@dataclass(frozen=True)
class Face:
    """One detected face: ``landmarks`` (478, 3) in pixels."""

    landmarks: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounds (x0, y0, x1, y1) of the landmarks, in pixels."""
        low, high = self.landmarks[:, :2].min(0), self.landmarks[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@lru_cache(maxsize=1)
def _solutions() -> Any:
    """mediapipe's solutions. Importing them takes a second.

    Their module for drawing imports matplotlib, which is not used here and wants a folder for its cache, where there
    may be none that can be written to: while they are imported nothing stands in its place.
    """
    absent = [name for name in ("matplotlib", "matplotlib.pyplot") if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        import mediapipe
    finally:
        for name in absent:
            del sys.modules[name]
    warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype")  # between two packages of Google's
    return mediapipe.solutions


class _Graph:
    """A graph of mediapipe's, which any thread may ask.

    make: mediapipe's solutions to a graph. It is built when first asked for a picture, and anew after an error: a graph
    that failed once fails for ever.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make, self._lock = make, Lock()
        self._graph: Any = None

    def __call__(self, image: np.ndarray) -> Any:
        """What is found in a picture (H, W, 3) uint8 RGB."""
        with self._lock:
            if self._graph is None:
                self._graph = self._make(_solutions())
            try:
                return self._graph.process(np.ascontiguousarray(image))
            except BaseException:
                self._drop()
                raise

    def reset(self) -> None:
        """Forget the pictures so far."""
        with self._lock:
            if self._graph is not None:
                self._graph.reset()

    def _drop(self) -> None:
        broken, self._graph = self._graph, None
        with suppress(Exception):  # it may fail once more
            broken.close()


def _still(solutions: Any) -> Any:
    return solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, max_num_faces=1, min_detection_confidence=0.3
    )


def _moving(solutions: Any) -> Any:
    return solutions.face_mesh.FaceMesh(static_image_mode=False, refine_landmarks=True, max_num_faces=1)


def _detector(solutions: Any, model: int) -> Any:
    return solutions.face_detection.FaceDetection(model_selection=model, min_detection_confidence=0.5)


def _person(solutions: Any) -> Any:
    return solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)


class Silhouette:
    """Where a person is in pictures: coarse, by mediapipe's selfie segmentation. Any number of threads may use one."""

    def __init__(self) -> None:
        self._graph = _Graph(_person)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Alpha (H, W) float32 in [0, 1] of a picture (H, W, 3) uint8 RGB of head and shoulders."""
        return np.array(self._graph(image).segmentation_mask, np.float32)


class FaceMesh:
    """Dense landmarks of the faces in pictures (``mesh(image)``) or along a video (``mesh.track(frames)``).

    Any number of threads may use one: pictures wait for each other, videos have a graph each. mediapipe writes a few
    lines about itself to stderr; the command line holds them back.
    """

    def __init__(self) -> None:
        self._still = _Graph(_still)
        # Near faces first; the full-range model finds what is small in the picture.
        self._near, self._far = (_Graph(partial(_detector, model=model)) for model in (0, 1))
        self._idle: list[Follower] = []
        self._lock = Lock()  # of the list

    def load(self) -> None:
        """Build what the first picture would otherwise wait for."""
        nothing = np.zeros((64, 64, 3), np.uint8)
        for graph in (self._still, self._near, self._far):
            graph(nothing)

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces of one picture, the largest first.

        image: (H, W, 3) uint8 RGB. Every detected face is cut out with room around it and meshed on its own,
        so that faces that are small in a large picture get landmarks as precise as large ones.
        """
        faces = self._in_whole(image)
        for parts in TILE_PARTS:
            side = max(image.shape[:2]) // parts
            if faces or side < MIN_TILE:
                break
            found = [
                hit
                for x0, y0 in _tiles(image, side)
                for hit in _detect(self._far, image[y0 : y0 + side, x0 : x0 + side], x0, y0)
                if hit[0] >= TILE_CONFIDENCE
            ]
            faces = self._meshed(image, found)
        return faces

    def _in_whole(self, image: np.ndarray) -> list[Face]:
        """Faces that show in the picture as a whole, the largest first."""
        for detector in (self._near, self._far):
            faces = self._meshed(image, _detect(detector, image))
            if faces:
                return faces
        return []

    def _meshed(self, image: np.ndarray, found: list[tuple[float, Box]]) -> list[Face]:
        """Meshes of detections (confidence, box), each face once, the largest first."""
        faces = [face for box in _apart(found)[:MAX_FACES] for face in self._mesh_inside(image, box)]
        return _distinct(faces)

    def _mesh_inside(self, image: np.ndarray, box: Box) -> list[Face]:
        side = int(np.clip(round(box.side), 192, 512))
        found = self._still(crop(image, box, side)).multi_face_landmarks
        if not found:
            return []
        scale = np.array([box.side, box.side, box.side], np.float32)
        return [Face(_points(found[0]) * scale + np.array([box.x0, box.y0, 0], np.float32))]

    def detect(self, image: np.ndarray) -> list[Box]:
        """Squares twice as large as the faces that show in a picture (H, W, 3) as a whole, the surest first."""
        found = [hit for detector in (self._near, self._far) for hit in _detect(detector, image)]
        return _apart(found)[:MAX_FACES]

    def confidence(self, image: np.ndarray) -> float:
        """How sure the detector is of the surest face that shows in a picture (H, W, 3) as a whole: 0.5 to 1, or 0."""
        return max((confidence for confidence, _ in _detect(self._near, image)), default=0.0)

    def follower(self) -> Follower:
        """A `Follower` that nobody uses; give it back with `release`."""
        with self._lock:
            return self._idle.pop() if self._idle else Follower(_Graph(_moving))

    def release(self, follower: Follower) -> None:
        """Take back what `follower` gave."""
        with self._lock:
            self._idle.append(follower)

    def track(self, frames: Iterable[np.ndarray]) -> Iterator[Face | None]:
        """One face (or None) a frame of a video of one speaker; streams.

        frames: (H, W, 3) uint8 RGB pictures of one size. Tracking follows the face that it found first;
        a face that tracking cannot start on (small in the picture) is looked for in the whole frame, as in a
        still, but not in tiles: a long video without a face would take too long.
        """
        tracker = _Graph(_moving)
        for frame in frames:
            found = tracker(frame).multi_face_landmarks
            if found:
                height, width = frame.shape[:2]
                yield Face(_points(found[0]) * np.array([width, height, width], np.float32))
            else:
                faces = self._in_whole(frame)
                yield faces[0] if faces else None


class Follower:
    """Follows one face of several along a video, in a square window around it.

    What it finds depends on the frames since `start` alone, not on what it followed before.
    """

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self.window = Box(0, 0, 1)

    def start(self, window: Box) -> None:
        """Forget the face; look for one in `window` from the next frame on."""
        self.window = window
        self._graph.reset()

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """The face's landmarks (478, 3) in pixels of a frame (H, W, 3) uint8 RGB; None where it is not found."""
        window = self.window
        side = int(np.clip(round(window.side), *WINDOW_PIXELS))
        found = self._graph(crop(image, window, side)).multi_face_landmarks
        if not found:
            return None
        points = _points(found[0]) * np.float32(window.side) + np.array([window.x0, window.y0, 0], np.float32)
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        margin, height = WINDOW_MARGIN * window.side, float(high[1] - low[1])
        corner = np.array([window.x0, window.y0])
        inside = (low >= corner + margin).all() and (high <= corner + window.side - margin).all()
        if not inside or not WINDOW_SHARES[0] < height / window.side < WINDOW_SHARES[1]:
            reach = float((high - low).max())
            x, y = (low + high) / 2 - WINDOW_SCALE * reach / 2
            self.start(Box(float(x), float(y), WINDOW_SCALE * reach))
        return points


def _tiles(image: np.ndarray, side: int) -> Iterator[tuple[int, int]]:
    """Corners (x0, y0) of square tiles that cover a picture (H, W, 3), overlapping by half or more.

    So a face up to half a tile wide lies whole in one of them.
    """
    starts = []
    for length in image.shape[:2]:
        last = max(length - side, 0)
        starts.append(np.linspace(0, last, 1 + -(-2 * last // side)).astype(int).tolist())
    for y0 in starts[0]:
        for x0 in starts[1]:
            yield x0, y0


def _detect(detector: _Graph, image: np.ndarray, x0: int = 0, y0: int = 0) -> list[tuple[float, Box]]:
    """Detections in a picture (H, W, 3) of which (x0, y0) is the corner: confidence, and a box twice the face."""
    height, width = image.shape[:2]
    found = []
    for detection in detector(image).detections or []:
        rel = detection.location_data.relative_bounding_box
        side = 2.0 * max(rel.width * width, rel.height * height)
        left = x0 + (rel.xmin + rel.width / 2) * width - side / 2
        top = y0 + (rel.ymin + rel.height / 2) * height - side / 2
        found.append((float(detection.score[0]), Box(left, top, side)))
    return found


def _apart(found: list[tuple[float, Box]]) -> list[Box]:
    """Boxes of detections (confidence, box), the surest first, and others that are sure enough.

    Each face once: tiles and detectors overlap.
    """
    boxes: list[Box] = []
    for confidence, box in sorted(found, key=lambda hit: -hit[0]):
        if boxes and (confidence < OTHERS_CONFIDENCE or any(_holds_centre(kept, box) for kept in boxes)):
            continue
        boxes.append(box)
    return boxes


def _holds_centre(box: Box, other: Box) -> bool:
    """Whether `other`'s centre lies in the inner half of `box`: in the face that the box was drawn around."""
    dx = other.x0 + other.side / 2 - box.x0 - box.side / 2
    dy = other.y0 + other.side / 2 - box.y0 - box.side / 2
    return max(abs(dx), abs(dy)) < box.side / 4


def _points(found: object) -> np.ndarray:
    return np.array([(p.x, p.y, p.z) for p in found.landmark], np.float32)  # type: ignore[attr-defined]


def _distinct(faces: list[Face]) -> list[Face]:
    """Drop meshes that landed on the same face (two detections of one face overlap); the largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.area):
        centre = face.landmarks[:, :2].mean(0)
        boxes = [other.box for other in kept]
        if not any(x0 < centre[0] < x1 and y0 < centre[1] < y1 for x0, y0, x1, y1 in boxes):
            kept.append(face)
    return kept


def largest_face(mesh: FaceMesh, image: np.ndarray, name: str) -> Face:
    """The largest face of a picture; warns when there are several.

    Raises InputError (naming `name`) when there is none.
    """
    faces = mesh(image)
    if not faces:
        raise InputError(f"{name}: no face found; use a picture that shows one face, roughly from the front")
    if len(faces) > 1:
        warnings.warn(f"{name}: {len(faces)} faces found; the largest one is used", stacklevel=2)
    return faces[0]


def crop_box(faces: list[Face], width: int, height: int) -> Box:
    """The one fixed crop of a picture or a clip (VoxCeleb as prepared for FOMM: the head moves inside the frame).

    faces: the speaker's face in every frame (one face for a still). The square is CROP_SCALE median face
    heights wide, holds everything that the face reaches, and is moved or shrunk to stay inside the
    width × height picture as long as that leaves MIN_CROP_SCALE around the face.
    """
    boxes = np.array([face.box for face in faces])
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    face_height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    reach = max(x1 - x0, y1 - y0)
    least = MIN_CROP_SCALE * reach
    side = max(CROP_SCALE * face_height, least)
    side = max(min(side, width, height), least)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2 - 0.04 * side  # room for the hair
    return Box(_inside(left, side, width), _inside(top, side, height), float(side))


def _inside(start: float, length: float, limit: float) -> float:
    return float(np.clip(start, 0, limit - length)) if length <= limit else (limit - length) / 2


def crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut a box out and resize it: (H, W, 3) uint8 -> (size, size, 3) uint8. Outside, the border is repeated."""
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(box.x0)), int(np.floor(box.y0))
    x1, y1 = int(np.ceil(box.x0 + box.side)), int(np.ceil(box.y0 + box.side))
    part = image[max(y0, 0) : max(y1, 1), max(x0, 0) : max(x1, 1)]
    pads = ((max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0)), (0, 0))
    if np.any(pads):
        part = np.pad(part, pads, mode="edge")
    # Pixel centres: box coordinate u of the output's pixel i is (i + 1/2) * side / size.
    scale = box.side / size
    if scale > 1.5:  # area averaging first, or a large picture would alias
        shrink = max(1.0, part.shape[0] / max(1, round(part.shape[0] / scale)))
        small = (max(1, round(part.shape[1] / shrink)), max(1, round(part.shape[0] / shrink)))
        fx, fy = small[0] / part.shape[1], small[1] / part.shape[0]
        part = shrunk(part, *small)
    else:
        fx = fy = 1.0
    across = Places(((box.x0 - x0) + 0.5 * scale) * fx - 0.5, scale * fx, size)
    down = Places(((box.y0 - y0) + 0.5 * scale) * fy - 0.5, scale * fy, size)
    return resampled(part, across, down)


def in_crop(landmarks: np.ndarray, box: Box) -> np.ndarray:
    """Landmarks (..., 478, 3) in a picture's pixels -> in the crop's [-1, 1] (z in the same unit)."""
    origin, centre = np.array([box.x0, box.y0, 0], np.float32), np.array([1, 1, 0], np.float32)
    return ((landmarks - origin) * (2 / box.side) - centre).astype(np.float32)


def paste(image: np.ndarray, box: Box, patch: np.ndarray, edge: float = 0.08) -> np.ndarray:
    """Put an animated crop back into the full picture, with a soft edge.

    image: (H, W, 3) uint8; patch: (s, s, 3) uint8, the picture inside `box`; edge: width of the blend in
    sides of the box. Edges that lie on the picture's border are not blended. Returns a new (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    x0, y0 = max(round(box.x0), 0), max(round(box.y0), 0)
    x1, y1 = min(round(box.x0 + box.side), width), min(round(box.y0 + box.side), height)
    scale = patch.shape[0] / box.side
    across = Places((x0 + 0.5 - box.x0) * scale - 0.5, scale, x1 - x0)
    down = Places((y0 + 0.5 - box.y0) * scale - 0.5, scale, y1 - y0)
    part = resampled(patch, across, down, cubic=scale <= 1)
    ramp = max(edge * box.side, 1.0)
    alpha_x = _ramp(x0, x1, width, ramp)
    alpha_y = _ramp(y0, y1, height, ramp)
    alpha = np.minimum(alpha_y[:, None], alpha_x[None, :])[..., None].astype(np.float32)
    out = image.copy()
    out[y0:y1, x0:x1] = np.rint(alpha * part + (1 - alpha) * image[y0:y1, x0:x1]).astype(np.uint8)
    return out


def _ramp(start: int, stop: int, limit: int, width: float) -> np.ndarray:
    """0 at the two ends rising to 1 over `width` pixels (smooth step); stays 1 at an end on the border."""
    at = np.arange(start, stop) + 0.5
    left = np.ones_like(at) if start <= 0 else np.clip((at - start) / width, 0, 1)
    right = np.ones_like(at) if stop >= limit else np.clip((stop - at) / width, 0, 1)
    t = np.minimum(left, right)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=1)
def mirror_points() -> np.ndarray:
    """(478,) index of every mesh point's mirror point."""
    return np.load(MIRROR_FILE)


def find_mirror_points() -> np.ndarray:
    """What MIRROR_FILE holds: the point nearest to where the symmetric mean face mirrors each to."""
    face = np.load(CANONICAL_FILE)
    distance = np.linalg.norm((face * [-1, 1])[:, None] - face, axis=-1)
    return distance.argmin(1)


def mirrored_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (..., 478, 2 or 3) in a crop's [-1, 1] as the mesh finds them in the mirrored crop: x negated, the
    points of the left half in the place of those of the right."""
    flipped = landmarks[..., mirror_points(), :].copy()
    flipped[..., 0] *= -1
    return flipped


# Measures. All take landmarks (..., 478, 3) in any unit in which x, y and z agree, and are free of scale.


def _distance(landmarks: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    return np.linalg.norm(landmarks[..., pair[0], :] - landmarks[..., pair[1], :], axis=-1)


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Gap between the inner lips, in distances of the outer eye corners: 0 closed, about 0.5 wide open."""
    return _distance(landmarks, INNER_LIPS) / _distance(landmarks, EYE_CORNERS)


def eye_opening(landmarks: np.ndarray) -> np.ndarray:
    """Mean gap of the eyelids in widths of the eye: about 0.3 open, below 0.15 closed."""
    left = _distance(landmarks, LEFT_EYE_LIDS) / _distance(landmarks, LEFT_EYE_WIDTH)
    right = _distance(landmarks, RIGHT_EYE_LIDS) / _distance(landmarks, RIGHT_EYE_WIDTH)
    return (left + right) / 2


def head_pose(landmarks: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (..., 3) in degrees, from the eye corners, the forehead and the base of the nose.

    Yaw grows as the face turns to the picture's right, pitch as it looks down, roll as it tilts clockwise
    in the picture; pitch has an anatomical offset of a few degrees.
    """
    across = landmarks[..., EYE_CORNERS[1], :] - landmarks[..., EYE_CORNERS[0], :]
    down = landmarks[..., SUBNASALE, :] - landmarks[..., FOREHEAD, :]
    yaw = np.arctan2(across[..., 2], np.linalg.norm(across[..., :2], axis=-1))
    pitch = np.arctan2(down[..., 2], np.linalg.norm(down[..., :2], axis=-1))
    roll = np.arctan2(across[..., 1], across[..., 0])
    return np.degrees(np.stack([yaw, pitch, roll], -1))
