"""Put the detector and the mesh network into one file: `python scripts/assemble_faces.py FINDER MESH OUT FRAMES…`.

FINDER, MESH: what `mssync train finder` and `mssync train mesh` made; FRAMES: what they were trained on. The mesh
network's score, which tells faces from what the detector takes for them, is fitted to what the detector finds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mssync.face.analyser import FaceNets
from mssync.training.finder import fit_score
from mssync.weights import load_model, save_model


def main(finder: str, mesh: str, out: str, *data: str, pictures: int = 1500) -> None:
    nets, steps = FaceNets(), {}
    for name, path in (("finder", finder), ("mesh", mesh)):
        network, about = load_model(path, kinds=(name,))
        getattr(nets, name).load_state_dict(network.state_dict())
        steps[name] = about["training"]["steps"]
    print(fit_score(nets.eval(), data, pictures))
    save_model(Path(out), nets, "faces", {}, steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
