"""The paper's tables of talking videos: rows of mean ± standard deviation as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mssync.errors import InputError, written_whole
from mssync.metrics import estimates

PAPER_FILE = Path(__file__).parents[1] / "assets" / "paper_tables.csv"  # every number of Tables 1 to 3
NOTHING = "–"  # a cell that was not measured


@dataclass(frozen=True)
class Column:
    """A figure: its title in Markdown and LaTeX; better: 1 where more is better, -1 where less is, 0 for neither."""

    title: str
    latex: str
    better: int
    digits: int = 2


COLUMNS = {
    # Table 1
    "av_off": Column("|AV-Off| ↓", r"$|\text{AV-Off}|\downarrow$", -1),
    "av_conf": Column("AV-Conf ↑", r"AV-Conf $\uparrow$", 1),
    "lse_d": Column("LSE-D ↓", r"LSE-D $\downarrow$", -1),
    "lips_off": Column("|AV-Off| of the lip meter ↓", r"$|\text{AV-Off}|_{\text{lip meter}}\downarrow$", -1),
    "lips_conf": Column("AV-Conf of the lip meter ↑", r"AV-Conf$_{\text{lip meter}}\uparrow$", 1, 3),
    "lmd": Column("LMD ↓", r"LMD $\downarrow$", -1),
    "lmd_eyes": Column("LMD / eyes, % ↓", r"LMD / eyes (\%) $\downarrow$", -1),
    "mouth_r": Column("mouth r ↑", r"mouth $r\uparrow$", 1),
    # Table 2
    "head_1": Column("|AV-Off|₁ ↓ (200 ms)", r"$|\text{AV-Off}_1|\downarrow$", -1),
    "head_2": Column("|AV-Off|₂ ↓ (400 ms)", r"$|\text{AV-Off}_2|\downarrow$", -1),
    "head_3": Column("|AV-Off|₃ ↓ (800 ms)", r"$|\text{AV-Off}_3|\downarrow$", -1),
    # Table 3
    "fid": Column("FID ↓", r"FID $\downarrow$", -1, 1),
    "fd_efficientnet": Column("FD-EfficientNet ↓", r"FD-EfficientNet $\downarrow$", -1, 2),
    "ssim": Column("SSIM ↑", r"SSIM $\uparrow$", 1, 3),
    "psnr": Column("PSNR, dB ↑", r"PSNR (dB) $\uparrow$", 1, 1),
    "identity": Column("ID distance ↓", r"ID distance $\downarrow$", -1, 3),
    "pose_distance": Column("pose FD ↓", r"pose FD $\downarrow$", -1, 2),
    "yaw": Column("yaw, °", r"yaw ($^\circ$)", 0, 1),
    "pitch": Column("pitch, °", r"pitch ($^\circ$)", 0, 1),
    "roll": Column("roll, °", r"roll ($^\circ$)", 0, 1),
    "place": Column("place, eyes", r"place (eyes)", 0, 2),
    "speed": Column("speed, °/s", r"speed ($^\circ$/s)", 0, 1),
    "frequency": Column("frequency, Hz", r"frequency (Hz)", 0, 2),
}


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over clips (nan: a single number), its 95 % interval, and how many clips count."""

    mean: float
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    clips: int = 0


@dataclass
class Row:
    """A line: the system's name, its cells by the names in COLUMNS; ranked: whether it competes for the best."""

    name: str
    cells: dict[str, Cell]
    ranked: bool = False


@dataclass
class Table:
    """A table: p: by column, of ground truth against random; notes: what a reader must know."""

    title: str
    rows: list[Row]
    p: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns that any row fills, in the order of COLUMNS."""
        used = {name for row in self.rows for name in row.cells}
        return [name for name in COLUMNS if name in used]


def cell(values: Iterable[float]) -> Cell:
    """Mean and (population) standard deviation of clips' values; nan is left out."""
    column = np.array([v for v in values if not math.isnan(v)], np.float64)
    found = estimates.mean(column)
    return Cell(found.value, float(column.std()) if len(column) else math.nan, found.low, found.high, found.clips)


def paper_rows(table: str) -> list[Row]:
    """The paper's own rows of "table1", "table2" or "table3"."""
    rows: dict[str, Row] = {}
    with PAPER_FILE.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["table"] == table:
                name = f"{line['method']} (paper, {line['dataset']})"
                std = float(line["std"]) if line["std"] else math.nan
                rows.setdefault(name, Row(name, {})).cells[line["figure"]] = Cell(float(line["mean"]), std)
    return list(rows.values())


# Text

Marks = Callable[[str, int], str]  # marks a text as best (0) or second best (1)


def markdown(table: Table) -> str:
    """The table in Markdown: best bold, second best underlined, among systems."""
    rows = _texts(table, lambda text, place: f"**{text}**" if place == 0 else f"<u>{text}</u>", " ± ")
    head = ["Method", *(COLUMNS[name].title.replace("|", r"\|") for name in table.columns)]
    lines = [head, ["---", *("---:" for _ in table.columns)], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{table.title}**\n\n{text}\n" + "".join(f"\n{note}\n" for note in table.notes)


def latex(table: Table) -> str:
    """The table in LaTeX (booktabs and amsmath), with its notes as comments."""
    mark: Marks = lambda text, place: rf"\textbf{{{text}}}" if place == 0 else rf"\underline{{{text}}}"  # noqa: E731
    rows = _texts(table, mark, "$\\pm$")
    lines = [
        *(f"% {note}" for note in table.notes),
        r"\begin{tabular}{l" + "c" * len(table.columns) + "}",
        r"\toprule",
        " & ".join(["Method", *(COLUMNS[name].latex for name in table.columns)]) + r" \\",
        r"\midrule",
        *(" & ".join([_escaped(name), *cells]) + r" \\" for name, *cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines).replace(NOTHING, "--") + "\n"


def as_csv(table: Table) -> str:
    """One line a cell, unrounded: method, figure, mean, std, low, high, clips; besides the p values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("method", "figure", "mean", "std", "low", "high", "clips"))
    for row in table.rows:
        for name, found in row.cells.items():
            numbers = ("" if math.isnan(v) else f"{v:.6g}" for v in (found.mean, found.std, found.low, found.high))
            writer.writerow((row.name, name, *numbers, found.clips or ""))
    for name, p in table.p.items():
        writer.writerow((P_NAME, name, f"{p:.6g}", "", "", "", ""))
    return file.getvalue()


WRITERS: Mapping[str, Callable[[Table], str]] = {".md": markdown, ".csv": as_csv, ".tex": latex}
P_NAME = "p, ground truth against random"


def check_outputs(paths: Sequence[Path]) -> None:
    """Raise InputError for a name that does not end in one of WRITERS' suffixes."""
    for path in paths:
        if path.suffix.lower() not in WRITERS:
            raise InputError(f"the output {path} must end in {', '.join(WRITERS)}: that tells its format")


def write(table: Table, path: Path) -> None:
    """Write a table in the format that the file's name asks for. Raises InputError when it cannot be written."""
    check_outputs([path])
    suffix = path.suffix.lower()
    with written_whole(path, suffix) as temporary:
        temporary.write_text(WRITERS[suffix](table), encoding="utf-8")


def _texts(table: Table, mark: Marks, plus_minus: str) -> list[list[str]]:
    """Name and cells of every line as text."""
    places = {name: _places(table, name) for name in table.columns}
    lines = []
    for row in table.rows:
        line = [row.name]
        for name in table.columns:
            found = row.cells.get(name)
            text = NOTHING if found is None else _text(found, COLUMNS[name].digits, plus_minus)
            place = places[name].get(row.name)
            line.append(text if place is None else mark(text, place))
        lines.append(line)
    if table.p:
        lines.append([P_NAME, *(_p_cell(table.p[name]) if name in table.p else NOTHING for name in table.columns)])
    return lines


def _p_cell(p: float) -> str:
    """A p-value; a permutation test cannot tell small ones apart."""
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _text(found: Cell, digits: int, plus_minus: str) -> str:
    if math.isnan(found.mean):
        return NOTHING
    spread = "" if math.isnan(found.std) else f"{plus_minus}{found.std:.{digits}f}"
    return f"{found.mean:.{digits}f}{spread}"


def _places(table: Table, name: str) -> dict[str, int]:
    """The names of the best (0) and second best (1) of the ranked rows, where there are several."""
    better = COLUMNS[name].better
    ranked = [(row.cells[name].mean, row.name) for row in table.rows if row.ranked and name in row.cells]
    ranked = sorted((-better * mean, row) for mean, row in ranked if not math.isnan(mean))
    return {row: place for place, (_, row) in enumerate(ranked[:2])} if better and len(ranked) > 1 else {}


def _escaped(name: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in name)
