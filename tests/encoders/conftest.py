from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from protolearn.data.cases import Cases


class Noise(Cases):
    """Random pictures that are the same every time."""

    def __init__(self, count: int = 10, seed: int = 0, ids: Sequence[str] | None = None) -> None:
        self.pictures = np.random.default_rng(seed).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
        super().__init__(
            name="noise",
            ids=ids or [f"noise/{i}" for i in range(count)],
            labels=[i % 2 for i in range(count)],
            classes=["even", "odd"],
        )

    def _read(self, row: int) -> Image.Image:
        return Image.fromarray(self.pictures[row])


@pytest.fixture
def noise() -> Noise:
    return Noise()
