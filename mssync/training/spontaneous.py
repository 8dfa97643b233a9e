"""What turns of the head, blinks and saccades look like in real motion, for `mssync.spontaneous` (ours).

In double precision: the same clips give the same, to the last digit of what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.face1 import GAZE, NUMBERS, POSE, both_eyes
from mssync.metrics.face import SACCADE, SACCADE_FRAMES, SHUT, Face

SLOW = 6.0  # frames: deviation of the Gaussian that leaves of motion what is slow, below 0.5 Hz
AWAKE = 0.2  # how far eyes are closed before and after a blink, at most
AROUND = 6  # frames from the middle of a blink to where it has not begun, or is over


def spontaneous_motion(seen: Sequence[Tensor], clips: Sequence[Tensor]) -> Tensor:
    """How motion (D,) changes with each of the numbers of `mssync.spontaneous`, on average: (9, D).

    seen: keypoints (T, 60) of clips, of the space compact-1, one or more, in which poses and blinks are seen; clips:
    (T, D) each, the same in the space that is wanted. Zeros for blinks where nobody blinks, and for where eyes look in
    a space that does not tell.
    """
    face = Face().double()
    pairs = [(keypoints.double(), clip.double()) for keypoints, clip in zip(seen, clips, strict=True)]
    return torch.cat([_turns(face, pairs), _blink(face, pairs)[None], _looks(face, pairs)]).float()


def _turns(face: Face, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Change of slow motion with the slow pose of the head, which has variances of 1 without correlation: (6, D)."""
    poses = torch.cat([_centred(slow(face.pose(seen))) for seen, _ in pairs])
    to_place = torch.linalg.inv(torch.linalg.cholesky(poses.T @ poses / len(poses))).T
    return _least_squares(poses @ to_place, torch.cat([_centred(slow(clip)) for _, clip in pairs]))


def _blink(face: Face, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Median over blinks of what motion does as open eyes close, (D,)."""
    found = [change for pair in pairs for change in _blinks(face, *pair)]
    return torch.stack(found).median(0).values if found else torch.zeros_like(pairs[0][1][0])


def _blinks(face: Face, seen: Tensor, clip: Tensor) -> list[Tensor]:
    closed, found = face.closed(seen), []
    for t in range(AROUND, len(clip) - AROUND):
        before, after = t - AROUND, t + AROUND
        usual = (closed[before] + closed[after]) / 2
        if closed[t] > SHUT and closed[t] == closed[before : after + 1].max() and usual < AWAKE:
            found.append((clip[t] - (clip[before] + clip[after]) / 2) / (closed[t] - usual))
    return found


def _looks(face: Face, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Change of motion with the gaze of both eyes, aside and down, across saccades, (2, D): lids follow it.

    As eyes turn against the head to stay on something, what goes with the head's pose is told apart, and left out.
    """
    size = pairs[0][1].shape[1]
    found = [change for pair in pairs for change in _saccades(face, *pair)] if size == NUMBERS else []
    if not found:
        return torch.zeros(2, size, dtype=torch.float64)
    changes = torch.stack(found)
    return _least_squares(torch.cat([both_eyes(changes[:, GAZE]), changes[:, POSE]], 1), changes)[:2]


def _least_squares(given: Tensor, wanted: Tensor) -> Tensor:
    """The weights (n, k) of given (m, n) for wanted (m, k) of least squares, the smallest of them.

    torch's usual driver gives up where a column is zero.
    """
    return torch.linalg.lstsq(given, wanted, driver="gelsd").solution


def _saccades(face: Face, seen: Tensor, clip: Tensor) -> list[Tensor]:
    """What motion (T, 50) does in each saccade of open eyes, (50,)."""
    gaze, closed, found = both_eyes(clip[:, GAZE]), face.closed(seen), []
    step = (gaze[SACCADE_FRAMES:] - gaze[:-SACCADE_FRAMES]).norm(dim=1)  # from before frame 1, 2, … on
    for t in range(AROUND, len(clip) - AROUND):
        around = slice(t - AROUND, t + AROUND + 1)
        jumps = step[t - 1] > SACCADE and step[t - 1] == step[t - 5 : t + 4].max()
        if jumps and closed[around].max() < AWAKE:
            found.append(clip[t + 3 : t + AROUND + 1].mean(0) - clip[t - AROUND : t - 2].mean(0))
    return found


def slow(x: Tensor) -> Tensor:
    """(T, n) without what is faster than SLOW; as if the first and the last frame had lasted."""
    reach = round(3 * SLOW)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SLOW).square()).to(x)
    padded = F.pad(x.T[None], (reach, reach), mode="replicate")[0]
    return (padded.unfold(1, len(weights), 1) @ (weights / weights.sum())).T


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)
