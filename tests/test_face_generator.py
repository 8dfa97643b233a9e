"""The generator of the space face-1: live as of files, exact beginnings, what may be heard."""

from __future__ import annotations

import pytest
import torch

from mssync.config import GeneratorConfig
from mssync.errors import InputError
from mssync.face1 import EXPRESSION, HEAD, NUMBERS
from mssync.face_generator import FaceGenerator
from mssync.generator import build_generator
from mssync.speech import COMPONENTS, FEATURES

SMALL = {
    "space": "face-1", "hears": "speech", "layers": 1, "heads": 2, "width": 16, "feed_forward": 16, "audio_width": 16,
    "branch_hidden": 16, "expression_width": 8, "relative_input": True, "leak": 0.01,
}  # fmt: skip
FRAMES = 70


def generator(**options) -> FaceGenerator:
    torch.manual_seed(0)
    made = build_generator(SMALL | options)
    assert isinstance(made, FaceGenerator)
    for layer in (made.expression.out, made.expression.habit):
        torch.nn.init.normal_(layer.weight, std=0.1)
    made.set_statistics(torch.zeros(NUMBERS), torch.ones(NUMBERS), torch.zeros(FEATURES), torch.ones(FEATURES))
    return made.eval().requires_grad_(False)


def spoken(batch: int = 2, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(batch, 2 * frames, FEATURES, generator=torch.Generator().manual_seed(1))


def first(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, NUMBERS, generator=torch.Generator().manual_seed(2))


def test_it_begins_with_the_first_frame():
    made = generator()(first(), spoken())
    assert made.shape == (2, FRAMES, NUMBERS)
    torch.testing.assert_close(made[:, 0], first())


def test_what_is_its_own_is_soon_gone():
    network, x0 = generator(), first()
    other = x0.clone()
    other[:, EXPRESSION] += 1
    a, b = network(x0, spoken(), origin=x0), network(other, spoken(), origin=x0)
    torch.testing.assert_close(a[..., :HEAD], b[..., :HEAD])
    apart = (b - a)[..., EXPRESSION].abs().amax((0, 2))
    assert apart[0] == pytest.approx(1, abs=1e-5)
    assert apart[8] < 0.2
    assert apart[40] < 1e-3


@pytest.mark.parametrize("spontaneous", [False, True])
@pytest.mark.parametrize("pieces", [(1,), (3, 5), (64,), (2 * FRAMES,)])
def test_live_is_the_same_as_a_file(pieces, spontaneous):
    network, audio = generator(spontaneous=spontaneous), spoken()
    if spontaneous:
        network.spontaneous_motion.normal_(generator=torch.Generator().manual_seed(3))
    listener, made, at, n = network.listen(first(), seed=4), [], 0, 0
    while at < audio.shape[1]:
        size = pieces[n % len(pieces)]
        made += listener.push(audio[:, at : at + size])
        at, n = at + size, n + 1
    made = torch.stack(made, 1)
    whole = torch.stack(list(network.stream(first(), audio, seed=4)), 1)
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=0)
    if not spontaneous:
        torch.testing.assert_close(made, network(first(), audio), atol=1e-4, rtol=0)


def test_a_frame_hears_nothing_of_what_is_to_come():
    network, audio = generator(), spoken()
    audio.requires_grad_()
    network(first(), audio)[:, 40].square().sum().backward()
    heard = audio.grad.abs().amax((0, 2)).nonzero()
    assert int(heard.max()) == 81


def test_expressions_hear_lips_alone():
    network, audio = generator(), spoken()
    other = audio.clone()
    other[..., :COMPONENTS] += 1
    a, b = network(first(), audio), network(first(), other)
    torch.testing.assert_close(a[..., EXPRESSION], b[..., EXPRESSION])
    assert (a - b)[..., :HEAD].abs().max() > 1e-3


def test_it_needs_speech_and_its_own_numbers():
    with pytest.raises(InputError, match="hears=speech"):
        FaceGenerator(GeneratorConfig(space="face-1"))
    with pytest.raises(InputError, match="50 numbers, got 60"):
        generator()(torch.zeros(1, 60), spoken(1))
