"""Images per second of the weak and strong views, against torchvision's per-image pipeline through Pillow.

    python -m benchmarks.views [--batch 448] [--size 32] [--seconds 3]

One thread, one process. Contestants take turns within each of the repeats, so that a noisy neighbour slows
all of them; what is told is the median over the repeats and their lowest and highest. Ours includes
drawing the uniforms, and cutout in the strong view. The pipeline starts from Pillow images in memory, has
no cutout and returns Pillow images: neither decoding nor conversion to tensors is counted against it.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms

from benchmarks.figures import Figures, add_save, median, report
from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches.augment import WEAK_UNIFORMS, num_strong_uniforms, strong, weak
from dpl_ray.training.memory import keep_freed_memory

NUM_REPEATS = 7
#: Side of the images -> bounds on the ratios of the weak and the strong view.
LEAST_RATIOS: dict[int, dict[str, float]] = {
    32: {"weak": 20.0, "strong": 15.0},
    96: {"strong": 5.0},
    224: {"weak": 5.0, "strong": 2.0},
}


def smooth_noise(num: int, size: int) -> Tensor:
    """uint8 (num, 3, size, size): coarse noise enlarged plus fine noise, roughly the statistics of a photo."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(num, 3, 4, 4, generator=generator)
    images = F.interpolate(coarse, size=(size, size), mode="bilinear")
    images += 12 * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 255).to(torch.uint8)


def images_per_second(run: Callable[[], object], batch: int, seconds: float) -> float:
    num_runs = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or num_runs == 0:
        run()
        num_runs += 1
    return num_runs * batch / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=448)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3, help="per contestant, all repeats together")
    add_save(parser, "views")
    arguments = parser.parse_args()
    batch, size = arguments.batch, arguments.size

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as a training does

    images = smooth_noise(batch, size)
    pictures = [transforms.functional.to_pil_image(image) for image in images]
    settings = ViewsConfig()
    padding = int(size * settings.crop_padding)
    pil_weak = transforms.Compose(
        [transforms.RandomCrop(size, padding, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
    )
    pil_strong = transforms.Compose([pil_weak, transforms.RandAugment(settings.num_operations)])
    contestants: dict[str, Callable[[], object]] = {
        "weak, ours": lambda: weak(images, torch.rand(batch, WEAK_UNIFORMS), settings),
        "weak, Pillow": lambda: [pil_weak(picture) for picture in pictures],
        "strong, ours": lambda: strong(images, torch.rand(batch, num_strong_uniforms(settings)), settings),
        "strong, Pillow": lambda: [pil_strong(picture) for picture in pictures],
    }

    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(NUM_REPEATS):
        for name, run in contestants.items():
            speeds[name].append(images_per_second(run, batch, arguments.seconds / NUM_REPEATS))

    figures: Figures = {}
    for view in ("weak", "strong"):
        least = LEAST_RATIOS.get(size, {}).get(view)
        ours, pillow = speeds[f"{view}, ours"], speeds[f"{view}, Pillow"]
        ratio = median([mine / theirs for mine, theirs in zip(ours, pillow, strict=True)], at_least=least)
        figures[view] = {"ours": median(ours, "images/s"), "Pillow": median(pillow, "images/s"), "ratio": ratio}
    report("views", figures, arguments.save)


if __name__ == "__main__":
    main()
