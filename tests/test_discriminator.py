"""Eq. 11-13 against their formulas, D_s against loops over its windows."""

from __future__ import annotations

import pytest
import torch

from mssync.config import DiscriminatorConfig
from mssync.discriminator import FrameDiscriminator, SequenceDiscriminator, discriminator_loss, generator_loss
from mssync.errors import InputError

CONFIG = DiscriminatorConfig(motion_dim=6, frame_hidden=16, sequence_hidden=8, beta=5.0)


def sequence_discriminator() -> SequenceDiscriminator:
    torch.manual_seed(0)
    return SequenceDiscriminator(CONFIG).eval()  # eval: the estimate of the spectral norm stands still


@pytest.mark.parametrize("frames", [40, 23, 5])
def test_sequence_score_against_loops(frames):
    network = sequence_discriminator()
    x = torch.randn(2, frames, 6)
    e = network.embedding(x)
    scores = []
    for length in (5, 10, 20, 40):
        of_length = []
        for start in range(0, frames - length + 1, length // 2):
            features = network.feature(network.lstm(e[:, start : start + length])[0][:, -1])
            weight = max(1, start) ** (-1 / 5.0)
            projection = (network.condition(e[:, 0]) * features).sum(-1)
            of_length.append(network.score(features)[:, 0] + weight * projection)
        if of_length:
            scores.append(torch.stack(of_length).mean(0))
    torch.testing.assert_close(network(x), torch.stack(scores).mean(0))


def test_windows_overlap_by_half(monkeypatch):
    network = sequence_discriminator()
    shapes = []
    run = network.lstm.forward
    monkeypatch.setattr(network.lstm, "forward", lambda x: shapes.append(tuple(x.shape[:2])) or run(x))
    network(torch.randn(1, 40, 6))
    assert shapes == [(18, 5), (7, 10), (3, 20), (1, 40)]


def test_sequence_shorter_than_every_window():
    with pytest.raises(InputError, match="5 frames of motion or more, got 4"):
        sequence_discriminator()(torch.randn(1, 4, 6))


def test_frame_scores_do_not_depend_on_other_frames():
    network = FrameDiscriminator(CONFIG).eval()
    x = torch.randn(2, 7, 6)
    scores = network(x)
    assert scores.shape == (2, 7)
    torch.testing.assert_close(scores[:, 3], network(x[:, 3:4])[:, 0])


def test_linear_layers_have_spectral_norm_one():
    network = FrameDiscriminator(CONFIG).train()
    for _ in range(100):  # one power iteration a forward pass
        network(torch.randn(1, 2, 6))
    weights = [layer.weight for layer in network.layers if hasattr(layer, "weight")]
    norms = [torch.linalg.matrix_norm(weight, 2).item() for weight in weights]
    assert norms == pytest.approx([1.0] * len(norms), abs=0.02)


def test_hinge_losses_are_equations_11_to_13():
    real, generated = torch.randn(4, 9), torch.randn(4, 9)
    expected = sum(max(0.0, 1 + s) for s in generated.flatten().tolist()) / 36
    expected += sum(max(0.0, 1 - s) for s in real.flatten().tolist()) / 36
    assert discriminator_loss(real, generated).item() == pytest.approx(expected, abs=1e-6)
    expected = -sum(generated.flatten().tolist()) / 36
    assert generator_loss(generated).item() == pytest.approx(expected, abs=1e-6)


def test_gradients_reach_motion_and_every_weight():
    for network in (FrameDiscriminator(CONFIG), SequenceDiscriminator(CONFIG)):
        x = torch.randn(2, 40, 6, requires_grad=True)
        generator_loss(network(x)).backward()
        assert x.grad.abs().sum() > 0
        assert all(parameter.grad is not None for parameter in network.parameters())
