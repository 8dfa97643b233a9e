"""Public first-order motion model checkpoints -> this project's model files, and back into a model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mssync.errors import InputError, input_file, output_file
from mssync.reenact.fomm import FOMM, FOMMConfig
from mssync.weights import load_model, save_model

KIND = "fomm"
PARTS = ("kp_detector", "generator")
EXPECTED = "expected the public vox-cpk.pth.tar or vox-adv-cpk.pth.tar"
COUNTER = "num_batches_tracked"  # unused in eval mode; checkpoints of early PyTorch lack it
SYNCNET_PREFIXES = ("netcnnaud.", "netcnnlip.")


def convert_checkpoint(path: str | Path, out: str | Path) -> Path:
    """Write the FOMM of a public checkpoint to `out`, which ends in .safetensors; returns `out`.

    Keeps float32. Half precision would halve the 240 MB, but moves keypoints by 1e-3 and pixels by up to 0.1
    (the heat maps' temperature of 0.1 amplifies its rounding), where 1e-4 and 5e-3 are asked. The public
    code's checkpoints for other subjects than faces, where of the same sizes, cannot be told from these.

    Raises InputError for a checkpoint that is unreadable, refused, damaged or of another model, and for an
    unwritable `out`; nothing is left behind then.
    """
    path, out = input_file(path), output_file(out, ".safetensors")
    tensors = validated(read_checkpoint(path), path)
    model = empty_fomm()
    model.load_state_dict(tensors, assign=True)
    config = dataclasses.asdict(model.config) | {"motion_space": space_of(path)}
    save_model(out, model, KIND, config, dtype=torch.float32)
    return out


def space_of(checkpoint: Path) -> str:
    """The name of a checkpoint's motion space, by its file: vox-adv-cpk.pth.tar has fomm-vox-adv-cpk."""
    stem = checkpoint.name.removesuffix(".tar").removesuffix(".pth")
    return "fomm-" + re.sub(r"[^\w.+-]+", "-", stem)


def load_fomm(path: str | Path, align_corners: bool = True) -> FOMM:
    """The model of a converted file, on the CPU; `align_corners` as in FOMM.

    Raises InputError for a file that is unreadable, not safetensors, of another kind, or incomplete.
    """
    model, _ = load_model(path, kinds=(KIND,))
    assert isinstance(model, FOMM)
    model.align_corners = align_corners
    return model


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a PyTorch file, read without running any code it may carry."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if "GLOBAL" in str(error):
            message = "holds Python objects beside tensors, refused because reading them could run code"
        else:
            message = "not a PyTorch checkpoint, or a damaged one"
        raise InputError(f"{path}: {message}; {EXPECTED}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}, not a dictionary of models; {EXPECTED}")
    return checkpoint


def validated(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The checkpoint's FOMM tensors, complete, in FOMM's types, named `kp_detector.*` and `generator.*`."""
    if any(str(name).startswith(SYNCNET_PREFIXES) for name in checkpoint):
        raise InputError(f"{path}: a SyncNet checkpoint; only FOMM checkpoints are converted, {EXPECTED}")
    absent = [part for part in PARTS if not isinstance(checkpoint.get(part), dict)]
    if absent:
        raise InputError(f"{path}: not a FOMM checkpoint, no {' and no '.join(absent)} in it; {EXPECTED}")
    found = {f"{part}.{name}": value for part in PARTS for name, value in checkpoint[part].items()}
    expected = empty_fomm().state_dict()
    differences = {
        "missing": [name for name in expected if name not in found and not name.endswith(COUNTER)],
        "unknown": [name for name in found if name not in expected],
        "wrong shape of": [
            name for name, like in expected.items() if name in found and shape_of(found[name]) != like.shape
        ],
    }
    if any(differences.values()):
        summary = ", ".join(f"{what} {shortened(names)}" for what, names in differences.items() if names)
        raise InputError(f"{path}: a model other than FOMM's for vox: {summary}; {EXPECTED}")
    return {name: found.get(name, torch.tensor(0)).to(like.dtype) for name, like in expected.items()}


def empty_fomm() -> FOMM:
    """A FOMM of the public sizes whose parameters have shapes only, no memory."""
    with torch.device("meta"):
        return FOMM(FOMMConfig())


def shape_of(value: object) -> torch.Size | None:
    """A tensor's shape, None for anything else."""
    return value.shape if isinstance(value, Tensor) else None


def shortened(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
