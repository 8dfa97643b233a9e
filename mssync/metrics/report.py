"""Figures of several reenactors side by side: the table and the JSON of `mssync eval reenactor`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssync.data.clips import Clip
from mssync.metrics import reenactment, transfer
from mssync.metrics.estimates import Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from mssync.animate import Pipeline

EXACT = "exact FOMM"  # what speed is compared with
CAPTION = (
    "Perceptual distance: features of EfficientNet-lite0, not LPIPS. Change: grey levels of 255 against the portrait, "
    "in clips whose real background is still."
)


@dataclass
class Report:
    """What was measured of one model so far; file_mb: the reenactor's file in 10^6 bytes.

    clips, pairs: self-reenactment and transfer to portraits. frames_per_second: at 256×256; times_fomm: the same
    over the exact FOMM's, timed in turns with it.
    """

    name: str
    pipeline: Pipeline
    file_mb: float
    clips: list[reenactment.ClipFigures] = field(default_factory=list)
    pairs: list[transfer.TransferFigures] = field(default_factory=list)
    frames_per_second: float | None = None
    times_fomm: float | None = None

    def redraw(self, clips: Sequence[Clip]) -> None:
        """Redraw clips from their own frames: fills `clips`."""
        self.clips = reenactment.evaluate(self.pipeline.reenactor, clips)

    def reenact(self, portraits: Sequence[Path], clips: Sequence[Clip], sheets: Path) -> None:
        """Reenact portraits with clips: fills `pairs`, and writes contact sheets into a folder."""
        self.pairs = transfer.transfer(self.pipeline, portraits, clips, sheets, self.name)

    def rows(self, figures: Sequence[Any]) -> list[dict[str, Any]]:
        """`clips` or `pairs` as rows of a file, with the model's name."""
        return [{"model": self.name, **asdict(row)} for row in figures]


def load_reports(models: Sequence[str]) -> list[Report]:
    """An empty report of each model, once. Raises InputError for an unknown model."""
    from mssync.animate import load, model_files

    size = {name: model_files(name)[0].stat().st_size / 1e6 for name in models}
    return [Report(name, load(name), megabytes) for name, megabytes in size.items()]


def add_speed(reports: Sequence[Report], clip: Clip) -> None:
    """Time the models in turns with the exact FOMM, on frames of a clip."""
    from mssync.metrics.speed import exact_fomm, frames_per_second

    found = frames_per_second({report.name: report.pipeline for report in reports} | {EXACT: exact_fomm()}, clip)
    for report in reports:
        report.frames_per_second = found[report.name]
        report.times_fomm = found[report.name] / found[EXACT]


@dataclass(frozen=True)
class Row:
    """One line of the table: its title, figure and digits after the point; baseline: the figure to compare with."""

    title: str
    figure: str
    digits: int
    baseline: str = ""


SECTIONS: dict[str, tuple[Row, ...]] = {
    "Random pairs (baseline: source)": (
        Row("L1, whole frame", "l1", 4, "l1_copy"),
        Row("  relative to copying", "l1_ratio", 3),
        Row("L1, face box", "l1_face", 4, "l1_face_copy"),
        Row("  relative to copying", "l1_face_ratio", 3),
        Row("PSNR, dB ↑", "psnr", 2, "psnr_copy"),
        Row("SSIM ↑", "ssim", 4, "ssim_copy"),
        Row("perceptual distance", "perceptual", 4, "perceptual_copy"),
    ),
    "Output follows the clip, r ↑": (
        Row("mouth opening", "r_mouth", 3),
        Row("eye opening", "r_eyes", 3),
        Row("yaw", "r_yaw", 3),
        Row("pitch", "r_pitch", 3),
        Row("share of frames with a face", "followed", 3),
    ),
    "Undriven frame, PSNR, dB ↑": (
        Row("mean over clips", "undriven", 2),
        Row("least of the clips", "undriven_min", 2),
    ),
    "Change (baseline: real video)": (
        Row("background", "background", 2, "background_real"),
        Row("body below the chin", "body", 2, "body_real"),
    ),
}
TRANSFER_SECTION = "Portraits driven by clips, r ↑"
TRANSFER_ROWS = SECTIONS["Output follows the clip, r ↑"]


def table(reports: Sequence[Report], title: str) -> Table:
    """A Rich table with a column for each model; intervals are 95 % over clips."""
    from rich.table import Table

    names = [report.name for report in reports]
    result = Table("figure", "clips", "baseline", *names, title=title, title_justify="left", caption=CAPTION)
    figures = [reenactment.summary(report.clips) for report in reports]
    for section, rows in SECTIONS.items():
        _add_section(result, section, rows, figures)
    if all(report.pairs for report in reports):
        _add_section(result, TRANSFER_SECTION, TRANSFER_ROWS, [transfer.summary(report.pairs) for report in reports])
    result.add_row("[bold]Cost[/bold]")
    for row in _costs(reports):
        result.add_row(*row)
    return result


def _add_section(result: Table, section: str, rows: tuple[Row, ...], figures: list[dict[str, Estimate]]) -> None:
    result.add_row(f"[bold]{section}[/bold]")
    for row in rows:
        baseline = f"{figures[0][row.baseline].value:.{row.digits}f}" if row.baseline else ""
        cells = [_cell(found[row.figure], row.digits) for found in figures]
        result.add_row(row.title, str(figures[0][row.figure].clips), baseline, *cells)
    result.add_section()


def _cell(found: Estimate, digits: int) -> str:
    value = f"{found.value:.{digits}f}"
    return value if math.isnan(found.low) else f"{value} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _costs(reports: Sequence[Report]) -> list[list[str]]:
    texts: dict[str, Callable[[Report], str]] = {"model file, MB": lambda report: f"{report.file_mb:.1f}"}
    if reports[0].frames_per_second is not None:
        texts["frames a second ↑"] = lambda report: f"{report.frames_per_second:.1f}"
        texts["  times the exact FOMM's"] = lambda report: f"{report.times_fomm:.1f}"
    return [[name, "", "", *map(text, reports)] for name, text in texts.items()]


def as_json(reports: Sequence[Report], **about: Any) -> dict[str, Any]:
    """All that the table shows, in plain types, nan as None; `about`: what else a reader should know."""
    import torch

    models = {
        report.name: {
            "figures": {k: asdict(v) for k, v in reenactment.summary(report.clips).items()},
            "transfer": {k: asdict(v) for k, v in transfer.summary(report.pairs).items()},
            "file_mb": report.file_mb,
            "frames_per_second": report.frames_per_second,
            "times_fomm": report.times_fomm,
        }
        for report in reports
    }
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return {**about, "machine": machine, "models": without_nan(models)}


def without_nan(value: Any) -> Any:
    """Plain types for JSON, which has no nan: None in its place."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
