"""What stands in place of a backbone where its features are stored: their scaling, and a small perceptron if wanted.

Legend: N samples, P stored views, D features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST_DEVIATION = 1e-3  # of a feature, which may be the same everywhere
_ROWS_AT_A_TIME = 8192  # in float64: a pool has many


class FeatureHead(nn.Module):
    """(N, P, 1, D) -> (N, D), or (N, H) with a hidden layer; of several views the first, of the image as it is.

    Every feature is brought to mean 0 and deviation 1, as `standardize` has found them in the data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int, hidden: int | None) -> None:
        super().__init__()
        self.num_features = hidden or num_features
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(nn.Linear(num_features, hidden), nn.GELU()) if hidden else nn.Identity()

    @torch.no_grad()
    def standardize(self, parts: Sequence[Tensor]) -> None:
        """Take mean and deviation of the samples' features as they are.

        Args:
            parts: (N, P, 1, D) float16 each; their means are taken in float64, so that the order does not matter.
        """
        chunks = [chunk[:, 0, 0] for part in parts for chunk in part.split(_ROWS_AT_A_TIME)]
        number = sum(map(len, chunks))
        mean = sum(chunk.double().sum(dim=0) for chunk in chunks) / number
        variance = sum((chunk.double() - mean).square().sum(dim=0) for chunk in chunks) / number
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt().clamp(min=LEAST_DEVIATION))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features[:, 0, 0].float() - self.mean).div_(self.std))  # one array less to make
