"""What visitors may send, by whatever door it comes, and the one thread that decodes their pictures.

A file is checked by its header, before anything of it is decoded: 20 kB can claim 170 megapixels. Pictures are decoded
one at a time, away from the event loop and from the engine's thread, so that nobody waits for somebody else's picture
but those who send one too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from mssync.errors import InputError, input_file

if TYPE_CHECKING:
    import numpy as np

MAX_UPLOAD = 100_000_000  # bytes of a file
MAX_PICTURE_BYTES = 30_000_000  # of a picture's file
MAX_PIXELS = 50_000_000  # of a picture: any camera's
MAX_FRAME = 3840 * 2160  # pixels of a video's frame: 4K
MAX_SECONDS = 300.0  # of speech and of videos

T = TypeVar("T")


def _begin() -> None:
    import torch

    from mssync.cores import use_one_core

    use_one_core(torch.get_num_threads())  # the others draw for those who speak


_decoding = ThreadPoolExecutor(1, "mssync-picture", _begin)


async def with_picture(source: Path | BinaryIO, name: str, function: Callable[[np.ndarray], T]) -> T:
    """Check and decode a picture, and do something with its pixels, in the thread for this.

    source: a file, or its content; messages call it `name`. function: gets uint8 (H, W, 3) RGB, reduced as for
    `Pipeline.portrait`; its result is returned.
    Raises InputError as `check_picture`, `pictures.decode_reduced` and the function.
    """
    from mssync.animate import MAX_SEARCHED
    from mssync.pictures import decode_reduced

    def work() -> T:
        try:
            check_picture(source, name)
            return function(decode_reduced(source, name, MAX_SEARCHED)[0])
        except InputError as error:
            said = str(error)
        raise InputError(said)  # a new one: the traceback of the other holds the pixels, for as long as it is about

    return await asyncio.get_running_loop().run_in_executor(_decoding, work)


def check_picture(source: Path | BinaryIO, name: str) -> None:
    """Raises InputError: not a picture, or one of more bytes or pixels than a visitor may send."""
    from mssync.pictures import open_image, unreadable

    image = open_image(input_file(source) if isinstance(source, Path) else source, name)
    if image is None:
        raise InputError(unreadable(source, name))
    with image:
        _check_size(image.width, image.height, _bytes(source), name)


def check_upload(path: Path) -> None:
    """Raises InputError for a picture that is too large, or media that are too long, by their headers alone."""
    from mssync.pictures import open_image

    image = open_image(path, str(path))
    if image is None:
        _check_seconds(seconds_told(path), str(path))
    else:
        with image:
            _check_size(image.width, image.height, _bytes(path), str(path))


def seconds_told(path: Path) -> float:
    """How long a recording or video is by its header; 0 where that does not say, and for anything else."""
    from mssync.video import declared_seconds, open_media

    try:
        with open_media(path) as container:
            return max((float(declared_seconds(container, stream)) for stream in container.streams), default=0.0)
    except InputError:
        return 0.0  # no media: what it is meant for will say so


def check_length(path: str) -> None:
    """Raises InputError: no recording or video, or one that is longer or larger than a visitor may send."""
    from mssync.video import probe

    about = probe(path)
    if about.seconds is None:
        raise InputError(f"{path} is a picture; give a recording or a video")
    _check_seconds(about.seconds, path)
    if about.width is not None and about.height is not None and about.width * about.height > MAX_FRAME:
        raise InputError(f"{path} has frames of {about.width}x{about.height} pixels; scale it to 3840x2160 or less")


def _check_size(width: int, height: int, size: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width}x{height} pixels; scale it to {MAX_PIXELS:,} in all or less")
    if size > MAX_PICTURE_BYTES:
        raise InputError(
            f"{name} has {size / 1e6:.0f} MB; a picture may have {MAX_PICTURE_BYTES // 1_000_000}: "
            "scale it down, or save it as jpg"
        )


def _check_seconds(seconds: float, name: str) -> None:
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{name} lasts {seconds / 60:.0f} minutes; at most {MAX_SECONDS / 60:.0f} are taken here: "
            "cut it, or use `mssync` on your own machine, which has no limit"
        )


def _bytes(source: Path | BinaryIO) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    here = source.tell()
    size = source.seek(0, 2)
    source.seek(here)
    return size


def in_words(seconds: float) -> str:
    """ "8 seconds", "3 minutes": as exact as such a guess is."""
    count, unit = (max(1, round(seconds)), "second") if seconds < 90 else (round(seconds / 60), "minute")
    return f"{count} {unit}{'s' * (count > 1)}"
