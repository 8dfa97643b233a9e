"""How good drawn pictures are: people's clips drawn again from their first frame, under their own motion.

Every figure stands beside that of the real frames, or over it: an error alone rewards blur.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from mssync.data.readers import Job
from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.metrics import estimates
from mssync.metrics.appearance import area_reduced, flicker, followed, identity, laplacian, over, teeth_change, tint
from mssync.metrics.drawers import drawer_of
from mssync.metrics.estimates import Estimate
from mssync.metrics.footage import Clip, spread, watch
from mssync.metrics.identity import FaceEmbedding, available
from mssync.metrics.regions import REGIONS, Matte, default_matte, masks
from mssync.metrics.sheets import own_sheet, transfer_sheet, unlike_names, write_sheet
from mssync.reenact import to_tensor

if TYPE_CHECKING:
    from rich.table import Table

    from mssync.animate import Pipeline

NAN = float("nan")
COMPARED = 256  # pixels at which errors are counted, as earlier ones were
SHARP = ("face", "mouth", "hair")  # regions whose sharpness is told
GREYS = 255
WITHOUT_IDENTITY = 'For identity: pip install "mssync\\[identity]"'


class Judges:
    """What pictures are looked at with: landmarks, the person's matte, and the embedding of faces where installed."""

    def __init__(self, mesh: FaceMesh | None = None, matte: Matte | None = None) -> None:
        self.mesh, self.matte = mesh or FaceMesh(), matte or default_matte()
        self.embed = FaceEmbedding() if available() else None


@dataclass
class Figures:
    """Figures of one clip, nan where it cannot tell.

    l1_…: mean absolute error in [0, 1] at 256 pixels; …_copy: of the unmoved portrait.
    sharp_…: Laplacian energy over the real frames'.
    tint: CIEDE2000 of low-passed skin against the portrait's; …_real, here and below: the same of the real frames.
    teeth: mean absolute change inside the open mouth from frame to frame along the skull's motion, grey levels of 255.
    flicker: mean absolute second difference over three frames in the face, motion taken out, grey levels of 255.
    identity: cosine of face embeddings with the portrait's.
    r_…: correlation of openings and gaze, measured on drawn frames, with the driving ones; 0 where no face is found.
    found: share of drawn frames with a face.
    """

    clip: str
    person: str
    frames: int
    l1_whole: float
    l1_whole_copy: float
    l1_face: float
    l1_face_copy: float
    l1_mouth: float
    l1_mouth_copy: float
    l1_eyes: float
    l1_eyes_copy: float
    l1_hair: float
    l1_hair_copy: float
    sharp_face: float
    sharp_mouth: float
    sharp_hair: float
    tint: float
    tint_real: float
    teeth: float
    teeth_real: float
    flicker: float
    flicker_real: float
    identity: float
    identity_real: float
    r_mouth: float
    r_mouth_real: float
    r_lids: float
    r_lids_real: float
    r_gaze: float
    r_gaze_real: float
    found: float
    found_real: float


class Yardstick:
    """A clip with all of its real frames that drawings of it are held against: `yardstick.figures(drawn)`."""

    def __init__(self, clip: Clip, judges: Judges) -> None:
        self.clip, self.judges = clip, judges
        self.times = np.unique(clip.blocks)  # without the portrait, which is drawn too easily
        parts = [
            masks(points, judges.matte(real, points)) for real, points in zip(clip.real, clip.landmarks, strict=True)
        ]
        self.skin = [part.pop("skin") for part in parts]
        self.masks = {name: torch.from_numpy(np.stack([parts[t][name] for t in self.times])) for name in REGIONS}

    @torch.inference_mode()
    def figures(self, drawn: np.ndarray) -> Figures:
        """Of what was drawn of the clip, (T, s, s, 3) uint8."""
        clip = self.clip
        if drawn.shape != clip.real.shape:
            raise ValueError(f"frames {clip.real.shape} are expected, not {drawn.shape}")
        found = self._followed(drawn) | self._real_followed
        for name, error in self._errors(drawn).items():
            found |= {f"l1_{name}": error, f"l1_{name}_copy": self._of_copying[name]}
        for name, energy in self._energies(drawn).items():
            found[f"sharp_{name}"] = over(energy, self._real_energies[name])
        for name, value in self._steady(drawn).items():
            found |= {name: value, f"{name}_real": self._real_steady[name]}
        return Figures(clip.name, clip.identity, len(self.times), **found)

    @cached_property
    def _of_copying(self) -> dict[str, float]:
        return self._errors(self.clip.real[:1].repeat(len(self.clip.real), 0))

    @cached_property
    def _real_energies(self) -> dict[str, float]:
        return self._energies(self.clip.real)

    @cached_property
    def _real_steady(self) -> dict[str, float]:
        return self._steady(self.clip.real)

    @cached_property
    def _real_followed(self) -> dict[str, float]:
        return {f"{name}_real": value for name, value in self._followed(self.clip.real).items()}

    def _followed(self, drawn: np.ndarray) -> dict[str, float]:
        return followed(self.clip.landmarks[self.times], drawn[self.times], self.judges.mesh)

    def _errors(self, drawn: np.ndarray) -> dict[str, float]:
        """Mean absolute error of each region."""
        pairs = [(area_reduced(drawn[t], COMPARED), area_reduced(self.clip.real[t], COMPARED)) for t in self.times]
        errors = torch.cat([(one - two).abs().mean(1) for one, two in pairs])
        found = {}
        for name, mask in self.masks.items():
            weight = F.interpolate(mask[:, None].float(), size=(COMPARED,) * 2, mode="area")[:, 0]
            found[name] = over(float((errors * weight).sum()), float(weight.sum()))
        return found

    def _energies(self, frames: np.ndarray) -> dict[str, float]:
        """Sum of the squared Laplacian in each region of SHARP."""
        energies = torch.cat([laplacian(to_tensor(frames[t][None])).square() for t in self.times])
        return {name: float((energies * self.masks[name]).sum()) for name in SHARP}

    def _steady(self, frames: np.ndarray) -> dict[str, float]:
        """What has a counterpart in the real frames: tint, teeth, flicker, identity."""
        face = self.masks["face"][np.searchsorted(self.times, self.clip.blocks[:, 1])]
        return {
            "tint": tint(self.clip, frames, self.times, self.skin),
            "teeth": GREYS * teeth_change(frames, self.clip.landmarks, self.clip.blocks),
            "flicker": GREYS * flicker(frames, self.clip.landmarks, self.clip.blocks, face),
            "identity": identity(self.clip, frames, self.judges.embed),
        }


# Over clips


def measure(
    pipelines: dict[str, Pipeline | None], jobs: Sequence[Job], folder: Path, size: int, most: int
) -> dict[str, list[Figures]]:
    """Figures of every model (None: copying) on every video, and contact sheets FOLDER/KEY.png.

    size: of the frames; most: frames that are measured of a video. Warns of videos that tell nothing; raises InputError
    where that is so of all.
    """
    from rich.console import Console
    from rich.progress import track

    judges, results = Judges(), {name: list[Figures]() for name in pipelines}
    for job in track(jobs, "pictures", console=Console(stderr=True)):
        try:
            clip = watch(job, judges.mesh, size, most)
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        yardstick, drawn = Yardstick(clip, judges), dict[str, np.ndarray]()
        for name, pipeline in pipelines.items():
            drawn[name] = np.stack(list(drawer_of(pipeline)(clip)))
            results[name].append(yardstick.figures(drawn[name]))
        write_sheet(folder / f"{clip.name}.png", own_sheet(clip, drawn))
    if not any(results.values()):
        raise InputError("none of the videos shows a face for long enough")
    return results


def show_portraits(
    pipelines: dict[str, Pipeline | None],
    paths: Sequence[Path],
    jobs: Sequence[Job],
    driving: int,
    folder: Path,
    size: int,
) -> None:
    """Show portraits under the motion of videos of others, `driving` of them: FOLDER/portraits_KEY_MODEL.png.

    Raises InputError, before anything is drawn, for a portrait without a face.
    """
    names, mesh = unlike_names(paths), FaceMesh()
    models = {name: pipeline for name, pipeline in pipelines.items() if pipeline is not None}
    prepared = {m: dict(zip(names, map(p.portrait, paths), strict=True)) for m, p in models.items()}
    for job in spread(jobs, driving):
        clip = watch(job, mesh, size)
        for name, pipeline in models.items():
            label = re.sub(r"[^\w.-]+", "_", name).strip("_.")
            write_sheet(folder / f"portraits_{clip.name}_{label}.png", transfer_sheet(pipeline, prepared[name], clip))


def summary(rows: Sequence[Figures]) -> dict[str, Estimate]:
    """Means over people of the means over their clips.

    Besides, ratios of means: l1_…_ratio over copying the portrait, teeth_ratio and flicker_ratio over real frames.
    """
    people = sorted({row.person for row in rows})
    plain = [f.name for f in fields(Figures) if f.name not in ("clip", "person", "frames")]
    column = {name: np.array([_mean(rows, person, name) for person in people]) for name in plain}
    found = {name: estimates.mean(values) for name, values in column.items()}
    pairs = {f"l1_{region}": f"l1_{region}_copy" for region in REGIONS}
    pairs |= {name: f"{name}_real" for name in ("teeth", "flicker")}
    return found | {f"{a}_ratio": estimates.ratio(column[a], column[b]) for a, b in pairs.items()}


def _mean(rows: Sequence[Figures], person: str, name: str) -> float:
    values = np.array([getattr(row, name) for row in rows if row.person == person])
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else NAN


LINES: dict[str, dict[str, tuple[str, str]]] = {  # section: title: figure, that of real frames
    "L1 over copying the portrait ↓": {name: (f"l1_{name}_ratio", "") for name in REGIONS},
    "Sharpness over real frames, 1 is right": {name: (f"sharp_{name}", "") for name in SHARP},
    "Colour and steadiness": {
        "tint of the skin, ΔE2000 ↓": ("tint", "tint_real"),
        "teeth, change over real frames": ("teeth_ratio", ""),
        "flicker over real frames": ("flicker_ratio", ""),
        "identity, cosine ↑": ("identity", "identity_real"),
    },
    "Output follows, r ↑": {
        "mouth opening": ("r_mouth", "r_mouth_real"),
        "lids": ("r_lids", "r_lids_real"),
        "gaze": ("r_gaze", "r_gaze_real"),
        "share of frames with a face": ("found", "found_real"),
    },
}


def table(results: dict[str, list[Figures]], title: str) -> Table:
    """A Rich table with a column for each model."""
    from rich.table import Table

    found = {model: summary(rows) for model, rows in results.items()}
    first = next(iter(found.values()))
    caption = None if available() else WITHOUT_IDENTITY
    shown = Table("figure", "people", "real", *found, title=title, title_justify="left", caption=caption)
    for section, lines in LINES.items():
        shown.add_row(f"[bold]{section}[/bold]")
        for name, (figure, real) in lines.items():
            beside = f"{first[real].value:.3f}" if real and first[real].clips else ""
            shown.add_row(name, str(first[figure].clips), beside, *(_cell(found[m][figure]) for m in found))
        shown.add_section()
    return shown


def _cell(e: Estimate) -> str:
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})" if e.clips else ""
