"""Frames of any video to sRGB: its matrix and range, its primaries, and the transfer of HDR.

A frame of SDR with the primaries of BT.709 goes through ffmpeg's scaler alone. Everything else is computed here, in
linear light: HDR is brought to its reference white (203 nits, ITU-R BT.2408), what is brighter is compressed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Matrices by their numbers in H.273, and what ffmpeg's scaler calls them: 6 is the same as 5, 10 nearly as 9.
BT709, BT601, BT2020 = 1, 5, 9
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: BT2020, 10: BT2020}
HD = 720  # lines from which on pictures that do not tell their matrix have BT.709's; smaller ones have BT.601's
WHITE = 203.0  # nits of the reference white
KNEE = 0.8  # of the reference white: what is brighter is compressed towards 1
STEPS = 4096  # of the tables from signal to light and back
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)

# Linear RGB with other primaries to that of BT.709, both with white D65.
TO_709: dict[int, NDArray[np.float32]] = {
    ColorPrimaries.BT2020: np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
    ),
    ColorPrimaries.SMPTE432: np.array(  # Display P3
        [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]], np.float32
    ),
}


def to_srgb(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """A decoded frame as uint8 (height, width, 3), in sRGB."""
    matrix = MATRICES.get(int(frame.colorspace), BT709 if frame.height >= HD else BT601)
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)  # also numbers that have no name
    hdr = transfer in LIGHT
    plain = not hdr and primaries not in TO_709
    picture = frame.reformat(
        width=width, height=height, format="rgb24" if plain else "rgb48le",
        src_colorspace=matrix, dst_colorspace=BT709,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG, dst_color_range=ColorRange.JPEG,
    ).to_ndarray()  # fmt: skip
    if plain:
        return picture.astype(np.uint8, copy=False)
    # HDR comes with the primaries of BT.2020 where it does not say otherwise.
    primaries = primaries if primaries in TO_709 or not hdr else ColorPrimaries.BT2020
    return _converted(picture.astype(np.uint16, copy=False), transfer, primaries)


def _converted(picture: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Signal (H, W, 3), 16 bits a channel, to sRGB."""
    linear = _table(LIGHT.get(transfer, _sdr_light))[picture >> 4]
    if transfer == ColorTrc.ARIB_STD_B67:  # the system gamma of a display of 1000 nits
        linear *= np.maximum(linear @ LUMA_2020, 0)[..., None] ** 0.2 * np.float32(1000 / WHITE)
    if primaries in TO_709:
        linear = (linear @ TO_709[primaries].T).clip(min=0)
    if transfer not in LIGHT:
        return _encoded(linear, _sdr_signal)
    brightest = linear.max(-1, keepdims=True)
    above = brightest > KNEE
    compressed = KNEE + (1 - KNEE) * (1 - np.exp(-(brightest - KNEE) / (1 - KNEE)))
    return _encoded(linear * np.where(above, compressed / np.maximum(brightest, KNEE), 1), srgb_signal)


def _encoded(linear: NDArray[np.float32], signal: Callable[[NDArray], NDArray]) -> NDArray[np.uint8]:
    # Dark tones need fine steps: the table is even in the root of the light.
    at = np.sqrt(linear.clip(0, 1)) * (STEPS - 1)
    return np.rint(255 * _table_of_roots(signal))[np.rint(at).astype(np.uint16)].astype(np.uint8)


@lru_cache(maxsize=8)
def _table(light: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
    return light(np.linspace(0, 1, STEPS)).astype(np.float32)


@lru_cache(maxsize=8)
def _table_of_roots(signal: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
    return signal(np.linspace(0, 1, STEPS) ** 2).astype(np.float32)


def srgb_signal(linear: NDArray) -> NDArray:
    """IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _sdr_light(signal: NDArray) -> NDArray:
    return signal**2.4  # ITU-R BT.1886


def _sdr_signal(linear: NDArray) -> NDArray:
    return linear ** (1 / 2.4)


def pq_light(signal: NDArray) -> NDArray:
    """SMPTE ST 2084, in reference whites."""
    power = signal ** (1 / 78.84375)
    return 10000 / WHITE * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def hlg_light(signal: NDArray) -> NDArray:
    """ARIB STD-B67: light of the scene from 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


LIGHT: dict[int, Callable[[NDArray], NDArray]] = {
    ColorTrc.SMPTE2084: pq_light,
    ColorTrc.ARIB_STD_B67: hlg_light,
}  # of HDR: from signal to light
