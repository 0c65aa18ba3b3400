"""What training may not do twice; seconds are in benchmarks/."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from protolearn.data import digits
from protolearn.data.arrays import ArrayCases
from protolearn.encoders import SmallEncoder
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.training.project import project

SMALL = {"prototypes_per_class": 2, "dim": 8}


class Counted(SmallEncoder):
    """Counts the pictures that go through."""

    seen = 0

    def forward(self, inputs: torch.Tensor) -> Tokens:
        self.seen += len(inputs)
        return super().forward(inputs)


def some(count: int = 60) -> ArrayCases:
    train = digits("train")
    return train.subset(range(0, len(train), len(train) // count)[:count])


def test_projection_encodes_each_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_method("protopnet")(**SMALL).build(Counted(), 10).eval()
    cases = some().with_transform(model.encoder.preprocess)
    reads: list[int] = []
    read = ArrayCases._read

    def noting(self: ArrayCases, row: int) -> Image.Image:
        reads.append(row)
        return read(self, row)

    monkeypatch.setattr(ArrayCases, "_read", noting)
    model.encoder.seen = 0
    project(model, cases, batch_size=16)
    assert model.encoder.seen == len(cases)
    chosen = {cases.index(source.case) for source in model.bank.sources if source is not None}
    assert len(reads) == len(cases) + len(chosen), "a source's picture is read once more, for its content and its size"
    project(model, cases, batch_size=16)
    assert len(reads) <= 2 * len(cases) + 2 * len(chosen), "and what is remembered is not read again"


def test_size_is_that_of_the_picture() -> None:
    cases = some(3)
    assert cases.size(1) == cases.picture(1).size == (8, 8)
    cases.content(2)
    assert cases.subset([2]).size(0) == (8, 8)
