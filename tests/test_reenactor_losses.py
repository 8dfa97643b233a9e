"""The reenactor's losses against direct formulas and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="needs mssync[train]")

from mssync.reenact.compact import BODY, FIELD_SIZE, MOTION_SIZE
from mssync.reenact.mesh import canonical_face
from mssync.training.adversary import PatchDiscriminator
from mssync.training.common import Average, cosine_rate, ramp
from mssync.training.perceptual import PerceptualLoss
from mssync.training.reenactor import (
    CHANGED_WEIGHT,
    body_error,
    equivariance,
    flow_error,
    mesh_error,
    weighted_error,
    with_changes,
)

SHIFT = torch.tensor([0.1, -0.05])


def marks() -> torch.Tensor:
    return torch.from_numpy(canonical_face())[None]


def still(batch: int = 1) -> torch.Tensor:
    """Motion (batch, 10, 6) at the centre with identity Jacobians."""
    return torch.cat([torch.zeros(batch, 10, 2), torch.eye(2).flatten().expand(batch, 10, 4)], -1)


def test_weighted_error_is_the_weighted_mean_of_each_picture() -> None:
    drawn, wanted, weight = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    direct = np.mean(
        [float((w * (a - b).abs()).sum() / w.sum() / 3) for a, b, w in zip(drawn, wanted, weight, strict=True)]
    )
    assert float(weighted_error(drawn, wanted, weight)) == pytest.approx(direct, rel=1e-4)


def test_what_opens_and_closes_weighs_more() -> None:
    opened = torch.zeros(1, 4, 32, 32)
    opened[:, 0, 4:8, 4:8] = 1  # a mouth that is to be open
    opened[:, 1, 20, 20] = opened[:, 3, 20, 20] = 1  # an eye that stays open
    weight = with_changes(torch.ones(1, 1, 16, 16), opened)
    assert weight.shape == (1, 1, 32, 32)
    assert float(weight[0, 0, 5, 5]) == 1 + CHANGED_WEIGHT
    assert float(weight[0, 0, 20, 20]) == 1


def test_mesh_error_is_zero_for_the_true_shift_and_its_length_for_none() -> None:
    source = marks() + SHIFT
    pair = torch.cat([source, marks()])
    true = SHIFT.expand(1, FIELD_SIZE, FIELD_SIZE, 2)
    assert float(mesh_error(true, pair)) == pytest.approx(0, abs=1e-6)
    assert float(mesh_error(torch.zeros_like(true), pair)) == pytest.approx(float(SHIFT.abs().sum()), rel=1e-4)


def test_flow_error_counts_only_what_is_trusted() -> None:
    offset = torch.zeros(1, FIELD_SIZE, FIELD_SIZE, 2)
    flow, trust = torch.zeros(1, 64, 64, 2), torch.zeros(1, 64, 64)
    flow[:, :32], trust[:, 32:] = 0.5, 1.0
    assert float(flow_error(offset, flow, trust)) == pytest.approx(0, abs=2e-4)
    assert float(flow_error(offset, flow, 1 - trust)) > 0.01


def test_body_error_looks_at_the_learned_keypoint_below_the_chin() -> None:
    batch = {"driving_marks": marks(), "flow": torch.zeros(1, 64, 64, 2), "trust": torch.ones(1, 64, 64)}
    batch["flow"][:, 60:] = SHIFT  # far below the chin
    source = still()
    unmoved = float(body_error(source, still(), batch))
    source[:, BODY, :2] += SHIFT
    away = float(body_error(source, still(), batch))
    batch["flow"][:] = SHIFT
    assert float(body_error(source, still(), batch)) == pytest.approx(0, abs=2e-4)
    assert unmoved > 0
    assert away > 0


def test_equivariance_is_zero_for_points_that_move_with_the_picture() -> None:
    affine, shift = torch.tensor([[[1.1, 0.1], [-0.05, 0.9]]]), torch.tensor([[0.1, -0.2]])
    moved = still()
    moved[..., :2] = torch.rand(1, 10, 2) - 0.5
    motion = moved.clone()
    motion[..., :2] = moved[..., :2] @ affine[0].T + shift
    motion[..., 2:] = (affine @ moved[..., 2:].unflatten(-1, (2, 2))).flatten(2)
    assert float(equivariance(motion, moved, affine, shift)) == pytest.approx(0, abs=1e-5)
    assert float(equivariance(motion + 0.1, moved, affine, shift)) > 0.05


def test_perceptual_loss_is_zero_for_equal_pictures_and_independent_of_the_batch() -> None:
    loss = PerceptualLoss()
    one, two = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert float(loss(one, one)) == 0
    single = torch.stack([loss(a[None], b[None]) for a, b in zip(one, two, strict=True)]).mean()
    assert float(loss(one, two)) == pytest.approx(float(single), rel=1e-4)
    assert not any(p.requires_grad for p in loss.parameters())


def test_discriminator_learns_to_tell_and_its_losses_are_hinges() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator()
    drawn, real = torch.zeros(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    fake_scores, real_scores = critic.eval()(drawn)[0], critic(real)[0]
    wanted = F.relu(1 + fake_scores).mean() + F.relu(1 - real_scores).mean()
    torch.testing.assert_close(critic.judge(drawn, real), wanted)
    adversarial, matching = critic.criticise(real, real)
    assert float(adversarial) == pytest.approx(-float(real_scores.mean()), rel=1e-4)
    assert float(matching) == 0
    optimizer = torch.optim.Adam(critic.train().parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        critic.judge(drawn, real).backward()
        optimizer.step()
    assert float(critic(real)[0].mean()) > float(critic(drawn)[0].mean())


def test_average_follows_and_rates_ramp() -> None:
    model = torch.nn.Linear(1, 1)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.weight += 1
    for step in range(200):
        average.update(model, step)
    torch.testing.assert_close(average.model.weight, model.weight, atol=1e-4, rtol=0)  # type: ignore[arg-type]
    assert [ramp(s, 2, 4) for s in (0, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1]
    assert cosine_rate(0, 100, 10) == pytest.approx(0.1)
    assert cosine_rate(10, 100, 10) == pytest.approx(1)
    assert cosine_rate(100, 100, 10) == pytest.approx(0.05)
    assert MOTION_SIZE * 2 == FIELD_SIZE
