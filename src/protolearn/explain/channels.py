"""Prototypes that are channels: the cases that excite each most, how purely, and which to show of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.model import PrototypeModel
from protolearn.core.purity import Exemplars, Ranking
from protolearn.core.rotation import ChannelRotation
from protolearn.core.top_cases import UnrankedCase
from protolearn.errors import DataError, UsageError
from protolearn.explain.passes import CaseList, device_of, run_over, track
from protolearn.structures import Box, Explanation, LedgerRow, Tokens


@dataclass(frozen=True, eq=False)
class ChannelGallery:
    """The cases that excite each channel most, the first of them first; P channels, n cases of each.

    Attributes
    ----------
    prototypes : tuple of int
        Ids of the channels' prototypes, P of them.
    cases : tuple of tuple of str
        Ids; fewer than n where there are fewer cases.
    positions : Tensor
        ``(P, n)`` int64: the position of the peak.
    scores : Tensor
        ``(P, n)``: what they were ranked by, -inf where there is no case.
    values : Tensor
        ``(P, n)``: the channel's value at the peak.
    purity : Tensor
        ``(P, n)``: that value as a share of the length of the token, in [-1, 1]; NaN where there is no case.
    regions : tuple of tuple of Box or None
        The peak's cell in pixels of the input, where positions have a place.
    by : str
        What they were ranked by: "sum" or "peak".
    """

    prototypes: tuple[int, ...]
    cases: tuple[tuple[str, ...], ...]
    positions: Tensor
    scores: Tensor
    values: Tensor
    purity: Tensor
    regions: tuple[tuple[Box | None, ...], ...]
    by: Ranking

    @property
    def mean_purity(self) -> float:
        """Over all pairs of a channel and one of its cases."""
        return float(self.purity.nanmean())

    @property
    def per_channel(self) -> Tensor:
        """``(P,)``: mean purity over the cases of each channel."""
        return self.purity.nanmean(1)

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain row a channel and case, for a table."""
        table = []
        for p, key in enumerate(self.prototypes):
            for place, case in enumerate(self.cases[p]):
                region = self.regions[p][place]
                table.append(
                    {
                        "prototype": key,
                        "rank": place + 1,
                        "case": case,
                        "position": int(self.positions[p, place]),
                        "score": float(self.scores[p, place]),
                        "value": float(self.values[p, place]),
                        "purity": float(self.purity[p, place]),
                        "region": None if region is None else list(region),
                    }
                )
        return table


@dataclass(frozen=True, eq=False)
class PurityChange:
    """Purity of the network's own channels, and of the turned ones, each with its own prototypes.

    Attributes
    ----------
    before, after : ChannelGallery
        With U = I, and with the U of the model.
    """

    before: ChannelGallery
    after: ChannelGallery

    @property
    def gain(self) -> float:
        """How far mean purity rose."""
        return self.after.mean_purity - self.before.mean_purity

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        means = {"before": self.before.mean_purity, "after": self.after.mean_purity, "gain": self.gain}
        kept = {"by": self.after.by, "cases_a_channel": int(self.after.purity.shape[1])}
        return {**means, **kept, "channels_that_rose": int((self.after.per_channel > self.before.per_channel).sum())}


def channel_gallery(
    model: PrototypeModel,
    cases: CaseList,
    n: int = 5,
    *,
    by: Ranking | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> ChannelGallery:
    """Return for each channel the ``n`` cases that excite it most, where, how much, and how purely.

    Cases with equal scores come in the order of their ids, so neither the order of the data nor the size of a batch
    changes the result, beyond what rounding in the network does.

    Parameters
    ----------
    model : PrototypeModel
        Whose prototypes are channels; left as it is.
    cases : Cases
        Training cases, as a rule; labels are not read.
    n : int
        Cases of each channel.
    by : {"sum", "peak"}, optional
        Rank by the channel's sum over positions or by its largest value; as the model was trained by default.
    batch_size, device, quiet
        How the pass is run.

    Examples
    --------
    >>> import numpy as np
    >>> from protolearn.data import features
    >>> from protolearn.encoders import FeatureEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("epic")().build(FeatureEncoder(2), classes=2)
    >>> seen = features(np.array([[[3.0, 4.0]], [[5.0, 0.0]]], dtype=np.float32), [0, 1], ids=["a", "b"])
    >>> gallery = channel_gallery(model, seen, n=1)
    >>> gallery.cases, gallery.purity.tolist()
    ((('b',), ('a',)), [[1.0], [0.8]])
    """
    return _galleries(model, cases, n, by, batch_size, device, quiet, before=False)[0]


def purity_before_after(
    model: PrototypeModel,
    cases: CaseList,
    n: int = 5,
    *,
    by: Ranking | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> PurityChange:
    """Return the galleries of the network's own channels and of the turned ones, from one pass.

    Purity before is not 0: a network's channels are partly pure as they are, and only the difference is the method's.

    Raises
    ------
    UsageError
        If the model turns no channels.
    """
    after, earlier = _galleries(model, cases, n, by, batch_size, device, quiet, before=True)
    assert earlier is not None
    return PurityChange(earlier, after)


def telling_rows(explanation: Explanation, most: int = 4) -> tuple[LedgerRow, ...]:
    """Return the rows of the channels that speak for a class by being there: the largest weight times max(0, evidence).

    A channel below 0 with a negative weight adds to the score too; it stays in the ledger and is not among these.
    Source: EPIC (Borycki et al., AAAI 2026).
    """
    if most < 0:
        raise UsageError(f"most must not be negative, got {most}")
    speak = [row for row in explanation.rows if row.weight * max(row.evidence, 0.0) > 0]
    return tuple(sorted(speak, key=lambda row: (-row.weight * row.evidence, row.prototype))[:most])


def _galleries(
    model: PrototypeModel,
    cases: CaseList,
    n: int,
    by: Ranking | None,
    batch_size: int,
    device: str | torch.device | None,
    quiet: bool,
    *,
    before: bool,
) -> tuple[ChannelGallery, ChannelGallery | None]:
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    by = getattr(model.method, "ranking", "sum") if by is None else by
    if by not in ("sum", "peak"):
        raise UsageError(f"by must be sum or peak, got {by!r}")
    channels = _channels(model.bank)
    if channels is None:
        raise UsageError("the prototypes of this model are no channels: the report shows its nearest cases")
    turns = isinstance(model.neck, ChannelRotation)
    if before and not turns:
        raise UsageError("this model turns no channels: there is no purity before")
    if len(cases) == 0:
        raise DataError(f"{getattr(cases, 'name', 'the data')}: no case to look for prototypes in")
    where = device_of(model) if device is None else torch.device(device)
    model.to(where)
    matrix = model.neck.matrix().detach() if isinstance(model.neck, ChannelRotation) else None
    width = model.bank.vectors.shape[1]
    after = Exemplars(width, n, by=by, matrix=matrix, device=where)
    earlier = Exemplars(width, n, by=by, device=where) if before else None
    order = sorted(range(len(cases)), key=lambda i: str(cases.ids[i]))
    number = {i: rank for rank, i in enumerate(order)}
    layout: Tokens | None = None
    seen = run_over(model, cases, batch_size=batch_size, device=where)
    for batch in track(seen, len(cases), "channels", quiet=quiet):
        out = batch.output
        tokens = out.encoded if turns else out.tokens
        assert tokens is not None  # a whole pass keeps them
        layout = tokens
        ranks = torch.tensor([number[i] for i in batch.indices], device=where)
        try:
            after.update_from(tokens, ranks)
            if earlier is not None:
                earlier.update_from(tokens, ranks)
        except UnrankedCase as error:
            raise DataError(f"case {str(cases.ids[order[error.case]])!r} has tokens that are not finite") from error
    assert layout is not None
    names = [str(cases.ids[i]) for i in order]
    shown = _gallery(model, channels, after, names, layout, by)
    return shown, None if earlier is None else _gallery(model, channels, earlier, names, layout, by)


def _channels(bank: PrototypeBank) -> Tensor | None:
    """Return ``(P,)`` the channel of each prototype; None where a prototype is no unit vector along one."""
    if bank.drawn:
        return None
    rows = bank.vectors.argmax(1)
    units = torch.nn.functional.one_hot(rows, bank.vectors.shape[1]).to(bank.vectors)
    return rows if torch.equal(units, bank.vectors) else None


def _gallery(
    model: PrototypeModel, rows: Tensor, found: Exemplars, names: Sequence[str], layout: Tokens, by: Ranking
) -> ChannelGallery:
    numbers = found.cases[rows].cpu()
    columns = {name: values[rows].cpu() for name, values in found.columns.items()}
    missing = numbers < 0
    kept = [[i for i in line if i >= 0] for line in numbers.tolist()]
    places = columns["positions"].tolist()
    return ChannelGallery(
        prototypes=tuple(model.bank.ids.tolist()),
        cases=tuple(tuple(names[i] for i in line) for line in kept),
        positions=columns["positions"],
        scores=found.scores[rows].cpu(),
        values=columns["values"],
        purity=columns["purity"].masked_fill(missing, float("nan")),
        regions=tuple(
            tuple(layout.region(at) for at in line[: len(real)]) for line, real in zip(places, kept, strict=True)
        ),
        by=by,
    )
