"""The first-order motion model against the public implementation's numbers, and checkpoint conversion."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import golden_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mssync.errors import InputError
from mssync.reenact import fomm
from mssync.reenact.convert import COUNTER, convert_checkpoint, empty_fomm, load_fomm, validated
from mssync.reenact.fomm import FOMM, FOMMConfig

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("MSSYNC_GOLDEN", ROOT.parent / "shared" / "golden")) / "fomm_vox_adv_256.npz"
SMALL = FOMMConfig(
    kp_expansion=4,
    kp_max_features=16,
    motion_expansion=4,
    motion_max_features=16,
    generator_expansion=4,
    generator_max_features=16,
    generator_bottleneck_blocks=1,
)


def image(seed: int, size: int = 256) -> Tensor:
    coarse = np.random.RandomState(seed).random_sample((1, 3, 8, 8)).astype("float32")
    return F.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def random_motion(batch: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    motion = 0.4 * torch.randn(batch, 10, 6, generator=random)
    motion[..., [2, 5]] += 2
    return motion


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, Tensor]]:
    """The two state dicts of a public checkpoint, filled by the rule."""
    model = empty_fomm()
    return {
        part: {name: golden_rule(name, like) for name, like in getattr(model, part).state_dict().items()}
        for part in ("kp_detector", "generator")
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    if not GOLDEN.exists():
        pytest.skip(f"no golden numbers at {GOLDEN}; set MSSYNC_GOLDEN to their folder")
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def converted(parts: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint as the public training code writes it, in the file format of its time, converted."""
    folder = tmp_path_factory.mktemp("fomm")
    extra = {
        "discriminator": {"scale": torch.ones(2)},
        "optimizer_generator": {"state": {0: {"step": 3}}},
        "epoch": 149,
    }
    checkpoint = folder / "vox-adv-cpk.pth.tar"
    torch.save({**parts, **extra}, checkpoint, _use_new_zipfile_serialization=False)
    yield convert_checkpoint(checkpoint, folder / "fomm.safetensors")
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def full(converted: Path) -> FOMM:
    return load_fomm(converted, align_corners=False)


@pytest.fixture(scope="module")
def small() -> FOMM:
    """A model with few channels, filled by the rule so that images move and are not flat."""
    model = FOMM(SMALL)
    model.load_state_dict({name: golden_rule(name, like) for name, like in model.state_dict().items()})
    return model


def error(actual: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(actual.numpy() - expected.astype("float32").reshape(actual.shape)).max())


def test_keys_are_those_of_public_checkpoints(golden: dict[str, np.ndarray]) -> None:
    model = empty_fomm()
    assert set(model.kp_detector.state_dict()) == set(golden["kp_keys"])
    assert set(model.generator.state_dict()) == set(golden["gen_keys"])


def test_golden_numbers_after_conversion(golden: dict[str, np.ndarray], full: FOMM) -> None:
    source = full.prepare(image(1))
    driving = full.keypoints(image(2))
    for motion, name in ((source.motion, "source"), (driving, "driving")):
        assert error(motion[..., :2], golden[f"{name}_value"]) < 1e-4
        assert error(motion[..., 2:], golden[f"{name}_jacobian"]) < 1e-4
    prediction, occlusion = full.render_with_occlusion(source, driving)
    assert error(occlusion, golden["occlusion_map"]) < 1e-4
    assert error(prediction, golden["prediction"]) < 5e-3


def test_align_corners_changes_pictures_not_keypoints(
    golden: dict[str, np.ndarray], full: FOMM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "align_corners", True)
    source = full.prepare(image(1))
    assert error(source.motion[..., :2], golden["source_value"]) < 1e-4
    prediction = full.render(source, full.keypoints(image(2)))
    assert error(prediction, golden["prediction"]) > 5e-3


def test_align_corners_true_leaves_an_unmoved_image_alone() -> None:
    picture = image(1, 32)
    unmoved = fomm.coordinate_grid(32, 32, like=picture)[None]
    torch.testing.assert_close(fomm.warp_with(picture, unmoved, True), picture)
    # False: position p lies p / 2 pixels further out, so the middle stays and the border fades.
    shifted = fomm.warp_with(picture, unmoved, False)
    assert (shifted - picture).abs().max() > 0.1
    torch.testing.assert_close(fomm.warp_with(picture, unmoved * 31 / 32, False), picture, atol=1e-4, rtol=0)


def test_batched_render_equals_one_shot_forward(small: FOMM) -> None:
    source, driving = image(1, 128), torch.cat([image(2, 128), image(3, 128)])
    rendered = small.render(small.prepare(source), small.keypoints(driving))
    assert rendered.shape == (2, 3, 128, 128)
    for frame in range(2):
        one_shot = small(source, driving[frame : frame + 1])
        torch.testing.assert_close(one_shot[0], rendered[frame], atol=1e-5, rtol=0)
    torch.testing.assert_close(small(source.expand(2, -1, -1, -1), driving), rendered, atol=1e-5, rtol=0)


def test_drawing_fast_changes_less_than_a_grey_level(small: FOMM) -> None:
    fast = copy.deepcopy(small).for_rendering().for_rendering()  # a second time changes nothing
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.generator.up_blocks.modules())
    fast.precision = "bfloat16"  # whatever this processor has
    image = torch.rand(1, 3, 128, 128)
    motion = small.keypoints(image) + 0.02 * torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0))
    wanted, drawn = (m.render(m.prepare(image), motion) for m in (small, fast))
    assert drawn.dtype == torch.float32
    assert torch.equal(fast.keypoints(image), small.keypoints(image))  # the detector is exact
    assert float((drawn - wanted).abs().mean()) < 1 / 255


def test_stays_frozen_but_passes_gradients_to_the_motion(small: FOMM) -> None:
    small.train()
    assert not any(module.training for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    motion = random_motion(1).requires_grad_()
    small.render(small.prepare(image(1, 128)), motion).mean().backward()
    assert motion.grad is not None
    assert motion.grad.abs().sum() > 0


def test_every_keypoint_counts_as_rigid(small: FOMM) -> None:
    assert small.rigid == tuple(range(10))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), x=st.integers(0, 6), y=st.integers(0, 4), k=st.integers(0, 9))
def test_candidate_warps_are_equation_4(seed: int, x: int, y: int, k: int) -> None:
    source, driving = random_motion(1, seed), random_motion(2, seed + 1)
    grid = fomm.coordinate_grid(5, 7, like=source)
    warps = fomm.candidate_warps(grid, source, driving)
    z = torch.tensor([2 * x / 6 - 1, 2 * y / 4 - 1])
    torch.testing.assert_close(warps[1, 0, y, x], z)
    jacobian = source[0, k, 2:].view(2, 2) @ driving[1, k, 2:].view(2, 2).inverse()
    expected = source[0, k, :2] + jacobian @ (z - driving[1, k, :2])
    torch.testing.assert_close(warps[1, k + 1, y, x], expected, atol=1e-4, rtol=1e-4)


def test_movement_heat_is_equation_6() -> None:
    source, driving = random_motion(1), random_motion(2, 1)
    heat = fomm.movement_heat(fomm.coordinate_grid(5, 7, like=source), source, driving)
    assert heat.shape == (2, 11, 1, 5, 7)
    assert not heat[:, 0].any()
    z = torch.tensor([2 * 4 / 6 - 1, 2 * 1 / 4 - 1])
    for k in range(10):
        gone, here = ((z - point).square().sum() / 0.01 for point in (source[0, k, :2], driving[1, k, :2]))
        torch.testing.assert_close(heat[1, k + 1, 0, 1, 4], torch.exp(-here / 2) - torch.exp(-gone / 2))


def test_reduction_is_a_gaussian_then_every_fourth_pixel() -> None:
    picture = image(4, 32)
    offsets = np.arange(-6, 7)
    bell = np.exp(-(offsets**2) / (2 * 1.5**2))
    padded = np.pad(picture.numpy().astype("float64"), ((0, 0), (0, 0), (6, 6), (6, 6)))
    kernel = np.outer(bell, bell) / np.outer(bell, bell).sum()
    expected = [
        [(padded[0, :, y : y + 13, x : x + 13] * kernel).sum((1, 2)) for x in range(0, 32, 4)] for y in range(0, 32, 4)
    ]
    reduced = fomm.AntiAliasedReduction(3, 4)(picture)[0]
    np.testing.assert_allclose(reduced.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_motion_without_inverse_is_the_users_mistake(small: FOMM) -> None:
    with pytest.raises(InputError, match="Jacobian"):
        small.render(small.prepare(image(1, 128)), torch.zeros(1, 10, 6))


def test_conversion_keeps_every_number(parts: dict[str, dict[str, Tensor]], converted: Path, full: FOMM) -> None:
    with safe_open(converted, framework="pt") as file:
        assert file.metadata()["mssync_kind"] == "fomm"
    state = full.state_dict()
    assert len(state) == sum(len(tensors) for tensors in parts.values())
    for part, tensors in parts.items():
        assert all(torch.equal(state[f"{part}.{name}"], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in converted.parent.iterdir()) == [
        "fomm.safetensors",
        "vox-adv-cpk.pth.tar",
    ]


def one_tensor_checkpoint(parts: dict[str, dict[str, Tensor]], **changes: dict) -> dict:
    """Names and shapes of a public checkpoint at almost no size: every tensor is a view of one number."""
    light = {
        part: {name: torch.zeros(()).expand(tensor.shape) for name, tensor in tensors.items()}
        for part, tensors in parts.items()
    }
    return {part: {**tensors, **changes.get(part, {})} for part, tensors in light.items()}


def test_wrong_checkpoints(parts: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    light = one_tensor_checkpoint(parts)
    without_jacobian = {
        **light,
        "kp_detector": {name: t for name, t in light["kp_detector"].items() if not name.startswith("jacobian")},
    }
    cases = {
        "missing kp_detector.jacobian.weight": without_jacobian,
        "unknown generator.colour": one_tensor_checkpoint(parts, generator={"colour": torch.ones(1)}),
        "wrong shape of generator.final.bias": one_tensor_checkpoint(parts, generator={"final.bias": torch.ones(4)}),
        "no kp_detector in it": {"generator": light["generator"]},
        "no kp_detector and no generator": {"state_dict": {}},
        "SyncNet": {"netcnnaud.0.weight": torch.ones(1), "netcnnlip.0.weight": torch.ones(1)},
        "list": [torch.ones(1)],
        "Python objects": {"generator": Path("x")},
    }
    for number, (message, content) in enumerate(cases.items()):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(content, path)
        assert_refused(path, message)


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("not a checkpoint\n" * 100)
    torch.save({"generator": torch.ones(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    assert_refused(tmp_path / "empty.pth", "empty")
    assert_refused(tmp_path / "text.pth", "not a PyTorch checkpoint")
    assert_refused(tmp_path / "cut.pth", "not a PyTorch checkpoint")
    assert_refused(tmp_path / "absent.pth", "does not exist")
    assert_refused(tmp_path, "directory")


def assert_refused(path: Path, message: str) -> None:
    """Conversion fails with one line that names the file, and leaves nothing behind."""
    out = path.parent / "out.safetensors"
    with pytest.raises(InputError, match=message) as caught:
        convert_checkpoint(path, out)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(path.parent.glob("*out.safetensors*")) == []


def test_unwritable_outputs(parts: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "cpk.pth.tar"
    torch.save(one_tensor_checkpoint(parts), path)
    (tmp_path / "taken.safetensors").mkdir()
    for out, message in (
        ("absent/out.safetensors", "there is no folder"),
        ("taken.safetensors", "directory"),
        ("out.pth", "must end in .safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            convert_checkpoint(path, tmp_path / out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpk.pth.tar", "taken.safetensors"]


def test_old_checkpoints_without_batch_counters(parts: dict[str, dict[str, Tensor]]) -> None:
    light = one_tensor_checkpoint(parts)
    old = {
        part: {name: t for name, t in tensors.items() if not name.endswith(COUNTER)} for part, tensors in light.items()
    }
    assert set(validated(old, Path("old.pth.tar"))) == set(validated(light, Path("new.pth.tar")))


def test_load_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors", {"mssync_kind": "syncer", "config": "{}"})
    save_file({"x": torch.ones(1)}, tmp_path / "damaged.safetensors", {"mssync_kind": "fomm", "config": "{}"})
    for name, message in (
        ("absent", "safetensors"),
        ("text", "safetensors"),
        ("other", "'syncer'"),
        ("damaged", "damaged"),
    ):
        with pytest.raises(InputError, match=message):
            load_fomm(tmp_path / f"{name}.safetensors")
