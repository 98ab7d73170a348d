"""All policies by name. A new one is a class, a line here, a YAML file in conf/policy and a row in the tests."""

from __future__ import annotations

from typing import Any

from dpl_ray.algorithm.adamatch import AdaMatch
from dpl_ray.algorithm.balanced_classifier import AuxiliaryBalancedClassifier
from dpl_ray.algorithm.dash import Dash
from dpl_ray.algorithm.debiaspl import DebiasPL
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.fixed_threshold import FixMatch, PseudoLabel, Supervised, Uda
from dpl_ray.algorithm.flexmatch import FlexMatch
from dpl_ray.algorithm.freematch import FreeMatch
from dpl_ray.algorithm.iomatch import IOMatch
from dpl_ray.algorithm.openmatch import OpenMatch
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.simpro import SimPro
from dpl_ray.algorithm.softmatch import SoftMatch

POLICIES: dict[str, type[Policy]] = {
    "abc": AuxiliaryBalancedClassifier,
    "adamatch": AdaMatch,
    "dash": Dash,
    "debiaspl": DebiasPL,
    "dpl": DynamicPseudoLabels,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "iomatch": IOMatch,
    "openmatch": OpenMatch,
    "pseudolabel": PseudoLabel,
    "simpro": SimPro,
    "softmatch": SoftMatch,
    "supervised": Supervised,
    "uda": Uda,
}


def build_policy(parameters: dict[str, Any], num_features: int, num_classes: int) -> Policy:
    """The policy that `parameters` (its name and its own parameters) describes."""
    rest = dict(parameters)
    return POLICIES[rest.pop("name")](num_features, num_classes, **rest)
