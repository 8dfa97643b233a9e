"""Put networks into a layered renderer: `python scripts/assemble_renderer.py RENDERER OUT mouth=FILE …`.

RENDERER: the layered renderer whose other parts stay; OUT: the new one; mouth, eye, matte, residual: what
`mssync train mouth`, `eye`, `matte` and `residual` made.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mssync.render.renderer import LayeredRenderer
from mssync.weights import load_model, save_model

PARTS = ("mouth", "eye", "matte", "residual")


def main(renderer: str, out: str, **files: str) -> None:
    base, about = load_model(renderer, kinds=("layered",))
    steps = {name: about["training"].get(name, 0) for name in PARTS}
    parts = {name: getattr(base, name) for name in PARTS}
    for name, path in files.items():
        parts[name], trained = load_model(path, kinds=("painter", "matte", "residual"))
        steps[name] = trained["training"]["steps"]
    widths = {f"{name}_widths": () if part is None else part.widths for name, part in parts.items()}
    made = LayeredRenderer(**widths, motion_space=base.space)
    for name, part in {**parts, "detector": base.detector}.items():
        if part is not None:
            getattr(made, name).load_state_dict(part.state_dict())
    save_model(Path(out), made, "layered", made.config, steps)


if __name__ == "__main__":
    main(*sys.argv[1:3], **dict(argument.split("=", 1) for argument in sys.argv[3:]))
