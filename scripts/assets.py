"""Make the constants in mssync/assets again that are computed from others of them: `python scripts/assets.py`.

They are stored, not computed at load: what weights were trained with must not depend on a library's sorting or linear
algebra. So run this only together with a new training. Assets that are fitted to clips are made where the training is.
"""

from __future__ import annotations

import numpy as np

from mssync import audio, faces, speech
from mssync.metrics import frontal
from mssync.reenact import mesh


def main() -> None:
    np.save(faces.MIRROR_FILE, faces.find_mirror_points())
    np.save(mesh.MAP_FILE, mesh.fit_mesh_map())
    np.save(frontal.VIEW_FILE, frontal.fit_view_reading())
    np.savez_compressed(speech.BANK_FILE, **speech.filter_bank())
    np.savez_compressed(audio.BANK_FILE, mel=audio.mel_filters(), cepstra=audio.cepstral_transform())


if __name__ == "__main__":
    main()
