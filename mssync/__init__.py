"""MS-Sync: a portrait and a recording in, a talking video out.

>>> import mssync
>>> talker = mssync.load()
>>> for frame in talker.animate("portrait.jpg", "speech.wav"):  # uint8 (256, 256, 3) RGB, 25 a second
...     show(frame)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mssync.animate import load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Late, so that `mssync --help` need not wait for PyTorch.
    if name == "load":
        from mssync.animate import load

        return load
    raise AttributeError(f"module 'mssync' has no attribute {name!r}")
