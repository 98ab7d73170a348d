"""Dynamic pseudo-labels from two gradient-cut classifiers, on Ray.

from dpl_ray import fit, load_config
result = fit(load_config(["data=digits", "policy=dpl"]))
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpl_ray.checking.job import CheckResult, check
    from dpl_ray.config.compose import load_config
    from dpl_ray.config.schema import Config
    from dpl_ray.embedding.config import EmbedConfig
    from dpl_ray.embedding.job import EmbedResult, embed
    from dpl_ray.exchange.config import ExportLabelsConfig, ImportLabelsConfig
    from dpl_ray.exchange.exporting import ExportLabelsResult, export_labels
    from dpl_ray.exchange.importing import ImportLabelsResult, import_labels
    from dpl_ray.inference.predictions import Predictions
    from dpl_ray.inference.predictor import Predictor, load_checkpoint
    from dpl_ray.jobs.estimator import SelfTrainingClassifier
    from dpl_ray.jobs.evaluate import EvaluateResult, evaluate
    from dpl_ray.jobs.evaluate_config import EvaluateConfig
    from dpl_ray.jobs.explain import Explanation, explain
    from dpl_ray.jobs.fit import FitResult, fit
    from dpl_ray.jobs.fit_arrays import fit_arrays
    from dpl_ray.labeling.config import LabelConfig
    from dpl_ray.labeling.job import LabelResult, label_pool
    from dpl_ray.quickstart.job import QuickstartResult, quickstart
    from dpl_ray.reviewing.config import ReviewConfig
    from dpl_ray.reviewing.job import ReviewResult, review
    from dpl_ray.reviewing.suggest import SuggestResult, suggest
    from dpl_ray.reviewing.suggest_config import SuggestConfig
    from dpl_ray.studies.comparison.config import CompareConfig
    from dpl_ray.studies.comparison.job import CompareResult, compare
    from dpl_ray.studies.self_training.config import SelfTrainConfig
    from dpl_ray.studies.self_training.job import SelfTrainResult, self_train
    from dpl_ray.studies.tuning.config import SearchConfig
    from dpl_ray.studies.tuning.job import SearchResult, search
    from dpl_ray.tracking.sync import SyncResult, sync_tracking

__all__ = [
    "CheckResult",
    "CompareConfig",
    "CompareResult",
    "Config",
    "EmbedConfig",
    "EmbedResult",
    "EvaluateConfig",
    "EvaluateResult",
    "Explanation",
    "ExportLabelsConfig",
    "ExportLabelsResult",
    "FitResult",
    "ImportLabelsConfig",
    "ImportLabelsResult",
    "LabelConfig",
    "LabelResult",
    "Predictions",
    "Predictor",
    "QuickstartResult",
    "ReviewConfig",
    "ReviewResult",
    "SearchConfig",
    "SearchResult",
    "SelfTrainConfig",
    "SelfTrainResult",
    "SelfTrainingClassifier",
    "SuggestConfig",
    "SuggestResult",
    "SyncResult",
    "__version__",
    "check",
    "compare",
    "embed",
    "evaluate",
    "explain",
    "export_labels",
    "fit",
    "fit_arrays",
    "import_labels",
    "label_pool",
    "load_checkpoint",
    "load_config",
    "quickstart",
    "review",
    "search",
    "self_train",
    "suggest",
    "sync_tracking",
]

try:
    __version__ = version("dpl_ray")
except PackageNotFoundError:  # a checkout that nobody installed, as the working directory of a cluster's job
    __version__ = "0+unknown"

#: Module -> what is public of it.
_PUBLIC = {
    "checking.job": "CheckResult check",
    "config.compose": "load_config",
    "config.schema": "Config",
    "embedding.config": "EmbedConfig",
    "embedding.job": "EmbedResult embed",
    "exchange.config": "ExportLabelsConfig ImportLabelsConfig",
    "exchange.exporting": "ExportLabelsResult export_labels",
    "exchange.importing": "ImportLabelsResult import_labels",
    "inference.predictions": "Predictions",
    "inference.predictor": "Predictor load_checkpoint",
    "jobs.estimator": "SelfTrainingClassifier",
    "jobs.evaluate": "EvaluateResult evaluate",
    "jobs.evaluate_config": "EvaluateConfig",
    "jobs.explain": "Explanation explain",
    "jobs.fit": "FitResult fit",
    "jobs.fit_arrays": "fit_arrays",
    "labeling.config": "LabelConfig",
    "labeling.job": "LabelResult label_pool",
    "quickstart.job": "QuickstartResult quickstart",
    "reviewing.config": "ReviewConfig",
    "reviewing.job": "ReviewResult review",
    "reviewing.suggest": "SuggestResult suggest",
    "reviewing.suggest_config": "SuggestConfig",
    "studies.comparison.config": "CompareConfig",
    "studies.comparison.job": "CompareResult compare",
    "studies.self_training.config": "SelfTrainConfig",
    "studies.self_training.job": "SelfTrainResult self_train",
    "studies.tuning.config": "SearchConfig",
    "studies.tuning.job": "SearchResult search",
    "tracking.sync": "SyncResult sync_tracking",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # Loaded when they are asked for: torch takes seconds, and a mistake in the configuration needs none of it.
    if name not in _HOME:
        raise AttributeError(f"module dpl_ray has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f"dpl_ray.{_HOME[name]}"), name)
