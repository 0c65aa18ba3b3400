"""Finding the nearest of many cached tokens: exactly and in chunks, or through faiss."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.assignment import nearest
from protolearn.core.measures import Distance, Measure, cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.neighbours import nearest_rows
from protolearn.core.pooling import max_pool
from protolearn.core.precision import full_precision
from protolearn.core.similarities import PerPrototype
from protolearn.core.votes import Votes
from protolearn.errors import MissingExtra, UsageError
from protolearn.structures import Output

MANY = 50_000
"""Stored cases from which on predictions look for the nearest through faiss, where it is installed."""
MORE = 8
"""How many more than k are found, so that rounding in the search loses none of the k nearest."""
MANY_CENTRES, MANY_TOKENS = 500, 10_000
"""From so many centres and tokens on, k-means asks faiss for the nearest centre, where it is installed.

Measured on one core: below, PyTorch is as quick or quicker; at 100,000 tokens, 1,000 centres and width 128 faiss takes
three quarters of the time.
"""
KNOWN = ("squared_l2", "cosine", "dot")
"""Measures that faiss knows."""


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


def nearest_centres(values: Tensor, centres: Tensor, search: str = "auto") -> tuple[Tensor, Tensor]:
    """Return the squared distance and row of each token's nearest centre, by whichever of PyTorch and faiss is quicker.

    What :func:`~protolearn.core.updates.k_means` takes as ``assign``.

    Parameters
    ----------
    values, centres : Tensor
        ``(N, D)`` and ``(P, D)``.
    search : {"auto", "exact", "faiss"}
        ``auto`` chooses by size; only tokens in single precision on the processor go to faiss.

    Examples
    --------
    >>> nearest_centres(torch.tensor([[0.0], [0.9]]), torch.tensor([[1.0], [0.0]]))[1].tolist()
    [1, 0]
    """
    if search not in ("auto", "exact", "faiss"):
        raise UsageError(f"search must be auto, exact or faiss, got {search!r}")
    if search == "auto":
        large = len(centres) >= MANY_CENTRES and len(values) >= MANY_TOKENS
        plain = values.dtype == torch.float32 and values.device.type == "cpu"
        search = "faiss" if large and plain and importlib.util.find_spec("faiss") is not None else "exact"
    if search == "exact":
        return nearest(values, centres)
    gaps, rows = _ask(_index(centres, squared_l2), values, squared_l2, 1)
    return gaps[:, 0].clamp_min(0.0), rows[:, 0]


class Retrieval:
    """A model's output where only the nearest of many stored cases are compared exactly.

    Made once for many batches. The others count as unable to match (similarity -inf, evidence 0), which changes no
    prediction of a head that lets the k nearest vote: a few more than k are found, and compared exactly.

    Parameters
    ----------
    model : PrototypeModel
        One that :func:`retrieval_for` takes.
    search : {"exact", "faiss"}
        As for :func:`nearest_cases`.
    """

    def __init__(self, model: PrototypeModel, search: str = "faiss") -> None:
        assert isinstance(model.head, Votes) and model.head.k is not None, "retrieval_for makes sure of it"
        self.model, self.k = model, model.head.k + MORE
        self.rows = model.head.voters().nonzero().squeeze(1)
        self.vectors = model.bank.vectors.detach()[self.rows]
        self.measure = cosine if model.measure.name == "cosine_distance" else model.measure  # the same order
        self.index = _index(self.vectors, self.measure) if search == "faiss" and len(self.rows) else None

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Output:
        """Return the output for a batch of inputs."""
        model = self.model
        encoded = model.encode(inputs)
        tokens = model.embed(encoded)
        k = min(self.k, len(self.rows))
        if tokens.values.shape[1] != 1 or tokens.mask is not None or k == 0:
            return model.run(encoded, inputs)
        values = tokens.values[:, 0]
        if self.index is None:
            at = nearest_rows(values, self.vectors, self.measure, k)[1]
        else:
            at = _ask(self.index, values, self.measure, k)[1]
        with full_precision(values.device):
            near = model.measure.paired(values.float().unsqueeze(1), self.vectors[at].float())
        shape = (len(values), len(model.bank))
        table = near.new_full(shape, model.measure.farthest).scatter(1, self.rows[at], near)
        similarities = near.new_full(shape, float("-inf")).scatter(1, self.rows[at], model.similarity(near))
        out = Output(
            tokens, table if isinstance(model.measure, Distance) else None, similarities,
            torch.zeros_like(table, dtype=torch.long), similarities.masked_fill(torch.isinf(similarities), 0.0),
            near.new_zeros(len(values), 0), model.bank, model.head, inputs=inputs, encoded=encoded,
            similarity=model.similarity,
        )  # fmt: skip
        return out.replace(logits=model.head.read(out))


def retrieval_for(model: PrototypeModel, search: str = "auto", many: int = MANY) -> Retrieval | None:
    """Return how to predict with a model by its nearest cases alone, None where it is compared with all.

    Parameters
    ----------
    model : PrototypeModel
        Its head must let the k nearest cases vote, each as it is (not balanced, and not environment by environment),
        and an input must be one vector.
    search : {"auto", "exact", "faiss"}
        ``auto`` takes faiss where it is installed and the bank holds ``many`` cases or more, else None; the others
        refuse a model that does not fit.
    many : int
        See above.
    """
    if search not in ("auto", "exact", "faiss"):
        raise UsageError(f"search must be auto, exact or faiss, got {search!r}")
    head, plain = model.head, (model.across, model.compare, model.metric, model.decoder) == (None,) * 4
    fits = (
        isinstance(head, Votes) and head.k is not None and not head.balanced and not head.by_group and plain
        and model.pooling is max_pool and model.measure.name in (*KNOWN, "cosine_distance")
        and not model.bank.drawn and not isinstance(model.similarity, PerPrototype)
    )  # fmt: skip
    if search == "auto":
        if not fits or len(model.bank) < many or importlib.util.find_spec("faiss") is None:
            return None
        search = "faiss"
    if not fits:
        raise UsageError(
            "retrieval needs a model in which the k nearest cases vote, each as it is (mode knn, not balanced), in one "
            f"of the measures {', '.join(KNOWN)}"
        )
    return Retrieval(model, search)


def _by_faiss(values: Tensor, rows: Tensor, measure: Measure, k: int, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    wanted = k if left_out is None else k + 1
    best, at = _ask(_index(rows, measure), values, measure, wanted)
    if left_out is not None:
        others = at != left_out.unsqueeze(1)
        others[:, -1] &= ~others.all(1)  # the last goes where the value did not find itself
        best, at = best[others].view(-1, k), at[others].view(-1, k)
    return best, at


def _index(rows: Tensor, measure: Measure) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "scale", "search through faiss") from error
    if measure.name not in KNOWN:
        raise UsageError(f"faiss does not know {measure.name}: use search='exact', or squared_l2, cosine or dot")
    index = (faiss.IndexFlatL2 if measure.name == "squared_l2" else faiss.IndexFlatIP)(rows.shape[1])
    index.add(_array(F.normalize(rows, dim=-1) if measure.name == "cosine" else rows))
    return index


def _ask(index: Any, values: Tensor, measure: Measure, k: int) -> tuple[Tensor, Tensor]:
    near, where = index.search(_array(F.normalize(values, dim=-1) if measure.name == "cosine" else values), k)
    return torch.from_numpy(near).to(values.device), torch.from_numpy(where).to(values.device)


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy(), dtype=np.float32)
