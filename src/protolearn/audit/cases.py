"""Values of the cases of an audit: taken in a batch at a time, given back in the order of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.errors import DataError


def numbers(values: Tensor, what: str, indices: Tensor, part: str) -> Tensor:
    """Return values ``(B, ...)``, detached, if none of them is NaN.

    Raises
    ------
    DataError
        Naming the first case that holds NaN: no figure can be honest about it.

    Examples
    --------
    >>> numbers(torch.tensor([[1.0], [float("nan")]]), "scores", torch.tensor([6, 7]), "cases")
    Traceback (most recent call last):
    ...
    protolearn.errors.DataError: case 7 of the cases: scores hold NaN: the model's weights or the input are damaged...
    """
    values = values.detach()
    damaged = values.isnan().flatten(1).any(1) if values.ndim > 1 else values.isnan()
    if bool(damaged.any()):
        case = int(indices[damaged.to(indices.device)][0])
        raise DataError(
            f"case {case} of the {part}: {what} hold NaN: the model's weights or the input are damaged; mend or leave "
            "out the case"
        )
    return values


class CaseValues:
    """Named values ``(B, ...)`` of batches of cases, for each part of the data.

    Examples
    --------
    >>> values = CaseValues()
    >>> values.add("cases", torch.tensor([2, 0]), score=torch.tensor([0.2, 0.0]))
    >>> values.add("cases", torch.tensor([1]), score=torch.tensor([0.1]))
    >>> values.of("cases", "score")
    tensor([0.0000, 0.1000, 0.2000])
    >>> values.count("train"), values.of("train", "score")
    (0, tensor([]))
    """

    def __init__(self) -> None:
        self._indices: dict[str, list[Tensor]] = {}
        self._rows: dict[tuple[str, str], list[Tensor]] = {}

    def add(self, part: str, indices: Tensor, **values: Tensor) -> None:
        """Take in a batch."""
        for name, each in values.items():
            self._rows.setdefault((part, name), []).append(each.detach().cpu())
        self._indices.setdefault(part, []).append(indices.cpu())

    def count(self, part: str) -> int:
        """Return how many cases of a part were shown."""
        return len(self._order(part))

    def of(self, part: str, name: str) -> Tensor:
        """Return the values of a part's cases, in the order of the data; empty where none was shown."""
        rows = self._rows.get((part, name))
        return torch.cat(rows)[self._order(part)] if rows else torch.zeros(0)

    def _order(self, part: str) -> Tensor:
        if part not in self._indices:
            return torch.zeros(0, dtype=torch.int64)
        return torch.cat(self._indices[part]).argsort(stable=True)
