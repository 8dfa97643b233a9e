"""A newcomer's path: runs the commands of README and docs, in order, in a fresh clone.

    python tests/newcomer.py [--page README.md]... [--without "make test"]...

Every ```bash and ```python block of the pages is run as it stands, with the clone as working folder and its .venv,
once there is one, on the path. A block that needs what a newcomer lacks has a line `*Needs: a reason.*` above it, for
readers and for this script, and is left out. Exit code 1 when a block fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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


def run(block: Block, folder: Path) -> int:
    """Run a block in the clone; return its exit code."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{folder / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    command = ["bash", "-e", "-c"] if block.language == "bash" else ["python", "-c"]
    return subprocess.run([*command, block.code], cwd=folder, env=environment, timeout=LIMIT).returncode


def main() -> None:
    """Clone, run the pages, print what became of each block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="append", help="only this page; give several")
    parser.add_argument("--without", action="append", default=[], help="leave out lines that begin so")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "mssync"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(clone)], check=True)
        for page in options.page or PAGES:
            for block in blocks((clone / page).read_text(encoding="utf-8"), page):
                results.append(tell(block, clone, options.without))
    print(f"{results.count('ok')} ok, {results.count('left out')} left out, {results.count('failed')} failed")
    sys.exit("failed" in results)


def tell(block: Block, clone: Path, without: list[str]) -> str:
    """Run one block unless it needs something; print and return what became of it."""
    where = f"{block.page}:{block.line}"
    if block.needs:
        print(f"left out  {where}: needs {block.needs}", flush=True)
        return "left out"
    kept = [line for line in block.code.splitlines(True) if not any(line.startswith(word) for word in without)]
    start = time.monotonic()
    code = run(Block(block.page, block.line, block.language, "".join(kept), ""), clone)
    result = "failed" if code else "ok"
    print(f"{result:8}  {where}: {time.monotonic() - start:.0f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
