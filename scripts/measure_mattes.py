"""Measure the shipped matte by its teachers' labels: `python scripts/measure_mattes.py SPLIT SHEET.png FRAMES…`.

FRAMES: folders of `mssync frames` with the labels of `scripts/label_mattes.py`. Prints the mean absolute error of
alpha, whole and in a band of 10 pixels of 512 around hair; SHEET: picture, label, matte.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mssync.render.matte import SIZE
from mssync.training.common import write_sheet
from mssync.training.matte import Mattes, evaluate
from mssync.weights import load_model


def main(split: str, sheet: str, *folders: str) -> None:
    network = load_model("reenactor", kinds=("layered",))[0].matte
    mattes = Mattes(folders, split, 0, SIZE)
    figures, shown = evaluate(network, mattes)
    print(f"{len(mattes)} pictures of {split}: " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    write_sheet(shown, Path(sheet))


if __name__ == "__main__":
    main(*sys.argv[1:])
