"""Contact sheets: the moments of a clip that a person wants to look at, real and drawn, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mssync.errors import written_whole
from mssync.faces import crop
from mssync.metrics.drawers import in_whole, keypoints
from mssync.metrics.footage import MOMENTS, Clip
from mssync.motion import best_start, relative
from mssync.render.carry import carried

if TYPE_CHECKING:
    from mssync.animate import Pipeline, Portrait

LETTERS = 1 / 32  # height of titles, in sides of a cell


def own_sheet(clip: Clip, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """A clip under its own motion: a row of real frames, and one of what each model drew (T, s, s, 3)."""
    rows = {f"real: {clip.name}": clip.real} | drawn
    return sheet({name: frames[list(clip.shown)] for name, frames in rows.items()})


def transfer_sheet(pipeline: Pipeline, portraits: dict[str, Portrait], clip: Clip) -> np.ndarray:
    """Portraits under another's motion: a row of the driving clip, and one of each portrait, which comes first."""
    rows = {f"driving: {clip.name}": clip.real[list(clip.shown)]}
    motion = keypoints(pipeline, clip)
    for name, portrait in portraits.items():
        rest = crop(portrait.picture, portrait.box, clip.size)
        rows[name] = np.stack([rest, *_transferred(pipeline, portrait, clip, motion)])
    return sheet(rows)


def _transferred(pipeline: Pipeline, portrait: Portrait, clip: Clip, motion: np.ndarray) -> Iterator[np.ndarray]:
    """A portrait at a clip's MOMENTS but the first, as `Pipeline.reenact` draws it; motion (T, 10, 6): the clip's."""
    start, times = best_start(motion, portrait.pose), list(clip.shown[1:])
    poses = relative(motion[times], motion[start], portrait.pose)
    meshes = None if portrait.mesh is None else carried(portrait.mesh[:, :2], in_whole(clip)[..., :2], start)[times]
    for k, pose in enumerate(poses):
        mesh = None if meshes is None else meshes[k : k + 1]
        yield pipeline.draw_here(portrait, pose[None], clip.size, mesh)[0]


def sheet(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Titled rows of pictures at MOMENTS, (8, s, s, 3) uint8 each -> (rows * s, 8 * s, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    size = len(next(iter(rows.values()))[0])
    image = Image.fromarray(np.vstack([np.hstack(list(pictures)) for pictures in rows.values()]))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(max(8, round(LETTERS * size)))
    titles = [(k * size, 0, title) for k, title in enumerate(MOMENTS)]
    titles += [(0, (row + 1) * size - round(2 * LETTERS * size), name) for row, name in enumerate(rows)]
    for x, y, title in titles:
        pen.rectangle(pen.textbbox((x + 2, y + 1), title, font), fill="black")
        pen.text((x + 2, y + 1), title, "white", font)
    return np.asarray(image)


def write_sheet(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with written_whole(path, ".png") as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def unlike_names(paths: Sequence[Path]) -> list[str]:
    """Files' names without endings, no two alike."""
    names = [path.stem for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names, 1)]
