"""Commands that measure and mend the offset of sound and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    MEASURING,
    VideoArgument,
    VideoOutput,
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

    A video that cannot be scored is reported, the others are scored, and the exit code is 2.
    """
    check_files([], [(json_file, ".json"), (csv_file, ".csv"), (plot, ".png")])
    if plot is not None:
        need("matplotlib", "eval")
    from mssync import score as scoring
    from mssync.meter import SyncMeter

    files, meter = scoring.find_videos(videos), SyncMeter.load()
    scores, failed = [], []
    for file in files:
        try:
            with waiting(f"watching {file.name}"):
                scores.append(scoring.score(file, meter, max_offset))
        except InputError as error:
            if len(files) == 1:
                raise
            failed.append({"file": str(file), "error": str(error)})
            typer.echo(f"error: {error}", err=True)
            continue
        _print_score(scores[-1], details=len(files) == 1)
    if json_file is not None:
        write_json(json_file, {"videos": [scoring.as_json(one) for one in scores], "failed": failed})
    if csv_file is not None and scores:
        write_csv(csv_file, [scoring.as_row(one) for one in scores])
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
    video: VideoArgument,
    output: VideoOutput,
    max_offset: OffsetOption = 15,
) -> None:
    """Move the sound of a video by the measured offset; the picture is copied as it is.

    Refuses when it cannot tell by how much.
    """
    check_files([video], [])
    if output.resolve() == video.resolve():
        raise InputError(f"{output} is also an input; give the output another name")
    from mssync.meter import SyncMeter
    from mssync.resync import resync as mend

    with waiting("watching the video"):
        done = mend(video, output, SyncMeter.load(), max_offset)
    finished(output, done)
