"""The adversarial end of the painters' training: a discriminator of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (32, 64, 128, 128)


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches, and the features they are made from."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        sizes = (inputs, *WIDTHS)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in zip(sizes, WIDTHS, strict=False)
        )
        self.score = spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, inputs, s, s) in [0, 1] -> scores (B, 1, s/16, s/16), positive for real; features of each layer."""
        x, features = image * 2 - 1, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features

    def judge(self, drawn: Tensor, real: Tensor) -> Tensor:
        """Hinge loss of the discriminator itself."""
        fake_scores, real_scores = self(drawn.detach())[0], self(real)[0]
        return (F.relu(1 + fake_scores.float()) + F.relu(1 - real_scores.float())).mean()

    def criticise(self, drawn: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of what drew: its hinge loss, and the distance of the features from the real picture's."""
        scores, have = self(drawn)
        with torch.no_grad():
            want = self(real)[1]
        matching = torch.stack([(a - b).float().abs().mean() for a, b in zip(have, want, strict=True)])
        return -scores.float().mean(), matching.mean()
