"""`python -m mssync.cli`."""

from mssync.cli import main

main()
