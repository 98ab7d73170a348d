"""Images/s of networks that answer without gradient on one core, with a batch in parts beside the same batch whole.

    python -m benchmarks.parts --save

The share of the system is that of the CPU time in which the kernel works, here on memory.
"""

from __future__ import annotations

import argparse
import resource
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


def measure(
    answer: Callable[[Classifier, Tensor], tuple[Tensor, Tensor]], model: Classifier, images: Tensor
) -> tuple[float, float]:
    """Images/s of the process's CPU time, and the share of it that is the system's, for memory above all."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    answer(model, images)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    seconds = system + after.ru_utime - before.ru_utime
    return len(images) / seconds, 100 * system / seconds


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
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        answer_whole(model, images[: part_size(images)])  # what is prepared at the first time
        for _ in range(given.rounds):
            for way, answer in ways.items():
                found[way].append(measure(answer, model, images))
        rates, shares = ({way: [each[at] for each in found[way]] for way in ways} for at in (0, 1))
        ratios = [parts / whole for parts, whole in zip(rates["in parts"], rates["whole"], strict=True)]
        figures[f"{name}, batch of {number:,}, parts of {part_size(images)}"] = {
            **{way: median(values, "images/s") for way, values in rates.items()},
            "ratio": median(ratios),
            **{f"share of the system, {way}": median(values, "%") for way, values in shares.items()},
        }
        print(name, *(f"{ratio:.2f}" for ratio in ratios), flush=True)
    report("parts", figures, given.save)


if __name__ == "__main__":
    main()
