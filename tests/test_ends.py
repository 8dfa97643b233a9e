"""Ends: signals, closed streams, folders that cannot be written to, consoles that cannot show a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mssync.errors import InputError, output_file
from mssync.video import probe, write_video

PORTRAIT = Path(__file__).parents[1] / "mssync" / "assets" / "demo_portrait.jpg"
SPEECH = PORTRAIT.with_name("demo_speech.ogg")
COMMAND = [sys.executable, "-m", "mssync.cli"]


def run(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, check=False, cwd=folder, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of speech."""
    folder = tmp_path_factory.mktemp("speech")
    from mssync.audio import load_audio

    write_video(folder / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 12, load_audio(SPEECH)[: 12 * 640])
    return folder / "a.mp4"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("seconds", [0.3, 2.5, 3.5])
def test_a_signal_leaves_nothing(tmp_path: Path, name: str, seconds: float) -> None:
    process = subprocess.Popen(
        [*COMMAND, "animate", str(PORTRAIT), str(SPEECH), "-o", str(tmp_path / "o.mp4"), "--size", "1024"],
        stderr=subprocess.PIPE,
    )
    time.sleep(seconds)
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert b"Traceback" not in told or seconds < 1  # Python itself may still be starting
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path: Path) -> None:
    assert output_file(tmp_path / ("x" * 251 + ".mp4"), ".mp4")
    with pytest.raises(InputError, match=r"^cannot write .{60} … x{16}\.mp4: file name too long$"):
        output_file(tmp_path / ("x" * 252 + ".mp4"), ".mp4")


@pytest.mark.parametrize("encoding", ["cp1252", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_consoles_that_cannot_show_a_name_get_it_escaped(tmp_path: Path, speech: Path, encoding: str) -> None:
    done = run("info", speech, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("animate", "--help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    strange = tmp_path / "说话.mp4"
    done = run("animate", PORTRAIT, speech, "-o", strange, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u8bf4\\u8bdd.mp4" in done.stdout
    assert probe(strange).frames == 12


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_nothing_but_the_output_folder_need_be_writable(tmp_path: Path, speech: Path) -> None:
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), "/proc/none")
    done = run("animate", PORTRAIT, speech, "-o", tmp_path / "o.mp4", folder=Path("/proc"), **nowhere)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]
