"""Multi-scale autoregressive generator (section 3.2 of the paper, eq. 8-10).

`v_{t+1} = G(x_{0:t}, a_{t+1})`, `x_{t+1} = x_t + v_{t+1}`: a causal Transformer summarises the past
positions, four branches turn the summary and the audio at four time scales into velocities, and a soft mask
merges them.

Everything that depends on the audio alone is computed before the roll-out, for all frames at once. A frame
then costs the same whatever its index: each attention layer keeps keys and values of the last `context`
frames and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, N_FILTERS
from mssync.config import GeneratorConfig
from mssync.errors import InputError
from mssync.face1 import SPACE
from mssync.pyramid import LEVELS, reflect_index
from mssync.speech import FEATURES, PER_VIDEO
from mssync.spontaneous import NUMBERS, Spontaneous
from mssync.syncer import Standardize

KERNEL = 7  # of the strided audio convolutions (ref)
COARSEST = 2 ** (LEVELS - 1)  # video frames that one vector of the coarsest audio level stands for
# Video frames on either side that can influence an audio vector. A stage of stride 2 sees 3 of its own input
# frames to either side, 3 · (1 + 2 + 4 + 8 + 16) = 93 audio frames in all; interpolation looks up to 28
# further, and an audio frame of 25 ms ends 15 ms after its 10 ms: 122.5 < 4 · 32.
REACH = 32
CHUNK = 25 * COARSEST  # video frames of audio encoded at a time while streaming (8 s)
AUDIO_LIMIT = 4.0  # standard deviations: the log energies of digital silence lie far outside of speech
ROTARY_BASE = 10000.0
ROTARY_BLOCK = 1024  # positions whose rotations are computed at a time
# Features of speech have heard the future already, so all that follows looks back: the first layer over 6 of them, then
# level i over 3 vectors, 2^(i-1) video frames apart: 2 + 2 · (1 + 2 + 4 + 8) = 32 frames in all.
STEM, TAPS = 6, 3
OUTPUT_GAIN = 0.1  # the first roll-outs should drift slowly: velocities start at a tenth of the usual scale


def rotary_table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (n, head_dim) of rotary position encoding for integer positions (n,).

    Angles are computed in double precision, on the CPU as not every device has it: positions of a long stream
    grow without bound.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    angles = positions.double()[:, None] * frequencies
    sin = angles.sin().float()
    return angles.cos().float().repeat(1, 2), torch.cat([-sin, sin], dim=1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _rotary_block(block: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(torch.arange(block * ROTARY_BLOCK, (block + 1) * ROTARY_BLOCK), head_dim)
    return cos.to(device), sin.to(device)


def rotary_at(position: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rotary_table` of one position, (1, head_dim) each, looked up: a frame should not wait for sines."""
    block, row = divmod(position, ROTARY_BLOCK)
    cos, sin = _rotary_block(block, head_dim, device)
    return cos[row : row + 1], sin[row : row + 1]


class AttentionLayer(nn.Module):
    """Pre-norm Transformer layer: causal attention over the last `context` frames, then a GELU feed-forward.

    Positions enter as rotations of queries and keys, so only differences of positions matter and a cached key
    stays valid: a step with the cache is the same function as the whole sequence under the windowed mask.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.feed_forward),
            nn.GELU(),
            nn.Linear(config.feed_forward, width),
        )

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (B, n, width) -> the same shape, and keys and values (B, heads, kept + n, 2 · head_dim).

        `cache` holds the keys and values of the frames before x. `mask` (n, n) says which frames may be seen;
        None when all may, as in a step, where the cache has been cut to the context.
        """
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        head_dim = qkv.shape[-1] // 3
        # Queries and keys lie side by side: one rotation serves both.
        rotated = _rotate(qkv[..., : 2 * head_dim].unflatten(-1, (2, head_dim)), rotary)
        query = rotated[..., 0, :]
        pairs = torch.cat([rotated[..., 1, :], qkv[..., 2 * head_dim :]], dim=-1)
        if cache is not None:
            pairs = torch.cat([cache, pairs], dim=2)
        key, value = pairs[..., :head_dim], pairs[..., head_dim:]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.attention_out(seen.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x), pairs


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (B, heads, n, 2, head_dim): component j pairs with j + head_dim / 2."""
    cos, sin = rotary
    return x * cos[:, None] + x.roll(x.shape[-1] // 2, dims=-1) * sin[:, None]


class AudioEncoder(nn.Module):
    """Bottom-up path of a feature pyramid: 100 Hz features to vectors at 25, 12.5, 6.25 and 3.125 Hz.

    Two strided convolutions reach the video rate (level 1), three more give levels 2-4, which are
    interpolated linearly back to the video rate. Vector j of level i is centred on video frame `2^(i-1) j`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Standardize(N_FILTERS, AUDIO_LIMIT)
        # A stage is convolution, norm over one frame's channels, GELU: statistics over time would break streams.
        stages = 2 + LEVELS - 1
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width if stage else N_FILTERS, width, KERNEL, stride=2) for stage in range(stages)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(stages))

    rows = AUDIO_PER_VIDEO  # of audio, a video frame

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, 4T, 26) -> (levels, B, T, width)."""
        length = audio.shape[1] // AUDIO_PER_VIDEO
        x = self.norm(audio)
        levels = []
        for stage in range(len(self.convolutions)):
            x = self.stage(stage, F.pad(x, (0, 0, KERNEL // 2, KERNEL // 2)))
            levels.append(x)
        return torch.stack([_upsample(level, 2**i, length) for i, level in enumerate(levels[1:])])

    def stage(self, stage: int, x: Tensor) -> Tensor:
        """One strided convolution without padding: (B, n, C) -> (B, (n - 5) // 2, width)."""
        return F.gelu(self.norms[stage](F.conv1d(x.transpose(1, 2), *self._kernel(stage), stride=2).transpose(1, 2)))

    def _kernel(self, stage: int) -> tuple[Tensor, Tensor | None]:
        convolution = self.convolutions[stage]
        assert isinstance(convolution, nn.Conv1d)
        return convolution.weight, convolution.bias


class SpeechPyramid(nn.Module):
    """Features of speech to vectors of four levels at the video rate, each of which looks further back than the last.

    Nothing is strided but the first layer, so a recording that is cut anywhere has the same vectors.

    features: numbers of speech that are heard.
    """

    rows = PER_VIDEO  # of features, a video frame

    def __init__(self, width: int, features: int = FEATURES) -> None:
        super().__init__()
        self.norm = Standardize(features, AUDIO_LIMIT)
        self.stem = nn.Conv1d(features, width, STEM, stride=PER_VIDEO)
        self.levels = nn.ModuleList(nn.Conv1d(width, width, TAPS, dilation=2**i) for i in range(LEVELS))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(LEVELS + 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, 2T, 104) -> (levels, B, T, width), those from REACH on as of any longer recording."""
        x = F.pad(self.norm(features).transpose(1, 2), (STEM - PER_VIDEO, 0))
        x = F.gelu(self.norms[0](self.stem(x).transpose(1, 2)))
        levels = []
        for i, (layer, norm) in enumerate(zip(self.levels, self.norms[1:], strict=True)):
            back = layer(F.pad(x.transpose(1, 2), ((TAPS - 1) * 2**i, 0)))
            x = x + F.gelu(norm(back.transpose(1, 2)))
            levels.append(x)
        return torch.stack(levels)


def _upsample(x: Tensor, factor: int, length: int) -> Tensor:
    """(B, n, C), frame j standing at `factor · j` -> (B, length, C): linear between, constant at the end."""
    if factor == 1:
        return x
    padded = F.pad(x.transpose(1, 2), (0, 1), mode="replicate")
    full = F.interpolate(padded, size=factor * x.shape[1] + 1, mode="linear", align_corners=True)
    return full[..., :length].transpose(1, 2)


class Branches(nn.Module):
    """Multi-scale module: a fully connected network a level, merged by a soft mask over the levels (eq. 10).

    Each has two hidden layers and reads `[a^i_{t+1}, x_t, h_t]`. Their weights are independent; one batched
    product evaluates them all. `audio_part` computes ahead what audio and bias add to the first layer.
    """

    def __init__(self, config: GeneratorConfig, state_size: int) -> None:
        super().__init__()
        self.keypoints, self.values, self.soft_masks = config.keypoints, config.values, config.soft_masks
        hidden, count = config.branch_hidden, LEVELS + config.audio_free_branch
        fan_in = config.audio_width + state_size
        self.audio_weight = _uniform((LEVELS, config.audio_width, hidden), fan_in)
        self.state_weight = _uniform((count, state_size, hidden), fan_in)
        self.first_bias = _uniform((count, 1, hidden), fan_in)
        self.hidden_weight = _uniform((count, hidden, hidden), hidden)
        self.hidden_bias = _uniform((count, 1, hidden), hidden)
        # A keypoint has its velocities and one mask logit.
        self.out_weight = _uniform((count, hidden, self.keypoints * (self.values + 1)), hidden, OUTPUT_GAIN)
        self.out_bias = nn.Parameter(torch.zeros(count, 1, self.keypoints * (self.values + 1)))
        self.final: nn.Linear | None = None
        if config.final_linear:  # (ref) in place of the sum of eq. 10, which it starts as
            self.final = nn.Linear(count * self.keypoints * self.values, self.keypoints * self.values)
            self.final.weight.data = torch.eye(self.keypoints * self.values).repeat(1, count)
            self.final.bias.data.zero_()

    def audio_part(self, levels: Tensor) -> Tensor:
        """Audio (levels, B, T, audio_width) -> its share of the first layer, (T, branches, B, hidden)."""
        count, (_, batch, length, _) = len(self.first_bias), levels.shape
        part = torch.bmm(levels.transpose(1, 2).flatten(1, 2), self.audio_weight)
        # The branch without audio, where there is one, has its bias alone.
        part = F.pad(part, (0, 0, 0, 0, 0, count - LEVELS)) + self.first_bias
        return part.unflatten(1, (length, batch)).transpose(0, 1)

    def forward(self, audio_part: Tensor, state: Tensor) -> Tensor:
        """Audio share (branches, n, hidden) and state (n, state_size) -> velocity (n, keypoints · values)."""
        velocity, mask = self.votes(audio_part, state)
        masked = mask * velocity
        if self.final is None:
            return masked.sum(0).flatten(1)
        return self.final(masked.transpose(0, 1).flatten(1))

    def votes(self, audio_part: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What eq. 10 merges: velocities (branches, n, keypoints, values), masks (branches, n, keypoints, 1)."""
        count = len(self.first_bias)
        x = F.gelu(torch.baddbmm(audio_part, state.expand(count, -1, -1), self.state_weight))
        x = F.gelu(torch.baddbmm(self.hidden_bias, x, self.hidden_weight))
        x = torch.baddbmm(self.out_bias, x, self.out_weight).unflatten(-1, (self.keypoints, -1))
        masks = x[..., self.values :] if self.soft_masks else torch.zeros_like(x[..., self.values :])
        return x[..., : self.values], masks.softmax(dim=0)


def _uniform(shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> nn.Parameter:
    """Initial values as of nn.Linear: uniform within ± gain / sqrt(fan_in)."""
    bound = gain / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


@dataclass(frozen=True)
class State:
    """A roll-out between two frames. Positions are standardised; `cache` has one tensor a layer."""

    first: Tensor  # x_0 as given (B, D), to count from without loss of precision
    start: Tensor  # x_0 standardised
    origin: Tensor  # what relative_input counts from, standardised
    position: Tensor  # x_t standardised
    cache: tuple[Tensor | None, ...]
    index: int  # frames in or past the cache


class Generator(nn.Module):
    """Motion from audio and a first frame. D = keypoints · values, 60 in the paper.

    Input and output are raw: standardisation (`set_statistics`) is part of the model. With `config.spontaneous`,
    `stream` and `listen` add turns of the head and blinks, of which speech tells nothing: `spontaneous_motion` (9, D)
    times what `mssync.spontaneous` draws.

    Where `config.hears` is "speech", audio is the features (B, 2T, 104) of a `SpeechEncoder` wherever (B, 4T, 26) is
    said here. How far these look ahead is their own affair: the generator looks back alone, so a frame can be made
    while speech is still arriving (`listen`).

    Attributes:
        rows: of audio, a video frame: 4, or 2
        live: whether it can be made while speech is still arriving
        lead: video frames of sound before the first frame that it, or a later one, can hear; 0 unless it is live,
            where a recording begins with its first frame

    Raises InputError: a width that the heads do not divide into even parts, warm-up frames where it hears speech.
    """

    spontaneous_motion: Tensor  # (9, D), where config.spontaneous

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        if config.width % (2 * config.heads):
            raise InputError(
                f"generator.width must be a multiple of 2 x generator.heads = {2 * config.heads}, got {config.width}"
            )
        if config.hears == "speech" and config.warmup_frames:
            raise InputError("a generator that hears speech has no warmup_frames")
        self.config, self.head_dim = config, config.width // config.heads
        motion_dim = config.keypoints * config.values
        position_size = motion_dim * (1 + config.relative_input)
        self.motion_norm = Standardize(motion_dim)
        if config.spontaneous:
            self.register_buffer("spontaneous_motion", torch.zeros(NUMBERS, motion_dim))
        hears_speech = config.hears == "speech"
        self.audio_encoder: Any = (
            SpeechPyramid(config.audio_width) if hears_speech else AudioEncoder(config.audio_width)
        )
        self.rows, self.live = self.audio_encoder.rows, hears_speech
        self.lead = REACH if hears_speech else 0
        self.embedding = nn.Linear(position_size, config.width)
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.layers))
        self.out_norm = nn.LayerNorm(config.width)
        self.branches = Branches(config, position_size + config.width)

    def set_statistics(self, motion_mean: Tensor, motion_std: Tensor, audio_mean: Tensor, audio_std: Tensor) -> None:
        """Store mean and deviation of the training data: (D,), (D,), (26,), (26,)."""
        self.motion_norm.set_statistics(motion_mean, motion_std)
        self.audio_encoder.norm.set_statistics(audio_mean, audio_std)

    # ---- a whole sequence

    def forward(self, x0: Tensor, audio: Tensor, origin: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """Free-running roll-out, differentiable from end to end (eq. 8-9), without turns and blinks.

        origin (B, D): what `relative_input` counts from, x0 unless given. In training any frame of the clip may
        stand there: a roll-out then begins as far from its origin as one that has gone on for long.
        before: where it is `live`, the audio (B, 2 · lead, 104) of the frames before it; else the average sound.

        x0 (B, D), audio (B, 4T, 26) -> motion (B, T, D); frame 0 is x0, frame t belongs to audio 4t … 4t+3.
        Raises InputError: shapes that do not fit.
        """
        self._check(x0, audio)
        state = self.start(x0, origin)
        frames = [x0]
        for vectors in self.audio_vectors(audio, before).unbind(0)[1:]:
            frame, state = self.step(state, vectors)
            frames.append(frame)
        return torch.stack(frames, dim=1)

    def teacher_forced(self, x: Tensor, audio: Tensor) -> Tensor:
        """Every frame from the real frames before it, in one parallel pass.

        x (B, T, D), audio (B, 4T, 26) -> (B, T, D): frame 0 is x_0, frame t+1 is `x_t + G(x_{0:t}, a_{t+1})`.
        Raises InputError: shapes that do not fit.
        """
        self._check(x[:, 0], audio)
        warmup = self.config.warmup_frames
        z = self.motion_norm(x)
        past = torch.cat([z[:, :1].expand(-1, warmup, -1), z[:, :-1]], dim=1)
        inputs = self._inputs(past, z[:, :1])
        times = torch.arange(past.shape[1])
        age = times[:, None] - times
        mask = (age >= 0) & (age < self.config.context)
        cos, sin = rotary_table(times, self.head_dim)
        rotary = cos.to(x.device), sin.to(x.device)
        hidden, _ = self._attend(inputs, rotary, self._empty_cache(), mask.to(x.device))
        states = torch.cat([inputs, hidden], dim=-1)[:, warmup:]
        vectors = self.audio_vectors(audio)[1:]
        velocity = self.branches(vectors.transpose(0, 1).flatten(1, 2), states.transpose(0, 1).flatten(0, 1))
        velocity = velocity.unflatten(0, (-1, len(x))).transpose(0, 1)
        kept = x[:, :-1] - self.config.leak * (x[:, :-1] - x[:, :1])
        return torch.cat([x[:, :1], kept + velocity * self.motion_norm.std], dim=1)

    # ---- frame by frame

    def audio_vectors(self, audio: Tensor, before: Tensor | None = None) -> Tensor:
        """Audio (B, 4T, 26) -> what `step` needs, (T, branches, B, branch_hidden): entry t for frame t."""
        before = self.average_sound(len(audio), self.lead) if before is None else before
        levels = self.audio_encoder(torch.cat([before, self._extend(audio)], dim=1))
        return self.branches.audio_part(levels[:, :, self.lead + self.config.warmup_frames :])

    def average_sound(self, batch: int, frames: int) -> Tensor:
        """Audio (B, 4 · frames, 26) that says nothing: the mean of what the generator was trained on."""
        return self.audio_encoder.norm.mean.expand(batch, self.rows * frames, -1)

    def start(self, x0: Tensor, origin: Tensor | None = None) -> State:
        """State after frame 0. x0 (B, D), raw; origin as in `forward`. Warm-up frames repeat x0 in the cache."""
        z = self.motion_norm(x0)
        counted_from = z if origin is None else self.motion_norm(origin)
        state = State(x0, z, counted_from, z, self._empty_cache(), 0)
        for _ in range(self.config.warmup_frames):
            state = self._advance(state)[1]
        return state

    def step(self, state: State, vectors: Tensor) -> tuple[Tensor, State]:
        """The next frame, from its entry of `audio_vectors` -> x_{t+1} (B, D) raw, and the new state."""
        features, state = self._advance(state)
        kept = state.position - self.config.leak * (state.position - state.origin)
        position = kept + self.branches(vectors, features)
        frame = state.first + (position - state.start) * self.motion_norm.std
        return frame, replace(state, position=position)

    @torch.inference_mode()
    def stream(self, x0: Tensor, audio: Tensor, seed: int = 0) -> Iterator[Tensor]:
        """The frames of `forward`, with turns and blinks, one by one: x0 (D,), audio (4T, 26) -> T times (D,).

        seed: of turns and blinks, where the generator is `spontaneous`.
        Several sequences of one length, x0 (B, D) and audio (B, 4T, 26), give T times (B, D).
        Audio is encoded in chunks of `CHUNK` frames, so time and memory a frame do not grow with the length.
        Raises InputError: shapes that do not fit.
        """
        if x0.dim() == 1:
            yield from (frame[0] for frame in self.stream(x0[None], audio[None], seed))
            return
        self._check(x0, audio)
        if self.live:
            listener = self.listen(x0, seed)
            for features in audio.split(self.rows * CHUNK, dim=1):
                yield from listener.push(features)
            return
        state, spontaneous = self.start(x0), self.spontaneous(len(x0), seed)
        yield x0 + spontaneous(1)[0]
        extended = self._extend(audio)
        warmup = self.config.warmup_frames
        length = extended.shape[1] // AUDIO_PER_VIDEO
        for begin in range(0, length, CHUNK):
            # A chunk starts on a frame of the coarsest level and carries all audio that can influence it.
            low, end = max(0, begin - REACH), min(length, begin + CHUNK)
            levels = self.audio_encoder(extended[:, AUDIO_PER_VIDEO * low : AUDIO_PER_VIDEO * (end + REACH)])
            vectors = self.branches.audio_part(levels[:, :, begin - low : end - low])
            due = vectors[max(0, warmup + 1 - begin) :]
            for vector, added in zip(due, spontaneous(len(due)), strict=True):
                frame, state = self.step(state, vector)
                yield frame + added

    def listen(self, x0: Tensor, seed: int = 0) -> Listener:
        """The frames of `stream` while audio is still arriving, from x0 (B, D).

        Raises InputError where it is not `live`.
        """
        if not self.live:
            raise InputError(
                "this generator hears all that is to come, so it cannot speak live; "
                "train one that hears speech: mssync train generator --config face"
            )
        return Listener(self, x0, seed)

    # ---- shared

    def spontaneous(self, batch: int, seed: int) -> Callable[[int], Tensor]:
        """What turns and blinks add to the next n frames: call it with n for (n, B, D)."""
        if not self.config.spontaneous:
            return lambda frames: self.motion_norm.mean.new_zeros(frames, 1, len(self.motion_norm.mean))
        drawn = Spontaneous(batch, seed)
        return lambda frames: drawn.draw(frames).to(self.spontaneous_motion) @ self.spontaneous_motion

    def _empty_cache(self) -> tuple[Tensor | None, ...]:
        return (None,) * len(self.layers)

    def _advance(self, state: State) -> tuple[Tensor, State]:
        """Take the position into the cache -> features [x_t, h_t] (B, state_size) and the state after it."""
        inputs = self._inputs(state.position, state.origin)
        rotary = rotary_at(state.index, self.head_dim, inputs.device)
        hidden, cache = self._attend(inputs[:, None], rotary, state.cache, None)
        features = torch.cat([inputs, hidden[:, 0]], dim=-1)
        return features, replace(state, cache=cache, index=state.index + 1)

    def _attend(
        self,
        inputs: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: tuple[Tensor | None, ...],
        mask: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Temporal module: inputs (B, n, position_size), rotary of their n times -> h (B, n, width), new cache."""
        x = self.embedding(inputs)
        kept = []
        for layer, past in zip(self.layers, cache, strict=True):
            x, pairs = layer(x, rotary, past, mask)
            # The next frame sees itself and context - 1 before it.
            kept.append(pairs[:, :, max(0, pairs.shape[2] - self.config.context + 1) :])
        return self.out_norm(x), tuple(kept)

    def _inputs(self, position: Tensor, origin: Tensor) -> Tensor:
        """Standardised positions, beside them their distance from x_0 where configured."""
        return torch.cat([position, position - origin], dim=-1) if self.config.relative_input else position

    def _extend(self, audio: Tensor) -> Tensor:
        """Put the audio of the warm-up frames, its beginning mirrored (ref), before it."""
        before = AUDIO_PER_VIDEO * self.config.warmup_frames
        if not before:
            return audio
        times = torch.arange(-before, audio.shape[1], device=audio.device)
        return audio[:, reflect_index(times, audio.shape[1])]

    def _check(self, x0: Tensor, audio: Tensor) -> None:
        dim = self.config.keypoints * self.config.values
        if x0.shape[-1] != dim:
            raise InputError(f"the generator needs a first frame of {dim} numbers, got {x0.shape[-1]}")
        numbers = len(self.audio_encoder.norm.mean)
        if audio.shape[1] == 0 or audio.shape[1] % self.rows or audio.shape[2] != numbers:
            raise InputError(
                f"the generator needs {self.rows} audio frames of {numbers} numbers a video frame, "
                f"got {audio.shape[1]} x {audio.shape[2]}"
            )


class Recent:
    """Features of speech that are still arriving, and those of the `lead` frames before, which the next ones hear.

    before: (B, rows · lead, n), what stands there at first.
    """

    def __init__(self, before: Tensor, lead: int) -> None:
        self.kept, self.lead, self.made = before, lead, 0

    def push(self, features: Tensor) -> tuple[Tensor, int]:
        """Features (B, n, 104), any number of them -> all that is heard of the frames that have become complete, after
        that of the `lead` frames before them, and how many these are."""
        self.kept = torch.cat([self.kept, features], 1)
        count = self.kept.shape[1] // PER_VIDEO - self.lead
        heard = self.kept[:, : PER_VIDEO * (self.lead + count)]
        self.kept, self.made = self.kept[:, PER_VIDEO * count :], self.made + count
        return heard, count


class Listener:
    """Roll-outs of B sequences from x0 (B, D) while features of speech arrive: a frame is made when both of its
    features are there. Memory and time a frame do not grow. `Generator.listen` makes one.
    """

    def __init__(self, generator: Generator, x0: Tensor, seed: int) -> None:
        self.generator, self.state, self.x0 = generator, generator.start(x0), x0
        self.spontaneous = generator.spontaneous(len(x0), seed)
        self.recent = Recent(generator.average_sound(len(x0), generator.lead), generator.lead)

    @torch.inference_mode()
    def push(self, features: Tensor) -> list[Tensor]:
        """Features (B, n, 104), any number of them -> the frames (B, D) that can be made now."""
        heard, count = self.recent.push(features)
        return self.frames(heard, self.recent.made - count) if count else []

    def frames(self, heard: Tensor, first: int) -> list[Tensor]:
        """Frames (B, D) of what `Recent.push` gives, the first of them number `first`."""
        levels, made = self.generator.audio_encoder(heard)[:, :, self.generator.lead :], []
        for t, vector in enumerate(self.generator.branches.audio_part(levels), first):
            frame = self.x0
            if t > 0:
                frame, self.state = self.generator.step(self.state, vector)
            made.append(frame + self.spontaneous(1)[0])
        return made


def build_generator(config: dict[str, Any]) -> nn.Module:
    """The generator of a model file, from the GeneratorConfig stored in it (among other things)."""
    if config.get("lookahead") is not None:
        raise InputError(
            "a live generator of an earlier version of MS-Sync; one that hears speech serves live sessions"
        )
    sizes = {field.name for field in fields(GeneratorConfig)}
    return new_generator(GeneratorConfig(**{name: value for name, value in config.items() if name in sizes}))


def new_generator(config: GeneratorConfig) -> nn.Module:
    """A `Generator` of keypoints, or a `FaceGenerator` of motion of the space face-1."""
    if config.space == SPACE:
        from mssync.face_generator import FaceGenerator

        return FaceGenerator(config)
    return Generator(config)
