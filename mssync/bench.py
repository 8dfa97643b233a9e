"""`mssync bench`: how fast everything is on this machine, in one run, beside what it is compared with.

What is compared takes turns, so that a machine that is busy, or slows down as it warms up, is so for all of them; the
ratios are what counts. A checkout of the public code can be timed along (`reference`); it is no part of the package.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mssync.audio import SAMPLE_RATE
from mssync.errors import InputError
from mssync.video import FPS

if TYPE_CHECKING:
    from mssync.animate import Pipeline, Portrait
    from mssync.config import Config

ROUNDS = 5  # after one that does not count
SPEECH_SECONDS = 20.0  # of the video that is made end to end
LENGTHS = (120, 1000)  # frames of generated sequences
LONG = 10_000  # frames of the sequence on which the time of a frame must not grow
STRETCH = 200  # frames at the beginning (from frame 50) and at the end of it that are timed
LIVE_SECONDS = 20.0
CROWD = 4  # sessions at once
PIECE = 320  # samples that a client sends at a time: 20 ms
MATRIX, COPIED = 2048, 1 << 28  # side of the product and bytes of the copy that measure what the machine can do
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}  # no more than most people's processors have
OTHERS = {  # processors that this one can stand for: what keeps it to what they have
    "bfloat16": {"MSSYNC_PRECISION": "bfloat16"},
    "float32": {"MSSYNC_PRECISION": "float32"},
    "float32, AVX2 alone": {"MSSYNC_PRECISION": "float32", **AVX2},
    "auto, oneDNN kept to AVX2": {"DNNL_MAX_CPU_ISA": "AVX2"},
}
PUBLIC_STEP = 29.0  # seconds that the public generator alone takes forward and backward (50 × 40 frames, two cores)


@dataclass(frozen=True)
class Figure:
    """One line of the table. goal: what it should be; note: what it means."""

    section: str
    name: str
    value: float
    unit: str
    goal: str = ""
    note: str = ""


class Bench:
    """Pictures, models and settings that sections share.

    picture: (H, W, 3) uint8 with a face; speech: float32 at 16 kHz; reference: folder of public code; minutes: of one
    live session whose memory and delay are watched, 0 for none.
    """

    def __init__(
        self, picture: np.ndarray, speech: np.ndarray, reference: Path | None = None, minutes: float = 0.0
    ) -> None:
        self.picture, self.minutes = picture, minutes
        self.speech = np.resize(speech, round(SPEECH_SECONDS * SAMPLE_RATE)).astype(np.float32)
        self.reference = None if reference is None else Reference(reference)

    @cached_property
    def talker(self) -> Pipeline:
        from mssync.animate import load

        return load()

    @cached_property
    def portrait(self) -> Portrait:
        return self.talker.portrait(self.picture)


def run(bench: Bench, sections: Sequence[str] = ()) -> Iterator[Figure]:
    """Figures of the named sections, or of all. Raises InputError for an unknown one."""
    for name in sections:
        if name not in SECTIONS:
            raise InputError(f"there is no section {name!r}; choose from {', '.join(SECTIONS)}")
    for name, section in SECTIONS.items():
        if not sections or name in sections:
            for title, value, unit, *about in section(bench):
                yield Figure(name, title, float(value), unit, *about)


def about_machine() -> dict[str, Any]:
    """What the figures were measured on; load: processes that wanted to run in the last minute."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name, as Linux tells it; elsewhere what Python knows of it."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", told.read_text(encoding="utf-8")) if told.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    return {"machine": about_machine(), "figures": [asdict(figure) for figure in figures]}


def as_markdown(figures: Sequence[Figure]) -> str:
    """A table for people, with the machine in a line above it."""
    machine = ", ".join(f"{name} {value}" for name, value in about_machine().items())
    lines = [machine, "", "| section | figure | value | goal | |", "|---|---|---|---|---|"]
    for f in figures:
        lines.append(f"| {f.section} | {f.name} | {_shown(f.value)} {f.unit} | {f.goal} | {f.note} |")
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_turns(work: Mapping[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds a unit of each piece of work, which returns how many units it did: medians over rounds, after one more.

    They take turns, so that a machine that is busy, or slows down as it warms up, is so for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(1 + rounds):
        for name, do in work.items():
            start = time.perf_counter()
            count = do()
            seconds[name].append((time.perf_counter() - start) / count)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


Rows = Iterator[tuple[Any, ...]]  # (name, value, unit, goal, note), the last two where there are any


# Starting up


def startup(_: Bench) -> Rows:
    def process(*arguments: str) -> Callable[[], int]:
        def work() -> int:
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            return 1

        return work

    found = in_turns(
        {"import": process("-c", "import mssync"), "help": process("-m", "mssync.cli", "--help")}
    )  # fmt: skip
    yield "import mssync, a whole process", found["import"], "s", "< 0.3"
    yield "mssync --help", found["help"], "s", "< 0.6"


# Videos


def animation(bench: Bench) -> Rows:
    talker = bench.talker
    talker.portrait(bench.picture)  # the face mesh is part of loading
    firsts: list[float] = []
    rates: dict[int, list[float]] = {512: [], 256: []}
    with tempfile.TemporaryDirectory() as folder:
        for size in 3 * list(rates):
            start = time.perf_counter()
            frames = talker.animate(bench.picture, bench.speech, sample_rate=SAMPLE_RATE, size=size)
            next(frames)
            firsts.append(time.perf_counter() - start)
            frames.close()
            start = time.perf_counter()
            frames = talker.animate(bench.picture, bench.speech, sample_rate=SAMPLE_RATE, size=size)
            count = frames.save(Path(folder) / "talking.mp4")
            rates[size].append(count / (time.perf_counter() - start))
    for size, each in rates.items():
        yield f"animate end to end, {size}×{size}", np.median(each), "frames/s", "≥ 25", "picture and sound in, MP4 out"
    yield "first frame", np.median(firsts), "s", "< 1.5", f"after loading, {SPEECH_SECONDS:g} s of speech"
    yield "peak memory of the process", _peak_megabytes(), "MB"


def processors(bench: Bench) -> Rows:
    """`animation` in processes that may use no more than other processors have, one after the other."""
    from PIL import Image

    from mssync.precision import has_bfloat16

    with tempfile.TemporaryDirectory() as folder:
        picture, figures = Path(folder) / "picture.png", Path(folder) / "figures.json"
        Image.fromarray(bench.picture).save(picture)
        command = [sys.executable, "-m", "mssync.cli", "bench", "animation"]
        command += ["--image", str(picture), "--json", str(figures)]
        for name, limits in OTHERS.items():
            if name == "bfloat16" and not has_bfloat16("cpu"):
                continue
            kept = {key: value for key, value in os.environ.items() if key != "MSSYNC_PRECISION"}
            subprocess.run(command, env=kept | limits, check=True, capture_output=True)
            rate, *_ = json.loads(figures.read_text(encoding="utf-8"))["figures"]
            yield f"animate, {name}", rate["value"], "frames/s", "≥ 25"


def drawing(bench: Bench) -> Rows:
    from mssync.animate import BATCH

    exact = exact_fomm()
    frames = bench.talker.animate(bench.portrait, bench.speech, sample_rate=SAMPLE_RATE)
    motion = frames.motion[: BATCH * bench.talker.cores.count]
    work = {
        "layered": _drawn(bench.talker, bench.portrait, motion),
        "exact": _drawing(exact, bench, BATCH),
    }
    if bench.reference is not None and bench.reference.fomm is not None:
        work["public"] = bench.reference.drawing()
    found = in_turns(work)
    yield "drawing, layered", 1 / found["layered"], "frames/s"
    yield "drawing, exact FOMM in our code", 1 / found["exact"], "frames/s"
    yield "layered over our exact FOMM", found["exact"] / found["layered"], "times"
    if "public" in found:
        yield "drawing, public FOMM", 1 / found["public"], "frames/s"
        yield "layered over the public FOMM", found["public"] / found["layered"], "times", "≥ 12"
        yield "our exact FOMM over the public one", found["public"] / found["exact"], "times", "≥ 2"


def exact_fomm() -> Pipeline:
    """The first-order motion model with the sizes of vox-256 and random weights: they cost what trained ones do."""
    from mssync.animate import Pipeline
    from mssync.precision import choose
    from mssync.reenact.fomm import FOMM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pipeline(FOMM().for_rendering(choose(None, torch.device("cpu"))), None, name="fomm")


def _drawing(pipeline: Pipeline, bench: Bench, count: int) -> Callable[[], int]:
    """Draws `count` frames of another reenactor, the crop of the same portrait under its own motion."""
    from mssync.animate import Portrait
    from mssync.faces import Box, crop

    face = crop(bench.picture, bench.portrait.box, 256)
    pose = pipeline.keypoints(face[None])
    shaken = pose + 0.01 * np.random.default_rng(0).standard_normal((count, *pose.shape[1:])).astype(np.float32)
    box, unknown = Box(0, 0, 256), np.zeros((478, 3), np.float32)  # landmarks, which keypoint models do not need
    portrait = Portrait(face, box, pose[0], pipeline.prepared(face, box, unknown, pose), (256, 256))
    return _drawn(pipeline, portrait, shaken)


def _drawn(pipeline: Pipeline, portrait: Portrait, motion: np.ndarray) -> Callable[[], int]:
    """Draws motion in batches on all cores, as `animate` does; returns how many frames that were."""
    from mssync.animate import BATCH

    batches = np.split(motion, range(BATCH, len(motion), BATCH))
    return lambda: sum(map(len, pipeline.cores.map(lambda part: pipeline.draw_here(portrait, part, 256), batches)))


# The generator


def _generator(name: str) -> Any:
    from mssync.config import load_config
    from mssync.generator import new_generator

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_generator(load_config(name).generator).eval().requires_grad_(False)


def _speech(generator: Any, frames: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A first frame (B, D) and what a generator hears, of noise: what they say costs nothing."""
    from mssync.face1 import NUMBERS
    from mssync.face_generator import FaceGenerator
    from mssync.speech import FEATURES

    random = torch.Generator().manual_seed(0)
    numbers, rows, heard = (NUMBERS, 2, FEATURES) if isinstance(generator, FaceGenerator) else (60, 4, 26)
    return (
        0.1 * torch.randn(batch, numbers, generator=random),
        torch.randn(batch, rows * frames, heard, generator=random),
    )


def generation(bench: Bench) -> Rows:
    goals = {"paper": "≥ 114, twice the public 57", "compact": "≥ 500", "face": "≥ 500"}
    generators = {name: _generator(name) for name in goals}
    for length in LENGTHS:

        def work(generator: Any, length: int = length) -> Callable[[], int]:
            x0, audio = _speech(generator, length)
            return lambda: sum(1 for _ in generator.stream(x0, audio))

        programs = {name: work(generator) for name, generator in generators.items()}
        if bench.reference is not None and bench.reference.generator is not None:
            programs["public"] = bench.reference.generation(length)
        found = in_turns(programs, rounds=3)
        for name, goal in goals.items():
            yield f"{name}, {length} frames", 1 / found[name], "frames/s", goal
        if "public" in found:
            yield f"public MS-Sync, {length} frames", 1 / found["public"], "frames/s"
            yield f"paper over public, {length} frames", found["public"] / found["paper"], "times", "≥ 2"
    for name, generator in generators.items():
        early, late = _early_and_late(generator)
        yield f"{name}: a frame from {LONG - STRETCH} on over one from 50 on", late / early, "times", "1"
    x0, audio = _speech(generators["compact"], LENGTHS[0], 8)
    alone = in_turns({"8": lambda: 8 * sum(1 for _ in generators["compact"].stream(x0, audio))}, rounds=3)["8"]
    yield "compact, 8 portraits in one batch", 1 / alone, "frames/s"


def _early_and_late(generator: Any) -> tuple[float, float]:
    """Median seconds of a frame from frame 50 on and at the end of LONG frames."""
    x0, audio = _speech(generator, LONG)
    seconds, last = [], time.perf_counter()
    for _ in generator.stream(x0, audio):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return float(np.median(seconds[50 : 50 + STRETCH])), float(np.median(seconds[-STRETCH:]))


def training(bench: Bench) -> Rows:
    from mssync.config import load_config

    config = load_config("paper")
    settings = config.generator_training
    generator = _generator("paper").train().requires_grad_(True)
    x0, audio = _speech(generator, settings.frames, settings.batch)

    def alone() -> int:
        generator(x0, audio).square().mean().backward()
        return 1

    programs: dict[str, Callable[[], int]] = {"step": _training_step(config), "alone": alone}
    if bench.reference is not None and bench.reference.generator is not None:
        programs["public"] = bench.reference.training(settings.frames, settings.batch)
    found = in_turns(programs, rounds=1)
    yield (
        "step, paper's sizes, 50 × 40 frames",
        found["step"],
        "s",
        f"≤ {PUBLIC_STEP / 3:.1f}",
        "all networks and losses",
    )
    yield "generator alone, forward and backward", found["alone"], "s"
    if "public" in found:
        yield "public generator alone", found["public"], "s"
        yield "generator alone, public over ours", found["public"] / found["alone"], "times"
        rest = found["step"] - found["alone"]  # discriminators, syncers: no faster in the public code
        yield "step, public over ours", (found["public"] + rest) / found["step"], "times", "≥ 3", "the rest as in ours"


def _training_step(config: Config) -> Callable[[], int]:
    from mssync.data.sequences import Sequence as Clip
    from mssync.syncer import MultiScaleSyncLoss, Syncer, SyncerPyramid
    from mssync.training import generator as module
    from mssync.training.common import launched

    settings, size = config.generator_training, asdict(config.syncer)
    x0, audio = _speech(_generator("paper"), settings.frames, settings.batch)
    motion = x0[:, None] + 0.01 * torch.randn(settings.batch, settings.frames, 60).cumsum(1)
    clip = Clip("noise", "nobody", "", False, "none", "logfbank", motion[0], motion[0], audio[0])
    parts = module._build(config, [clip], MultiScaleSyncLoss(SyncerPyramid([Syncer(**size) for _ in range(4)])))
    fabric = launched()
    parts = module._distribute(fabric, parts)

    def step() -> int:
        module._step(fabric, parts, [motion, audio, x0], config)
        return 1

    return step


# Live


def live(bench: Bench) -> Rows:
    with _server(bench) as address:
        alone = _clients(address, bench.speech, 1, LIVE_SECONDS)
        crowd = _clients(address, bench.speech, CROWD, LIVE_SECONDS)
        yield from _delays("one session", alone)
        yield from _delays(f"{CROWD} sessions", crowd)
        if bench.minutes:
            before = _megabytes()
            (seen,) = _clients(address, bench.speech, 1, 60 * bench.minutes)
            delays = np.array([delay for _, delay in seen])
            tenth = max(1, len(delays) // 10)
            growth = np.median(delays[-tenth:]) - np.median(delays[:tenth])
            yield f"{bench.minutes:g} minutes: growth of the delay", 1000 * growth, "ms", "0"
            yield f"{bench.minutes:g} minutes: growth of memory", _megabytes() - before, "MB", "0"


def _delays(name: str, clients: list[list[tuple[int, float]]]) -> Rows:
    """clients: frames (index, seconds from its sound to its arrival) of each."""
    rates = [FPS * len(seen) / (1 + seen[-1][0]) if seen else 0.0 for seen in clients]
    delays = np.array([delay for seen in clients for _, delay in seen])
    goal = "≥ 25" if len(clients) == 1 else ""
    yield f"{name}: frames a second, the least of them", min(rates), "frames/s", goal
    note = "from the first sample of its 40 ms to the frame's arrival, with what it waits for"
    yield f"{name}: delay at the socket, median", 1000 * np.median(delays), "ms", "", note
    yield f"{name}: delay at the socket, 99 %", 1000 * np.quantile(delays, 0.99), "ms"


@contextmanager
def _server(bench: Bench) -> Iterator[str]:
    """The live server on this machine; gives its WebSocket's address."""
    import uvicorn

    from mssync.animate import load
    from mssync.app.server import create_app

    app = create_app(load(live=True), bench.picture)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws_per_message_deflate=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
            if not thread.is_alive():
                raise InputError("the live server did not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws"
    finally:
        server.should_exit = True
        thread.join()


def _clients(address: str, speech: np.ndarray, count: int, seconds: float) -> list[list[tuple[int, float]]]:
    """Let `count` clients speak at the speed of sound; the frames of each with their delays."""
    results: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    threads = [threading.Thread(target=_client, args=(address, speech, seconds, seen)) for seen in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _client(address: str, speech: np.ndarray, seconds: float, seen: list[tuple[int, float]]) -> None:
    import json

    from websockets.sync.client import connect

    from mssync.app.server import HEADER

    samples = (speech * 32767).clip(-32768, 32767).astype("<i2")
    with connect(address, compression=None) as socket:
        socket.send(json.dumps({"type": "start"}))
        socket.recv()
        begun = time.perf_counter()

        def speak() -> None:
            for n in range(round(seconds * 16000 / PIECE)):
                piece = np.take(samples, range(n * PIECE, (n + 1) * PIECE), mode="wrap")
                # A piece can be sent when its last sample has been spoken.
                time.sleep(max(0.0, begun + (n + 1) * PIECE / 16000 - time.perf_counter()))
                socket.send(piece.tobytes())
            socket.send(json.dumps({"type": "end"}))

        speaking = threading.Thread(target=speak)
        speaking.start()
        for message in socket:
            if isinstance(message, bytes):
                index, at = HEADER.unpack_from(message)
                seen.append((index, time.perf_counter() - begun - at))
                socket.send(json.dumps({"type": "seen", "index": index}))
        speaking.join()


# What the machine could do


def limits(bench: Bench) -> Rows:
    """Multiply-adds and bytes of a frame, the time they take at the machine's peak, and the time they do take."""
    peak, coarse, copied = _peaks()
    yield "products of matrices, float32", peak / 1e9, "G multiply-adds/s"
    yield "products of matrices, bfloat16", coarse / 1e9, "G multiply-adds/s"
    yield "copying", copied / 1e9, "GB/s"
    for name, work, frames, best in _profiled(bench, peak, coarse):
        products, moved = _counted(work, frames)
        seconds = in_turns({name: work}, rounds=3)[name]
        least = max(products / best, moved / copied)
        bound = "multiply-adds" if products / best > moved / copied else "memory"
        yield f"{name}: multiply-adds", products / 1e6, "M a frame"
        yield f"{name}: read and written by operators", moved / 1e6, "MB a frame"
        yield f"{name}: time", 1000 * seconds, "ms a frame"
        yield f"{name}: time over the machine's limit", seconds / least, "times", "1", f"the limit is {bound}"


def _profiled(bench: Bench, peak: float, coarse: float) -> Iterator[tuple[str, Callable[[], int], int, float]]:
    """What is looked at: name, work, frames of it, multiply-adds a second at best."""
    from mssync.animate import BATCH

    motion = bench.talker.animate(bench.portrait, bench.speech, sample_rate=SAMPLE_RATE).motion[:BATCH]
    best = coarse if bench.talker.reenactor.precision == "bfloat16" else peak
    # In this thread, where operators can be counted, on all cores.
    yield "drawing, layered", lambda: len(bench.talker.draw_here(bench.portrait, motion, 256)), BATCH, best
    for name in ("paper", "compact", "face"):
        generator = _generator(name)
        x0, audio = _speech(generator, LENGTHS[0])

        def work(generator: Any = generator, x0: torch.Tensor = x0, audio: torch.Tensor = audio) -> int:
            return sum(1 for _ in generator.stream(x0, audio))

        yield f"generator, {name}", work, LENGTHS[0], peak


def _peaks() -> tuple[float, float, float]:
    """Multiply-adds a second in float32 and bfloat16, bytes a second read and written by a copy: the best of five."""
    a = torch.randn(MATRIX, MATRIX)
    half = a.bfloat16()
    source, target = torch.ones(COPIED // 4), torch.zeros(COPIED // 4)

    def least(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    return (
        MATRIX**3 / least(lambda: a @ a),
        MATRIX**3 / least(lambda: half @ half),
        2 * COPIED / least(lambda: target.copy_(source)),
    )


def _counted(work: Callable[[], int], frames: int) -> tuple[float, float]:
    """Multiply-adds and bytes of operators' inputs and outputs, a frame."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    class Bytes(TorchDispatchMode):
        moved = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view:
                tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
                self.moved += sum(x.numel() * x.element_size() for x in tensors)
            return result

    with FlopCounterMode(display=False) as counter, Bytes() as bytes_:
        work()
    return counter.get_total_flops() / 2 / frames, bytes_.moved / frames


def _megabytes() -> float:
    """Resident memory of this process."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text(encoding="utf-8").split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_megabytes() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


# Public code


class Reference:
    """A checkout of public code: of MS-Sync (nets/networks.py, fomm/modules) or of FOMM alone (modules).

    Its models are built with the sizes of the papers and random weights, which cost what trained ones do.
    Raises InputError: neither is in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        packages = {"fomm/modules/generator.py": "fomm.modules.generator", "modules/generator.py": "modules.generator"}
        found = [package for file, package in packages.items() if (self.folder / file).is_file()]
        self.fomm = found[0] if found else None
        self.generator = "nets.networks" if (self.folder / "nets" / "networks.py").is_file() else None
        if self.fomm is None and self.generator is None:
            raise InputError(f"{folder}: no checkout of MS-Sync (nets/networks.py) or FOMM (modules/generator.py)")

    def _import(self, name: str) -> Any:
        import importlib

        sys.path.insert(0, str(self.folder))
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"{self.folder}: cannot be imported ({error})") from error
        finally:
            sys.path.remove(str(self.folder))

    def drawing(self) -> Callable[[], int]:
        """Draws a frame as its own `animate` does: one at a time, the source encoded each time."""
        shared = {"num_channels": 3, "num_kp": 10, "estimate_jacobian": True}
        hourglass = {"block_expansion": 64, "max_features": 1024, "num_blocks": 5, "scale_factor": 0.25}
        model = self._import(str(self.fomm)).OcclusionAwareGenerator(
            **shared, block_expansion=64, max_features=512, num_down_blocks=2, num_bottleneck_blocks=6,
            estimate_occlusion_map=True, dense_motion_params=hourglass,
        ).eval()  # fmt: skip
        source, points = torch.rand(1, 3, 256, 256), {"value": torch.rand(1, 10, 2) - 0.5}
        points["jacobian"] = torch.eye(2).expand(1, 10, 2, 2)

        def draw() -> int:
            with torch.no_grad():
                model(source, kp_source=points, kp_driving=points)["prediction"].numpy()
            return 1

        return draw

    def _model(self) -> Any:
        """Its generator in the paper's sizes, 4 layers of 8 heads, 512 wide; for the rest its defaults."""
        from types import SimpleNamespace

        config = SimpleNamespace(
            data_dim=6, obs_len=3, seq_len=40, audio_dim=512, coord_dim=512, hidden_size=64, nheads_tf=8, nlayers_tf=4,
            pyramid_layers_g=4, nblocks_do=4, expansion_fact_do=4, streams_merging_activation="softmax",
            keypoints=True, bias_stream=True, final_block=True, interp_mode="linear", inpt_coord_do=True,
        )  # fmt: skip
        return self._import(str(self.generator)).DynamicalModel(config)

    def generation(self, frames: int) -> Callable[[], int]:
        model = self._model().eval()
        x0, audio = _speech(_generator("paper"), frames + 3)

        def generate() -> int:
            with torch.no_grad(), _on_this_device():
                model(x0.view(1, 1, 10, 6).expand(-1, 3, -1, -1), audio)
            return frames

        return generate

    def training(self, frames: int, batch: int) -> Callable[[], int]:
        model = self._model().train()
        x0, audio = _speech(_generator("paper"), frames + 3, batch)

        def step() -> int:
            with _on_this_device():
                model(x0.view(batch, 1, 10, 6).expand(-1, 3, -1, -1), audio)[1].square().mean().backward()
            return 1

        return step


@contextmanager
def _on_this_device() -> Iterator[None]:
    """The public generator moves its masks to a GPU, whether there is one or not: leave them where they are."""
    if torch.cuda.is_available():
        yield
        return
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = before  # type: ignore[method-assign]


SECTIONS: dict[str, Callable[[Bench], Rows]] = {
    "startup": startup,
    "animation": animation,
    "processors": processors,
    "drawing": drawing,
    "generation": generation,
    "training": training,
    "live": live,
    "limits": limits,
}
