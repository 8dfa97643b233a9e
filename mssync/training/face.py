"""The face behind a motion, and what the generator's training asks of it beside the paper's losses (ours).

The sum over 60 numbers of eq. 14 is mostly where the head is, of which speech tells little. What a viewer looks at
first are the lips, that the rest of the face keeps its shape, and that the head is alive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mssync.metrics.face import CONTACT, Face
from mssync.video import FPS

UNIT = 0.02  # in [-1, 1] coordinates: about what the points of speaking lips deviate from their mean
POSE_WINDOWS = (16, 32, 64)  # frames of the spectra of head motion, where roll-outs are as long
MOUTH_WINDOWS, MOUTH_BAND = (12, 25, 50), 8.0  # the same of lips: half a second to two; syllables are at 3 to 8 Hz
APART = 0.3  # of the range of the opening, above which lips do not touch
POSE_BAND = 5.0  # Hz; above, it is mostly the mesh that trembles
TINY = 1e-10  # a root has a slope at nothing
SKEW = 0.1  # weight of a skewed view in `Face.shape_loss`


class FaceLosses(Face):
    """Losses of generated motion (B, T, 60) against the real one; sums over time, means over points and batch."""

    def lips_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """Eq. 14 of the lips: squared distances of sequences (B, T, 60), mean over points and batch, in UNIT."""
        return _apart(self.lips(motion), self.lips(generated))

    def shape_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """The same of the face as a whole, wherever it is, however large and turned, and SKEW times `skew_loss`.

        Points are compared less the affine view of the mean face, in space, that fits each frame best.
        """
        apart = _apart(self.shape(motion), self.shape(generated))
        return apart + SKEW * self.skew_loss(motion, generated)

    def pose_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """How the head moves, whenever: distance of the magnitudes of `spectra`, relative to the real ones.

        Speech hardly tells where a head is, so squared distances of positions (eq. 14) are least for a head at rest.
        Magnitudes have no phase: they are least for a head that moves as much as real ones at every frequency, and
        leave to the synchrony losses when. Half of the distance is of each piece to its own, half of the batch's root
        mean squares: people differ in how much they move, and the mean person moves less than most.
        Sequences (B, T, 60) -> scalar, about 1 for a still head.
        """
        return _moving_apart(self.pose(motion), self.pose(generated), POSE_WINDOWS, POSE_BAND)

    def mouth_loss(self, motion: Tensor, generated: Tensor, times: float = 1.0) -> Tensor:
        """How much and how fast the mouth opens and widens, whenever: as `pose_loss`, as squared distances are least
        for lips that move less than real ones by as much as speech leaves untold. times: as far as the real ones."""
        real, made = (torch.stack([self.opening(x), self.width(x)], -1) for x in (motion, generated))
        return _moving_apart(times * real, made, MOUTH_WINDOWS, MOUTH_BAND)

    def contact_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """Lips that touch where real ones do, and nowhere else: a few frames, which squared distances hardly notice.

        Squared openings above `closed` where the real mouth is below it, and below `apart` where the real one is above
        that, both of the range of the real opening in a piece; summed over time as `lips_loss`.
        """
        real, made = self.opening(motion), self.opening(generated)
        low, high = real.quantile(0.05, 1, keepdim=True), real.quantile(0.95, 1, keepdim=True)
        closed, apart = (low + share * (high - low) for share in (CONTACT, APART))
        missed = (made - closed).clamp_min(0) * (real < closed)
        false = (apart - made).clamp_min(0) * (real > apart)
        return ((missed + false) / UNIT).square().sum(1).mean()

    def skew_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """What turning a head cannot do to its picture: rows of A of other lengths, or not at right angles.

        Squared differences to the real sequence's (B, T, 60), in UNIT; as `shape_loss`.
        """
        a, b = (_skew(self.view(x)[..., :3]) for x in (motion, generated))
        return ((a - b) / UNIT).square().sum(-1).sum(1).mean()

    def closing_loss(self, generated: Tensor) -> Tensor:
        """Squared openings of mouths that should be closed, (B, T, 60) -> scalar; summed over time as `lips_loss`."""
        return (self.opening(generated) / UNIT).square().sum(1).mean()


def _skew(view: Tensor) -> Tensor:
    """(..., 2, 3) -> (..., 2): difference of the rows' lengths, and how far they are from right angles."""
    across, down = view.unbind(-2)
    sizes = across.norm(dim=-1), down.norm(dim=-1)
    return torch.stack([sizes[0] - sizes[1], 2 * (across * down).sum(-1) / (sizes[0] + sizes[1])], dim=-1)


def _moving_apart(real: Tensor, made: Tensor, windows: tuple[int, ...], band: float) -> Tensor:
    """Distance of the magnitudes of `spectra` of sequences (B, T, n), relative to the real ones: see `pose_loss`."""
    losses = []
    for length in (n for n in windows if n <= real.shape[1]):
        a, b = (spectra(x, length, band) for x in (real, made))
        power, made_power = (x.square().mean((0, 1)) for x in (a, b))
        own = (a - b).square().mean((0, 1))
        together = (power.sqrt() - made_power.sqrt()).square()
        losses.append(((own + together) / (2 * power)).mean())
    return torch.stack(losses).mean()


def spectra(values: Tensor, length: int, band: float) -> Tensor:
    """Magnitudes of the spectra of values (B, T, n) up to `band` Hz -> (B, windows, 1 + frequencies, n).

    Windows of `length` frames, half of it apart, under a Hann window, without their means. In place of 0 Hz stands the
    deviation over the window, which slower motion has, too.
    """
    pieces = values.unfold(1, length, length // 2)  # (B, windows, n, length)
    pieces = pieces - pieces.mean(-1, keepdim=True)
    found = torch.fft.rfft(pieces * torch.hann_window(length, device=values.device))
    found = found[..., 1 : 1 + int(band * length / FPS)]
    power = torch.cat([pieces.square().mean(-1, keepdim=True), found.real.square() + found.imag.square()], dim=-1)
    return (power + TINY).sqrt().transpose(2, 3)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) / UNIT).square().sum(-1).mean(-1).sum(1).mean()
