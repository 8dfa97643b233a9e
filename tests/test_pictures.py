"""Pictures in: formats, colour profiles, 16 bits, transparency and rotation, each alone and together."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mssync import inputs, pictures
from mssync.cli.files import _about_media
from mssync.errors import InputError
from mssync.pictures import decode_image, read_image, read_reduced
from mssync.video import probe


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 95}, 12),
        ("jpg", {"quality": 100, "subsampling": 0}, 6),
    ],
)
def test_image_formats(tmp_path, picture, suffix, options, tolerance):
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", **options)
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert np.abs(read.astype(int) - picture).max() <= tolerance
    assert (probe(tmp_path / f"a.{suffix}").width, probe(tmp_path / f"a.{suffix}").height) == (64, 40)


EXIF = {  # orientation tag -> how the stored picture is turned to be displayed
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", EXIF)
def test_exif_rotation(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    expected = EXIF[orientation](picture)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    info = probe(tmp_path / "a.png")
    assert (info.kind, info.height, info.width) == ("image", *expected.shape[:2])


def test_transparency_shows_white(tmp_path, picture):
    alpha = np.zeros((40, 64, 1), np.uint8)
    alpha[:, 32:] = 255
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / "rgba.png")
    read = read_image(tmp_path / "rgba.png")
    assert (read[:, :32] == 255).all()
    np.testing.assert_array_equal(read[:, 32:], picture[:, 32:])

    Image.fromarray(np.concatenate([picture[..., :1], alpha], axis=2), "LA").save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png")[:, :32] == 255).all()

    palette = Image.new("P", (64, 40), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(0, (0, 0, 32, 40))
    palette.save(tmp_path / "p.png", transparency=0)
    read = read_image(tmp_path / "p.png")
    assert (read[:, :32] == 255).all()
    assert (read[:, 32:] == (10, 20, 30)).all()


def test_grey_one_bit_and_cmyk(tmp_path, picture):
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=97)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey(tmp_path, suffix):
    grey = np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    expected = np.round(grey / 257).astype(np.uint8)
    np.testing.assert_array_equal(read, np.repeat(expected[..., None], 3, axis=2))


def test_sixteen_bit_rgb(tmp_path, picture):
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:  # Pillow cannot write it
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = 40, 64, "rgb48be"
        wide = picture.astype(np.uint16) * 257  # both bytes are the same: their order does not matter
        container.mux(stream.encode(av.VideoFrame.from_ndarray(wide, format="rgb48be")))
        container.mux(stream.encode(None))
    assert (tmp_path / "a.png").read_bytes()[24] == 16  # bits a channel
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)


def test_fifty_megapixels(tmp_path):
    Image.new("L", (8192, 6144), 77).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(tmp_path / "a.png")
    assert read.shape == (6144, 8192, 3)
    assert read[-1, -1, 0] == 77


def test_hundred_megapixels_open_without_a_warning(tmp_path):
    Image.new("1", (10000, 10000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(tmp_path / "a.png").width == 10000


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims to have some size, without the pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content


def test_decompression_bomb(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(20000, 20000))
    with pytest.raises(InputError, match="too many pixels"):
        read_image(tmp_path / "a.png")


def test_bad_images(tmp_path, picture):
    (tmp_path / "text.jpg").write_text("this is not a picture\n")
    (tmp_path / "empty.png").touch()
    Image.fromarray(picture[:1, :1]).save(tmp_path / "dot.png")
    Image.fromarray(picture[:31]).save(tmp_path / "low.png")
    Image.fromarray(picture).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-60])
    Image.fromarray(picture[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    for name, words in [
        ("missing.jpg", "does not exist"),
        ("", "is a directory"),
        ("text.jpg", "is not a picture"),
        ("empty.png", "is empty"),
        ("dot.png", "only 1x1 pixels"),
        ("low.png", "only 64x31 pixels"),
        ("cut.jpg", "is damaged"),
        ("float.tiff", "floating-point"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


# Colour profiles. The pictures are made by ourselves, so that the right colours are known.

D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {  # columns of red, green and blue in XYZ under D50, and gamma
    "P3": ([(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)], 2.2),
    "Adobe RGB": ([(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)], 2.2),
    "ProPhoto": ([(0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)], 1.8),
    "linear": ([(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)], 1.0),
}


def fixed(values) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(space: str) -> bytes:
    """A small ICC profile: of one of PRIMARIES, or "grey 1.8", "grey 1.0"."""
    grey = space.startswith("grey")
    columns, gamma = ([], float(space.split()[1])) if grey else PRIMARIES[space]
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    words = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = [(b"desc", words), (b"cprt", b"text" + bytes(4) + b"CC0\0"), (b"wtpt", b"XYZ " + bytes(4) + fixed(D50))]
    tags += [
        (name + b"XYZ", b"XYZ " + bytes(4) + fixed(c)) for name, c in zip((b"r", b"g", b"b"), columns, strict=False)
    ]
    tags += [(name, curve) for name in ([b"kTRC"] if grey else [b"rTRC", b"gTRC", b"bTRC"])]
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI", start + len(body), 0x02400000) + b"mntr" + (b"GRAY" if grey else b"RGB ") + b"XYZ "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(D50)
    return head.ljust(128, b"\0") + table + body


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def coded(picture: np.ndarray, space: str) -> np.ndarray:
    """An sRGB picture in 8 bits as numbers from 0 to 1 of another space, by the equations."""
    to_xyz = np.array(PRIMARIES["linear"][0]).T
    columns, gamma = PRIMARIES[space]
    light = linear(picture / 255) @ (np.linalg.inv(np.array(columns).T) @ to_xyz).T
    return light.clip(0, 1) ** (1 / gamma)


def colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    colour = pytest.importorskip("skimage.color")
    return float(colour.deltaE_ciede2000(colour.rgb2lab(a), colour.rgb2lab(b)).mean())


def write_wide(path, samples: np.ndarray, icc: bytes | None = None, exif: bytes | None = None) -> None:
    """A PNG of uint16 samples (H, W), (H, W, 3) or (H, W, 4), which Pillow cannot write in colour."""
    height, width = samples.shape[:2]
    kind = {1: 0, 3: 2, 4: 6}[samples.reshape(height, width, -1).shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)]
    chunks += [b"iCCPtest\0\0" + zlib.compress(icc)] if icc else []
    chunks += [b"eXIf" + exif] if exif else []
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in [*chunks, b"IDAT" + zlib.compress(rows), b"IEND"]:
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content)


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("name", ["P3", "Adobe RGB", "ProPhoto", "linear"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_colours_are_those_of_the_srgb_original(tmp_path, portrait, name, suffix):
    content = Image.fromarray(np.rint(coded(portrait, name) * 255).astype(np.uint8))
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    content.save(tmp_path / f"a.{suffix}", icc_profile=profile(name), **lossless.get(suffix, {}))
    read = read_image(tmp_path / f"a.{suffix}")
    assert colour_distance(read, portrait) < 1
    assert colour_distance(np.asarray(content), portrait) > 1


@pytest.mark.parametrize("name", ["13_p3.jpg", "13_adobe.jpg", "13_prophoto.jpg"])
def test_files_that_failed_have_their_colours(failing_dir, data_dir, name):
    original = Image.open(data_dir / "portraits" / "frontal_05.jpg").convert("RGB").resize((400, 600))
    plain = np.asarray(Image.open(failing_dir / name).convert("RGB"))
    read, expected = read_image(failing_dir / name), np.asarray(original)
    lost_in_jpeg = 0.5 if "prophoto" in name else 0.0  # steps of 8 bits are larger there
    assert colour_distance(read, expected) < min(1 + lost_in_jpeg, colour_distance(plain, expected))


@pytest.mark.parametrize("name", ["P3", "ProPhoto", "linear"])
def test_sixteen_bits_are_kept_until_the_end(tmp_path, portrait, name):
    dark = (portrait // 6).astype(np.uint8)  # where steps of 8 bits would show
    for picture in (portrait, dark):
        write_wide(tmp_path / "a.png", np.rint(coded(picture, name) * 65535), profile(name))
        assert np.abs(read_image(tmp_path / "a.png").astype(int) - picture).mean() < 0.5
    assert colour_distance(read_image(tmp_path / "a.png"), dark) < 0.5


def test_sixteen_bits_are_rounded_not_cut(tmp_path):
    samples = np.arange(64 * 64 * 3).reshape(64, 64, 3) * 5 % 65536
    write_wide(tmp_path / "a.png", samples)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rint(samples / 257))
    write_wide(tmp_path / "clear.png", np.dstack([samples, np.full((64, 64), 65535)]))
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png"), np.rint(samples / 257))
    write_wide(tmp_path / "clear.png", np.dstack([samples, np.zeros((64, 64))]))
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_sixteen_bit_tiff(tmp_path):
    samples = (np.arange(64 * 64 * 3).reshape(64, 64, 3) * 5 % 65536).astype(np.uint16)
    with av.open(tmp_path / "a.tiff", "w", format="image2") as file:
        stream = file.add_stream("tiff", options={"compression_algo": "lzw"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb48le"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(samples, format="rgb48le")))
        file.mux(stream.encode())
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), np.rint(samples / 257))


@pytest.mark.parametrize("orientation", EXIF)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_sixteen_bit_tiff_turned_by_its_tag(tmp_path, orientation, channels):
    tifffile = pytest.importorskip("tifffile")
    samples = np.random.default_rng(1).integers(0, 65536, (40, 64, *channels), np.uint16)
    turned = [(0x0112, 3, 1, orientation, True)]  # as a short number
    tifffile.imwrite(tmp_path / "a.tiff", samples, extratags=turned, metadata=None)
    expected = EXIF[orientation](np.rint(samples / 257))
    read, size = read_reduced(tmp_path / "a.tiff", 100)
    np.testing.assert_array_equal(read[..., 0], expected if not channels else expected[..., 0])
    assert size == expected.shape[:2] == (probe(tmp_path / "a.tiff").height, probe(tmp_path / "a.tiff").width)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_grey_with_a_profile_and_sixteen_bits(tmp_path, picture, gamma):
    grey = np.linspace(0, 255, 40 * 64).reshape(40, 64)
    expected = np.rint(grey)
    light = linear(expected / 255) ** (1 / gamma)
    write_wide(tmp_path / "wide.png", np.rint(light * 65535), profile(f"grey {gamma}"), rotated(6).tobytes()[6:])
    read = read_image(tmp_path / "wide.png")
    assert np.abs(read[..., 1] - np.rot90(expected, -1)).max() <= 2
    levels = Image.fromarray(np.rint(light * 255).astype(np.uint8))
    levels.save(tmp_path / "a.png", icc_profile=profile(f"grey {gamma}"))
    assert np.abs(read_image(tmp_path / "a.png")[..., 0] - expected).mean() < (3 if gamma == 1 else 1)
    levels.convert("LA").save(tmp_path / "la.png", icc_profile=profile(f"grey {gamma}"))
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), read_image(tmp_path / "a.png"))
    write_wide(tmp_path / "rgb.png", np.rint(expected * 257), profile("P3"))  # neutral there is neutral here
    assert np.ptp(read_image(tmp_path / "rgb.png").astype(int), axis=2).max() <= 1


@pytest.mark.parametrize("orientation", EXIF)
def test_a_phone_picture_turned_by_its_tag_with_a_profile(tmp_path, portrait, orientation):
    content = Image.fromarray(np.rint(coded(portrait[:200], "P3") * 255).astype(np.uint8))
    for name, quality in [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.tiff", {}),
        ("a.webp", {"lossless": True}),
    ]:
        content.save(tmp_path / name, icc_profile=profile("P3"), exif=rotated(orientation), **quality)
        expected = EXIF[orientation](portrait[:200])
        read = read_image(tmp_path / name)
        assert read.shape == expected.shape
        assert colour_distance(read, expected) < 1
        assert (probe(tmp_path / name).height, probe(tmp_path / name).width) == expected.shape[:2]


def test_palette_with_a_profile_and_a_transparent_colour(tmp_path):
    red = coded(np.array([[[200, 40, 30]]], np.uint8), "P3")[0, 0]
    palette = Image.new("P", (64, 40), 1)
    palette.putpalette([0, 0, 0, *np.rint(red * 255).astype(int).tolist()])
    palette.paste(0, (0, 0, 32, 40))
    palette.save(tmp_path / "p.png", transparency=0, icc_profile=profile("P3"), exif=rotated(3))
    read = read_image(tmp_path / "p.png")
    assert (read[:, 32:] == 255).all()
    assert np.abs(read[:, :32].astype(int) - (200, 40, 30)).max() <= 2


def test_cmyk_and_lab_tiff(tmp_path, picture):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.tiff", exif=rotated(8))
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tiff"), np.rot90(picture))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    to_lab.apply(Image.fromarray(picture)).save(tmp_path / "lab.tiff")
    assert np.abs(read_image(tmp_path / "lab.tiff").astype(int) - picture).mean() < 2


class Ink:
    """The smallest ICC profile of a printer: a table of 2 x 2 x 2 x 2 colours, each ink as much as any other."""

    def __new__(cls) -> bytes:
        grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
        rgb = (255 - 150 * grid[:, :3]) * (1 - grid[:, 3:])
        lab = pytest.importorskip("skimage.color").rgb2lab(rgb[None] / 255)[0]
        table = np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)).clip(0, 255).astype(np.uint8)
        ramp = bytes(range(256))
        lut = b"mft1" + bytes(4) + struct.pack(">BBBx", 4, 3, 2) + fixed([1, 0, 0, 0, 1, 0, 0, 0, 1])
        lut += ramp * 4 + table.tobytes() + ramp * 3
        words = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
        tags = [(b"desc", words), (b"cprt", b"text" + bytes(4) + b"CC0\0"), (b"wtpt", b"XYZ " + bytes(4) + fixed(D50))]
        tags.append((b"A2B0", lut))
        listed, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
        for name, content in tags:
            listed += name + struct.pack(">II", start + len(body), len(content))
            body += content + bytes(-len(content) % 4)
        head = struct.pack(">I4xI", start + len(body), 0x02400000) + b"prtrCMYKLab "
        head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(D50)
        return head.ljust(128, b"\0") + listed + body


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_with_the_profile_of_its_inks(tmp_path, suffix):
    inks = np.zeros((40, 64, 4), np.uint8)
    inks[:20, :, 0] = inks[20:, :32, 1] = inks[:, 48:, 3] = 255  # cyan above magenta and paper, black at right
    picture = Image.frombytes("CMYK", (64, 40), inks.tobytes())  # a JPEG is written inverted, as Adobe does
    picture.save(tmp_path / f"a.{suffix}", icc_profile=Ink(), **({"quality": 100} if suffix == "jpg" else {}))
    read = read_image(tmp_path / f"a.{suffix}").astype(int)
    for y, x, colour in [(5, 5, (105, 255, 255)), (35, 5, (255, 105, 255)), (35, 40, (255,) * 3), (35, 60, (0,) * 3)]:
        assert np.abs(read[y, x] - colour).max() < 25


ABSURD = {
    "damaged": profile("P3")[:200],
    "noise": bytes(range(256)) * 2,
    "of grey pictures": profile("grey 1.8"),
    "all colours alike": profile("P3").replace(fixed(PRIMARIES["P3"][0][0]), fixed(PRIMARIES["P3"][0][1])),
    "no light": profile("P3").replace(struct.pack(">IH", 1, round(2.2 * 256)), struct.pack(">IH", 1, 255 * 256)),
}


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.parametrize("wide", [False, True])
def test_profiles_of_no_use_leave_the_plain_pixels_with_a_warning(tmp_path, picture, name, wide):
    if wide:
        write_wide(tmp_path / "a.png", picture.astype(int) * 257, ABSURD[name])
    else:
        Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=ABSURD[name])
    with pytest.warns(UserWarning, match="colour profile cannot be used") as caught:
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    assert "\n" not in str(caught[0].message)
    assert str(tmp_path) in str(caught[0].message)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 479), st.binary(min_size=1, max_size=40))
def test_no_damage_of_a_profile_breaks_reading(place, junk):
    damaged = bytearray(profile("P3"))
    damaged[place : place + len(junk)] = junk
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 40, 30)).save(file, "png", icc_profile=bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(file, "a.png").shape == (40, 40, 3)


def test_srgb_stays_what_it_is(tmp_path, portrait):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(portrait).save(tmp_path / "a.png", icc_profile=srgb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read_image(tmp_path / "a.png").astype(int) - portrait).max() <= 1


def test_pil_images_have_their_colours_and_stay_what_they_are(tmp_path, portrait):
    content = Image.fromarray(np.rint(coded(portrait, "P3") * 255).astype(np.uint8))
    content.save(tmp_path / "a.jpg", icc_profile=profile("P3"), quality=100, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as opened:
        small, size = inputs.picture(opened, longest=80)
        assert (small.shape, size, opened.size) == ((80, 80, 3), (320, 320), (320, 320))
        assert colour_distance(inputs.picture(opened)[0], portrait) < 1


# Moving pictures and other formats


def test_of_moving_pictures_the_first_is_read(tmp_path, picture):
    others = [Image.fromarray(np.roll(picture, k, 1)) for k in range(1, 24)]
    for suffix in ("gif", "webp", "png", "tiff", "avif"):
        if suffix == "avif" and "AVIF" not in Image.OPEN:
            continue
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(picture).save(path, save_all=True, append_images=others, duration=100)
        assert np.abs(read_image(path).astype(int) - picture).mean() < 12  # 256 colours of a GIF
        about = probe(path)
        assert (about.kind, about.format, about.frames) == ("image", suffix.upper(), 24)
        assert _about_media(path)["kind"] == f"image, {suffix.upper()}, 24 frames"
    assert _about_media(tmp_path / "a.gif")["length"] == "2.40 s"
    Image.fromarray(picture).save(tmp_path / "one.gif")
    assert _about_media(tmp_path / "one.gif")["kind"] == "image, GIF"


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"])
def test_heic_is_told_what_to_do(tmp_path, content):
    (tmp_path / "a.heic").write_bytes(content + bytes(64))
    with pytest.raises(InputError, match=r"HEIC picture, .* JPEG"):
        read_image(tmp_path / "a.heic")
    with pytest.raises(InputError, match=r"HEIC picture, .* JPEG"):
        probe(tmp_path / "a.heic")


def test_samples_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((40, 40), 70000, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="32-bit"):
        read_image(tmp_path / "a.tiff")


# Reading large pictures small


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "wide"])
@pytest.mark.parametrize("longest", [100, 300, 450, 640])
def test_reduced_pictures_look_like_the_whole_one(tmp_path, mode, longest):
    y, x = np.mgrid[:430, :600]
    picture = np.stack([x * 255 / 600, y * 255 / 430, 128 + 60 * np.sin(x / 60)], -1).astype(np.uint8)
    if mode == "wide":
        write_wide(tmp_path / "a", picture.astype(int) * 257, profile("P3"), rotated(6).tobytes()[6:])
    else:
        suffix = "tiff" if mode == "CMYK" else "png"
        Image.fromarray(picture).convert(mode).save(tmp_path / "a", suffix, exif=rotated(6))
    small, size = read_reduced(tmp_path / "a", longest)
    whole = read_image(tmp_path / "a")
    assert size == whole.shape[:2] == (600, 430)
    assert min(longest, 600) * 2 / 3 <= max(small.shape) <= longest
    expected = np.asarray(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BOX), int)
    assert np.abs(small[2:-2, 2:-2] - expected[2:-2, 2:-2]).mean() < (10 if mode == "P" else 1.5)


def test_a_jpeg_is_decoded_at_the_scale_that_is_needed(tmp_path, monkeypatch):
    y, x = np.mgrid[:900, :1200]
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).save(tmp_path / "a.jpg")
    loaded = []
    plain = pictures._reduced_plain
    monkeypatch.setattr(pictures, "_reduced_plain", lambda image, n: loaded.append(image.size) or plain(image, n))
    small, size = read_reduced(tmp_path / "a.jpg", 400)
    assert (small.shape[:2], size, loaded) == ((300, 400), (900, 1200), [(600, 450)])


@settings(deadline=None, max_examples=60)
@given(st.integers(32, 400), st.integers(32, 400), st.integers(32, 400), st.sampled_from(["RGB", "RGBA", "P"]))
def test_reduced_sizes_keep_their_proportions(width, height, longest, mode):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "png")
    small, size = pictures.decode_reduced(file, "a.png", longest)
    assert size == (height, width)
    assert min(longest, max(size)) * 2 / 3 - 1 <= max(small.shape[:2]) <= longest
    assert abs(small.shape[0] * width - small.shape[1] * height) <= max(width, height)
