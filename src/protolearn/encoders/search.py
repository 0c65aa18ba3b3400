"""Finding the nearest of many cached tokens: exactly and in chunks, or through faiss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.measures import Measure
from protolearn.core.neighbours import nearest_rows
from protolearn.errors import MissingExtra, UsageError


def nearest_cases(
    values: Tensor,
    rows: Tensor,
    measure: Measure,
    k: int,
    *,
    left_out: Tensor | None = None,
    search: str = "exact",
) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of each value and how near they are, nearest first, without gradient.

    Parameters
    ----------
    values, rows : Tensor
        ``(B, D)`` and ``(N, D)``.
    measure : Measure
        What is near; faiss knows ``squared_l2``, ``cosine`` and ``dot``.
    k : int
        How many; fewer where there are fewer rows.
    left_out : Tensor, optional
        ``(B,)`` int64: the row that a value must not find, -1 = none.
    search : {"exact", "faiss"}
        ``exact`` needs nothing else. ``faiss`` (extra ``scale``) gives the same neighbours, up to ties and rounding.

    Returns
    -------
    values, rows : Tensor
        ``(B, k)``.

    Raises
    ------
    MissingExtra
        If faiss is asked for and not installed.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> line = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest_cases(line, line, squared_l2, 2)[1].tolist()
    [[0, 1], [1, 0], [2, 1]]
    """
    if search not in ("exact", "faiss"):
        raise UsageError(f"search must be exact or faiss, got {search!r}")
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    values, rows = values.detach(), rows.detach()
    k = min(k, len(rows) - (0 if left_out is None else 1))
    if k < 1:
        raise UsageError(f"there is nothing to find among {len(rows)} rows")
    if search == "exact":
        return nearest_rows(values, rows, measure, k, left_out=left_out)
    return _by_faiss(values, rows, measure, k, left_out)


def _by_faiss(values: Tensor, rows: Tensor, measure: Measure, k: int, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "scale", "search through faiss") from error
    if measure.name not in ("squared_l2", "cosine", "dot"):
        raise UsageError(f"faiss does not know {measure.name}: use search='exact', or squared_l2, cosine or dot")
    asked, known = ((F.normalize(t, dim=-1) if measure.name == "cosine" else t) for t in (values, rows))
    index = (faiss.IndexFlatL2 if measure.name == "squared_l2" else faiss.IndexFlatIP)(rows.shape[1])
    index.add(_array(known))
    wanted = k if left_out is None else k + 1
    near, where = index.search(_array(asked), wanted)
    best, at = torch.from_numpy(near).to(values.device), torch.from_numpy(where).to(values.device)
    if left_out is not None:
        others = at != left_out.unsqueeze(1)
        others[:, -1] &= ~others.all(1)  # the last goes where the value did not find itself
        best, at = best[others].view(-1, k), at[others].view(-1, k)
    return best, at


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy(), dtype=np.float32)
