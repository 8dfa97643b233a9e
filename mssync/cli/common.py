"""The command line: `mssync --help`.

Mistakes in what the user gives end in one line, `error: …`, and exit code 2. Nothing heavy is imported before
a command runs, so that help is quick.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mssync import __version__
from mssync.errors import InputError, input_file, output_file, written_whole

if TYPE_CHECKING:
    from rich.console import Console


INTERRUPTED = 130  # the shell's exit code for Ctrl-C

DEMO_SPEECH = Path(__file__).parent.parent / "assets" / "demo_speech.ogg"


class Commands(TyperGroup):
    """Turns mistakes, warnings and Ctrl-C into single lines and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            # Ours only: what libraries warn of is none of the user's business.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"mssync(\.|$)")
            warnings.showwarning = show_warning
            try:
                return super().invoke(ctx)
            except InputError as error:
                message = str(error)
            except OSError as error:  # a full disk, a file that vanished half-way
                message = f"{error.filename or 'file'}: {error.strerror or error}"
            except KeyboardInterrupt:
                typer.echo("interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise typer.Exit(2)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a portrait speak. One picture and one recording in, a talking video out.\n\n"
    "Start with:  mssync animate portrait.jpg speech.wav -o talking.mp4",
    epilog="mssync COMMAND --help tells more about a command.",
)

train_app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Train the models: syncers, then the generator; the renderer's networks; the speech encoder; the sync meter.",
)

eval_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure models and the videos they make.")

TALKING, MEASURING, WORKSHOP = "Talking videos", "Lips and sound", "Files and training"  # sections of the help

VideoArgument = Annotated[
    Path,
    typer.Argument(metavar="VIDEO", help="A video of one person (mp4, mov, webm, …).", show_default=False),
]

VideoOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video to write.", show_default=False)
]

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        help="compact, a folder with reenactor.safetensors and generator.safetensors, or a reenactor's file.",
    ),
]

ConfigOption = Annotated[
    str, typer.Option(metavar="NAME|PATH", help="compact, face, paper, or a YAML file of that form.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mssync {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(train_app, name="train", rich_help_panel=WORKSHOP)


app.add_typer(eval_app, name="eval", rich_help_panel=WORKSHOP)


SplitOption = Annotated[str, typer.Option(metavar="NAME", help="train, val (to choose by) or test (to report).")]

SyncersOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with syncer1 … syncer4.safetensors; the shipped ones.", show_default=False
    ),
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table with a column for every name that a row has, in the order in which they come up."""
    import csv

    with written_whole(path, ".csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    import json

    with written_whole(path, ".json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Plain types for JSON, which has no nan: None in its place."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


reproduce_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Make tables and figures of the paper again.")


app.add_typer(reproduce_app, name="reproduce", rich_help_panel=WORKSHOP)


DataOption = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False)
]

RunOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder of the run; a stopped run goes on in it.", show_default=False),
]

OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the configuration, such as generator.width=256.",
        show_default=False,
    ),
]


def check_prepared(data: Path) -> None:
    if not (data / "index.csv").is_file():
        raise InputError(f"{data} is no prepared folder; make one with `mssync preprocess`")


# Shared work


def check_files(inputs: list[Path | None], outputs: list[tuple[Path | None, str]]) -> None:
    """Raise InputError for a missing input or an output that cannot be written; nothing is computed yet."""
    sources = [input_file(path).resolve() for path in inputs if path is not None]
    for path, suffix in outputs:
        if path is not None and output_file(path, suffix).resolve() in sources:
            raise InputError(f"{path} is also an input; give the output another name")


def need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(f'this needs more packages; install them with: pip install "mssync[{extra}]"')


def finished(output: Path, what: str) -> None:
    typer.echo(f"{output}: {what}")


def stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing where nobody watches."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{message} …"):
        yield


def main() -> None:
    """Entry point of the `mssync` command."""
    if sys.stderr is None:  # closed, as for a daemon; another file may not get its descriptor
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)
        os.dup2(sys.stderr.fileno(), 2)
    if sys.stdout is not None:  # a console that cannot show a name gets it escaped
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: what is half written goes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    app()


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)
