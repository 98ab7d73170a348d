"""Images/s of networks that answer without gradient on one core, with a batch in parts beside the same batch whole.

python -m benchmarks.parts --save
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.figures import Figures, add_save, median, report
from dpl_ray.config.schema import ModelConfig
from dpl_ray.models import Classifier, answer_in_parts, build_model
from dpl_ray.models.in_parts import part_size

#: Network, side of its images and their number in a batch.
CASES: dict[str, tuple[ModelConfig, int, int]] = {
    "WRN-10-2, 8 px": (ModelConfig(depth=10), 8, 2048),
    "WRN-28-2, 32 px": (ModelConfig(depth=28), 32, 256),
    "EfficientNet-B0, 96 px": (ModelConfig(name="torchvision", architecture="efficientnet_b0"), 96, 256),
    "EfficientNet-B0, 224 px": (ModelConfig(name="torchvision", architecture="efficientnet_b0"), 224, 64),
    "ResNet-18, 96 px": (ModelConfig(name="torchvision", architecture="resnet18"), 96, 256),
}


@torch.inference_mode()
def answer_whole(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    features, logits = model(images.contiguous(memory_format=torch.channels_last))
    return features, logits


def rate(answer: Callable[[Classifier, Tensor], tuple[Tensor, Tensor]], model: Classifier, images: Tensor) -> float:
    """Images/s of the process's CPU time."""
    began = time.process_time()
    answer(model, images)
    return len(images) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_save(parser, "parts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: Figures = {}
    for name, (config, side, number) in CASES.items():
        model = build_model(config, 3, 10).eval().to(memory_format=torch.channels_last)
        images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8)
        ways = {"whole": answer_whole, "in parts": answer_in_parts}
        found: dict[str, list[float]] = {way: [] for way in ways}
        answer_whole(model, images[: part_size(images)])  # what is prepared at the first time
        for _ in range(given.rounds):
            for way, answer in ways.items():
                found[way].append(rate(answer, model, images))
        ratios = [parts / whole for parts, whole in zip(found["in parts"], found["whole"], strict=True)]
        figures[f"{name}, batch of {number:,}, parts of {part_size(images)}"] = {
            **{way: median(rates, "images/s") for way, rates in found.items()},
            "ratio": median(ratios),
        }
        print(name, *(f"{ratio:.2f}" for ratio in ratios), flush=True)
    report("parts", figures, given.save)


if __name__ == "__main__":
    main()
