"""The compact reenactor: a first-order motion model for two CPU cores.

The representation is FOMM's (10 keypoints with 2×2 Jacobians, Siarohin et al. 2019, eq. 4 for the local affine
motion). Nine keypoints are read from a face mesh, so they are exact on faces that were never trained on; the tenth is
learned and follows neck and shoulders. The network is small and split so that the work of a frame is small:
everything about the source is computed once, the trunk works at 1/8 of the resolution, and the source's own pixels,
warped at full resolution, are blended with the generated ones, so that detail survives. A face that does not move is
the source itself: what is generated is blended in only as far as something moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mssync.motion import UNNAMED
from mssync.precision import drawing_precision
from mssync.reenact import N_KEYPOINTS, N_VALUES
from mssync.reenact.geometry import (
    coordinate_grid,
    exact_geometry,
    inverse,
    split,
    warp,
    windowed,
)
from mssync.reenact.mesh import MESH_KEYPOINTS, mesh_map
from mssync.reenact.surface import MAPS, Surface, openings, spread

if TYPE_CHECKING:
    from mssync.faces import FaceMesh

BODY_SIZE = 128  # pictures are brought to this side for the learned keypoint
MOTION_SIZE = 64  # side at which the dense motion is estimated
FIELD_SIZE = 2 * MOTION_SIZE  # side of the offset field
HEATMAP_VARIANCE = 0.01  # of the Gaussian that marks a keypoint, in coordinates of [-1, 1] (as FOMM)
TEMPERATURE = 0.1  # of the soft-argmax (as FOMM)
STILL = 1 / 256  # offset, half a pixel of 256, at which about two thirds of the generated share are let in
RIGID = (0, 1, 2, 3, 4, 5)  # eyes, nose, cheeks, forehead: see mesh.ANCHORS
BODY = MESH_KEYPOINTS  # index of the learned keypoint
MOTIONS = N_KEYPOINTS + 2  # background, keypoints, mesh
EYES, NOSE = [0, 1], 2  # indices of keypoints
LAYOUT = torch.channels_last  # of what convolutions read: they turn around what comes otherwise, which takes longer
LID_SHARE = 0.7  # of the eyelids in the Jacobian by which an eye is warped; the rest is the nose's


def gaussians(points: Tensor, size: int) -> Tensor:
    """Heatmaps (B, K, size, size), 1 at each of the points (B, K, 2)."""
    distance = coordinate_grid(size, points) - points[:, :, None, None]
    return torch.exp(-0.5 * distance.square().sum(-1) / HEATMAP_VARIANCE)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Hourglass(nn.Module):
    """Encoder and decoder with skip connections; output has `widths[0]` channels at the input's resolution.

    hint: size of a vector that is added, after a linear layer, where the resolution is lowest; 0 for none.
    """

    def __init__(self, inputs: int, widths: list[int], hint: int = 0) -> None:
        super().__init__()
        self.hint = nn.Linear(hint, widths[-1]) if hint else None
        self.stem = conv(inputs, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(conv(b, a) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(conv(2 * a, a) for a, _ in reversed(pairs))

    def forward(self, x: Tensor, hint: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        if self.hint is not None:
            x = x + self.hint(hint)[..., None, None]
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([upsample(up(x)), skips.pop()], 1))
        return x


@lru_cache(maxsize=1)
def _face_mesh() -> FaceMesh:
    from mssync.faces import FaceMesh

    return FaceMesh()  # late: building it takes a second


def find_landmarks(image: Tensor) -> Tensor:
    """Face mesh (B, 478, 2) in [-1, 1] of pictures (B, 3, s, s) in [0, 1]; InputError where there is no face."""
    from mssync.faces import largest_face

    frames = (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    faces = [largest_face(_face_mesh(), np.ascontiguousarray(frame), "the picture") for frame in frames]
    points = np.stack([face.landmarks[:, :2] for face in faces])
    return torch.from_numpy(points * 2 / image.shape[-1] - 1).to(image)


class KeypointDetector(nn.Module):
    """Picture and face mesh -> nine keypoints on the face and one, learned, on the body."""

    mesh_map: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mesh_map", torch.from_numpy(mesh_map()), persistent=False)
        self.stem = conv(3, width, stride=2)
        self.hourglass = Hourglass(width, [width, 2 * width, 4 * width, 6 * width])
        self.heatmap = nn.Conv2d(width, N_KEYPOINTS - MESH_KEYPOINTS, 3, padding=1)
        self.jacobian = nn.Conv2d(width, 4 * (N_KEYPOINTS - MESH_KEYPOINTS), 3, padding=1)
        nn.init.zeros_(self.jacobian.weight)
        nn.init.zeros_(self.jacobian.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1], (B, 478, >=2) in [-1, 1] -> (B, 10, 6)."""
        face = read_mesh(self.mesh_map, landmarks[..., :2].to(self.mesh_map))
        return torch.cat([face, self.body(image)], 1)

    def body(self, image: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> (B, 1, 6)."""
        if image.shape[-1] != BODY_SIZE:
            image = F.interpolate(image, size=(BODY_SIZE,) * 2, mode="area")
        features = self.hourglass(self.stem(image * 2 - 1))
        return read_keypoints(self.heatmap(features), self.jacobian(features))


@exact_geometry
def read_mesh(mesh_map: Tensor, landmarks: Tensor) -> Tensor:
    """mesh.mesh_motion for tensors: landmarks (B, 478, 2) -> (B, 9, 6)."""
    rows = torch.einsum("krn,bni->bkri", mesh_map, landmarks)
    return torch.cat([rows[:, :, 0], rows[:, :, 1:].transpose(-1, -2).flatten(2)], -1)


@exact_geometry
def read_keypoints(heat: Tensor, jacobian: Tensor) -> Tensor:
    """Soft-argmax: heat (B, K, h, w) and Jacobian maps (B, 4 K, h, w) -> (B, K, 6)."""
    grid = coordinate_grid(heat.shape[-1], heat).reshape(-1, 2)
    weight = (heat.flatten(2) / TEMPERATURE).softmax(-1)  # (B, K, h*w)
    values = torch.einsum("bkn,bkjn->bkj", weight, jacobian.unflatten(1, (-1, 4)).flatten(3))
    identity = torch.eye(2, device=heat.device).flatten()
    return torch.cat([weight @ grid, identity + values], -1)


def steadied(motion: Tensor) -> Tensor:
    """Motion (B, 10, 6) with eyes that can be warped: the Jacobian of a closed one is flat, and has no inverse."""
    nose = motion[:, NOSE, None, 2:]
    eyes = LID_SHARE * motion[:, EYES, 2:] + (1 - LID_SHARE) * nose
    eyes = torch.cat([motion[:, EYES, :2], eyes], -1)
    return torch.cat([eyes, motion[:, len(EYES) :]], 1)


class Field(NamedTuple):
    """Dense motion: offset (B, 128, 128, 2); occlusion at 128, 64 and 32, each (B, 1, s, s) in [0, 1]; features
    (B, width, 64, 64); moving (B, 1, 128, 128) in [0, 1], 0 where nothing moves; opened (B, 4, 128, 128) in [0, 1]:
    where mouth and eyes are to be open, and where those are that were open in the source.

    view: None, or (B, 3) where this is the field of a window alone (see `geometry.warp`)."""

    offset: Tensor
    occlusion: tuple[Tensor, Tensor, Tensor]
    features: Tensor
    moving: Tensor
    opened: Tensor
    view: Tensor | None = None

    def window(self, view: Tensor) -> Field:
        """The field of windows, their corners on pixels of the coarsest map (1/32 of the picture)."""
        return Field(
            windowed(self.offset.permute(0, 3, 1, 2), view).permute(0, 2, 3, 1),
            (windowed(self.occlusion[0], view), windowed(self.occlusion[1], view), windowed(self.occlusion[2], view)),
            windowed(self.features, view), windowed(self.moving, view), windowed(self.opened, view), view,
        )  # fmt: skip


class DenseMotion(nn.Module):
    """Sparse motion to a dense offset field and occlusion maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.surface = Surface()
        self.hourglass = Hourglass(4 * MOTIONS + 2 * MAPS, widths, hint=N_KEYPOINTS * N_VALUES)
        # At twice the resolution by pixel shuffling: a mask for each motion, a correction (x, y), the finest occlusion.
        self.fine = nn.Sequential(nn.Conv2d(width, 4 * (MOTIONS + 3), 3, padding=1), nn.PixelShuffle(2))
        self.coarse = nn.Conv2d(width, 2, 3, padding=1)
        last = self.fine[0]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight[4 * MOTIONS :])  # no correction, nothing occluded, to begin with
        nn.init.zeros_(last.bias[4 * MOTIONS :])
        nn.init.constant_(last.bias[-4:], 2.0)

    def forward(self, small: Tensor, source: Tensor, driving: Tensor) -> Field:
        """small (1 or B, 3, 64, 64), motion of the source (1 or B, 10, 6) and driving motion (B, 10, 6)."""
        change = (driving - source).flatten(1)
        here, there = self.surface(driving), self.surface(source)
        surface, near = spread(here, there - here, MOTION_SIZE)
        opened, was_open = openings(here, FIELD_SIZE), openings(there, FIELD_SIZE)
        source, driving = steadied(source), steadied(driving)
        coarse = torch.cat([self.sparse_offsets(source, driving, MOTION_SIZE), surface[:, None]], 1)
        heat = gaussians(driving[..., :2], MOTION_SIZE) - gaussians(source[..., :2], MOTION_SIZE)
        heat = torch.cat([torch.zeros_like(near), heat, near], 1)  # the background has no keypoint
        batch = coarse.shape[0]
        small = small.expand(batch, -1, -1, -1).repeat_interleave(MOTIONS, 0)
        moved = warp(small, coarse.flatten(0, 1)).unflatten(0, (batch, MOTIONS))
        inputs = torch.cat([heat.unsqueeze(2), moved * 2 - 1], 2).flatten(1, 2)
        organs = F.avg_pool2d(torch.cat([opened, was_open.expand_as(opened)], 1), 2)
        features = self.hourglass(torch.cat([inputs, organs], 1), change)
        masks, correction, finest = self.fine(features).float().split((MOTIONS, 2, 1), 1)
        offset, farthest = merged(masks.softmax(1), affine_offsets(source, driving), _enlarged(surface))
        # How far anything moves: nothing is corrected or generated in a picture that stays as it is.
        moving = 1 - torch.exp(-farthest / STILL)
        offset = offset + 0.1 * (moving * correction.tanh()).permute(0, 2, 3, 1)
        middle, low = self.coarse(features).float().sigmoid().split(1, 1)
        opened = torch.cat([opened, warp(was_open, offset)], 1)
        return Field(offset, (finest.sigmoid(), middle, F.avg_pool2d(low, 2)), features, moving, opened)

    @staticmethod
    @exact_geometry
    def sparse_offsets(source: Tensor, driving: Tensor, size: int) -> Tensor:
        """Where each local affine motion fetches its pixels, minus where it puts them; the first is background, 0.

        T(z) = p_S + J_S J_D^-1 (z - p_D)  (FOMM eq. 4); returns T(z) - z, (B, 11, size, size, 2).
        """
        across, down, constant = (x[:, :, None, None] for x in affine_offsets(source, driving).unbind(-1))
        z = coordinate_grid(size, driving)
        # What grows along a row and what grows along a column: one sum of full size.
        offset = across * z[:1, :, :1] + (down * z[:, :1, 1:] + constant)
        return F.pad(offset, (0, 0, 0, 0, 0, 0, 1, 0))


@exact_geometry
def affine_offsets(source: Tensor, driving: Tensor) -> Tensor:
    """T(z) - z of `DenseMotion.sparse_offsets` as linear maps of [x, y, 1], (B, 10, 2, 3)."""
    (p_s, j_s), (p_d, j_d) = split(source), split(driving)
    affine = j_s @ inverse(j_d)
    constant = p_s[..., None] - affine @ p_d[..., None]
    return torch.cat([affine - torch.eye(2, device=affine.device), constant], -1)


@exact_geometry
def merged(masks: Tensor, affine: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
    """The dense field of all motions (B, s, s, 2), and how far any of them moves a pixel (B, 1, s, s).

    The latter has no gradient: the root has no slope at rest.
    masks (B, 12, s, s) sum to 1 over background, which does not move, `affine_offsets` (B, 10, 2, 3) and the mesh's
    offset, surface (B, s, s, 2). The weighted sum of affine maps is one at every pixel; no offset is computed for it.
    """
    size = masks.shape[-1]
    z = coordinate_grid(size, masks).flatten(0, 1)
    z = torch.cat([z, torch.ones_like(z[:, :1])], 1).T  # (3, s · s)
    weights = masks.flatten(2)
    maps = affine.flatten(2).transpose(1, 2) @ weights[:, 1:-1]  # (B, 2 · 3, s · s)
    offset = (maps.unflatten(1, (2, 3)) * z).sum(2) + weights[:, -1:] * surface.flatten(1, 2).transpose(1, 2)
    each = (affine.detach().flatten(1, 2) @ z).square_().unflatten(1, (-1, 2)).sum(2)  # (B, 10, s · s)
    farthest = torch.maximum(each.amax(1), surface.detach().square().sum(-1).flatten(1)).sqrt()
    return offset.transpose(1, 2).unflatten(1, (size, size)), farthest.view(-1, 1, size, size)


def _enlarged(offset: Tensor) -> Tensor:
    """(B, 64, 64, 2) -> (B, 128, 128, 2)."""
    return upsample(offset.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Painter(nn.Module):
    """Warped source features -> generated pixels and the share of them in each output pixel.

    width: channels at half the resolution; twice as many at a quarter, four times at an eighth.
    """

    def __init__(self, width: int, motion_width: int, blocks: int) -> None:
        super().__init__()
        half, quarter, eighth = width, 2 * width, 4 * width
        self.encode_half = nn.Sequential(nn.PixelUnshuffle(2), conv(12, half), conv(half, half))
        self.encode_quarter = conv(half, quarter, stride=2)
        self.encode_eighth = conv(quarter, eighth, stride=2)
        self.enter = conv(eighth + motion_width, eighth)
        self.hint = nn.Linear(N_KEYPOINTS * N_VALUES, eighth)
        self.trunk = nn.Sequential(*(ResidualBlock(eighth) for _ in range(blocks)))
        self.up_quarter = conv(eighth, quarter)
        self.merge_quarter = conv(2 * quarter + motion_width + 2 * MAPS, quarter)
        self.up_half = conv(quarter, half)
        self.merge_half = conv(2 * half + 2 * MAPS, half)
        self.head = nn.Sequential(nn.Conv2d(half, 16, 3, padding=1), nn.PixelShuffle(2))
        # Start from the warped source (share of generated pixels about 0.12): learning begins from a picture.
        bias = self.head[0].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias[12:], -2.0)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, s, s) in [0, 1] -> features at s/2, s/4, s/8."""
        half = self.encode_half(image * 2 - 1)
        quarter = self.encode_quarter(half)
        return half, quarter, self.encode_eighth(quarter)

    def forward(self, features: tuple[Tensor, ...], field: Field, change: Tensor) -> tuple[Tensor, Tensor]:
        """change: driving minus source motion (B, 60)
        -> generated (B, 3, s, s) in [0, 1] and its share (B, 1, s, s) in [0, 1], before `moving`."""
        half, quarter, eighth = (
            _occluded(warp(f, field.offset, field.view), seen).to(f.dtype, memory_format=LAYOUT)
            for f, seen in zip(features, field.occlusion, strict=True)
        )
        x = self.enter(torch.cat([eighth, _resized(field.features, eighth)], 1))
        x = upsample(self.up_quarter(self.trunk(x + self.hint(change)[..., None, None])))
        opened = field.opened.to(x.dtype, memory_format=LAYOUT)
        drawn = [x, quarter, _resized(field.features, quarter), _resized(opened, quarter)]
        x = upsample(self.up_half(self.merge_quarter(torch.cat(drawn, 1))))
        out = self.head(self.merge_half(torch.cat([x, half, _resized(opened, half)], 1))).float().sigmoid()
        return out[:, :3], out[:, 3:]


def _occluded(features: Tensor, seen: Tensor) -> Tensor:
    return features * _resized(seen, features)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-1]
    if x.shape[-1] == size:
        return x
    mode = "area" if x.shape[-1] > size else "bilinear"
    return F.interpolate(x, size=(size, size), mode=mode)


def fold_batch_norms(layers: nn.Sequential) -> None:
    for i, (layer, norm) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()


@dataclass
class SourceState:
    """All that a frame needs of the source: picture, motion, small picture, features."""

    image: Tensor
    motion: Tensor
    small: Tensor
    features: tuple[Tensor, ...]


class CompactReenactor(nn.Module):
    """Keypoint detector, dense motion and painter behind the Reenactor interface.

    body_width, motion_width, painter_width: channels of the first layers; blocks: residual blocks of the trunk;
    motion_space: the name of what its detector reads, see `mssync.motion`; `space` is the same.
    """

    rigid = RIGID
    needs_landmarks = True

    def __init__(
        self,
        body_width: int = 16,
        motion_width: int = 32,
        painter_width: int = 32,
        blocks: int = 3,
        motion_space: str = UNNAMED,
    ) -> None:
        super().__init__()
        self.sizes = {
            "body_width": body_width,
            "motion_width": motion_width,
            "painter_width": painter_width,
            "blocks": blocks,
        }
        self.space = motion_space
        self.precision = "float32"  # of drawing: see for_rendering
        self.detector = KeypointDetector(body_width)
        self.dense_motion = DenseMotion(motion_width)
        self.painter = Painter(painter_width, motion_width, blocks)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild it."""
        return {**self.sizes, "motion_space": self.space}

    def for_rendering(self, precision: str = "float32") -> CompactReenactor:
        """Make drawing fast, in place: batch norms folded into convolutions, in the given precision.

        precision: "float32", or "bfloat16" where the processor has it (`mssync.precision`).
        Frames then differ by less than a grey level from exact ones, on the mean. The detector stays as it is, it says
        which motion space this is. Not for training.
        """
        for part in (self.dense_motion, self.painter):
            for module in part.modules():
                if isinstance(module, nn.Sequential):
                    fold_batch_norms(module)
        self.precision = precision
        return self.to(memory_format=LAYOUT)  # type: ignore[call-overload]

    def keypoints(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> motion (B, 10, 6).

        landmarks: (B, 478, >=2) in [-1, 1]; they are searched in the pictures where they are not given, which
        raises InputError in the case of no face.
        """
        return self.detector(image, find_landmarks(image) if landmarks is None else landmarks)

    def prepare(self, source: Tensor, motion: Tensor | None = None) -> SourceState:
        """source: (B, 3, s, s) in [0, 1]; B is 1 when one portrait is rendered under many motions.

        motion: its keypoints (B, 10, 6) where they are known already.
        """
        motion = self.keypoints(source) if motion is None else motion
        small = F.interpolate(source, size=(MOTION_SIZE,) * 2, mode="area")
        with drawing_precision(source, self.precision):
            return SourceState(source, motion, small, self.painter.encode(source))

    def render(self, state: SourceState, motion: Tensor) -> Tensor:
        """Frames (B, 3, s, s) in [0, 1] for motion (B, 10, 6)."""
        with drawing_precision(motion, self.precision):
            return self.render_parts(state, motion)["frame"]

    def render_parts(self, state: SourceState, motion: Tensor, view: Tensor | None = None) -> dict[str, Tensor]:
        """As render, with what training looks at: warped, generated, share, opened, the field's offset and occlusion.

        view: (B, 3), the window of each picture that is drawn alone (see `Field.window`).
        """
        whole = self.dense_motion(state.small, state.motion, motion)
        field = whole if view is None else whole.window(view)
        generated, share = self.painter(state.features, field, (motion - state.motion).flatten(1))
        warped = warp(state.image, field.offset, view)
        share = share * _resized(field.moving, share)
        frame = warped + share * (generated - warped)
        return {
            "frame": frame, "warped": warped, "generated": generated, "share": share,
            "offset": whole.offset, "occlusion": whole.occlusion[0], "opened": field.opened,
        }  # fmt: skip
