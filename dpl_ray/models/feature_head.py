"""What stands in place of a backbone where its features are stored: nothing, or a small perceptron.

Legend: N samples, P stored views, D features, H hidden units.
"""

from __future__ import annotations

from torch import Tensor, nn


class FeatureHead(nn.Module):
    """(N, P, 1, D) -> (N, D), or (N, H) with a hidden layer; of several views the first, of the image as it is."""

    def __init__(self, num_features: int, hidden: int | None) -> None:
        super().__init__()
        self.num_features = hidden or num_features
        self.layers = nn.Sequential(nn.Linear(num_features, hidden), nn.GELU()) if hidden else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features[:, 0, 0])
