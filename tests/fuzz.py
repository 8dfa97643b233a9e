"""Damaged files through the readers: python tests/fuzz.py [N] [--seed S] [--keep DIR]

N files are made from good pictures, recordings and videos: cut, bits flipped, blocks swapped, zeroed or repeated, huge
numbers put into headers, another file's header or suffix, garbage. Each goes through the Python entry points that users
give such files to: the picture and the recording of `animate`, `motion`, `probe` (`mssync info`). Expected is a result
or an InputError of one line. A traceback, more than 30 seconds, a crash, or a file left behind is a failure, and the
exit code is 1. Memory is limited (RLIMIT_AS): a decompression bomb would end as a MemoryError, a failure too.

The work is done in a process that is started again after a crash or a hang.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 30  # of computing for one file, four entry points together
HANG = 120  # seconds by the clock after which the worker is ended
MEMORY = 3 << 30  # bytes of address space beyond what the process has after its start
SAMPLE_RATES = (0, 1, 7, 2**31 - 1, 2**32 - 1)
SIDES = (0, 1, 65535, 2**31 - 1)


# The files


def good_files(folder: Path) -> list[Path]:
    """Small files of every kind that users give, all of them readable."""
    import av
    from PIL import Image
    from skimage.data import astronaut

    from mssync.audio import load_audio
    from mssync.cli.common import DEMO_SPEECH
    from mssync.video import write_video

    folder.mkdir()
    picture = np.ascontiguousarray(astronaut()[:256, 100:356])
    sound = load_audio(DEMO_SPEECH)[:16000]
    for name in ("face.jpg", "face.png", "face.webp", "face.bmp", "face.tiff", "face.gif"):
        Image.fromarray(picture).save(folder / name)
    Image.fromarray(picture).quantize(16).save(folder / "palette.png", transparency=0)
    write_video(folder / "talk.mp4", [np.roll(picture, 2 * t, 1) for t in range(10)], sound[:6400])
    for name, codec in [("talk.webm", "libvpx"), ("talk.mkv", "mpeg4"), ("talk.mov", "mpeg4"), ("talk.avi", "mpeg4")]:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 256, 256, "yuv420p"
            for _ in range(6):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    recordings = {"wav": "pcm_s16le", "mp3": "libmp3lame", "m4a": "aac", "flac": "flac", "ogg": "libopus"}
    for suffix, codec in recordings.items():
        with av.open(str(folder / f"say.{suffix}"), "w") as container:
            track = container.add_stream(codec, rate=48000 if codec == "libopus" else 16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.repeat(sound, 3 if codec == "libopus" else 1)[None], "fltp", "mono")
            frame.sample_rate = track.rate
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    _unusual(folder, picture)
    return sorted(folder.iterdir())


def _unusual(folder: Path, picture: np.ndarray) -> None:
    """Kinds that have been a fault: clocks, several tracks, joined recordings, HDR, colour profiles, 16 bits."""
    from av.video.reformatter import ColorPrimaries, ColorTrc
    from PIL import Image, ImageCms
    from test_colour import PATCHES
    from test_colour import film as coloured
    from test_soundtrack import two_tracks
    from test_time import film

    for suffix in (".ts", ".flv", ".mkv"):
        film(folder / f"clock{suffix}", 0.4, 0.2)
    two_tracks(folder / "tracks.mkv", 1)
    two_tracks(folder / "unknown.mov", 0, 1)
    (folder / "joined.ogg").write_bytes(2 * (folder / "say.ogg").read_bytes())
    coloured(folder / "hdr.mkv", PATCHES, 9, False, ColorTrc.SMPTE2084, ColorPrimaries.BT2020)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(folder / "profile.jpg", icc_profile=profile, exif=exif)
    Image.fromarray(picture).convert("CMYK").save(folder / "cmyk.tiff")
    Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png", icc_profile=profile)
    Image.fromarray(picture).save(folder / "face.avif")


def cut(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    return data[: rng.randrange(len(data))]


def flip(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 3, 30, 300))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_header(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(200, len(data)))] = rng.randrange(256)
    return data


def extreme(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    """Put a huge, tiny or negative number over some four bytes, mostly near the start."""
    place = rng.randrange(max(1, min(len(data), rng.choice((64, 2000, len(data)))) - 4))
    number = rng.choice((0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    data[place : place + 4] = struct.pack(rng.choice(("<I", ">I")), number)
    return data


def blocks(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    """Zero, repeat, remove or swap a part."""
    size = rng.randint(1, max(1, len(data) // 4))
    first, second = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    part = data[first : first + size]
    match rng.randrange(4):
        case 0:
            data[first : first + size] = bytes(len(part))
        case 1:
            data[first:first] = part * rng.randint(1, 4)
        case 2:
            del data[first : first + size]
        case _:
            data[first : first + size], data[second : second + size] = data[second : second + size], part
    return data


def other_head(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    head = rng.randint(4, 400)
    data[:head] = rng.choice(others)[:head]
    return data


def glued(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    return data + rng.choice(others)


def garbage(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    data[rng.choice((0, 16, 512)) :] = rng.randbytes(rng.choice((0, 1, 100, 20000)))
    return data


MUTATIONS: tuple[Callable[[bytearray, random.Random, list[bytes]], bytearray], ...] = (
    cut, flip, flip_header, extreme, blocks, other_head, glued, garbage,
)  # fmt: skip


def special_files(folder: Path) -> list[Path]:
    """What random damage seldom makes: bombs, absurd sizes and rates, empty files, pipes' and devices' names."""
    folder.mkdir()

    def png(name: str, width: int, height: int, pixels: bytes = b"", mode: int = 2) -> None:
        header = b"IHDR" + struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, 8, mode, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n"
        for chunk in (header, b"IDAT" + pixels, b"IEND"):
            content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (folder / name).write_bytes(content)

    for width in SIDES:
        for height in SIDES:
            png(f"side_{width}x{height}.png", width, height)
    png("bomb.png", 30000, 30000, zlib.compress(bytes(100_000_000), 9))
    png("bomb_below_the_guard.png", 13000, 13000, zlib.compress(bytes(13000 * (3 * 13000 + 1)), 9))
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(500_000_000), 9)
    whole = bytearray((folder / "side_65535x1.png").read_bytes())
    whole[33:33] = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (folder / "text_bomb.png").write_bytes(whole)
    for rate in SAMPLE_RATES:
        for channels in (0, 1, 255, 65535):
            body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, (rate * 2) & 0xFFFFFFFF, 2, 16)
            body += b"data" + struct.pack("<I", 32000) + bytes(32000)
            (folder / f"rate_{rate}_{channels}.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    (folder / "empty.mp4").touch()
    (folder / "zeros.mp4").write_bytes(bytes(100_000))
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:10,\n/etc/passwd\n")
    (folder / "page.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    (folder / "boxes.mp4").write_bytes(b"\0\0\0\x08ftyp" + b"\0\0\0\x08moov" * 100_000)
    (folder / "deep.mp4").write_bytes(b"\0\0\0\x08ftyp" + b"\0\x10\0\0moov" * 20_000)
    return sorted(folder.iterdir())


def mutated(good: list[Path], count: int, rng: random.Random, folder: Path) -> Iterator[Path]:
    """`count` damaged files, one at a time under changing names; some with the suffix of another kind."""
    contents = [path.read_bytes() for path in good]
    suffixes = sorted({path.suffix for path in good})
    for index in range(count):
        kind = rng.randrange(len(good))
        data = bytearray(contents[kind])
        for _ in range(rng.choice((1, 1, 2, 3))):
            if data:
                data = rng.choice(MUTATIONS)(data, rng, contents)
        suffix = rng.choice(suffixes) if rng.random() < 0.1 else good[kind].suffix
        path = folder / f"{index:05}{suffix}"
        path.write_bytes(data)
        yield path


# The worker: reads names of files, answers what became of each


def worker() -> None:
    """For every file named on standard input: a line of JSON with the failures of its entry points."""
    import mssync
    from mssync.errors import InputError
    from mssync.video import probe

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what FFmpeg and mediapipe say about damage
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    talker = mssync.load()
    face = talker.portrait(good_portrait())
    sound = np.zeros(8000, np.float32)
    sound[::50] = 0.5
    list(talker.animate(face, sound, sample_rate=16000))  # everything that is built late
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def first(frames: Iterator[np.ndarray]) -> None:
        next(frames)

    entries: dict[str, Callable[[Path], object]] = {
        "animate image": lambda path: first(talker.animate(path, sound, sample_rate=16000)),
        "animate audio": lambda path: first(talker.animate(face, path)),
        "motion": talker.motion,
        "info": probe,
    }
    answers.write("ready\n")
    for line in sys.stdin:
        failures, done, start = [], 0, time.process_time()
        for name, entry in entries.items():
            try:
                entry(Path(line.rstrip("\n")))
                done += 1
            except InputError as error:
                if "\n" in str(error) or not str(error):
                    failures.append(f"{name}: message {str(error)!r}")
            except BaseException as error:  # everything else is what this looks for
                failures.append(f"{name}: {type(error).__name__}: {error}")
        seconds = time.process_time() - start  # a busy machine makes nothing hang
        if seconds > SECONDS:
            failures.append(f"takes {seconds:.0f} s")
        answers.write(json.dumps({"failures": failures, "done": done, "seconds": seconds}) + "\n")


def good_portrait() -> np.ndarray:
    """The public-domain portrait (256, 256, 3)."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:256, 100:356])


class Worker:
    """The process that reads the files; started again when it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, path: Path) -> dict[str, Any]:
        """Failures with one file, how many entry points were done with it, and seconds of computing."""
        if self.process is None:
            self._start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return json.loads(self._line(HANG))
        except TimeoutError:
            return {"failures": self._end(f"hangs: more than {HANG} s"), "done": 0, "seconds": HANG}
        except (ValueError, BrokenPipeError):
            return {"failures": self._end("crashes"), "done": 0, "seconds": 0.0}

    def close(self) -> None:
        if self.process is not None:
            self._end("")

    def _start(self) -> None:
        command = [sys.executable, __file__, "--worker"]
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._line(300) != "ready\n":
            raise SystemExit("the worker does not start")

    def _line(self, seconds: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return self.process.stdout.readline()

    def _end(self, what: str) -> list[str]:
        assert self.process is not None
        self.process.kill()
        code = self.process.wait()
        self.process = None
        return [f"{what} (exit code {code})"]


def main() -> None:
    """Make the files, send them through the worker, print failures and totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="copy the files that fail there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    with tempfile.TemporaryDirectory() as place:
        failed, used, slowest, count = _fuzz(Path(place), options)
    print(f"{count} files, {failed} failed, {used} uses went well all the same, slowest {slowest:.1f} s")
    sys.exit(bool(failed))


def _fuzz(place: Path, options: argparse.Namespace) -> tuple[int, int, float, int]:
    rng = random.Random(options.seed)
    damaged, empty = place / "damaged", place / "work"
    damaged.mkdir()
    empty.mkdir()
    good = good_files(place / "good")
    ask = Worker(empty)
    failed = used = count = 0
    slowest = 0.0
    files: Iterator[Path] = iter([*good, *special_files(place / "special"), *_directories(place)])
    for source in (files, mutated(good, options.count, rng, damaged)):
        for path in source:
            answer = ask(path)
            failures, done = answer["failures"], answer["done"]
            slowest, count, used = max(slowest, answer["seconds"]), count + 1, used + done
            failures += [f"leaves {name}" for name in os.listdir(empty)]
            if path in good and not done:
                failures.append("a good file is refused")
            for failure in failures:
                print(f"{path.name}: {failure}", flush=True)
            failed += bool(failures)
            if failures and options.keep and path.is_file():
                options.keep.mkdir(exist_ok=True)
                shutil.copy(path, options.keep)
            if path.parent == damaged:
                path.unlink()
    ask.close()
    return failed, used, slowest, count


def _directories(place: Path) -> list[Path]:
    """Names that are no files: a folder, nothing, a pipe, a device, a link in circles."""
    os.mkfifo(place / "pipe.mp4")
    (place / "circle.png").symlink_to(place / "circle.png")
    return [place, place / "nothing.wav", place / "pipe.mp4", Path("/dev/zero"), place / "circle.png"]


if __name__ == "__main__":
    main()
