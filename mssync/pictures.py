"""Still pictures in: any common picture to 8-bit sRGB as it is meant to be seen, or reduced while it is read.

Colour profiles, 16 bits a channel, transparency and the camera's rotation are all dealt with here.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from mssync.errors import InputError, PathLike, input_file
from mssync.pixels import shrunk

RGB = NDArray[np.uint8]
Wide = NDArray[np.uint16]
Size = tuple[int, int]

MAX_SIDE = 32000  # pixels: more is a mistake, or meant to fill the memory
MIN_SIDE = 32  # pixels: a picture smaller than this holds no face to work with
WHITE = 255  # what shows through transparent pixels
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")  # the last where a plugin for Pillow reads it
READABLE = "jpg, png, webp, avif, gif, bmp or tiff"
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT: dict[int, Callable[[RGB], RGB]] = {  # its value -> how the stored picture is turned to be displayed
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels),
}

SPACES = {"RGB": ("RGB", "L", "I;16"), "GRAY": ("L", "I;16"), "CMYK": ("CMYK",)}  # profiles' -> Pillow's modes
PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)  # of damaged profiles, and of those of no use
LEAST_RANGE = 128  # grey levels from black to white under a profile; a sane one has 200 and more
MIDDLE = (16, 240)  # between which it shows middle grey: that of a linear space is 188
LEAST_COLOUR = 40  # levels that full colours must differ by
STRIP = 64  # rows that are worked on at once, so that large pictures need no more memory than their pixels


def read_image(path: PathLike) -> RGB:
    """Read a picture as uint8 RGB of shape (height, width, 3), in sRGB.

    The camera's rotation is applied, transparent pixels are laid over white, colour profiles are brought to sRGB,
    grey, palette, Lab and CMYK become RGB, and 16-bit samples are scaled to 8 bits at the very end. Of several
    pictures in a file the first is taken. Pictures of up to about 178 megapixels (Pillow's guard) are read.

    Warns where a colour profile cannot be used. Raises InputError: missing, unreadable or empty file, not a picture,
    damaged, too large, a side under 32 or over 32000 pixels, floating-point or 32-bit samples.
    """
    path = input_file(path)
    return decode_image(path, str(path))


def decode_image(source: Path | BinaryIO, name: str) -> RGB:
    """As `read_image`, also of a file object; messages call it `name`."""
    return decode_reduced(source, name, None)[0]


def read_reduced(path: PathLike, longest: int | None) -> tuple[RGB, Size]:
    """As `read_image`, at most `longest` pixels on the longest side, and height and width of the whole picture.

    Large pictures are reduced while they are decoded where the format can, and as early as possible where not.
    """
    path = input_file(path)
    return decode_reduced(path, str(path), longest)


def decode_reduced(source: Path | BinaryIO, name: str, longest: int | None) -> tuple[RGB, Size]:
    """As `read_reduced`, also of a file object; None for all pixels."""
    image = open_image(source, name)
    if image is None:
        raise InputError(unreadable(source, name))
    with image:
        # Pillow would map a plain TIFF into memory by its name, and one that is to be turned wrongly.
        image.filename = ""
        return _pixels(image, source, name, longest)


def convert_reduced(image: Image.Image, name: str, longest: int | None) -> tuple[RGB, Size]:
    """The same of a PIL image, which stays as it is. Raises InputError likewise."""
    return _pixels(image, None, name, longest)


def open_image(source: Path | BinaryIO, name: str) -> ImageFile.ImageFile | None:
    """Open a picture without decoding its pixels; None if it is not one. Raises InputError for too many pixels."""
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns from half of the size that it refuses; a 100 megapixel photo is fine here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source, formats=[known for known in FORMATS if known in Image.OPEN])
    except Image.DecompressionBombError:
        raise InputError(f"{name} has too many pixels; scale the picture down") from None
    except Exception:  # UnidentifiedImageError, and what Pillow's parsers raise on damaged headers
        return None


def unreadable(source: Path | BinaryIO, name: str) -> str:
    """What to say of a file that `open_image` does not take."""
    return of_another_format(source, name) or f"{name} is not a picture that can be read ({READABLE})"


def of_another_format(source: Path | BinaryIO, name: str) -> str | None:
    """What to say of a picture in a format that is known but not read here; None for any other file."""
    with _opened(source) as file:
        head = file.read(12)
    if head[4:8] != b"ftyp":
        return None
    if head[8:] in HEIF_BRANDS:
        return f"{name} is a HEIC picture, which is not read here; save or export it as JPEG"
    if head[8:] in AVIF_BRANDS:
        return f"{name} is an AVIF picture that cannot be read; save it as JPEG or PNG"
    return None


def displayed_size(image: Image.Image, name: str) -> Size:
    """Height and width of an opened picture as it is displayed. Raises InputError for a damaged one."""
    try:
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5  # Pillow turns TIFFs itself
    except Exception as error:  # a PNG may have to be decoded for it
        raise InputError(f"{name} is damaged and cannot be decoded ({error})") from error
    return image.size if turned else image.size[::-1]


def reduced(pixels: RGB, longest: int | None) -> RGB:
    """A picture (H, W, 3) of at most `longest` pixels on its longest side: itself where it is no larger."""
    size = _fitting(pixels.shape[1::-1], longest)
    if size == pixels.shape[1::-1]:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


# Steps of reading


def _pixels(image: Image.Image, source: Path | BinaryIO | None, name: str, longest: int | None) -> tuple[RGB, Size]:
    """Pixels and whole size of an open picture. source: its file; None for a picture of somebody else's."""
    _check(image, name)
    profile = image.info.get("icc_profile")
    try:
        wide = _wide_samples(image, source)
        if wide is not None:
            orientation, size = _orientation(image), (wide.shape[0], wide.shape[1])
            pixels = _wide_in_srgb(_reduced_wide(wide, longest), profile, name)
        else:
            size = _load(image, longest if source is not None else None)
            orientation = _orientation(image)
            pixels = _in_srgb(_reduced_plain(image, longest), profile, name)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise InputError(f"{name} is damaged and cannot be decoded ({error})") from error
    pixels = UPRIGHT.get(orientation, np.asarray)(pixels)
    return np.ascontiguousarray(pixels), size[::-1] if orientation in (5, 6, 7, 8) else size


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The file from its start; one that was open is left where it was."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
        return
    position = source.tell()
    source.seek(0)
    try:
        yield source
    finally:
        source.seek(position)


def _check(image: Image.Image, name: str) -> None:
    if min(image.size) < MIN_SIDE:
        raise InputError(
            f"{name} is only {image.width}x{image.height} pixels; "
            f"a picture must be at least {MIN_SIDE} pixels wide and high"
        )
    if max(image.size) > MAX_SIDE:
        raise InputError(f"{name} is {image.width}x{image.height} pixels; scale it to sides of {MAX_SIDE} or less")
    if image.mode == "F":
        raise InputError(f"{name} has floating-point samples; save it with 8 or 16 bits a channel")
    if image.mode == "I" and image.format == "TIFF":
        raise InputError(f"{name} has 32-bit samples; save it with 8 or 16 bits a channel")


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # a damaged tag does not make the picture worse
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _load(image: Image.Image, longest: int | None) -> Size:
    """Decode the pixels, a JPEG at the least scale of libjpeg's that is enough. The whole picture's size as stored."""
    whole = image.size
    drafted = None if longest is None else image.draft(None, _fitting(whole, longest))
    image.load()
    return (whole if drafted else image.size)[::-1]  # loading turns a TIFF


def _fitting(size: tuple[int, ...], longest: int | None) -> tuple[int, int]:
    """A width and a height of at most `longest` in proportion to the given ones."""
    width, height = size
    scale = 1.0 if longest is None else min(1.0, longest / max(size))
    return max(1, round(width * scale)), max(1, round(height * scale))


# Eight bits


def _reduced_plain(image: Image.Image, longest: int | None) -> Image.Image:
    """A loaded picture in one of the modes that profiles know, of at most `longest` pixels a side.

    By a whole factor first, which needs no memory but for the result.
    """
    size = _fitting(image.size, longest)
    factor = max(1, math.ceil(max(image.size) / max(size) - 0.5))
    if _is_plain(image):
        small = image.reduce(factor) if factor > 1 else image
    else:
        rows = STRIP * factor
        small = _of_strips(_plain(_rows(image, y, rows)).reduce(factor) for y in range(0, image.height, rows))
    if longest is None or max(small.size) <= longest:
        return small
    return small.resize(size, Image.Resampling.LANCZOS)


def _is_plain(image: Image.Image) -> bool:
    return image.mode in ("L", "RGB", "CMYK", "LAB") and not image.has_transparency_data


def _rows(image: Image.Image, start: int, count: int) -> Image.Image:
    return image.crop((0, start, image.width, min(start + count, image.height)))


def _of_strips(strips: Iterator[Image.Image]) -> Image.Image:
    """One picture of strips that lie below each other."""
    parts = list(strips)
    whole = Image.new(parts[0].mode, (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _plain(image: Image.Image) -> Image.Image:
    """A picture of any 8-bit mode in grey, RGB, CMYK or Lab, over white where it is transparent."""
    if _is_plain(image):
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        picture = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, (WHITE,) * 3), picture)
    return image.convert("L" if grey else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, name: str) -> RGB:
    """Pixels of a picture in one of the plain modes."""
    transform = _transform(profile, image.mode, name)
    if transform is None:
        return np.array(image.convert("RGB"))
    return np.array(transform.apply(image.convert(transform.input_mode)))


# Sixteen bits


def _wide_samples(image: Image.Image, source: Path | BinaryIO | None) -> Wide | None:
    """Samples (H, W) or (H, W, 3) of a picture with 16 bits a channel, over white; None for any other picture."""
    if image.mode.startswith("I"):
        samples = np.asarray(image).clip(0, 65535).astype(np.uint16)
        clear = image.info.get("transparency")
        return np.where(samples == clear, np.uint16(65535), samples) if isinstance(clear, int) else samples
    if source is None or image.mode not in ("RGB", "RGBA") or not _has_sixteen_bits(image, source):
        return None
    found = _by_ffmpeg(source, "png_pipe" if image.format == "PNG" else "tiff_pipe")
    return found if found is None or found.shape[2] == 3 else _over_white(found)


def _has_sixteen_bits(image: Image.Image, source: Path | BinaryIO) -> bool:
    if image.format == "PNG":
        with _opened(source) as file:
            return file.read(25)[24:] == b"\x10"  # the depth in its first chunk
    return set(getattr(image, "tag_v2", {}).get(258, ())) == {16}  # BitsPerSample of a TIFF


def _by_ffmpeg(source: Path | BinaryIO, kind: str) -> Wide | None:
    """All 16 bits of an RGB picture, of which Pillow reads the upper 8; None where ffmpeg does not read it."""
    try:
        with _opened(source) as file, av.open(file, format=kind, options={"err_detect": "explode"}) as container:
            frame = next(container.decode(video=0))
            samples = frame.to_ndarray()
    except (av.FFmpegError, ValueError, StopIteration):  # damaged, or stored in another way: Pillow will tell
        return None
    return samples if samples.dtype == np.uint16 and samples.ndim == 3 else None


def _over_white(samples: Wide) -> Wide:
    """Samples (H, W, 4), the last of them opacity -> (H, W, 3)."""
    plain = np.empty((*samples.shape[:2], 3), np.uint16)
    for start in range(0, len(samples), STRIP):
        part = samples[start : start + STRIP].astype(np.uint32)
        # In 32 bits: the sum is at most 65535².
        colour, opacity = part[..., :3], part[..., 3:]
        plain[start : start + STRIP] = (colour * opacity + 65535 * (65535 - opacity) + 32767) // 65535
    return plain


def _reduced_wide(samples: Wide, longest: int | None) -> Wide:
    width, height = _fitting(samples.shape[1::-1], longest)
    if (height, width) == samples.shape[:2]:
        return samples
    return shrunk(samples, width, height)


def _wide_in_srgb(samples: Wide, profile: bytes | None, name: str) -> RGB:
    """Pixels of samples (H, W) or (H, W, 3)."""
    transform = _transform(profile, "I;16" if samples.ndim == 2 else "RGB", name)
    pixels = np.empty((*samples.shape[:2], 3), np.uint8)
    for start in range(0, len(samples), STRIP):
        part = samples[start : start + STRIP]
        if transform is not None and transform.input_mode == "I;16":
            pixels[start : start + STRIP] = np.asarray(transform.apply(Image.fromarray(part)))
            continue
        colours = np.repeat(part[..., None], 3, 2) if part.ndim == 2 else part
        pixels[start : start + STRIP] = (
            (colours.astype(np.uint32) + 128) // 257 if transform is None else _between(colours, transform)
        )
    return pixels


def _between(samples: Wide, transform: ImageCms.ImageCmsTransform) -> RGB:
    """Samples (h, W, 3) under a transform of 8-bit colours.

    Linear from the colour below towards the next one in each channel: rounding first would show in the dark parts of
    wide or linear spaces, where one step of 8 bits is many steps in sRGB.
    """
    lower = (samples // 257).astype(np.uint8)
    share = samples / np.float32(257) - lower

    def seen(colours: RGB) -> NDArray[np.float32]:
        return np.asarray(transform.apply(Image.fromarray(colours)), np.float32)

    base = seen(lower)
    mixed = base.copy()
    for channel in range(3):
        upper = lower.copy()
        upper[..., channel] += lower[..., channel] < 255
        mixed += share[..., channel, None] * (seen(upper) - base)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


# Colour profiles


def _transform(profile: bytes | None, mode: str, name: str) -> ImageCms.ImageCmsTransform | None:
    """What brings a picture of Pillow's `mode` to sRGB; None where it is taken to be in sRGB already.

    `input_mode` tells what the picture must be converted to first. Warns of a profile that cannot be used.
    """
    if mode == "LAB":  # needs no profile: it names colours, not amounts of a device's own
        return _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), mode)
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if mode not in SPACES.get(space, ()):
            raise ValueError(f"it is one for {space} pictures")
        transform = _to_srgb(source, "RGB" if space == "RGB" else mode)
        if not _is_sane(transform):
            raise ValueError("its colours make no sense")
        return transform
    except PROFILE_ERRORS as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{name}: its colour profile cannot be used ({reason}); its colours may be off", stacklevel=2)
        return None


def _to_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    # Optimised, one channel becomes a table of so few points that dark greys are off by 10 levels.
    precise = ImageCms.Flags.NOOPTIMIZE if mode in ("L", "I;16") else ImageCms.Flags.NONE
    return ImageCms.buildTransform(
        source,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | precise,
    )


def _is_sane(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether greys grow from dark to light, and full colours differ from each other."""
    channels = 1 if transform.input_mode in ("L", "I;16") else len(transform.input_mode)
    levels = np.repeat(np.linspace(0, 255, 18).astype(np.uint8)[:, None], channels, 1)
    if channels == 4:  # black ink alone
        levels = np.pad(~levels[:, 3:], ((0, 0), (3, 0)))
    lights = _seen(transform, levels).mean(1)
    grows = lights[-1] - lights[0] >= LEAST_RANGE and (np.diff(lights) > -2).all()
    grows &= MIDDLE[0] < lights[len(lights) // 2] < MIDDLE[1]
    full = _seen(transform, np.uint8(255) * np.eye(3, channels, dtype=np.uint8))
    apart = min(np.abs(full[k] - full[k - 1]).max() for k in range(3))
    return bool(grows and (channels == 1 or apart >= LEAST_COLOUR))


def _seen(transform: ImageCms.ImageCmsTransform, colours: RGB) -> NDArray[np.float32]:
    """What colours (n, channels) of 8 bits look like: sRGB (n, 3)."""
    samples = colours.astype("<u2") * 257 if transform.input_mode == "I;16" else colours
    picture = Image.frombytes(transform.input_mode, (len(colours), 1), samples.tobytes())
    return np.asarray(transform.apply(picture), np.float32)[0]
