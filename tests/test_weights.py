"""Model files: what is written is read, and what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mssync.errors import InputError
from mssync.reenact.mesh import canonical_face
from mssync.render.renderer import LayeredRenderer
from mssync.weights import load_model, save_model


@pytest.fixture
def model() -> LayeredRenderer:
    torch.manual_seed(0)
    return LayeredRenderer((8,) * 4, (8,) * 4, (8,) * 5, body_width=8, motion_space="mine-1").eval()


def test_file_round_trip(model: LayeredRenderer, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model, "layered", model.config, {"steps": 3})
    loaded, about = load_model(tmp_path / "m.safetensors", kinds=("layered",))
    assert about["training"] == {"steps": 3}
    assert loaded.space == "mine-1"
    image, marks = torch.rand(1, 3, 256, 256), torch.from_numpy(canonical_face())[None]
    with torch.no_grad():
        found, wanted = (m.keypoints(image, marks) for m in (loaded, model))
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=0)
    with pytest.raises(InputError, match="where generator is needed"):
        load_model(tmp_path / "m.safetensors", kinds=("generator",))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="no shipped model of that name"):
        load_model("nobody")


@pytest.mark.parametrize("kinds", [(), ("layered", "fomm"), ("generator",)])
def test_keypoint_renderers_of_version_0_1_are_named(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    save_model(tmp_path / "m.safetensors", torch.nn.Linear(2, 2), "compact", {"blocks": 3})
    with pytest.raises(InputError, match=r"a keypoint renderer, which only version 0\.1 of MS-Sync draws with"):
        load_model(tmp_path / "m.safetensors", kinds=kinds)
