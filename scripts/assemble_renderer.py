"""Put a layered renderer together: `python scripts/assemble_renderer.py DETECTOR MOUTH EYE MATTE OUT`.

DETECTOR: a layered renderer, whose keypoint detector and motion space are taken over; MOUTH, EYE, MATTE: what
`mssync train mouth`, `eye` and `matte` made, or a layered renderer whose network stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mssync.render.renderer import LayeredRenderer
from mssync.weights import load_model, save_model


def main(detector: str, mouth: str, eye: str, matte: str, out: str) -> None:
    base, _ = load_model(detector, kinds=("layered",))
    parts, trained = {}, {}
    for name, path in (("mouth", mouth), ("eye", eye), ("matte", matte)):
        model, about = load_model(path, kinds=("painter", "matte", "layered"))
        parts[name] = getattr(model, name, model)
        trained[name] = about["training"].get(name, about["training"].get("steps", 0))
    widths = {f"{name}_widths": part.widths for name, part in parts.items()}
    renderer = LayeredRenderer(**widths, motion_space=base.space)
    renderer.detector.load_state_dict(base.detector.state_dict())
    for name, part in parts.items():
        getattr(renderer, name).load_state_dict(part.state_dict())
    save_model(Path(out), renderer, "layered", renderer.config, trained)


if __name__ == "__main__":
    main(*sys.argv[1:6])
