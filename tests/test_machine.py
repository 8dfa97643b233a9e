"""What must not depend on the machine: stored constants, names of motion spaces, the precision of drawing, stderr."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mssync
from mssync import audio, faces, precision
from mssync.config import GeneratorConfig
from mssync.errors import InputError
from mssync.generator import Generator
from mssync.metrics import frontal
from mssync.motion import space_name
from mssync.reenact import convert, mesh
from mssync.reenact.fomm import FOMM, FOMMConfig, earlier_space
from mssync.syncer import Syncer, SyncerPyramid
from mssync.weights import SHIPPED, load_model, read_metadata, save_model

BY_LIMITS = {  # what keeps oneDNN from the processor's bfloat16, and what does not
    "DNNL_MAX_CPU_ISA=AVX2": False, "DNNL_MAX_CPU_ISA=AVX512_CORE": False, "DNNL_MAX_CPU_ISA=SSE41": False,
    "ATEN_CPU_CAPABILITY=avx2": True, "OMP_NUM_THREADS=4": True,
}  # fmt: skip


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )


# ---- constants


def test_assets_are_what_their_functions_make() -> None:
    np.testing.assert_allclose(mesh.fit_mesh_map(), mesh.mesh_map(), atol=1e-5)
    made, stored = (np.abs(x) > 1e-9 for x in (mesh.fit_mesh_map(), mesh.mesh_map()))
    np.testing.assert_array_equal(made, stored)  # of the same points; what linear algebra leaves of zeros aside
    np.testing.assert_array_equal(faces.find_mirror_points(), faces.mirror_points())
    np.testing.assert_allclose(frontal.fit_view_reading(), frontal.view_reading(), atol=1e-5)
    np.testing.assert_allclose(audio.mel_filters(), audio._bank("mel", torch.device("cpu")), atol=1e-12)
    np.testing.assert_allclose(audio.cepstral_transform(), audio._bank("cepstra", torch.device("cpu")), atol=1e-12)


# ---- motion spaces


def test_shipped_files_name_their_space() -> None:
    spaces = {"generator": "face-1", "meter": None, "speech": None, "faces": None}
    for file in SHIPPED.glob("*.safetensors"):
        about = read_metadata(file)
        assert about["config"].get("motion_space") == spaces.get(about["kind"], "compact-1"), file.name


def without_name(source: Path, target: Path, digest: str | None) -> None:
    """A model file as version 0.1 wrote it."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    del config["motion_space"]
    if digest:
        config["motion_space"] = digest
    save_file(load_file(source), target, metadata | {"config": json.dumps(config)})


def test_generators_of_version_0_1_still_fit(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "reenactor.safetensors", tmp_path)
    small = GeneratorConfig(layers=1, heads=2, width=16, audio_width=8, branch_hidden=8)
    config = asdict(small) | {"motion_space": "compact-1", "audio": "logfbank"}
    save_model(tmp_path / "own.safetensors", Generator(small), "generator", config)
    without_name(tmp_path / "own.safetensors", tmp_path / "generator.safetensors", "b65da1a07cdabc5f")
    assert mssync.load(tmp_path).reenactor.space == "compact-1"
    without_name(tmp_path / "own.safetensors", tmp_path / "generator.safetensors", "0123456789abcdef")
    with pytest.raises(InputError, match=r"space '0123456789abcdef', and .* draws 'compact-1'"):
        mssync.load(tmp_path)
    assert space_name("mine") == "mine"


def test_a_fomm_has_the_name_of_its_file_or_in_version_0_1_a_digest(tmp_path: Path) -> None:
    small = FOMMConfig(kp_expansion=4, motion_expansion=4, generator_expansion=4, motion_space="mine-1")
    model = FOMM(small)
    save_model(tmp_path / "m.safetensors", model, "fomm", asdict(small), dtype=torch.float32)
    assert load_model(tmp_path / "m.safetensors")[0].space == "mine-1"
    without_name(tmp_path / "m.safetensors", tmp_path / "earlier.safetensors", None)
    assert load_model(tmp_path / "earlier.safetensors")[0].space == earlier_space(model)
    assert convert.space_of(Path("a/vox-adv-cpk.pth.tar")) == "fomm-vox-adv-cpk"


def test_syncers_refuse_the_motion_of_another_space() -> None:
    pyramid = SyncerPyramid.load(levels=1)
    pyramid.check_space("compact-1")
    pyramid.check_space("")
    SyncerPyramid([Syncer(60, 8, 8)]).check_space("anything")
    with pytest.raises(InputError, match="space 'compact-1', and this is of 'mine'"):
        pyramid.check_space("mine")


# ---- precision


def test_a_setting_wins_over_the_environment_and_that_over_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    assert precision.choose(None, cpu) == precision.choose("auto", cpu) in ("float32", "bfloat16")
    monkeypatch.setenv(precision.VARIABLE, "bfloat16")
    assert precision.choose(None, cpu) == "bfloat16"
    assert precision.choose("float32", cpu) == "float32"
    with pytest.raises(InputError, match="no precision 'half'; choose one of auto, float32, bfloat16"):
        precision.choose("half", cpu)
    monkeypatch.setenv(precision.VARIABLE, "half")
    with pytest.raises(InputError, match="half"):
        mssync.load()


@pytest.mark.parametrize(
    "limit", [limit if "AVX2" in limit else pytest.param(limit, marks=pytest.mark.slow) for limit in BY_LIMITS]
)
def test_auto_sees_what_onednn_may_use(limit: str) -> None:
    found = python("from mssync.precision import has_bfloat16; print(has_bfloat16('cpu'))", **dict([limit.split("=")]))
    assert found.stdout.strip() == str(BY_LIMITS[limit] and precision.has_bfloat16("cpu")), found.stderr


# ---- stderr


def test_with_stderr_closed_commands_still_work(tmp_path: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m mssync.cli info '{SHIPPED / 'syncer1.safetensors'}' 2>&-",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "model: syncer" in done.stdout
