"""`mssync reproduce`: the paper's ablations and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    DataOption,
    OverridesArgument,
    RunOption,
    SyncersOption,
    check_files,
    check_prepared,
    finished,
    need,
    reproduce_app,
)

StepsOption = Annotated[int, typer.Option(metavar="N", min=1, help="Training steps of every variant.")]

StudyOutput = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE.csv", help="Figures; the plot lies beside it (.png).", show_default=False
    ),
]


@reproduce_app.command("table4")
def reproduce_table4(
    data: DataOption,
    run: RunOption,
    output: StudyOutput,
    syncers: SyncersOption = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of configs/ablations; all unless given.", show_default=False),
    ] = None,
    steps: StepsOption = 400,
    overrides: OverridesArgument = None,
) -> None:
    """Train and score the weights of table 4 and our own ablations, all for the same number of steps."""
    from mssync.training.ablation import OTHERS, TABLE4, plot_table, table4, write_rows

    rows = table4(_study(data, syncers, run, output, overrides), steps, variant or [*TABLE4, *OTHERS])
    write_rows(output, rows)
    plot_table(rows, output.with_suffix(".png"))
    finished(output, f"{len(rows)} variants")


@reproduce_app.command("fig6")
def reproduce_fig6(
    data: DataOption,
    run: RunOption,
    output: StudyOutput,
    syncers: SyncersOption = None,
    steps: StepsOption = 1000,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Steps between two measurements.")] = 100,
    overrides: OverridesArgument = None,
) -> None:
    """Confidence over training at each time scale, with the multi-scale loss and with that of level 1 alone."""
    from mssync.training.ablation import figure6, plot_figure6

    rows = figure6(_study(data, syncers, run, output, overrides), steps, every, output)
    plot_figure6(rows, output.with_suffix(".png"))
    finished(output, f"{len(rows)} measurements")


def _study(data: Path, syncers: Path | None, run: Path, output: Path, overrides: list[str] | None) -> Any:
    check_prepared(data)
    check_files([], [(output, ".csv")])
    for module, extra in (("lightning", "train"), ("matplotlib", "eval"), ("scipy", "eval")):
        need(module, extra)
    from mssync.training.ablation import Study
    from mssync.weights import SHIPPED

    return Study(data, syncers or SHIPPED, run, overrides=overrides or [])
