"""The parameters of every policy. The policies themselves are in dpl_ray/algorithm: here nothing imports torch."""

from __future__ import annotations

import typing
from typing import Annotated, Literal

from pydantic import Field

from dpl_ray.config.section import Section

Threshold = Annotated[float, Field(ge=0, le=1, description="least confidence of a sample that counts")]
EmaDecay = Annotated[
    float, Field(ge=0, lt=1, description="decay of the averages; published recipe of 2^20 steps: 0.999")
]
Alignment = Annotated[bool, Field(description="uniform alignment of the class probabilities")]


class AbcConfig(Section):
    """ABC, the auxiliary balanced classifier (Lee 2021)."""

    name: Literal["abc"] = "abc"
    threshold: Threshold = 0.95
    ema_decay: EmaDecay = 0.99


class AdaMatchConfig(Section):
    """AdaMatch (Berthelot 2022)."""

    name: Literal["adamatch"] = "adamatch"
    threshold: float = Field(
        0.95, ge=0, le=1, description="share of the labelled confidence that a sample needs to count"
    )
    ema_decay: EmaDecay = 0.99


class DashConfig(Section):
    """Dash (Xu 2021)."""

    name: Literal["dash"] = "dash"
    warmup: float = Field(
        0.05, ge=0, le=0.5, description="share of the run that trains on labelled images alone, to find the threshold"
    )


class DebiasPLConfig(Section):
    """DebiasPL (Wang 2022)."""

    name: Literal["debiaspl"] = "debiaspl"
    threshold: Threshold = 0.95
    debias: float = Field(
        0.4, ge=0, le=2, description="how much of what the student says of all images is taken out of its labels"
    )
    ema_decay: EmaDecay = 0.99


class DplConfig(Section):
    """Dynamic pseudo-labels from two gradient-cut classifiers."""

    name: Literal["dpl"] = "dpl"
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="how slowly thresholds and class shares follow the pool: nearer 1 is smoother"
    )
    rule: Literal["gaussian", "band", "agreement"] = Field(
        "gaussian",
        description="what counts below a class's upper threshold: gaussian: each sample, less the further below; band: "
        "none below the lower threshold; agreement: no thresholds, a sample counts where both classifiers agree",
    )
    cut: Literal["confidence", "own", "none"] = Field(
        "confidence",
        description="who decides which samples the two classifiers do not learn from: confidence: the main classifier; "
        "own: each of the two; none: nobody, so that both thresholds are alike and fewer samples count",
    )
    epsilon: float = Field(
        0.02, ge=1e-6, le=1, description="confidence below the upper threshold that at least counts somewhat"
    )
    alignment: Alignment = True
    classifier_from: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the run from which pseudo-labels move the main classifier too, not the features alone",
    )
    pace: float | None = Field(
        None,
        gt=0,
        description="how many times faster the thresholds follow than by ema_decay alone; null: 1, on features 10",
    )
    heads_weight: float | None = Field(
        None,
        gt=0,
        description="how many times as fast the two classifiers learn as the main one; null: 1, on stored features 10",
    )
    balance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="how far classes with many pseudo-labels give weight away, 1 is wholly; null: 0, on stored "
        "features 0.5",
    )
    shares: tuple[Annotated[float, Field(gt=0)], ...] | Literal["equal", "labels", "estimated"] | None = Field(
        None,
        description="how frequent the pool's classes are: a number for each, in the order of their names; equal; as "
        "the labels; estimated by pseudo-labels; null: unknown, equally many labels at first, later as the student has "
        "them; on stored features estimated",
    )
    balanced_softmax: bool = Field(
        True, description="whether the labelled loss corrects for classes that have more labelled images than others"
    )
    open_set: bool = Field(
        False, description="whether the pool may hold foreign images, of classes without labels, which then count less"
    )


class FixMatchConfig(Section):
    """FixMatch (Sohn 2020)."""

    name: Literal["fixmatch"] = "fixmatch"
    threshold: Threshold = 0.95


class FlexMatchConfig(Section):
    """FlexMatch (Zhang 2021)."""

    name: Literal["flexmatch"] = "flexmatch"
    threshold: float = Field(
        0.95, ge=0, le=1, description="confidence that counts for a class that the student knows best"
    )


class FreeMatchConfig(Section):
    """FreeMatch (Wang 2023)."""

    name: Literal["freematch"] = "freematch"
    ema_decay: EmaDecay = 0.99
    fairness_weight: float = Field(0.01, ge=0, le=1, description="weight of the self-adaptive fairness term")


class IOMatchConfig(Section):
    """IOMatch (Li 2023)."""

    name: Literal["iomatch"] = "iomatch"
    threshold: Threshold = 0.95
    open_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="least probability of a class, or of foreign, that trains the open classifier",
    )
    one_vs_all_weight: float = Field(1.0, ge=0, description="weight of the one-vs-all classifiers' loss")
    open_weight: float = Field(1.0, ge=0, description="weight of the open classifier's loss")


class OpenMatchConfig(Section):
    """OpenMatch (Saito 2021)."""

    name: Literal["openmatch"] = "openmatch"
    threshold: float = Field(0.0, ge=0, le=1, description="least confidence of an inlier that counts")
    warmup: float = Field(0.02, ge=0, le=1, description="share of the run before the first pseudo-label counts")
    entropy_weight: float = Field(0.1, ge=0, description="weight of the one-vs-all classifiers' entropy on the pool")
    consistency_weight: float = Field(
        0.5, ge=0, description="weight of the distance between their answers to the two views of an image"
    )


class PseudoLabelConfig(Section):
    """Pseudo-Label (Lee 2013)."""

    name: Literal["pseudolabel"] = "pseudolabel"
    threshold: Threshold = 0.95


class SimProConfig(Section):
    """SimPro (Du 2024)."""

    name: Literal["simpro"] = "simpro"
    threshold: Threshold = 0.95
    ema_decay: EmaDecay = 0.99


class SoftMatchConfig(Section):
    """SoftMatch (Chen 2023)."""

    name: Literal["softmatch"] = "softmatch"
    ema_decay: EmaDecay = 0.99
    num_sigmas: float = Field(
        2.0, ge=0.01, le=100, description="divides the deviation: larger falls off faster below the mean"
    )
    alignment: Alignment = True


class SupervisedConfig(Section):
    """The labelled images alone."""

    name: Literal["supervised"] = "supervised"


class UdaConfig(Section):
    """UDA (Xie 2020)."""

    name: Literal["uda"] = "uda"
    threshold: Threshold = 0.8
    temperature: float = Field(0.4, ge=0.01, le=10, description="divides the logits of the soft targets")


PolicyConfig = (
    AbcConfig
    | AdaMatchConfig
    | DashConfig
    | DebiasPLConfig
    | DplConfig
    | FixMatchConfig
    | FlexMatchConfig
    | FreeMatchConfig
    | IOMatchConfig
    | OpenMatchConfig
    | PseudoLabelConfig
    | SimProConfig
    | SoftMatchConfig
    | SupervisedConfig
    | UdaConfig
)
#: Name of a policy -> the section of its parameters.
POLICY_CONFIGS: dict[str, type[Section]] = {
    section.model_fields["name"].default: section for section in typing.get_args(PolicyConfig)
}
