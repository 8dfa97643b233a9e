"""Colours of videos: patches in any matrix and range come out the same, HDR as the SDR that it was made of."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from mssync.colour import TO_709, WHITE, hlg_light, pq_light, to_srgb
from mssync.video import VideoReader

KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
PATCHES = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 190), (230, 190, 160), (90, 60, 45), (128, 128, 128)]) / 255


def film(
    path: Path, signal: np.ndarray, matrix: int, full: bool, transfer: ColorTrc, primaries: ColorPrimaries
) -> Path:
    """One frame of patches (n, 3), R'G'B' in [0, 1], as 10-bit video that says what it is."""
    kr, kb = KR_KB[matrix]
    y = signal @ np.array([kr, 1 - kr - kb, kb])
    cb, cr = (signal[:, 2] - y) / (2 * (1 - kb)), (signal[:, 0] - y) / (2 * (1 - kr))
    scale = (1023, 0, 1023) if full else (876, 64, 896)
    planes = [np.rint(scale[0] * y + scale[1]), np.rint(scale[2] * cb + 512), np.rint(scale[2] * cr + 512)]
    picture = np.stack([np.repeat(np.repeat(p[None], 64, 0), 16, 1) for p in planes]).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = picture.shape[2], 64, "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = matrix, primaries, transfer
        context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        for k in range(3):
            frame = av.VideoFrame(stream.width, stream.height, "yuv444p10le")
            for plane, values in zip(frame.planes, picture, strict=True):
                padding = plane.line_size // 2 - plane.width
                plane.update(np.pad(values, ((0, 0), (0, padding))).tobytes())
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> np.ndarray:
    frame = next(iter(VideoReader(path)))
    return frame[32, 8::16][: len(PATCHES)].astype(float) / 255


@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("full", [False, True])
def test_every_matrix_and_range(tmp_path: Path, matrix: int, full: bool) -> None:
    path = film(tmp_path / "a.mkv", PATCHES, matrix, full, ColorTrc.BT709, ColorPrimaries.BT709)
    np.testing.assert_allclose(read(path), PATCHES, atol=2.5 / 255)


def linear(signal: np.ndarray) -> np.ndarray:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def inverted(light, value: np.ndarray) -> np.ndarray:
    """The signal of some light, by bisection."""
    low, high = np.zeros_like(value), np.ones_like(value)
    for _ in range(40):
        middle = (low + high) / 2
        below = light(middle) < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


@pytest.mark.parametrize("primaries", [ColorPrimaries.BT2020, ColorPrimaries.SMPTE432])
def test_pq_comes_out_as_the_sdr_it_was_made_of(tmp_path: Path, primaries: ColorPrimaries) -> None:
    wide = linear(PATCHES) @ np.linalg.inv(TO_709[primaries]).T
    path = film(tmp_path / "a.mkv", inverted(pq_light, wide), 9, False, ColorTrc.SMPTE2084, primaries)
    np.testing.assert_allclose(read(path), PATCHES, atol=4 / 255)


def test_hlg_comes_out_as_the_sdr_it_was_made_of(tmp_path: Path) -> None:
    wide = linear(PATCHES) @ np.linalg.inv(TO_709[ColorPrimaries.BT2020]).T * WHITE / 1000
    luma = wide @ np.array([0.2627, 0.6780, 0.0593])
    scene = wide * luma[:, None] ** (1 / 1.2 - 1)  # the display's system gamma undone
    path = film(tmp_path / "a.mkv", inverted(hlg_light, scene), 9, False, ColorTrc.ARIB_STD_B67, ColorPrimaries.BT2020)
    np.testing.assert_allclose(read(path), PATCHES, atol=4 / 255)


def test_what_is_brighter_than_white_is_compressed_and_keeps_its_order(tmp_path: Path) -> None:
    light = np.repeat(np.array([0.5, 0.9, 1.0, 2.0, 5.0, 20.0])[:, None], 3, 1)
    path = film(tmp_path / "a.mkv", inverted(pq_light, light), 9, False, ColorTrc.SMPTE2084, ColorPrimaries.BT2020)
    found = read(path)[:, 1]
    assert (np.diff(found) >= 0).all()
    assert found[0] == pytest.approx(0.735, abs=0.02)
    assert 0.95 < found[2] < 0.99
    assert found[-1] > 0.99


@pytest.mark.parametrize("number", [0, 3, 255])
def test_numbers_without_a_name_are_those_of_plain_video(number: int) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24").reformat(format="yuv420p")
    told = SimpleNamespace(
        colorspace=number, color_range=frame.color_range, color_trc=number, color_primaries=number,
        height=64, format=frame.format, reformat=frame.reformat,
    )  # fmt: skip
    np.testing.assert_allclose(to_srgb(told, 64, 64), 99, atol=2)  # type: ignore[arg-type]
