"""Draw the figures of the documentation from the shipped models and the demo speech: python docs/figures.py

Nobody is shown but in the public-domain portraits of scikit-image and matplotlib (Eileen Collins by NASA, Grace Hopper
by the US Navy), and nothing else is read but what the package ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.cbook import get_sample_data
from PIL import Image
from skimage.data import astronaut

import mssync
from mssync.animate import DRAWN, Pipeline
from mssync.audio import SAMPLE_RATE, features, load_audio
from mssync.cli.common import DEMO_SPEECH
from mssync.face1 import COLUMNS, HEAD
from mssync.faces import INNER_LIPS, LEFT_EYE_LIDS
from mssync.motion import VALUES
from mssync.pyramid import LEVELS, pyramid
from mssync.reenact.mesh import ANCHORS
from mssync.syncer import SyncerPyramid
from mssync.video import FPS

FOLDER = Path(__file__).parent / "images"
COLOURS = ("#1b6ca8", "#3c9d5d", "#d98a1f", "#a83250")  # levels 1 to 4
NAMES = [*ANCHORS, "learned"]  # of the ten keypoints
LOWER_LIP = NAMES.index("lower lip")
SHIFTS = range(-10, 11)  # frames of a level
SHEET = 256  # pixels of a picture of the sheet
WINDOW_MS = [200 * 2**level for level in range(LEVELS)]


def main() -> None:
    """Write every figure to docs/images."""
    FOLDER.mkdir(exist_ok=True)
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 110})
    torch.manual_seed(0)
    talker = mssync.load()
    waveform = load_audio(DEMO_SPEECH)
    motion, masks = speak(talker, waveform)
    audio = features(torch.from_numpy(waveform), n_video_frames=len(motion))
    draw_demo(talker)
    draw_sheet(talker)
    draw_pyramid(motion, audio)
    draw_syncers(motion, audio)
    draw_masks(masks, waveform)


def draw_demo(talker: Pipeline) -> None:
    """Frames of the demo at 512 pixels: the portrait as it is, widest mouth, closed eyes, lips together; the head left,
    right and down, and the last frame."""
    frames = spoken(talker, astronaut(), DRAWN)
    picture = np.vstack([np.hstack(frames[:4]), np.hstack(frames[4:])])
    Image.fromarray(picture).save(FOLDER.parent / "demo.jpg", quality=88)


def draw_sheet(talker: Pipeline) -> None:
    """The same moments of two portraits, and of one of them in black and white."""
    hopper = np.array(Image.open(get_sample_data("grace_hopper.jpg")))
    grey = np.repeat(np.array(Image.fromarray(astronaut()).convert("L"))[..., None], 3, 2)
    rows = [np.hstack(spoken(talker, portrait, SHEET)) for portrait in (astronaut(), hopper, grey)]
    Image.fromarray(np.vstack(rows)).save(FOLDER / "sheet.jpg", quality=88)


def spoken(talker: Pipeline, picture: np.ndarray, size: int) -> list[np.ndarray]:
    """Frames (size, size, 3) of the demo's speech: first, widest mouth, closed eyes, lips together; head left, right,
    down, last.
    """
    portrait = talker.portrait(picture)
    motion = talker.animate(portrait, DEMO_SPEECH).motion
    mesh = talker.shown(portrait, motion)[1]
    mouth, eyes = (np.linalg.norm(mesh[:, a] - mesh[:, b], axis=1) for a, b in (INNER_LIPS, LEFT_EYE_LIDS))
    x, y = mesh[:, 168].T
    later = FPS // 2  # frames after which lips that rest at the beginning do not count
    times = [
        0, mouth.argmax(), eyes.argmin(), later + mouth[later:-later].argmin(),
        x.argmin(), x.argmax(), y.argmax(), len(motion) - 1,
    ]  # fmt: skip
    return [talker.draw(portrait, motion[t : t + 1], size)[0] for t in times]


@torch.inference_mode()
def speak(talker: Pipeline, waveform: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Keypoints (T, 60) for the demo, and the masks (branches, T - 1, HEAD) that merged the head's velocities."""
    branches = talker.generator.head.branches
    merged = []
    hook = branches.register_forward_pre_hook(lambda _, given: merged.append(branches.votes(*given)[1][:, 0, :, 0]))
    portrait = talker.portrait(astronaut())
    motion = talker.animate(portrait, waveform, sample_rate=SAMPLE_RATE).motion
    hook.remove()
    return torch.from_numpy(talker.shown(portrait, motion)[0]).flatten(1), torch.stack(merged, dim=1).numpy()


# Eq. 5


def draw_pyramid(motion: torch.Tensor, audio: torch.Tensor) -> None:
    """Speech and one keypoint's height at the four levels of the pyramid."""
    figure, axes = plt.subplots(LEVELS, 2, figsize=(9, 6.2), sharex=True, constrained_layout=True)
    height = VALUES * LOWER_LIP + 1
    sounds, moves = pyramid(audio[None]), pyramid(motion[None])
    seconds = len(motion) / FPS
    for level, (row, sound, move, colour) in enumerate(zip(axes, sounds, moves, COLOURS, strict=True)):
        row[0].imshow(
            sound[0].T, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 26), interpolation="nearest"
        )
        times = np.arange(move.shape[1]) * 2**level / FPS
        row[1].plot(times, move[0, :, height], ".-", color=colour, ms=4, lw=1)
        row[1].invert_yaxis()  # coordinates point down
        row[0].set_ylabel(f"level {level + 1}\n{FPS / 2**level:g} Hz", rotation=0, ha="right", va="center")
        row[0].set_yticks([])
    axes[0, 0].set_title("speech: 26 mel bands")
    axes[0, 1].set_title("motion: height of the lower lip")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    _save(figure, "pyramid.png")


# Eq. 3


@torch.inference_mode()
def draw_syncers(motion: torch.Tensor, audio: torch.Tensor) -> None:
    """Mean score of each level's syncer while the speech is shifted against the motion."""
    syncers = SyncerPyramid.load()
    sounds = syncers.embed_audio(audio[None])
    curves = [
        (syncers.embed_motion(motion[None]), "-", "as generated"),
        (syncers.embed_motion(motion.flip(0)[None]), ":", "played backwards"),
    ]
    figure, axes = plt.subplots(1, LEVELS, figsize=(10, 2.9), sharey=True, constrained_layout=True)
    for level, axis in enumerate(axes):
        for moves, style, label in curves:
            scores = [shifted_score(sounds[level][0], moves[level][0], shift) for shift in SHIFTS]
            axis.plot(np.array(SHIFTS) * 40 * 2**level / 1000, scores, style, color=COLOURS[level], label=label)
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.set_title(f"level {level + 1}: {WINDOW_MS[level]} ms")
        axis.set_xlabel("speech late by, s")
    axes[0].set_ylabel("mean score")
    axes[-1].legend(frameon=False, loc="lower center")
    _save(figure, "syncers.png")


def shifted_score(sound: torch.Tensor, moves: torch.Tensor, shift: int) -> float:
    """Mean cosine of sound window n and motion window n + shift over all n for which there are both."""
    count = min(len(sound), len(moves))
    first, last = max(0, -shift), min(count, count - shift)
    return float((sound[first:last] * moves[first + shift : last + shift]).sum(-1).mean())


# Eq. 10


def draw_masks(masks: np.ndarray, waveform: np.ndarray) -> None:
    """Which branch moves which number of the head, on average and over time."""
    count = len(masks)
    figure, axes = plt.subplots(1, count, figsize=(2.5 * count, 2.6), constrained_layout=True)
    scale = _scale(np.abs(masks - 1 / count).max(), 1 / count)  # what every branch would have if none mattered more
    for branch, (axis, values) in enumerate(zip(axes, masks, strict=True)):
        axis.set_title(f"branch {branch + 1}" + (f": {WINDOW_MS[branch]} ms" if branch < LEVELS else ": no audio"))
        shown = axis.imshow(values.T, aspect="auto", interpolation="nearest", **scale)
        shown.set_extent((0, len(waveform) / SAMPLE_RATE, HEAD - 0.5, -0.5))
        axis.set_yticks(range(HEAD), COLUMNS[:HEAD] if branch == 0 else [""] * HEAD, fontsize=8)
        axis.set_xlabel("seconds")
    figure.colorbar(shown, ax=axes.tolist(), label="weight", shrink=0.9)
    _save(figure, "masks.png")


def _scale(reach: float, centre: float) -> dict[str, Any]:
    """Colours from blue over white, at the centre, to red."""
    return {"cmap": "RdBu_r", "vmin": centre - reach, "vmax": centre + reach}


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / name, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    main()
