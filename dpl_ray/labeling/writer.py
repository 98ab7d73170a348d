"""What makes a block of a pool a part of an output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from dpl_ray.labeling.decoding import DecodedBlock
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.plan import Plan


@dataclass(frozen=True)
class BlockWriter(ABC):
    """A network on one device, and where the parts go."""

    plan: Plan

    @abstractmethod
    def to(self, device: Any) -> Self:
        """The same on another device."""

    @abstractmethod
    def write(self, block: DecodedBlock) -> tuple[Counts, int]:
        """Write the part of a block; returns its counts and its bytes."""
