"""Cases that are numbers already."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from protolearn.data import features
from protolearn.errors import DataError
from protolearn.structures import Batch


def test_rows_are_samples_and_collate() -> None:
    values = np.arange(24, dtype=np.float64).reshape(4, 2, 3)
    cases = features(values, ["b", "a", "", "b"], name="cells")
    assert cases.classes == ("a", "b")
    assert cases.labels.tolist() == [1, 0, -1, 1]
    batch = default_collate([cases[i] for i in (2, 0)])
    assert isinstance(batch, Batch)
    assert batch.inputs.dtype == torch.float32
    assert torch.equal(batch.inputs, torch.from_numpy(values[[2, 0]]).float())
    assert list(batch.ids) == ["cells/000002", "cells/000000"]
    loaded = next(iter(DataLoader(cases.subset([3, 1]), batch_size=2)))
    assert loaded.labels.tolist() == [1, 0]


def test_content_follows_the_numbers_not_the_place() -> None:
    values = np.eye(3, dtype=np.float32)
    first, second = features(values), features(values[::-1].copy(), name="other")
    assert first.content(0) == second.content(2) != first.content(1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(3), "features must be numbers"),
        (np.zeros((2, 0)), "features must be numbers"),
        (np.array([["a"]]), "features must be numbers"),
        (np.array([[0.0], [np.nan]]), "row 1 holds NaN"),
    ],
)
def test_what_is_no_feature_is_refused(values: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        features(values)


def test_a_feature_is_no_picture() -> None:
    with pytest.raises(DataError, match="not pictures"):
        features(np.eye(2)).picture(0)
