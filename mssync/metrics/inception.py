"""The Inception network of the FID, with the standard weights of 2015: `pt_inception-2015-12-05-6726825d.pth`.

The layers are those of the public PyTorch translation (pytorch-fid; torch-fidelity's file of the same hash fits as
well), written down as data. torchmetrics' own extractor is the same network in torch-fidelity, which needs a
torchvision that fits the PyTorch that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.errors import InputError, PathLike, input_file
from mssync.reenact.convert import shape_of, shortened

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
DOWNLOAD = "download"  # in place of a path: fetch the file once, into PyTorch's cache
COUNTER = "num_batches_tracked"
WHERE = f"the FID needs {Path(URL).name} ({URL}); name the file with --inception FILE, or say --inception {DOWNLOAD}"

SIDE = 299  # pixels
FEATURES = 2048
BATCH_NORM_EPS = 1e-3

Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel]  # name, outputs, kernel; a name that ends in STRIDED: stride 2 without padding
Chain = tuple[tuple[Layer, ...], ...]  # layers one after the other; where there are two in a step, side by side
STRIDED = "*"


def _in_turn(*layers: Layer) -> Chain:
    return tuple((layer,) for layer in layers)


def _double(name: str, *layers: tuple[int, Kernel]) -> Chain:
    return _in_turn(*((f"{name}_{i}", *layer) for i, layer in enumerate(layers, 1)))


def _block_a(pooled: int) -> tuple[Chain, ...]:
    return (
        _in_turn(("branch1x1", 64, 1)),
        _double("branch5x5", (48, 1), (64, 5)),
        _double("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        _in_turn(("branch_pool", pooled, 1)),
    )


def _block_c(width: int) -> tuple[Chain, ...]:
    across, down = (1, 7), (7, 1)
    return (
        _in_turn(("branch1x1", 192, 1)),
        _double("branch7x7", (width, 1), (width, across), (192, down)),
        _double("branch7x7dbl", (width, 1), (width, down), (width, across), (width, down), (192, across)),
        _in_turn(("branch_pool", 192, 1)),
    )


def _forked(name: str) -> tuple[Layer, ...]:
    return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))


BLOCK_B: tuple[Chain, ...] = (
    _in_turn(("branch3x3*", 384, 3)),
    _in_turn(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3*", 96, 3)),
    (),
)
BLOCK_D: tuple[Chain, ...] = (
    _in_turn(("branch3x3_1", 192, 1), ("branch3x3_2*", 320, 3)),
    _in_turn(
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4*", 192, 3),
    ),
    (),
)
BLOCK_E: tuple[Chain, ...] = (
    _in_turn(("branch1x1", 320, 1)),
    (*_in_turn(("branch3x3_1", 384, 1)), _forked("branch3x3_2")),
    (*_in_turn(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)), _forked("branch3x3dbl_3")),
    _in_turn(("branch_pool", 192, 1)),
)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # as TensorFlow: without the padding


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)  # of the last block: a slip of the original that the weights were trained with


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


MIXED: dict[str, tuple[int, tuple[Chain, ...], Callable[[Tensor], Tensor]]] = {
    "Mixed_5b": (192, _block_a(32), _average),
    "Mixed_5c": (256, _block_a(64), _average),
    "Mixed_5d": (288, _block_a(64), _average),
    "Mixed_6a": (288, BLOCK_B, _halved),
    "Mixed_6b": (768, _block_c(128), _average),
    "Mixed_6c": (768, _block_c(160), _average),
    "Mixed_6d": (768, _block_c(160), _average),
    "Mixed_6e": (768, _block_c(192), _average),
    "Mixed_7a": (768, BLOCK_D, _halved),
    "Mixed_7b": (1280, BLOCK_E, _average),
    "Mixed_7c": (2048, BLOCK_E, _maximum),
}


class Convolution(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of layers side by side, the last one (which may be empty) on the pooled input; their outputs joined."""

    def __init__(self, inputs: int, chains: tuple[Chain, ...], pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.chains, self.pool = chains, pool
        for chain in chains:
            width = inputs
            for step in chain:
                for name, outputs, kernel in step:
                    strided = name.endswith(STRIDED)
                    layer = Convolution(width, outputs, kernel, 2 if strided else 1, padded=not strided)
                    self.add_module(name.rstrip(STRIDED), layer)
                width = step[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            y = self.pool(x) if chain is self.chains[-1] else x
            for step in chain:
                y = torch.cat([self.get_submodule(name.rstrip(STRIDED))(y) for name, _, _ in step], 1)
            found.append(y)
        return torch.cat(found, 1)


class InceptionFeatures(nn.Module):
    """Pictures (B, 3, h, w) uint8 -> the 2048 pooled features of the FID (B, 2048); in eval mode, frozen.

    Pictures are scaled as torchmetrics scales them: bilinear, with antialiasing, (x - 128) / 128.
    """

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        for name, block in MIXED.items():
            self.add_module(name, Mixed(*block))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Keeps evaluation mode: a trainer that calls `train()` on everything must not change the features."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((x - 128) / 128)))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x))))
        for name in MIXED:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def load_inception(path: PathLike | None) -> InceptionFeatures:
    """The network with the standard weights, from their file or, for "download", from the internet.

    Raises InputError: no path, no such file, no internet, not these weights.
    """
    if path is None:
        raise InputError(f"no weights of Inception given: {WHERE}")
    state = _downloaded() if str(path) == DOWNLOAD else _read(input_file(path))
    model = InceptionFeatures()
    expected = model.state_dict()
    found = state if isinstance(state, dict) else {}
    wrong = [name for name in expected if shape_of(found.get(name)) != expected[name].shape and COUNTER not in name]
    if wrong:
        raise InputError(f"{path}: not the weights of the FID's Inception (see {shortened(wrong)}); {WHERE}")
    # The file also holds the classifier's.
    model.load_state_dict({name: found.get(name, like) for name, like in expected.items()})
    return model


def _read(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path}: not a PyTorch checkpoint, or a damaged one; {WHERE}") from error


def _downloaded() -> object:
    try:
        return torch.hub.load_state_dict_from_url(URL, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page, a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Inception's weights cannot be downloaded ({reason}); {WHERE}") from error
