"""Commands that measure and mend the offset of sound and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    MEASURING,
    app,
    check_files,
    finished,
    need,
    waiting,
    write_csv,
    write_json,
)
from mssync.errors import InputError, written_whole

MAX_STRETCHES = 20  # rows of a table over time


# Lips and sound

OffsetOption = Annotated[
    int, typer.Option(metavar="N", min=5, max=100, help="Look for offsets of up to N frames of 40 ms.")
]


@app.command(rich_help_panel=MEASURING)
def score(
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO", help="Videos of one speaker, or folders of them.", show_default=False),
    ],
    max_offset: OffsetOption = 15,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Everything, with curves and over time.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE.csv", help="One row a video.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Distance curves, and the offset over time.")
    ] = None,
) -> None:
    """Measure by how much lips and sound of a video are apart, at several time scales and over time.

    A video that cannot be scored is reported, in the files as well, the others are scored, and the exit code is 2.
    """
    check_files([], [(json_file, ".json"), (csv_file, ".csv"), (plot, ".png")])
    if plot is not None:
        need("matplotlib", "eval")
    from mssync.meter import SyncMeter
    from mssync.sync import score as scoring

    files, meter = scoring.find_videos(videos), SyncMeter.load()
    scores, failed, rows = [], [], []
    for file in files:
        try:
            with waiting(f"watching {file.name}"):
                scores.append(scoring.score(file, meter, max_offset))
        except Exception as error:
            if files == videos[:1]:  # nothing else was asked for
                raise
            failed.append({"file": str(file), "error": scoring.failure(file, error)})
            rows.append(failed[-1])
            typer.echo(f"error: {failed[-1]['error']}", err=True)
            continue
        rows.append(scoring.as_row(scores[-1]))
        _print_score(scores[-1], details=len(files) == 1)
    if json_file is not None:
        write_json(json_file, {"videos": [scoring.as_json(one) for one in scores], "failed": failed})
    if csv_file is not None:
        write_csv(csv_file, rows)
    if plot is not None and scores:
        with written_whole(plot, ".png") as temporary:
            scoring.plot(scores, temporary)
    if failed:
        raise typer.Exit(2)


def _print_score(score: Any, details: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    verdict = f"{score.path}: {score.says}"
    if score.reading.sure:
        verdict += f" (probability {score.reading.probability:.2f}); {score.drift_in_words}"
    console.print(verdict, highlight=False, markup=False, soft_wrap=True)
    if not details:
        return
    table = Table("", "window", "offset in frames", "in ms", "confidence")
    for column in table.columns[1:]:
        column.justify = "right"
    for part, levels in (("lips", score.lips), ("head", score.head)):
        for found in levels:
            frames = f"{found.offset:+d} of {found.frame_ms} ms"
            table.add_row(part, f"{found.milliseconds} ms", frames, f"{found.offset_ms:+d}", f"{found.confidence:.3f}")
    console.print(table)
    over_time = Table("seconds", "offset in ms", "probability", title="Over time", title_justify="left")
    for at, reading in score.over_time[:: -(-len(score.over_time) // MAX_STRETCHES)]:
        over_time.add_row(f"{at:.0f}", f"{reading.milliseconds:+.0f}", f"{reading.probability:.2f}")
    if len(score.over_time) > 1:
        console.print(over_time)
    console.print("positive: the sound leads; negative: it is late", highlight=False)


@app.command(rich_help_panel=MEASURING)
def resync(
    video: Annotated[
        Path,
        typer.Argument(metavar="VIDEO", help="A video of one speaker, or a folder of them.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.mp4|DIR",
            help="The video to write (mp4, mov, mkv, webm); a folder for the videos of a folder.",
            show_default=False,
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Do not measure: the sound leads by MS (negative: is late), and is moved back by as much.",
            show_default=False,
        ),
    ] = None,
    max_offset: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=5, max=100, help="Look for offsets of up to N frames of 40 ms.", show_default="15"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done; write nothing.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE.csv", help="Of a folder: one row a video.")
    ] = None,
) -> None:
    """Move the sound of a video by the measured offset; the picture is copied as it is.

    Refuses when it cannot tell by how much. Of a folder, the others are mended all the same; the exit code is then 2.
    """
    if output is None and not dry_run:
        raise InputError("give the output, -o OUT.mp4 or, for a folder, -o DIR")
    if video.is_dir():
        check_files([], [(csv_file, ".csv")])
        _resync_all(video, output, csv_file, max_offset, offset, dry_run)
        return
    if csv_file is not None:
        raise InputError("--csv is a table of the videos of a folder; one video has none")
    from mssync.sync.resync import resync as mend

    check_files([video], [])
    with waiting("watching the video"):
        done = mend(video, output, max_offset=max_offset, offset=offset, dry_run=dry_run)
    finished(output or video, done.says)


def _resync_all(
    folder: Path, output: Path | None, csv_file: Path | None, max_offset: int | None, offset: float | None, dry: bool
) -> None:
    from mssync.sync.resync import Failed, as_row, resync_all

    rows: list[dict[str, Any]] = []
    work = resync_all(folder, output, max_offset=max_offset, offset=offset, dry_run=dry)
    while True:
        with waiting(f"watching the videos of {folder}, {len(rows)} done"):
            done = next(work, None)
        if done is None:
            break
        rows.append(as_row(done))
        if isinstance(done, Failed):
            typer.echo(f"error: {done.error}", err=True)
        else:
            finished(Path(done.output or done.file), done.says)
    if csv_file is not None:
        write_csv(csv_file, rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(2)
