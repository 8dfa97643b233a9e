"""MS-Sync: a portrait and a recording in, a talking video out.

>>> import mssync
>>> talker = mssync.load()
>>> talker.animate("portrait.jpg", "speech.wav").save("talking.mp4")
>>> for frame in talker.animate("portrait.jpg", "speech.wav"):  # uint8 (256, 256, 3) RGB, 25 a second
...     show(frame)
>>> mssync.score("talking.mp4").says
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mssync.errors import InputError

if TYPE_CHECKING:
    from mssync.animate import Frames, Pipeline, Portrait, load
    from mssync.audio import load_audio
    from mssync.meter import SyncMeter
    from mssync.pictures import read_image
    from mssync.stream import StreamingAnimator
    from mssync.sync.resync import Mended, resync
    from mssync.sync.score import Score, score
    from mssync.syncer import MultiScaleSyncLoss, SyncerPyramid
    from mssync.video import MediaInfo, VideoReader, probe, write_video

__version__ = "0.2.0"
__all__ = [
    "Frames",
    "InputError",
    "MediaInfo",
    "Mended",
    "MultiScaleSyncLoss",
    "Pipeline",
    "Portrait",
    "Score",
    "StreamingAnimator",
    "SyncMeter",
    "SyncerPyramid",
    "VideoReader",
    "__version__",
    "load",
    "load_audio",
    "probe",
    "read_image",
    "resync",
    "score",
    "write_video",
]

# Where each name lives. No module of this package may bear one of them: importing it would take the name's place.
_HOMES = {
    "mssync.animate": ("Frames", "Pipeline", "Portrait", "load"),
    "mssync.audio": ("load_audio",),
    "mssync.meter": ("SyncMeter",),
    "mssync.stream": ("StreamingAnimator",),
    "mssync.sync.resync": ("Mended", "resync"),
    "mssync.sync.score": ("Score", "score"),
    "mssync.syncer": ("MultiScaleSyncLoss", "SyncerPyramid"),
    "mssync.pictures": ("read_image",),
    "mssync.video": ("MediaInfo", "VideoReader", "probe", "write_video"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Late, so that `import mssync` and `mssync --help` need not wait for PyTorch.
    if name not in _HOME:
        raise AttributeError(f"module 'mssync' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
