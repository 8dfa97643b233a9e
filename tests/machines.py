"""The demo as other processors compute it: its motion and six frames against stored ones, under every setting that
makes libraries compute as on another machine.

    python tests/machines.py            all settings, one row each; exit code 1 where one differs
    python tests/machines.py --here     this interpreter and environment as they are
    python tests/machines.py --write    make the stored ones again: after a change of weights or of how frames are drawn
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

STORED = Path(__file__).parent / "reference"
MOTION, FRAMES = STORED / "demo_motion.npy", STORED / "demo_frames.png"
SHOWN = 6
MOTION_ERROR, FRAME_DB = 1e-3, 40.0  # greatest difference in [-1, 1] and of Jacobians; least peak signal-to-noise ratio

NO_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
LOWEST = {
    "NPY_DISABLE_CPU_FEATURES": NO_AVX512, "OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1",
}  # fmt: skip
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": NO_AVX512},
    **{f"OpenBLAS {core}": {"OPENBLAS_CORETYPE": core} for core in ("Prescott", "Sandybridge", "Haswell", "SkylakeX")},
    **{f"ATen {level}": {"ATEN_CPU_CAPABILITY": level} for level in ("default", "avx2")},
    **{f"oneDNN {isa}": {"DNNL_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX2")},
    "ATen and oneDNN AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"},
    **{f"{count} threads": {"OMP_NUM_THREADS": count} for count in ("1", "4")},
    "all of the lowest": LOWEST,
}


def made() -> tuple[np.ndarray, np.ndarray, str]:
    """The demo's motion (T, 10, 6), SHOWN of its frames side by side (256, SHOWN · 256, 3), and their precision."""
    from skimage.data import astronaut

    import mssync
    from mssync.cli.common import DEMO_SPEECH

    talker = mssync.load()
    portrait = talker.portrait(astronaut())
    motion = talker.animate(portrait, DEMO_SPEECH).motion
    times = np.linspace(0, len(motion) - 1, SHOWN).round().astype(int)
    return motion, np.concatenate(list(talker.draw(portrait, motion[times], 256)), 1), talker.reenactor.precision


def write() -> None:
    """Make what is stored, in float32."""
    STORED.mkdir(exist_ok=True)
    motion, frames, _ = made()
    np.save(MOTION, motion)
    Image.fromarray(frames).save(FRAMES, optimize=True)


def compare() -> bool:
    """Print how far what is made here is from what is stored; returns whether it is the same."""
    begin = time.perf_counter()
    motion, frames, precision = made()
    seconds = time.perf_counter() - begin
    stored = np.asarray(Image.open(FRAMES)).astype(float)
    apart = float(np.abs(motion - np.load(MOTION)).max())
    errors = np.square(frames - stored).reshape(256, SHOWN, -1).mean((0, 2))
    decibels = float(10 * np.log10(255**2 / max(errors.max(), 1e-9)))
    print(f"{precision:9} {apart:11.1e} {min(decibels, 99):9.1f} {seconds:8.1f}", flush=True)
    return apart <= MOTION_ERROR and decibels >= FRAME_DB


def compare_all() -> bool:
    """`compare` under every setting, each in a process of its own."""
    print(f"{'':24} precision motion apart  least dB  seconds", flush=True)
    found = []
    for name, setting in SETTINGS.items():
        print(f"{name:24} ", end="", flush=True)
        kept = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        done = subprocess.run(
            [sys.executable, __file__, "--here"], env=kept | setting, stderr=subprocess.PIPE, text=True
        )
        found.append(done.returncode == 0)
        if done.returncode:
            print(f"DIFFERS\n{done.stderr}", flush=True)
    return all(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--here", action="store_true")
    what.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        os.environ["MSSYNC_PRECISION"] = "float32"
        write()
    else:
        sys.exit(0 if (compare() if options.here else compare_all()) else 1)
