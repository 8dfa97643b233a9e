"""What turns of the head and blinks look like in real motion, for `mssync.spontaneous` (ours).

In double precision: the same clips give the same, to the last digit of what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.metrics.face import SHUT, Face

SLOW = 6.0  # frames: deviation of the Gaussian that leaves of motion what is slow, below 0.5 Hz
AWAKE = 0.2  # how far eyes are closed before and after a blink, at most
AROUND = 6  # frames from the middle of a blink to where it has not begun, or is over


def spontaneous_motion(seen: Sequence[Tensor], clips: Sequence[Tensor]) -> Tensor:
    """How motion (D,) changes with each of the numbers of `mssync.spontaneous`, on average: (7, D).

    seen: keypoints (T, 60) of clips, of the space compact-1, one or more, in which poses and blinks are seen; clips:
    (T, D) each, the same in the space that is wanted. Zeros for blinks where nobody blinks.
    """
    face = Face().double()
    pairs = [(keypoints.double(), clip.double()) for keypoints, clip in zip(seen, clips, strict=True)]
    return torch.cat([_turns(face, pairs), _blink(face, pairs)[None]]).float()


def _turns(face: Face, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Change of slow motion with the slow pose of the head, which has variances of 1 without correlation: (6, D)."""
    poses = torch.cat([_centred(slow(face.pose(seen))) for seen, _ in pairs])
    to_place = torch.linalg.inv(torch.linalg.cholesky(poses.T @ poses / len(poses))).T
    return torch.linalg.lstsq(poses @ to_place, torch.cat([_centred(slow(clip)) for _, clip in pairs])).solution


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


def slow(x: Tensor) -> Tensor:
    """(T, n) without what is faster than SLOW; as if the first and the last frame had lasted."""
    reach = round(3 * SLOW)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SLOW).square()).to(x)
    padded = F.pad(x.T[None], (reach, reach), mode="replicate")[0]
    return (padded.unfold(1, len(weights), 1) @ (weights / weights.sum())).T


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)
