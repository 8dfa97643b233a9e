"""Eq. 8-10 against direct formulas; streamed = whole = parallel; causality; cost and memory of a step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync import generator as module
from mssync.config import GeneratorConfig, load_config
from mssync.errors import InputError
from mssync.generator import REACH, AudioEncoder, Branches, Generator, rotary_at, rotary_table

SMALL = GeneratorConfig(
    layers=2,
    heads=2,
    width=16,
    feed_forward=24,
    context=6,
    audio_width=12,
    branch_hidden=10,
    relative_input=True,
)
EXTRAS = [
    SMALL,
    replace(SMALL, relative_input=False),
    replace(SMALL, audio_free_branch=True),
    replace(SMALL, final_linear=True),
    replace(SMALL, warmup_frames=3),
    replace(SMALL, leak=0.1),
    replace(SMALL, audio_free_branch=True, final_linear=True, warmup_frames=3, context=1),
    replace(SMALL, hears="speech"),
]


def make(config: GeneratorConfig = SMALL) -> Generator:
    """A small generator, statistics that are not trivial, velocities large enough for errors to show."""
    torch.manual_seed(0)
    generator = Generator(config)
    motion = torch.randn(60) * 0.1, torch.rand(60) + 0.1
    numbers = len(generator.audio_encoder.norm.mean)
    generator.set_statistics(*motion, torch.randn(numbers), torch.rand(numbers) + 0.5)
    generator.branches.out_weight.data *= 10
    return generator


def example(frames: int, batch: int = 2, hears: str = "energies") -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    rows, numbers = (2, 104) if hears == "speech" else (4, 26)
    return torch.randn(batch, 60, generator=random), torch.randn(batch, rows * frames, numbers, generator=random)


# ---- equations


@pytest.mark.parametrize("config", EXTRAS)
def test_multi_scale_module_is_equation_10(config):
    torch.manual_seed(0)
    branches = Branches(config, state_size=7)
    if config.final_linear:
        torch.nn.init.normal_(branches.final.weight)
    levels, state = torch.randn(4, 2, 3, config.audio_width), torch.randn(2, 7)
    velocities, logits = [], []
    for i in range(4 + config.audio_free_branch):
        x = state @ branches.state_weight[i] + branches.first_bias[i]
        if i < 4:  # frame 1 of each level; [a, x, h] times a matrix is the sum of the two products
            x = x + levels[i, :, 1] @ branches.audio_weight[i]
        x = torch.nn.functional.gelu(x)
        x = torch.nn.functional.gelu(x @ branches.hidden_weight[i] + branches.hidden_bias[i])
        out = (x @ branches.out_weight[i] + branches.out_bias[i]).reshape(2, 10, 7)
        velocities.append(out[..., :6])
        logits.append(out[..., 6:])
    total = sum(w.exp() for w in logits)
    parts = [(w.exp() / total * v).flatten(1) for w, v in zip(logits, velocities, strict=True)]
    expected = branches.final(torch.cat(parts, dim=1)) if config.final_linear else sum(parts)
    torch.testing.assert_close(branches(branches.audio_part(levels)[1], state), expected)


def test_final_layer_starts_as_the_sum():
    summed, linear = make(), make(replace(SMALL, final_linear=True))
    linear.load_state_dict(summed.state_dict(), strict=False)
    torch.testing.assert_close(linear(*example(9)), summed(*example(9)))


def test_temporal_module_is_windowed_causal_attention():
    """One layer of one head against loops: frame t attends to t - 5 … t with rotated queries and keys."""
    config = replace(SMALL, layers=1, heads=1)
    generator = make(config)
    inputs = torch.randn(1, 15, 120)
    (layer,) = generator.layers
    x = generator.embedding(inputs)[0]
    query, key, value = layer.qkv(layer.attention_norm(x)).split(16, dim=-1)

    def rotate(v: torch.Tensor, t: int) -> torch.Tensor:
        pairs = torch.complex(v[:8], v[8:])
        angles = t * 10000.0 ** (-torch.arange(8) / 8)
        turned = pairs * torch.polar(torch.ones(8), angles)
        return torch.cat([turned.real, turned.imag])

    seen = []
    for t in range(15):
        past = range(max(0, t - 5), t + 1)
        weights = torch.stack([rotate(query[t], t) @ rotate(key[s], s) / 4 for s in past]).softmax(0)
        seen.append(sum(w * value[s] for w, s in zip(weights, past, strict=True)))
    x = x + layer.attention_out(torch.stack(seen))
    expected = generator.out_norm(x + layer.feed_forward(x))
    state = (None,)
    for t in range(15):
        hidden, state = generator._attend(inputs[:, t : t + 1], rotary_at(t, 16, torch.device("cpu")), state, None)
        torch.testing.assert_close(hidden[0, 0], expected[t], atol=1e-5, rtol=1e-5)


def test_rotary_angles_stay_exact_after_hours():
    cos, sin = rotary_table(torch.tensor([1_000_000]), 8)
    angles = 1_000_000 * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    torch.testing.assert_close(cos[0, :4], angles.cos().float())
    torch.testing.assert_close(sin[0, 4:], angles.sin().float())
    assert all(map(torch.equal, rotary_at(1_000_000, 8, torch.device("cpu")), (cos, sin)))


def test_coarse_audio_levels_are_interpolated_linearly():
    encoder = AudioEncoder(8)
    audio = torch.randn(1, 4 * 21, 26)
    levels = encoder(audio)
    assert levels.shape == (4, 1, 21, 8)
    for i in range(4):
        step = 2**i
        for t in range(21):
            left = min(t // step * step, 20 // step * step)
            right = min(left + step, 20 // step * step)
            weight = (t - left) / step
            expected = (1 - weight) * levels[i, 0, left] + weight * levels[i, 0, right]
            torch.testing.assert_close(levels[i, 0, t], expected, atol=1e-6, rtol=1e-5)


# ---- one function, three ways to compute it


@pytest.mark.parametrize("config", EXTRAS)
@pytest.mark.parametrize("frames", [1, 2, 25])
def test_roll_out_is_equation_9_of_its_own_past(config, frames):
    generator = make(config)
    x0, audio = example(frames, hears=config.hears)
    motion = generator(x0, audio)
    assert motion.shape == (2, frames, 60)
    assert torch.equal(motion[:, 0], x0)
    torch.testing.assert_close(generator.teacher_forced(motion, audio), motion, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", EXTRAS)
def test_streamed_equals_whole(config, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)  # many chunk borders in a short sequence
    # Velocities this large amplify rounding from frame to frame; doubles leave real differences only.
    generator = make(config).double()
    x0, audio = (x.double() for x in example(150, 1, config.hears))
    with torch.no_grad():
        whole = generator(x0, audio)[0]
    streamed = torch.stack(list(generator.stream(x0[0], audio[0])))
    torch.testing.assert_close(streamed, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["paper", "compact"])
def test_streamed_equals_whole_at_full_size(name):
    torch.manual_seed(0)
    generator = Generator(load_config(name).generator)
    x0, audio = example(60, batch=1)
    with torch.no_grad():
        whole = generator(x0, audio)[0]
        parallel = generator.teacher_forced(whole[None], audio)[0]
    streamed = torch.stack(list(generator.stream(x0[0], audio[0])))
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(parallel, whole, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 60), chunk=st.sampled_from([8, 24, 40]))
def test_streamed_length(frames, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        x0, audio = example(frames, batch=1)
        generator = make(replace(SMALL, warmup_frames=3))
        streamed = torch.stack(list(generator.stream(x0[0], audio[0])))
        torch.testing.assert_close(streamed, generator(x0, audio)[0].detach(), atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_members():
    generator = make()
    x0, audio = example(12)
    together = torch.stack(list(generator.stream(x0, audio)), 1)
    alone = torch.stack([torch.stack(list(generator.stream(*one))) for one in zip(x0, audio, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(generator(x0, audio)[1:], generator(x0[1:], audio[1:]), atol=1e-5, rtol=1e-5)


# ---- causality and reach


def test_future_motion_does_not_change_earlier_frames():
    generator = make()
    x, audio = torch.randn(1, 20, 60), torch.randn(1, 80, 26)
    changed = x.clone()
    changed[:, 12:] += 1
    before, after = generator.teacher_forced(x, audio), generator.teacher_forced(changed, audio)
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=1e-6, rtol=1e-6)
    # Frame 12 is made from frames up to 11, so the first to notice is 13.
    assert torch.equal(before[:, 12], after[:, 12])
    assert not torch.allclose(before[:, 13], after[:, 13])


def test_context_is_bounded():
    # Two layers of 6 frames reach 5 + 5 frames back from x_t, and the new frame is one later.
    generator = make().double()
    x, audio = torch.randn(1, 30, 60).double(), torch.randn(1, 120, 26).double()
    changed = x.clone()
    changed[:, 10] += 1
    difference = generator.teacher_forced(x, audio) - generator.teacher_forced(changed, audio)
    affected = (difference.abs().amax(-1)[0] > 1e-12).nonzero().flatten()
    assert affected.tolist() == list(range(11, 22))


@pytest.mark.parametrize("change", [100, 163])
def test_audio_beyond_the_reach_changes_nothing(change):
    generator = make()
    x0, audio = example(240, batch=1)
    changed = audio.clone()
    changed[:, 4 * change :] += 1
    with torch.no_grad():
        difference = (generator(x0, audio) - generator(x0, changed)).abs().amax(-1)[0]
    assert difference[: change - REACH].max() < 1e-6
    assert difference[change] > 1e-4


def test_what_hears_speech_hears_nothing_of_later_frames():
    generator = make(replace(SMALL, hears="speech"))
    x0, features = example(80, 1, "speech")
    changed = features.clone()
    changed[:, 2 * 50 :] += 1
    with torch.no_grad():
        difference = (generator(x0, features) - generator(x0, changed)).abs().amax(-1)[0]
    assert difference[:50].max() == 0
    assert difference[50] > 1e-4
    levels = generator.audio_encoder(features)
    moved = (generator.audio_encoder(changed) - levels).abs().amax((0, 1, 3)) > 0
    assert moved.nonzero().min() == 50
    before = features.clone()
    before[:, : 2 * 20] += 1  # what is more than REACH frames ago
    same = (generator.audio_encoder(before) - levels).abs().amax((0, 1, 3)) == 0
    assert same[20 + REACH :].all()
    assert not same[: 20 + REACH].any()


# ---- cost, memory, gradients


def test_cache_does_not_grow():
    generator = make()
    x0, audio = example(40, batch=1)
    state = generator.start(x0)
    sizes = []
    for vectors in generator.audio_vectors(audio)[1:]:
        _, state = generator.step(state, vectors)
        sizes.append([pairs.shape[2] for pairs in state.cache])
    assert sizes[3] == [4, 4]
    assert all(size == [SMALL.context - 1] * 2 for size in sizes[SMALL.context - 2 :])


def test_a_step_costs_the_same_late_as_early():
    """Counted in operations and elements, which a busy machine cannot disturb."""
    from torch.utils.flop_counter import FlopCounterMode

    generator = make()
    x0, audio = example(400, batch=1)
    stream = generator.stream(x0[0], audio[0])
    list(itertools.islice(stream, 10))  # the cache is full, the first chunk encoded

    def cost() -> int:
        with FlopCounterMode(display=False) as counter:
            list(itertools.islice(stream, 20))
        return counter.get_total_flops()

    early = cost()
    list(itertools.islice(stream, 200))
    assert cost() == early > 0


def test_streaming_builds_no_graph():
    generator = make()
    x0, audio = example(3, batch=1)
    assert not any(frame.requires_grad for frame in generator.stream(x0[0], audio[0]))


@pytest.mark.parametrize("config", EXTRAS)
def test_gradients_run_through_the_whole_roll_out(config):
    generator = make(config)
    x0, audio = example(10, hears=config.hears)
    x0.requires_grad_()
    generator(x0, audio)[:, -1].sum().backward()
    assert x0.grad.abs().min() > 0
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_gradient_of_the_roll_out_is_the_numerical_one():
    config = replace(SMALL, keypoints=1, values=2, context=3)
    torch.manual_seed(0)
    generator = Generator(config).double()
    generator.branches.out_weight.data *= 10
    x0 = torch.randn(1, 2, dtype=torch.double, requires_grad=True)
    audio = torch.randn(1, 4 * 6, 26, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda v: generator(v, audio), x0)


def test_statistics_travel_with_the_weights():
    trained = make()
    fresh = Generator(SMALL)
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(*example(5)), trained(*example(5)))


@pytest.mark.parametrize(
    ("x0", "audio", "message"),
    [
        ((1, 59), (1, 8, 26), "first frame of 60 numbers, got 59"),
        ((1, 60), (1, 7, 26), "got 7 x 26"),
        ((1, 60), (1, 8, 13), "got 8 x 13"),
        ((1, 60), (1, 0, 26), "got 0 x 26"),
    ],
)
def test_shapes_that_do_not_fit(x0, audio, message):
    with pytest.raises(InputError, match=message):
        make()(torch.zeros(x0), torch.zeros(audio))


def test_width_that_the_heads_do_not_divide():
    with pytest.raises(InputError, match=r"generator\.width must be a multiple"):
        Generator(replace(SMALL, width=18, heads=4))


def test_origin_is_what_the_relative_input_counts_from():
    x0, audio = example(6)
    other = x0.flip(0)
    relative, absolute = make(), make(replace(SMALL, relative_input=False))
    assert torch.equal(relative(x0, audio, x0), relative(x0, audio))
    assert not torch.allclose(relative(x0, audio, other), relative(x0, audio))
    assert torch.equal(relative(x0, audio, other)[:, 0], x0)
    assert torch.equal(absolute(x0, audio, other), absolute(x0, audio))


def test_leak_returns_to_the_first_frame_without_speech():
    generator = make(replace(SMALL, leak=0.1))
    generator.branches.out_weight.data.zero_()
    generator.branches.out_bias.data.zero_()
    x0, audio = example(6)
    origin = x0 + 1
    distance = generator(x0, audio, origin) - origin[:, None]
    torch.testing.assert_close(distance, (x0 - origin)[:, None] * 0.9 ** torch.arange(6.0)[:, None])
