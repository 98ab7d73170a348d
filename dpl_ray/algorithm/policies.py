"""All policies by name. A new one is a class, a line here, a YAML file in conf/policy and a row in the tests."""

from __future__ import annotations

from typing import Any

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.peers import FixMatch, Supervised
from dpl_ray.algorithm.policy import Policy

POLICIES: dict[str, type[Policy]] = {
    "dpl": DynamicPseudoLabels,
    "fixmatch": FixMatch,
    "supervised": Supervised,
}


def build_policy(parameters: dict[str, Any], num_features: int, num_classes: int) -> Policy:
    """The policy that `parameters` (its name and its own parameters) describes."""
    rest = dict(parameters)
    return POLICIES[rest.pop("name")](num_features, num_classes, **rest)
