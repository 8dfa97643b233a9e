"""What C++ libraries write to stderr about themselves, held back; what they say of errors, and as they crash, is not.

mediapipe logs to file descriptor 2 whatever it is asked for. So a process of its own stands between the descriptor and
stderr and leaves out lines of information and warning. Python's own messages go past it. It ends when all that could
write to it have ended; not even a crash takes with it what was said before.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys

# absl's log lines ("W0000 00:00:1795869331.576558 3263 file.cc:114] ..."), and two that come before it is set up.
CHATTER = re.compile(
    rb"[IW]\d{4} [\d:.]+ +\d+ \S+:\d+\] |INFO: Created TensorFlow Lite|WARNING: All log messages before absl::"
)


def hold_back_chatter() -> None:
    """Put the process in its place, before threads begin. Where there is no fork (Windows) nothing is held back."""
    if sys.stderr is None:  # closed, as for a daemon; another file may not get its descriptor
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)
        os.dup2(sys.stderr.fileno(), 2)
    faulthandler.enable(os.dup(2))
    if not hasattr(os, "fork"):
        return
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        _pass_on(reading)
    os.close(reading)
    encoding = sys.stderr.encoding
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    os.dup2(writing, 2)
    os.close(writing)


def _pass_on(reading: int) -> None:
    """From a pipe to stderr, line by line, but for chatter; ends this process when nobody can write any more."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the writers end first
        os.closerange(0, 2)  # or who reads our output would wait for this process, too
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not CHATTER.match(line):
                    os.write(2, line)
    finally:
        os._exit(0)
