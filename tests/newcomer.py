"""A newcomer's path: runs the commands of README and docs, in order, in a fresh clone.

    python tests/newcomer.py [--page README.md]... [--without "make test"]... [--given FOLDER] [--minutes 1]

Every ```bash and ```python block of the pages is run as it stands, with the clone as working folder and its .venv,
once there is one, on the path. A block that needs what a newcomer lacks has a line `*Needs: a reason.*` above it, for
readers and for this script, and is left out, unless

- all files and folders that the reason names in `backticks` are there: in FOLDER, whose contents are linked into the
  clone, or made by a block before
- it needs a terminal that it may keep: it is started, and stopped as with Ctrl-C; it fails when it ends by itself
- it needs a server: one is started for it

With --minutes trainings end after so much time, and ablations after a few steps; without, blocks that need hours are
left out. Exit code 1 when a block fails.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/responsible-use.md",
    "docs/studio.md",
    "docs/loss.md",
    "docs/training.md",
    "docs/reproduce.md",
)
BLOCK = re.compile(r"(?:^\*Needs: ([^\n]*)\.\*\n\n?)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIMIT = 3600  # seconds for a block: the first one installs everything
TERMINAL, SERVER = "a terminal that it may keep", "a server"
KEPT = 60  # seconds that a block keeps its terminal, installing included
PORT = 8765
# In front of the real command: what takes hours takes minutes.
SHORTER = """#!/bin/bash
case "$1 $2" in
  train*) set -- "$@" --max-minutes {minutes} ;;
  "reproduce table4") set -- "$@" --steps 4 ;;
  "reproduce fig6") set -- "$@" --steps 4 --every 2 ;;
esac
PATH=${{PATH#*:}} exec mssync "$@"
"""


@dataclass(frozen=True)
class Block:
    """One block of a page: the line of its fence, its language, what it needs that a newcomer lacks ("": nothing)."""

    page: str
    line: int
    language: str
    code: str
    needs: str


def blocks(text: str, page: str) -> list[Block]:
    """The bash and python blocks of a page of Markdown, in order."""
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(page, line, match[2], match[3], match[1] or ""))
    return found


class Newcomer:
    """A fresh clone in `place`, with what lies in `given`, and one who runs blocks in it."""

    def __init__(self, place: Path, given: Path | None, minutes: float | None) -> None:
        self.clone, self.minutes = place / "mssync", minutes
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(self.clone)], check=True)
        for path in given.resolve().iterdir() if given else ():
            (self.clone / path.name).symlink_to(path)
        folders = [str(self.clone / ".venv" / "bin")]
        if minutes:
            shorter = place / "bin" / "mssync"
            shorter.parent.mkdir()
            shorter.write_text(SHORTER.format(minutes=minutes))
            shorter.chmod(0o755)
            folders.insert(0, str(shorter.parent))
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.environment["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])

    def lacks(self, needs: str) -> bool:
        """Whether something is missing of what a block needs."""
        names = re.findall(r"`([^`]+)`", needs)
        if not names or "GPU" in needs or ("hours" in needs and not self.minutes):
            return needs not in ("", TERMINAL, SERVER)
        return not all((self.clone / name).exists() for name in names)

    def run(self, block: Block) -> bool:
        """Run a block in the clone; return whether it did what it should."""
        if block.needs == TERMINAL:
            return _stopped(self._start(block), KEPT)
        if block.needs == SERVER:
            server = self._start(Block("", 0, "bash", f"exec mssync serve --port {PORT}", ""))
            try:
                _answers(PORT)
                done = _done(self._start(block))
            finally:
                stopped = _stopped(server, 0)
            return stopped and done
        return _done(self._start(block))

    def _start(self, block: Block) -> subprocess.Popen[bytes]:
        command = ["bash", "-e", "-c"] if block.language == "bash" else ["python", "-c"]
        return subprocess.Popen([*command, block.code], cwd=self.clone, env=self.environment, start_new_session=True)


def _done(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended well; one that takes longer than LIMIT, or is interrupted, does not live on."""
    try:
        return process.wait(LIMIT) == 0
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def _stopped(process: subprocess.Popen[bytes], after: float) -> bool:
    """Whether it was still there after some seconds, and ended without an error, as by Ctrl-C."""
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
    return process.wait(60) in (0, 130, -signal.SIGINT)


def _answers(port: int) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/config").close()
            return
        except OSError:
            time.sleep(0.5)


def main() -> None:
    """Clone, run the pages, print what became of each block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="append", help="only this page; give several")
    parser.add_argument("--without", action="append", default=[], help="leave out lines that begin so")
    parser.add_argument("--given", type=Path, help="folder of things that a newcomer lacks")
    parser.add_argument("--minutes", type=float, help="for what takes hours")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as place:
        newcomer = Newcomer(Path(place), options.given, options.minutes)
        for page in options.page or PAGES:
            for block in blocks((newcomer.clone / page).read_text(encoding="utf-8"), page):
                results.append(tell(block, newcomer, options.without))
    print(f"{results.count('ok')} ok, {results.count('left out')} left out, {results.count('failed')} failed")
    sys.exit("failed" in results)


def tell(block: Block, newcomer: Newcomer, without: list[str]) -> str:
    """Run one block unless it lacks something; print and return what became of it."""
    where = f"{block.page}:{block.line}"
    if newcomer.lacks(block.needs):
        print(f"left out  {where}: needs {block.needs}", flush=True)
        return "left out"
    kept = [line for line in block.code.splitlines(True) if not any(line.startswith(word) for word in without)]
    start = time.monotonic()
    result = "ok" if newcomer.run(replace(block, code="".join(kept))) else "failed"
    print(f"{result:8}  {where}: {time.monotonic() - start:.0f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
