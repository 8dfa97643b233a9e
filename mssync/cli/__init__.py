"""The command line: `mssync --help`. Each module holds the commands of one kind; `common` what they share."""

from mssync.cli import talk, sync, files, train, evaluate, tables, reproduce  # noqa: F401, I001 (the order of the help)
from mssync.cli.common import app, main

__all__ = ["app", "main"]
