"""BatchNorm over the images that count: torch's own over these alone, and autograd's gradient of the formula."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.models.batch_norm import CountedBatchNorm2d, counting

SLOPE = 0.1
COUNTED = torch.tensor([True, False, True, True, False])


def values_and_norms() -> tuple[Tensor, CountedBatchNorm2d, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(3)
    values = 5 + 2 * torch.randn(2 + len(COUNTED), 4, 3, 3, generator=generator)
    mine, theirs = CountedBatchNorm2d(4), nn.BatchNorm2d(4)
    with torch.no_grad():
        mine.weight.copy_(torch.rand(4, generator=generator))
        mine.bias.copy_(torch.rand(4, generator=generator))
    theirs.load_state_dict(mine.state_dict())
    return values.requires_grad_(), mine, theirs


def gradients(output: Tensor, values: Tensor, norm: nn.BatchNorm2d) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    loss = (output * torch.randn(output.shape, generator=generator)).sum()
    return list(torch.autograd.grad(loss, [values, norm.weight, norm.bias]))


def test_what_counts_is_normalized_as_if_it_were_alone() -> None:
    values, mine, theirs = values_and_norms()
    rows = torch.tensor([0, 1, *(2 + COUNTED.nonzero().squeeze(1)).tolist()])
    with counting(mine, COUNTED, 2):
        output = mine(values, SLOPE)[rows]
    expected = F.leaky_relu(theirs(values[rows]), SLOPE)
    torch.testing.assert_close(output, expected)
    for one, other in zip(gradients(output, values, mine), gradients(expected, values, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(mine.named_buffers())[name], buffer)


def test_the_gradient_is_that_of_the_formula_also_through_images_that_do_not_count() -> None:
    values, mine, _ = values_and_norms()
    with counting(mine, COUNTED, 2):
        output = mine(values, SLOPE)
    counted = torch.cat([torch.ones(2), COUNTED.float()])[:, None, None, None]
    number = counted.sum() * 9
    mean = (values * counted).sum(dim=(0, 2, 3), keepdim=True) / number
    variance = ((values - mean).square() * counted).sum(dim=(0, 2, 3), keepdim=True) / number
    expected = (values - mean) / (variance + mine.eps).sqrt() * mine.weight[:, None, None] + mine.bias[:, None, None]
    expected = F.leaky_relu(expected, SLOPE)
    torch.testing.assert_close(output, expected)
    for one, other in zip(gradients(output, values, mine), gradients(expected, values, mine), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
