"""What people hold, made into what the package works on: pictures, sound, and files that are read by path.

A file is given as a path, as its content (bytes), or as a file object that is read from where it stands to its end.
Arrays are numpy's or PyTorch's. Anything else is refused in one line that names its type and what is taken.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union

import av
import numpy as np
import torch
from numpy.typing import NDArray

from mssync.audio import MIN_RATE
from mssync.errors import InputError, PathLike, as_path
from mssync.pictures import MAX_SIDE, MIN_SIDE, RGB, Size, convert_reduced, decode_reduced, read_reduced, reduced

if TYPE_CHECKING:
    from PIL import Image

Content: TypeAlias = bytes | bytearray | memoryview | IO[bytes]  # of a file
Media: TypeAlias = PathLike | Content
Array: TypeAlias = NDArray[Any] | torch.Tensor
Picture: TypeAlias = Union[Media, Array, "Image.Image"]
Speech: TypeAlias = Media | Array

WAV_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")  # of sound with 1, 2, … channels
MAX_CHANNELS, MAX_RATE = len(WAV_LAYOUTS), 768_000  # Hz, more than any converter has
WAV_BLOCK = 1 << 16  # samples that are written at once
FULL_SCALE = {"i2": (0, 2**15), "i4": (0, 2**31), "u1": (128, 128)}  # of integer samples: what is silence, and 1.0
HALF_GREY = 0.5 / 255  # how far beyond [0, 1] resampling may take a float picture unnoticed
FILE_WORDS = "a path, bytes, {}a file opened in binary mode"
MEDIA_WORDS = FILE_WORDS.format("or ")
PICTURE_WORDS = FILE_WORDS.format("") + ", a PIL image, or a numpy or torch array"
SOUND_WORDS = FILE_WORDS.format("") + ", or a numpy or torch array with sample_rate="


# Files


@dataclass(frozen=True)
class LocalFile:
    """A file to read by its path, and what messages and results call it."""

    path: Path
    name: str


def is_path(given: object) -> bool:
    return isinstance(given, str | os.PathLike)


@contextmanager
def local_file(given: Media, what: str) -> Iterator[LocalFile]:
    """A file that can be read by its path while the block lasts: that of the path, or a copy of the content.

    given: a path, the content of a file, or a file object.
    what: what an error within the block calls content that has no path, such as "the video".
    Raises InputError: another type, a file object opened as text, no content.
    """
    if is_path(given):
        yield LocalFile(as_path(given), str(as_path(given)))
        return
    if not _is_content(given):
        raise InputError(f"{what} cannot be of the type {type_name(given)}; give {MEDIA_WORDS}")
    name = name_of(given, what)
    with tempfile.TemporaryDirectory(prefix="mssync-") as folder:
        path = Path(folder) / what  # warnings name it
        with path.open("wb") as copy:
            shutil.copyfileobj(_opened(given, name), copy, 1 << 20)
        with _renamed(path, name):
            yield LocalFile(path, name)


@contextmanager
def _renamed(path: Path, name: str) -> Iterator[None]:
    """Errors call a file that nobody knows by the name that was given."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from error


def _is_content(given: object) -> bool:
    return isinstance(given, bytes | bytearray | memoryview) or callable(getattr(given, "read", None))


def name_of(given: object, what: str) -> str:
    """What messages call something that was given: by its path, a file object by its own name, all else `what`."""
    if is_path(given):
        return str(as_path(given))
    name = getattr(given, "name", None) if _is_content(given) else None
    return name if isinstance(name, str) and name else what


def type_name(given: object) -> str:
    """The type of a value as one writes it: "int", "pandas.DataFrame"."""
    kind = type(given)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _opened(given: Any, name: str) -> IO[bytes]:
    if isinstance(given, bytes | bytearray | memoryview):
        return BytesIO(given)
    if not isinstance(given.read(0), bytes):
        raise InputError(f'{name} is opened as text; open it in binary mode: open(..., "rb")')
    return given


# Pictures


def picture(given: Picture, what: str = "the image", longest: int | None = None) -> tuple[RGB, Size]:
    """A picture as uint8 sRGB (height, width, 3), and the height and width of the whole one.

    given: a picture file; a PIL image; or an array (height, width), (height, width, 1, 3 or 4) or channels first, of
        grey, RGB or RGBA: uint8, uint16, or floating point in [0, 1]. What is transparent is laid over white.
    what: what messages call a picture that has no path.
    longest: pixels that the longest side has at most; None for all.
    Raises InputError: another type, another shape, values out of range or NaN; as `pictures.read_image`.
    """
    from PIL import Image

    if is_path(given):
        return read_reduced(as_path(given), longest)
    if isinstance(given, Image.Image):
        return convert_reduced(given, what, longest)
    if isinstance(given, np.ndarray | torch.Tensor):
        pixels = _picture_of(array_of(given), what)
        return reduced(pixels, longest), (pixels.shape[0], pixels.shape[1])
    if _is_content(given):
        name = name_of(given, what)
        content = _opened(given, name).read()
        if not content:
            raise InputError(f"{name} is empty (0 bytes)")
        return decode_reduced(BytesIO(content), name, longest)
    raise InputError(f"{what} cannot be of the type {type_name(given)}; give {PICTURE_WORDS}")


def _picture_of(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    from PIL import Image

    shape, array = array.shape, array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"{what} has the shape {shape}; an array must be one picture: (height, width), "
            "(height, width, channels) or (channels, height, width) with 1, 3 or 4 channels"
        )
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise InputError(f"{what} is {width}x{height} pixels; its sides must have {MIN_SIDE} to {MAX_SIDE}")
    levels = _eight_bits(array, what)
    if levels.shape[-1] == 3:
        return np.ascontiguousarray(levels)
    return convert_reduced(Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels), what, None)[0]


def _eight_bits(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Values of a picture by their type: uint8, uint16, or floating point in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 becomes 255
    if array.dtype.kind != "f":
        raise InputError(f"{what} is an array of {array.dtype}; give uint8, uint16, or floating point in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= -HALF_GREY and high <= 1 + HALF_GREY):  # true for NaN, too
        raise InputError(f"{what} has floating-point values from {low:g} to {high:g}; they must be in [0, 1]")
    return (array.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)


# Sound


@contextmanager
def sound_file(given: Speech, sample_rate: int | None = None, what: str = "the audio") -> Iterator[LocalFile]:
    """A recording that can be read by its path while the block lasts; an array becomes one, so that all are read alike.

    given: a recording or a video (see `local_file`); or an array (n,), (n, channels) or (channels, n) of at most 8
        channels in the order of WAV files: floating point with full scale at 1, int16, int32 or uint8.
    sample_rate: Hz, of an array, which cannot tell its own; of nothing else.
    what: as in `local_file`.
    Raises InputError: another type or shape, no samples, no sample_rate, or one that is not needed.
    """
    if isinstance(given, np.ndarray | torch.Tensor):
        rate = checked_rate(sample_rate)
        array = in_columns(samples_of(array_of(given), what), what)
        with tempfile.TemporaryDirectory(prefix="mssync-") as folder:
            path = Path(folder) / what
            _write_wav(path, array, rate)
            with _renamed(path, what):
                yield LocalFile(path, what)
        return
    if not is_path(given) and not _is_content(given):
        raise InputError(f"{what} cannot be of the type {type_name(given)}; give {SOUND_WORDS}")
    if sample_rate is not None:
        raise InputError("sample_rate goes with an array of samples; a recording tells its own")
    with local_file(given, what) as file:
        yield file


def checked_rate(sample_rate: int | None) -> int:
    """The sample rate of an array in Hz. Raises InputError: none given, no whole number, out of range."""
    if sample_rate is None:
        raise InputError("give sample_rate=..., in Hz, with an array of samples: it cannot tell its own")
    if not isinstance(sample_rate, int | np.integer) or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise InputError(f"sample_rate must be a whole number from {MIN_RATE} to {MAX_RATE} Hz, not {sample_rate!r}")
    return int(sample_rate)


def samples_of(array: NDArray[Any], what: str = "the audio") -> NDArray[np.float32]:
    """Samples of an array of any shape as float32 with full scale at 1. Raises InputError: another type, NaN."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(f"{what} has samples that are NaN or infinite")
        return array.astype(np.float32, copy=False)
    scale = FULL_SCALE.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if scale is None:
        raise InputError(f"{what} is an array of {array.dtype}; give floating point in [-1, 1], int16, int32 or uint8")
    return ((array.astype(np.float64) - scale[0]) / scale[1]).astype(np.float32)


def in_columns(array: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Sound (n,), (n, channels) or (channels, n) as (n, channels). Raises InputError: another shape, no samples."""
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim == 2 and columns.shape[0] < columns.shape[1]:
        columns = columns.T
    if array.size == 0:
        raise InputError(f"{what} has no samples (shape {array.shape}); give a recording with sound")
    if columns.ndim != 2 or columns.shape[1] > MAX_CHANNELS:
        raise InputError(
            f"{what} has the shape {array.shape}; sound is (n,), (n, channels) or (channels, n) "
            f"with up to {MAX_CHANNELS} channels"
        )
    return columns


def _write_wav(path: Path, columns: NDArray[np.float32], rate: int) -> None:
    """Write sound (n, channels) as it is; RF64 where it is too long for WAV."""
    layout = WAV_LAYOUTS[columns.shape[1] - 1]
    with av.open(str(path), "w", format="wav", options={"rf64": "auto"}) as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        for start in range(0, len(columns), WAV_BLOCK):
            block = np.ascontiguousarray(columns[start : start + WAV_BLOCK])
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# Arrays


def array_of(array: Array) -> NDArray[Any]:
    """A numpy or torch array as numpy's."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
