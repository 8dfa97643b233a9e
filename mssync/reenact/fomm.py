"""The first-order motion model (FOMM): keypoints with Jacobians, dense motion, occlusion-aware generator.

Siarohin et al., "First Order Motion Model for Image Animation", NeurIPS 2019; equation numbers below are that
paper's. Architecture and parameter names are those of the public `vox-256` and `vox-adv-256` checkpoints,
and so are the numbers that come out. `convert.py` makes files of these checkpoints and reads them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mssync.errors import InputError
from mssync.motion import UNNAMED
from mssync.precision import drawing_precision
from mssync.reenact.geometry import exact_geometry

KEYPOINT_VARIANCE = 0.01  # of the Gaussians drawn around keypoints, in squared coordinates ([-1, 1] across the image)
HEAD_KERNEL = 7  # every convolution that reads or writes images, heat maps, masks; the others are 3x3


@dataclass(frozen=True)
class FOMMConfig:
    """Sizes of the model; the defaults are the public `vox-adv-256` (and `vox-256`) configuration.

    `*_expansion` is a network's channels at full resolution, doubled at each halving up to `*_max_features`;
    `*_blocks` counts its halvings. Keypoints and dense motion are estimated at the resolution of the
    generator's encoded features, 1/4 of the image's (the public configuration's `scale_factor`).
    """

    num_kp: int = 10
    num_channels: int = 3
    kp_expansion: int = 32
    kp_max_features: int = 1024
    kp_blocks: int = 5
    kp_temperature: float = 0.1
    motion_expansion: int = 64
    motion_max_features: int = 1024
    motion_blocks: int = 5
    generator_expansion: int = 64
    generator_max_features: int = 512
    generator_down_blocks: int = 2
    generator_bottleneck_blocks: int = 6
    motion_space: str = UNNAMED  # the name of what its keypoint detector reads, see `mssync.motion`

    @property
    def reduction(self) -> int:
        """Image size over the size of features, keypoint input and dense motion."""
        return 2**self.generator_down_blocks


@dataclass(frozen=True)
class FOMMSource:
    """What rendering needs of a source image. Its batch is 1, or that of the motion it is rendered with."""

    motion: Tensor  # (B, K, 6)
    small: Tensor  # (B, 3, h, w): the image, low-passed and reduced
    features: Tensor  # (B, C, h, w): the generator's encoding


class FOMM(nn.Module):
    """The frozen reenactment model: always in eval mode, parameters without gradient (inputs keep theirs).

    `align_corners` is grid_sample's flag; it may be set at any time. The public checkpoints were trained with
    PyTorch 1.0, where sampling always put -1 and 1 at the corner pixels' centres: True, the default here, is
    what their weights expect. The public code on today's PyTorch falls back to False, which shifts samples by
    up to half a cell of the 64x64 grid; it is there to compare with such runs. Keypoints do not depend on it.

    `rigid` names every keypoint as head-rigid: unsupervised keypoints have no known parts.
    """

    def __init__(self, config: FOMMConfig | None = None, align_corners: bool = True) -> None:
        super().__init__()
        self.config = config or FOMMConfig()
        self.align_corners = align_corners
        self.precision = "float32"  # of drawing: see for_rendering
        self.space = self.config.motion_space
        self.rigid = tuple(range(self.config.num_kp))
        self.needs_landmarks = False
        self.kp_detector = KeypointDetector(self.config)
        self.generator = OcclusionAwareGenerator(self.config)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FOMM:
        """Stays in eval mode whatever `mode`: the checkpoint's batch statistics are part of the model."""
        return super().train(False)

    def for_rendering(self, precision: str = "float32") -> FOMM:
        """Make drawing fast, in place: batch norms folded into convolutions, in the given precision.

        precision: "float32", or "bfloat16" where the processor has it (`mssync.precision`).
        Frames then differ by less than a grey level from exact ones, on the mean. The keypoint detector stays as it is.
        """
        for module in self.generator.modules():
            if isinstance(module, ConvBlock) and isinstance(module.norm, nn.BatchNorm2d):
                module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), cast(Any, nn.Identity())
            elif isinstance(module, ResidualBlock) and isinstance(module.norm2, nn.BatchNorm2d):
                module.conv1, module.norm2 = fuse_conv_bn_eval(module.conv1, module.norm2), cast(Any, nn.Identity())
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision
        return self

    def keypoints(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of 128 -> motion (B, 10, 6), [x, y, j00, j01, j10, j11]."""
        return self.kp_detector(image)

    def prepare(self, source: Tensor, motion: Tensor | None = None) -> FOMMSource:
        """Everything of the source (B, 3, H, W) in [0, 1] that does not depend on the driving frame."""
        motion = self.keypoints(source) if motion is None else motion
        small = self.generator.dense_motion_network.down(source)
        with drawing_precision(source, self.precision):
            return FOMMSource(motion, small, self.generator.encode(source))

    def render(self, state: FOMMSource, motion: Tensor) -> Tensor:
        """The image of `render_with_occlusion` alone."""
        return self.render_with_occlusion(state, motion)[0]

    def render_with_occlusion(self, state: FOMMSource, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The source moved to `motion` (B, 10, 6).

        Returns the image (B, 3, H, W) and the occlusion map (B, 1, H/4, W/4; 0 = hidden in the source), both
        in [0, 1]. Raises InputError when a Jacobian of the motion has no inverse.
        """
        with drawing_precision(motion, self.precision):
            warp, occlusion = self.generator.dense_motion_network(state, motion, self.align_corners)
            return self.generator.decode(state.features, warp, occlusion, self.align_corners), occlusion

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """The source with the absolute motion of the driving image; both (B, 3, H, W) in [0, 1]."""
        return self.render(self.prepare(source), self.keypoints(driving))


def build(config: dict[str, Any]) -> FOMM:
    """A model with memory for its parameters but no values yet: `load_state_dict` must follow.

    Raises TypeError for a name that FOMMConfig does not have.
    """
    with torch.device("meta"):
        model = FOMM(FOMMConfig(**config))
    return model.to_empty(device="cpu")


class KeypointDetector(nn.Module):
    """Image -> keypoints and Jacobians, the mean position and the mean Jacobian under each heat map."""

    def __init__(self, config: FOMMConfig) -> None:
        super().__init__()
        self.temperature = config.kp_temperature
        self.down = AntiAliasedReduction(config.num_channels, config.reduction)
        self.predictor = Hourglass(config.num_channels, config.kp_expansion, config.kp_max_features, config.kp_blocks)
        channels = self.predictor.out_channels
        # No padding: heat maps lose 3 cells a side, and [-1, 1] spans what remains.
        self.kp = nn.Conv2d(channels, config.num_kp, HEAD_KERNEL)
        self.jacobian = nn.Conv2d(channels, 4 * config.num_kp, HEAD_KERNEL)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 6)."""
        features = self.predictor(self.down(image))
        logits = self.kp(features)
        height, width = logits.shape[2:]
        heat = torch.softmax(logits.flatten(2) / self.temperature, dim=-1)
        grid = coordinate_grid(height, width, like=logits).flatten(0, 1)
        position = heat @ grid
        jacobians = self.jacobian(features).unflatten(1, (-1, 4)).flatten(3)
        return torch.cat([position, torch.einsum("bkn,bkcn->bkc", heat, jacobians)], dim=-1)


class DenseMotion(nn.Module):
    """Keypoints' motion -> where each cell of the driving frame lies in the source, and if it is visible."""

    def __init__(self, config: FOMMConfig) -> None:
        super().__init__()
        self.down = AntiAliasedReduction(config.num_channels, config.reduction)
        candidates = config.num_kp + 1
        self.hourglass = Hourglass(
            candidates * (config.num_channels + 1),
            config.motion_expansion,
            config.motion_max_features,
            config.motion_blocks,
        )
        channels = self.hourglass.out_channels
        self.mask = nn.Conv2d(channels, candidates, HEAD_KERNEL, padding=HEAD_KERNEL // 2)
        self.occlusion = nn.Conv2d(channels, 1, HEAD_KERNEL, padding=HEAD_KERNEL // 2)

    def forward(self, state: FOMMSource, motion: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
        """Motion (B, K, 6) -> warp (B, h, w, 2) in source coordinates, occlusion (B, 1, h, w) in [0, 1]."""
        height, width = state.small.shape[2:]
        grid = coordinate_grid(height, width, like=motion)
        warps = candidate_warps(grid, state.motion, motion)
        heat = movement_heat(grid, state.motion, motion)
        images = candidate_images(state.small, warps, align_corners)
        features = self.hourglass(torch.cat([heat, images], dim=2).flatten(1, 2))
        return merged(self.mask(features), warps), torch.sigmoid(self.occlusion(features).float())


class OcclusionAwareGenerator(nn.Module):
    """Encodes the source once; warps, masks and decodes its features for every driving frame."""

    def __init__(self, config: FOMMConfig) -> None:
        super().__init__()
        self.dense_motion_network = DenseMotion(config)
        widths = channel_widths(config.generator_expansion, config.generator_max_features, config.generator_down_blocks)
        self.first = ConvBlock(config.num_channels, widths[0], HEAD_KERNEL)
        self.down_blocks = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths))
        self.bottleneck = nn.Sequential()
        for index in range(config.generator_bottleneck_blocks):
            self.bottleneck.add_module(f"r{index}", ResidualBlock(widths[-1]))
        self.up_blocks = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths[::-1]))
        self.final = nn.Conv2d(widths[0], config.num_channels, HEAD_KERNEL, padding=HEAD_KERNEL // 2)

    def encode(self, source: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4)."""
        features = self.first(source)
        for block in self.down_blocks:
            features = F.avg_pool2d(block(features), 2)
        return features

    def decode(self, features: Tensor, warp: Tensor, occlusion: Tensor, align_corners: bool) -> Tensor:
        """Features (1 or B, C, h, w) under warp (B, h, w, 2) and occlusion (B, 1, h, w) -> (B, 3, H, W)."""
        features = features.expand(len(warp), -1, -1, -1)
        seen = warp_with(features, warp, align_corners) * occlusion
        decoded = self.bottleneck(seen.to(features.dtype, memory_format=torch.channels_last))
        for block in self.up_blocks:
            decoded = block(F.interpolate(decoded, scale_factor=2))
        return torch.sigmoid(self.final(decoded).float())


def coordinate_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width, 2) positions (x, y), -1 and 1 at the outer cells' centres; device, dtype of `like`."""
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


@exact_geometry
def candidate_warps(grid: Tensor, source: Tensor, driving: Tensor) -> Tensor:
    """Where the keypoints' affine maps take the driving frame's cells in the source, eq. 4.

    grid (h, w, 2), motions (1 or B, K, 6) and (B, K, 6) -> (B, K + 1, h, w, 2):
    T_k(z) = p_source + J_source J_driving^-1 (z - p_driving), after the identity for the background.
    Raises InputError when a J_driving has no inverse.
    """
    inverse, failed = torch.linalg.inv_ex(driving[..., 2:].unflatten(-1, (2, 2)))
    if failed.any():
        raise InputError("the motion has a keypoint whose Jacobian cannot be inverted: check that it holds no zeros")
    linear = source[..., 2:].unflatten(-1, (2, 2)) @ inverse
    offset = grid - driving[..., None, None, :2]
    moved = torch.einsum("bkij,bkhwj->bkhwi", linear, offset) + source[..., None, None, :2]
    background = grid.expand(len(driving), 1, -1, -1, -1)
    return torch.cat([background, moved], dim=1)


@exact_geometry
def merged(masks: Tensor, warps: Tensor) -> Tensor:
    """The dense motion, eq. 8: mask logits (B, K + 1, h, w) and candidate warps (B, K + 1, h, w, 2) -> (B, h, w, 2)."""
    return torch.einsum("bkhw,bkhwc->bhwc", torch.softmax(masks, dim=1), warps)


@exact_geometry
def movement_heat(grid: Tensor, source: Tensor, driving: Tensor) -> Tensor:
    """Where keypoints went less where they were, eq. 6: (B, K + 1, 1, h, w), zero for the background."""

    def gaussians(motion: Tensor) -> Tensor:
        squared = (grid - motion[..., None, None, :2]).square().sum(-1)
        return torch.exp(-0.5 * squared / KEYPOINT_VARIANCE)

    return F.pad(gaussians(driving) - gaussians(source), (0, 0, 0, 0, 1, 0)).unsqueeze(2)


def candidate_images(small: Tensor, warps: Tensor, align_corners: bool) -> Tensor:
    """The source (1 or B, 3, h, w) under each warp (B, K + 1, h, w, 2), eq. 7: (B, K + 1, 3, h, w)."""
    batch, candidates = warps.shape[:2]
    repeated = small[:, None].expand(batch, candidates, -1, -1, -1).flatten(0, 1)
    return warp_with(repeated, warps.flatten(0, 1), align_corners).unflatten(0, (batch, candidates))


@exact_geometry
def warp_with(images: Tensor, warp: Tensor, align_corners: bool) -> Tensor:
    """Bilinear samples of (B, C, h, w) at positions (B, h, w, 2) in [-1, 1]; zero outside."""
    return F.grid_sample(images, warp, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


class AntiAliasedReduction(nn.Module):
    """Gaussian low-pass, then every `factor`-th pixel: (B, C, H, W) -> (B, C, H/factor, W/factor)."""

    weight: Tensor  # (C, 1, size, size)

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        sigma = (factor - 1) / 2
        reach = round(4 * sigma)
        bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        kernel = torch.outer(bell, bell) / bell.sum() ** 2
        # A buffer, because public checkpoints hold it among their parameters.
        self.register_buffer("weight", kernel.repeat(channels, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        channels, size = len(self.weight), self.weight.shape[-1]
        return F.conv2d(image, self.weight, stride=self.factor, padding=size // 2, groups=channels)


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU; the size stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(hidden)))


class Hourglass(nn.Module):
    """U-Net whose output is its last decoded features beside its input, at the input's size."""

    def __init__(self, in_channels: int, expansion: int, max_features: int, blocks: int) -> None:
        super().__init__()
        widths = channel_widths(expansion, max_features, blocks)
        self.encoder = HourglassEncoder([in_channels, *widths[1:]])
        self.decoder = HourglassDecoder(widths)
        self.out_channels = widths[0] + in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class HourglassEncoder(nn.Module):
    """Halves the size from each of `widths` to the next; returns the input and every stage's output."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        stages = [x]
        for block in self.down_blocks:
            stages.append(F.avg_pool2d(block(stages[-1]), 2))
        return stages


class HourglassDecoder(nn.Module):
    """Doubles the size from the coarsest stage up, joining the encoder's stage of the same size each time."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        # All but the first block also read the encoder's stage of that width.
        inputs = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        self.up_blocks = nn.ModuleList(ConvBlock(a, b) for a, b in zip(inputs, widths[-2::-1], strict=True))

    def forward(self, stages: list[Tensor]) -> Tensor:
        x = stages[-1]
        for block, skip in zip(self.up_blocks, stages[-2::-1], strict=True):
            x = torch.cat([block(F.interpolate(x, scale_factor=2)), skip], dim=1)
        return x


def channel_widths(expansion: int, max_features: int, blocks: int) -> list[int]:
    """Channels at full resolution and after each of `blocks` halvings."""
    return [min(max_features, expansion * 2**level) for level in range(blocks + 1)]


def earlier_space(model: FOMM) -> str:
    """How version 0.1, which gave motion spaces no names, called that of a model: a digest of its detector."""
    digest = hashlib.sha256()
    for _, value in sorted([*model.kp_detector.named_parameters(), *model.kp_detector.named_buffers()]):
        if value.is_floating_point():
            digest.update(value.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
