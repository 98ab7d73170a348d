"""How well scores tell foreign images of a pool from known ones: `python -m benchmarks.foreign --folder runs/study`.

Reads the newest checkpoints that benchmarks/study.py has left of its settings with foreign classes (open30, open60),
and the pools that they were trained on. A row is the area under the ROC curve of one score: 0.5 is chance. The numbers
go to docs/results/foreign.csv, from which `python -m benchmarks.results` makes the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.tables import write
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.fixed_threshold import Supervised
from dpl_ray.algorithm.one_vs_all import OUT, one_vs_all, one_vs_all_loss
from dpl_ray.algorithm.open_set import nearness
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels, StepFacts, entropy, pseudo_labels
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.models import Classifier, build_model
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import read_cells
from dpl_ray.training.checkpoint import load_config_and_info, load_policy
from dpl_ray.training.checkpoint_folder import open_checkpoint

COLUMNS = ("setting", "policy", "subset", "score", "auroc")
ONE_VS_ALL_STEPS, ONE_VS_ALL_RATE = 500, 0.05  # of the classifiers that labelled images alone train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="of benchmarks/study.py")
    folder = parser.parse_args().folder
    for setting in sorted(path.name for path in folder.glob("*-open?0")):
        for cell in read_cells(str(folder / setting)):
            place = open_checkpoint(str(folder / setting / cell.cell.name))
            for name, area in measure(place, cell.key[0]):
                own = {"setting": setting, "policy": cell.label, "subset": str(cell.key[0]), "score": name}
                write("foreign", COLUMNS, [[*own.values(), f"{area:.4f}"]], replaces=own)


def load_teacher(checkpoint: Storage) -> tuple[Classifier, Config]:
    """Without the backbone of features, which the study's checkpoints need not have kept."""
    config, info = load_config_and_info(checkpoint)
    model = build_model(config.model.model_copy(update={"weights": None}), info.channels, len(info.class_names))
    model.load_state_dict(safetensors.torch.load((checkpoint / "teacher.safetensors").read()))
    return model.eval(), config


def measure(checkpoint: Storage, subset: int) -> Iterator[tuple[str, float]]:
    """Each score's name and area."""
    model, config = load_teacher(checkpoint)
    splits = load_splits(config.data, seed=subset)
    pool, labeled = splits.unlabeled, splits.labeled
    assert isinstance(pool, ImageSet), "the study streams none"
    images = torch.from_numpy(pool.images), torch.from_numpy(labeled.images)
    found = scores(model, load_policy(checkpoint), *images, torch.from_numpy(labeled.targets))
    for name, values in found.items():
        yield name, float(roc_auc_score(pool.targets < 0, values.double().numpy()))


def scores(model: Classifier, policy: Policy, pool: Tensor, labeled: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Name -> (N,) of the pool's images, larger where one is more probably foreign."""
    with torch.no_grad():
        features, logits = model(pool)
        features_labeled, _ = model(labeled)
        ids = torch.arange(len(logits))
        pseudo = pseudo_labels(features, logits, policy.alignment(1.0), StepFacts(1.0, ids, ids[:0], ids[:0]))
        foreign = policy.foreign(pseudo)
    found = _of_logits(pseudo) | _of_heads(policy, pseudo)
    if foreign is not None:
        found["foreign"] = foreign
    if isinstance(policy, Supervised):  # of stored features, which are the same for all policies, or of its own
        found |= _of_labels(pseudo, features_labeled, targets)
    return found


def _of_logits(pseudo: PseudoLabels) -> dict[str, Tensor]:
    probs = pseudo.logits.softmax(dim=1)
    return {
        "1 - max softmax": 1 - probs.amax(dim=1),
        "entropy": entropy(probs),
        "energy": -pseudo.logits.logsumexp(dim=1),
    }


def _of_heads(policy: Policy, pseudo: PseudoLabels) -> dict[str, Tensor]:
    if not isinstance(policy, DynamicPseudoLabels):
        return {}
    with torch.no_grad():
        low, high = (head.softmax(dim=1) for head in policy.heads(pseudo.features))
    return {"distance of LGP and HGP": (low - high).abs().sum(dim=1)}


def _of_labels(pseudo: PseudoLabels, labeled: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """By cosines to the labelled images' features or their means, and by one-vs-all classifiers of them."""
    means = torch.stack([labeled[targets == index].mean(dim=0) for index in range(pseudo.logits.shape[1])])
    features = F.normalize(pseudo.features, dim=1)
    classifier = _one_vs_all(labeled, targets, len(means))
    with torch.no_grad():
        out = one_vs_all(classifier(pseudo.features))[:, OUT].exp()
    return {
        "nearest labelled image": -(features @ F.normalize(labeled, dim=1).T).amax(dim=1),
        "nearest class mean": -(features @ F.normalize(means, dim=1).T).amax(dim=1),
        "all class means": -nearness(features, means),
        "one-vs-all, of labels alone": out.gather(1, pseudo.labels[:, None]).squeeze(1),
    }


def _one_vs_all(labeled: Tensor, targets: Tensor, num_classes: int) -> nn.Linear:
    torch.manual_seed(0)
    classifier = nn.Linear(labeled.shape[1], 2 * num_classes)
    optimizer = torch.optim.SGD(classifier.parameters(), ONE_VS_ALL_RATE, 0.9, weight_decay=5e-3, nesterov=True)
    for _ in range(ONE_VS_ALL_STEPS):
        optimizer.zero_grad()
        one_vs_all_loss(one_vs_all(classifier(labeled)), targets).backward()
        optimizer.step()
    return classifier


if __name__ == "__main__":
    main()
