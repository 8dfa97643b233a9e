"""Model files: safetensors in half precision that carry their own configuration.

The metadata of a file holds ``mssync_kind`` (what the weights are: "layered", "fomm", "syncer", "generator",
"meter", "speech", "painter", "matte", "residual", "finder", "mesh", "faces"), ``config`` (JSON: the arguments that
rebuild the module) and ``training`` (JSON: steps, data, figures).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mssync.errors import InputError, written_whole

SHIPPED = Path(__file__).parent / "checkpoints"


def available() -> list[str]:
    """Names of the models that the package ships."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name or of a path. Raises InputError when it is neither."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    names = ", ".join(available()) or "none"
    raise InputError(f"{name_or_path}: no such model file, and no shipped model of that name (shipped: {names})")


def save_model(
    path: str | Path,
    model: nn.Module,
    kind: str,
    config: dict[str, Any],
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a module's weights as safetensors, floating-point tensors cast to `dtype`; atomic."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{path}: {name} is not finite (in {str(dtype).split('.')[-1]}); nothing is written")
    metadata = {
        "mssync_kind": kind,
        "config": json.dumps(config, sort_keys=True),
        "training": json.dumps(training or {}, sort_keys=True),
    }
    with written_whole(path, ".safetensors") as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise InputError(f"{path}: cannot write the model file ({error})") from error
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def read_metadata(name_or_path: str | Path) -> dict[str, Any]:
    """kind, config and training of a model file, without its weights. Raises InputError when it is no such file."""
    from safetensors import SafetensorError, safe_open

    path = find(name_or_path)
    try:
        with safe_open(path, "pt") as file:
            raw = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file; see `mssync convert` for public checkpoints") from error
    if "mssync_kind" not in raw:
        raise InputError(f"{path}: not a model of MS-Sync (no mssync_kind in its metadata)")
    try:
        config, training = json.loads(raw.get("config", "{}")), json.loads(raw.get("training", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: damaged metadata ({error})") from error
    return {"kind": raw["mssync_kind"], "config": config, "training": training}


def load_model(
    name_or_path: str | Path, device: str | torch.device = "cpu", kinds: tuple[str, ...] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a module from its file: float32, eval mode, no gradients.

    kinds: which kinds the caller can use; empty for any. Returns the module and ``read_metadata``'s dictionary.
    Raises InputError for an unknown name, another kind, or weights that do not fit their configuration.
    """
    from safetensors.torch import load_file

    path, metadata = find(name_or_path), read_metadata(name_or_path)
    if metadata["kind"] == "compact":
        raise InputError(
            f"{path}: a keypoint renderer, which only version 0.1 of MS-Sync draws with; this version draws with "
            "layered models: take the shipped one, or put your own together (docs/training.md)"
        )
    if kinds and metadata["kind"] not in kinds:
        raise InputError(f"{path}: holds a {metadata['kind']!r} model where {' or '.join(kinds)} is needed")
    try:
        model = _build(metadata["kind"], metadata["config"])
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        model.load_state_dict(state)
        if metadata["kind"] == "fomm" and "motion_space" not in metadata["config"]:
            from mssync.reenact.fomm import FOMM, earlier_space

            assert isinstance(model, FOMM)
            model.space = earlier_space(model)
    except (TypeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: the weights do not fit their configuration ({reason})") from error
    return model.to(device).eval().requires_grad_(False), metadata


def _build(kind: str, config: dict[str, Any]) -> nn.Module:
    if kind == "fomm":
        from mssync.reenact.fomm import build

        return build(config)
    if kind == "syncer":
        from mssync.syncer import build_syncer

        return build_syncer(config)
    if kind == "generator":
        from mssync.generator import build_generator

        return build_generator(config)
    if kind == "layered":
        from mssync.render.renderer import LayeredRenderer

        return LayeredRenderer(**config)
    if kind == "residual":
        from mssync.render.residual import Residual

        return Residual(**config)
    if kind == "matte":
        from mssync.render.matte import MatteNet

        return MatteNet(tuple(config["widths"]))
    if kind == "painter":
        from mssync.render.painter import Painter

        return Painter(config["organ"], tuple(config["widths"]))
    if kind == "speech":
        from mssync.speech import SpeechEncoder

        return SpeechEncoder(**config)
    if kind == "faces":
        from mssync.face.analyser import FaceNets

        return FaceNets()
    if kind == "finder":
        from mssync.face.detector import FinderNet

        return FinderNet()
    if kind == "mesh":
        from mssync.face.mesh import MeshNet

        return MeshNet()
    if kind == "meter":
        from mssync.meter import build_meter

        return build_meter(config)
    raise KeyError(f"unknown kind of model {kind!r}")


def fold_batch_norms(layers: nn.Sequential) -> None:
    """Fold batch norms into the convolutions before them, in place."""
    for i, (layer, norm) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
