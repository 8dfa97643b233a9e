"""Pixels: each function against a slow, obvious formula."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from scipy.ndimage import laplace
from scipy.spatial import ConvexHull

from mssync.pixels import (
    STRIP,
    Places,
    decode_jpeg,
    encode_jpeg,
    filled,
    hull,
    laplacian,
    resampled,
    shrunk,
    stroke,
    warped,
)

SIDES = st.integers(1, 24)
SHAPES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 1000)
PLACES = st.tuples(st.floats(-9, 30), st.floats(0.1, 3), st.integers(1, 12)).map(lambda values: Places(*values))
NUMBERS = st.floats(-2, 2)


def noise(seed: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    top = 65535 if dtype == np.uint16 else 255
    return np.random.default_rng(seed).integers(0, top, shape, endpoint=True).astype(dtype)


def area_mean(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Every pixel is parted, so that the cells of the result hold whole parts."""
    fine = image.astype(float).repeat(height, 0).repeat(width, 1)
    rows, columns = image.shape[:2]
    return fine.reshape(height, rows, width, columns, *image.shape[2:]).mean((1, 3))


def kernel(away: float, cubic: bool) -> float:
    """Weight of a pixel; the cubic one is 1 and 0 at whole numbers, and steepest, -3/4, at 1."""
    t = abs(away)
    if not cubic:
        return max(0, 1 - t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3 if t < 2 else 0


def value_at(image: np.ndarray, x: float, y: float, cubic: bool) -> np.ndarray:
    """The picture at a place: over all pixels around, those beyond the border being its own."""
    total = np.zeros(image.shape[2:])
    for row in range(int(np.floor(y)) - 2, int(np.floor(y)) + 4):
        for column in range(int(np.floor(x)) - 2, int(np.floor(x)) + 4):
            pixel = image[min(max(row, 0), image.shape[0] - 1), min(max(column, 0), image.shape[1] - 1)]
            total = total + kernel(x - column, cubic) * kernel(y - row, cubic) * pixel
    return total


def assert_rounded(found: np.ndarray, exact: np.ndarray, slack: float = 0.01) -> None:
    """`found` is `exact`, in range and rounded."""
    assert found.shape == exact.shape
    assert np.abs(found - exact.clip(0, np.iinfo(found.dtype).max)).max() <= 0.5 + slack


@settings(deadline=None, max_examples=60)
@given(SHAPES, SHAPES, SEEDS, st.sampled_from([np.uint8, np.uint16]), st.sampled_from([(), (1,), (3,)]))
def test_a_shrunk_picture_shows_means_of_areas(given, wanted, seed, dtype, channels) -> None:
    image = noise(seed, *given, *channels, dtype=dtype)
    found = shrunk(image, *wanted)
    assert found.dtype == dtype
    assert_rounded(found, area_mean(image, *wanted), 0.05)


def test_a_shrunk_picture_of_numbers_is_not_rounded() -> None:
    image = np.random.default_rng(0).normal(0, 300, (37, 50, 4)).astype(np.float32)
    found = shrunk(image, 9, 14)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, area_mean(image, 9, 14), rtol=1e-4, atol=1e-3)


def test_large_pictures_are_shrunk_in_strips() -> None:
    image = noise(0, 3 * STRIP + 5, 4)
    assert_rounded(shrunk(image, 3, 2 * STRIP + 1), area_mean(image, 3, 2 * STRIP + 1))


@settings(deadline=None, max_examples=60)
@given(SHAPES, SEEDS)
def test_a_picture_of_its_own_size_is_itself(shape, seed) -> None:
    image = noise(seed, *shape, 3)
    height, width = shape
    np.testing.assert_array_equal(shrunk(image, width, height), image)
    for cubic in (False, True):
        found = resampled(image, Places(0, 1, width), Places(0, 1, height), cubic)
        np.testing.assert_array_equal(found, image)
        np.testing.assert_array_equal(warped(image, np.eye(2, 3), width, height, cubic), image)


@settings(deadline=None, max_examples=60)
@given(SHAPES, PLACES, PLACES, SEEDS, st.booleans())
def test_a_grid_is_looked_up_place_by_place(shape, across, down, seed, cubic) -> None:
    image = noise(seed, *shape, 3)
    exact = [
        [
            value_at(image, across.start + k * across.step, down.start + n * down.step, cubic)
            for k in range(across.number)
        ]
        for n in range(down.number)
    ]
    assert_rounded(resampled(image, across, down, cubic), np.array(exact))


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.lists(NUMBERS, min_size=4, max_size=4), st.tuples(*[st.floats(-30, 30)] * 2), SEEDS, st.booleans())
def test_a_warped_picture_is_looked_up_place_by_place(shape, turn, shift, seed, cubic) -> None:
    image = noise(seed, *shape, 3)
    matrix = np.concatenate([np.reshape(turn, (2, 2)), np.reshape(shift, (2, 1))], 1)
    exact = np.array([[value_at(image, *(matrix @ (x, y, 1)), cubic) for x in range(7)] for y in range(5)])
    assert_rounded(warped(image, matrix, 7, 5, cubic), exact, 0.1)


@pytest.mark.parametrize("cubic", [False, True])
def test_warping_without_turning_is_resampling(cubic: bool) -> None:
    image, grid = noise(0, 300, 200), (Places(-20.3, 0.9, 310), Places(50.6, 1.3, 170))
    matrix = np.array([[0.9, 0, -20.3], [0, 1.3, 50.6]])
    moved = warped(image, matrix, 310, 170, cubic)
    assert np.abs(moved.astype(int) - resampled(image, *grid, cubic)).max() <= 1


def test_readers_may_lend_their_pixels() -> None:
    image = noise(0, 30, 20, 3)
    view = image[::2, ::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(shrunk(view, 7, 5), shrunk(view.copy(), 7, 5))
    np.testing.assert_array_equal(warped(view, np.eye(2, 3) / 3, 9, 9), warped(view.copy(), np.eye(2, 3) / 3, 9, 9))


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(2, 20), st.integers(2, 20)), SEEDS)
def test_laplacian(shape, seed) -> None:
    image = noise(seed, *shape)
    np.testing.assert_allclose(laplacian(image), laplace(image.astype(float), mode="mirror"))


# Shapes


def distances(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    """Of every pixel (height, width) to the nearest edge of a closed outline (n, 2)."""
    y, x = np.mgrid[:height, :width]
    at = np.stack([x, y], -1).astype(float)
    found = []
    for a, b in zip(outline, np.roll(outline, -1, 0), strict=True):
        along = (b - a).astype(float)
        share = ((at - a) @ along / max(along @ along, 1e-9)).clip(0, 1)
        found.append(np.linalg.norm(at - a - share[..., None] * along, axis=-1))
    return np.min(found, 0)


def crossings(outline: np.ndarray, x: float, y: float) -> int:
    """How many edges a ray from a place to the right meets."""
    count = 0
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, 0), strict=True):
        if (ay > y) != (by > y) and ax + (y - ay) / (by - ay) * (bx - ax) > x:
            count += 1
    return count


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-9, 40), st.integers(-9, 40)), min_size=1, max_size=8))
def test_what_is_inside_is_filled_and_so_are_edges(points) -> None:
    outline = np.array(points)
    mask = filled(outline, 32, 28)
    assert (mask.dtype, mask.shape) == (np.bool_, (28, 32))
    inner = [[crossings(outline, x, y) % 2 == 1 for x in range(32)] for y in range(28)]
    away = distances(outline, 32, 28)
    np.testing.assert_array_equal(mask[away > 1], np.array(inner)[away > 1])
    assert mask[away < 1e-6].all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30))
def test_a_hull_is_convex_and_holds_all_points(points) -> None:
    given = np.array(points)
    found = hull(given)
    assert {*map(tuple, found.tolist())} <= {*points}
    if len(found) < 3:  # all lie on a line, and these are its ends
        assert {*map(tuple, found.tolist())} == {min(points), max(points)}
        return
    along = np.roll(found, -1, 0) - found
    turns = along[:, 0] * np.roll(along, -1, 0)[:, 1] - along[:, 1] * np.roll(along, -1, 0)[:, 0]
    assert (turns > 0).all()
    for corner, edge in zip(found, along, strict=True):
        assert (edge[0] * (given - corner)[:, 1] - edge[1] * (given - corner)[:, 0] >= 0).all()


def test_a_hull_is_scipys() -> None:
    points = np.random.default_rng(0).normal(0, 30, (478, 2))
    wanted = points[ConvexHull(points).vertices]
    assert sorted(hull(points).tolist()) == sorted(wanted.tolist())


PLACE = st.tuples(st.floats(-5, 30), st.floats(-5, 30))


@settings(deadline=None, max_examples=60)
@given(PLACE, PLACE, st.floats(1, 9))
def test_a_stroke_covers_pixels_by_how_much_of_them_it_covers(start, end, width) -> None:
    picture = np.zeros((24, 20, 3), np.uint8)
    stroke(picture, start, end, width, (250, 200, 0))
    fine = 8
    here, there = ((np.array(place) + 0.5) * fine - 0.5 for place in (start, end))
    inner = distances(np.array([here, there]), 20 * fine, 24 * fine) < width / 2 * fine
    cover = inner.reshape(24, fine, 20, fine).mean((1, 3))
    assert np.abs(picture[..., 0] / 250 - cover).max() < 0.27  # as for a smooth edge: corners of pixels do not count
    assert np.abs(picture[..., 1] / 200 - picture[..., 0] / 250).max() < 0.01
    assert picture[..., 2].max() == 0


def test_a_stroke_is_laid_over_the_picture() -> None:
    picture = np.full((9, 9, 3), 90, np.uint8)
    stroke(picture, (4, 4), (4, 4), 4, (255, 0, 90))
    assert picture[4, 4].tolist() == [255, 0, 90]
    assert picture[0, 0].tolist() == [90, 90, 90]
    assert picture[4, 6].tolist() == [172, 45, 90]  # half of the pixel
    before = picture.copy()
    stroke(picture, (-50, 4), (-20, 8), 4, (0, 0, 0))
    np.testing.assert_array_equal(picture, before)


# JPEG


@pytest.mark.parametrize(("subsampling", "factor"), [("4:2:0", 2), ("4:4:4", 0)])
def test_jpegs_are_what_they_were_told_to_be(picture, subsampling, factor) -> None:
    blob = encode_jpeg(picture, 95, subsampling)
    with Image.open(io.BytesIO(blob)) as image:
        assert (image.format, image.size, JpegImagePlugin.get_sampling(image)) == ("JPEG", (64, 40), factor)
    back = decode_jpeg(blob)
    assert (back.dtype, back.flags.writeable) == (np.uint8, True)
    assert np.abs(back.astype(int) - picture).mean() < 2
    assert len(encode_jpeg(picture, 60, subsampling)) < len(blob)


def test_grey_jpegs_have_three_channels_too() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(file, "JPEG")
    assert (decode_jpeg(file.getvalue()) == 77).all()
    assert decode_jpeg(file.getvalue()).shape == (8, 8, 3)
