"""Many visitors at once against a real server: python tests/load.py [--clients 40] [--seconds 1.0]

Starts `mssync serve` with its limit of 2 jobs and lets every client upload a portrait and a recording of its own
length, animate, and fetch the video, as `gradio_client` does. Checked, with exit code 1 where it fails:

- everybody gets the own video: its length and its sound are those of the recording that was sent
- those who wait are told how many are before them and how long it takes
- all processes of the server together stay under 3 GB (proportional set size: shared pages are counted once)
- when all have gone, no file of theirs remains; a server killed in the middle of a job leaves no process, and what it
  leaves on the disk is gone when the next one starts
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mssync.app.work import DEMO_PORTRAIT, DEMO_SPEECH
from mssync.audio import load_audio
from mssync.video import probe

PORT = 8797
LIMIT = 3e9  # bytes
PATIENCE = 120  # seconds that files may remain after the last visitor: 20 for a reload, and a busy machine


class Server:
    """`mssync serve`, with its temporary files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url, self.peak = folder, f"http://127.0.0.1:{PORT}/", 0.0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mssync.cli", "serve", "--port", str(PORT)]
        self.process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(self.folder)})
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}config", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise SystemExit("the server does not start")

    def family(self) -> list[int]:
        """The server's process and those it started."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(stat.parent.name)] = int(fields[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def memory(self) -> float:
        """Bytes of all its processes."""
        total = 0
        for pid in self.family():
            try:
                told = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
                total += int(re.search(r"^Pss:\s+(\d+)", told, re.M)[1])
            except (OSError, TypeError):
                continue
        return 1024 * total

    def watch(self, until: threading.Event) -> None:
        while not until.wait(1):
            self.peak = max(self.peak, self.memory())

    def files(self) -> list[str]:
        """What visitors and jobs left, below the folder of the server that runs."""
        return [str(path) for path in self.folder.glob("mssync-studio-*/*/*") if path.is_file()]


def recording(path: Path, speech: np.ndarray, k: int, seconds: float) -> int:
    """The k-th visitor's recording: a part of the speech of a length that nobody else's has; returns its frames."""
    frames = round(25 * seconds) + k
    samples = (speech[640 * k : 640 * (k + frames)] * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return frames


def visit(url: str, folder: Path, speech: np.ndarray, k: int, seconds: float) -> tuple[float, list[str], str]:
    """One visitor: seconds until the video was there, what was said meanwhile, what was wrong with it ("": nothing)."""
    from gradio_client import Client, handle_file

    frames = recording(folder / f"{k}.wav", speech, k, seconds)
    begun, said = time.monotonic(), []
    where = {"X-Forwarded-For": f"10.0.0.{k}"}  # as a proxy on this machine would tell it
    client = Client(
        url, headers=where, verbose=False, download_files=str(folder / f"got{k}"), httpx_kwargs={"timeout": PATIENCE}
    )
    try:
        job = client.submit(
            picture=handle_file(str(DEMO_PORTRAIT)), speech=handle_file(str(folder / f"{k}.wav")), api_name="/animate"
        )
        while not job.done():
            progress = job.status().progress_data
            if progress and progress[0].desc and progress[0].desc not in said:
                said.append(progress[0].desc)
            time.sleep(0.5)
        video = job.result()[0]
    finally:
        client.close()
    took = time.monotonic() - begun
    found = probe(video).frames
    if found != frames:
        return took, said, f"visitor {k} got {found} frames in place of {frames}"
    sent, got = speech[640 * k : 640 * (k + frames)], load_audio(video)[: 640 * frames]
    likeness = float(np.corrcoef(sent[: len(got)], got)[0, 1])
    return took, said, "" if likeness > 0.9 else f"visitor {k} got another sound (correlation {likeness:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=40, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the shortest recording; each is a frame longer")
    options = parser.parse_args()
    speech = load_audio(DEMO_SPEECH)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "server").mkdir()
        (folder / "visitors").mkdir()
        server = Server(folder / "server")
        try:
            failed = crowd(server, folder / "visitors", speech, options) + killed(server, folder / "visitors", speech)
        finally:
            server.process.terminate()
            server.process.wait(30)
        failed += [f"the server ended and left {name}" for name in os.listdir(folder / "server")]
    for line in failed:
        print(line)
    sys.exit(bool(failed))


def crowd(server: Server, folder: Path, speech: np.ndarray, options: argparse.Namespace) -> list[str]:
    """All visitors at once; returns what went wrong."""
    over = threading.Event()
    threading.Thread(target=server.watch, args=(over,)).start()
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(options.clients) as pool:
            visits = [
                pool.submit(visit, server.url, folder, speech, k, options.seconds) for k in range(options.clients)
            ]
            results = [one.result() for one in visits]
    finally:
        over.set()
    times = sorted(took for took, _, _ in results)
    told = sum(any(words.startswith("waiting") for words in said) for _, said, _ in results)
    longest = max((said for _, said, _ in results), key=len)
    half = times[len(times) // 2]
    print(f"{options.clients} visitors in {time.monotonic() - begun:.0f} s: the first had it after {times[0]:.0f} s")
    print(f"and half of them after {half:.0f} s; {told} were told their place, such as: {longest[:3]}")
    print(f"memory of all processes at most {server.peak / 1e9:.2f} GB")
    failed = [wrong for _, _, wrong in results if wrong]
    if server.peak > LIMIT:
        failed.append("more than 3 GB")
    if told < options.clients - 4:
        failed.append(f"only {told} were told that they wait")
    gone = time.monotonic()
    while server.files() and time.monotonic() < gone + PATIENCE:
        time.sleep(1)
    failed += [f"left {name}" for name in server.files()]
    print(f"no file of theirs after {time.monotonic() - gone:.0f} s" if not server.files() else "files are left")
    return failed


def killed(server: Server, folder: Path, speech: np.ndarray) -> list[str]:
    """A server that is killed in the middle of a job, and the next one."""
    threading.Thread(target=lambda: _ignored(visit, server.url, folder, speech, 0, 10.0), daemon=True).start()
    while not any(name.endswith(".mp4") for name in server.files()):  # the job is writing
        time.sleep(0.1)
    family = server.family()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    left = len(server.files())
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in family[1:] if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    server.start()
    failed = [f"process {pid} outlived the server" for pid in alive] + [f"left {name}" for name in server.files()]
    print(f"killed in mid-job with {left} files on the disk; after the next start {len(server.files())}")
    return failed


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _ignored(function, *arguments) -> None:
    try:
        function(*arguments)
    except Exception:
        return


if __name__ == "__main__":
    main()
