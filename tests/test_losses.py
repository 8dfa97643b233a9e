"""Losses of pictures against direct formulas, and what steadies a training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="needs mssync[train]")

from mssync.training.adversary import PatchDiscriminator
from mssync.training.common import Average, cosine_rate, ramp
from mssync.training.perceptual import PerceptualLoss


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
