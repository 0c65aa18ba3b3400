"""What every model of normality answers: confidence, a map, a verdict, and the normal place most like the worst one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protolearn.core.encoder import Encoder
from protolearn.core.modes import evaluating
from protolearn.core.scorer import threshold_at
from protolearn.errors import DataError, UsageError
from protolearn.explain.passes import CaseList, Shown, inputs_over, track
from protolearn.structures import Box, Tokens


class Examined(NamedTuple):
    """A batch inside a model, where higher = more foreign; :class:`AnomalyModel` turns the sign once."""

    anomaly: Tensor
    """``(B,)``."""
    maps: Tensor | None
    """``(B, H, W)`` over the input, None where inputs have no places."""
    layout: Tokens
    """How the places lie."""
    position: Tensor
    """``(B,)``: the most foreign place."""
    distance: Tensor
    """``(B,)``: how foreign it is, before any weighing or smoothing."""
    nearest: Tensor
    """``(B,)``: what is most like it; a remembered patch, or a place of the same picture."""


@dataclass(frozen=True)
class Reason:
    """Why a case has its confidence: its most foreign place, and the normal place most like it.

    Attributes
    ----------
    region : Box or None
        The most foreign place, in pixels of the original picture; None where a case has no places.
    distance : float
        How far that place is from the normal one, in the model's own measure.
    nearest_case : str
        The normal case that the nearest place belongs to; the case itself where the model looks for normality inside
        the picture.
    nearest_region : Box or None
        That place, in pixels of its picture.
    """

    region: Box | None
    distance: float
    nearest_case: str
    nearest_region: Box | None


@dataclass(frozen=True, eq=False)
class AnomalyResult:
    """What a model says of some cases.

    Attributes
    ----------
    ids : tuple of str
        In the order asked.
    confidence : ndarray
        ``(N,)``, higher = more like what is normal.
    maps : ndarray or None
        ``(N, H, W)`` confidences over the encoder's input, higher = more normal; ``-maps`` is the heat map.
    normal : ndarray or None
        ``(N,)`` bool; None where no threshold was set.
    threshold : float or None
        As a confidence; what reaches it is normal.
    reasons : tuple of Reason
        One a case.
    """

    ids: tuple[str, ...]
    confidence: np.ndarray
    maps: np.ndarray | None
    normal: np.ndarray | None
    threshold: float | None
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the maps."""
        return {
            "threshold": self.threshold,
            "cases": [
                {
                    "case": case,
                    "confidence": float(self.confidence[i]),
                    "normal": None if self.normal is None else bool(self.normal[i]),
                    **asdict(self.reasons[i]),
                }
                for i, case in enumerate(self.ids)
            ],
        }


class AnomalyModel(nn.Module, ABC):
    """A frozen encoder and what it knows of normal cases; made by :func:`~protolearn.tasks.anomaly.fit_anomaly`.

    Attributes
    ----------
    method : str
        As named in calls.
    encoder : Encoder
        Left as it was given.
    settings : object
        Of the class ``Settings``.
    threshold, rate : Tensor
        Scalars: the confidence that this share of held-out normal cases reached; NaN until it is set.
    """

    method: ClassVar[str] = ""
    Settings: ClassVar[Any]
    threshold: Tensor
    rate: Tensor

    def __init__(self, encoder: Encoder, settings: Any) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.register_buffer("threshold", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("rate", torch.tensor(float("nan"), dtype=torch.float64))

    @abstractmethod
    def learn(self, cases: CaseList, *, seed: int, batch_size: int, quiet: bool) -> None:
        """Learn what is normal from cases that all are."""

    @abstractmethod
    def examine(self, inputs: Tensor) -> Examined:
        """Return how foreign a batch of inputs is, and where."""

    @abstractmethod
    def nearest_place(
        self, row: int, case: str, layout: Tokens, size: tuple[int, int] | None
    ) -> tuple[str, Box | None]:
        """Return case and region of what ``Examined.nearest`` points at.

        ``case`` is the one that was asked about, with its layout and the size of its picture.
        """

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Return confidences ``(B,)`` of inputs."""
        return -self.examine(inputs).anomaly

    def judge(
        self,
        cases: CaseList,
        indices: Sequence[int] | None = None,
        *,
        maps: bool = True,
        batch_size: int = 16,
        quiet: bool = True,
    ) -> AnomalyResult:
        """Say of each case how normal it is, where it is least so, and what normal place is most like that.

        Parameters
        ----------
        cases, indices
            What to ask about; all by default.
        maps : bool
            Keep the maps, which may be large.
        batch_size : int
            Cases at a time.
        quiet : bool
            No progress bar.

        Raises
        ------
        DataError
            If a case's score is not a number; the case is named.
        """
        total = len(cases) if indices is None else len(indices)
        scores, found, ids, reasons = [np.zeros(0)], [], list[str](), list[Reason]()
        for shown in track(self.shown(cases, indices, batch_size), total, "judging", quiet=quiet):
            with evaluating(self), torch.no_grad():
                seen = self.examine(shown.inputs.to(self.threshold.device))
            refuse_nan(seen.anomaly, cases, shown.indices)
            scores.append(-seen.anomaly.double().cpu().numpy())
            if maps and seen.maps is not None:
                found.append(-seen.maps.float().cpu().numpy())
            ids += [str(cases.ids[i]) for i in shown.indices]
            reasons += self._reasons(seen, cases, shown)
        confidence = np.concatenate(scores)
        limit = None if bool(self.threshold.isnan()) else float(self.threshold)
        normal = None if limit is None else confidence >= limit
        return AnomalyResult(
            tuple(ids), confidence, np.concatenate(found) if found else None, normal, limit, tuple(reasons),
        )  # fmt: skip

    def calibrate(self, cases: CaseList, rate: float = 0.95, *, batch_size: int = 16) -> AnomalyModel:
        """Set the threshold that ``rate`` of held-out normal cases reach: cases the model has not learned from.

        Raises
        ------
        UsageError
            If there is no case.
        """
        found = self.judge(cases, maps=False, batch_size=batch_size)
        self.threshold.fill_(threshold_at(torch.from_numpy(found.confidence), rate))
        self.rate.fill_(rate)
        return self

    def shown(self, cases: CaseList, indices: Sequence[int] | None, batch_size: int) -> Any:
        """Yield cases as the encoder takes them."""
        return inputs_over(cases, self.encoder.preprocess, indices, batch_size=batch_size)

    def _reasons(self, seen: Examined, cases: CaseList, shown: Shown) -> list[Reason]:
        told = zip(seen.position.tolist(), seen.distance.tolist(), seen.nearest.tolist(), strict=True)
        reasons = []
        for b, (position, distance, row) in enumerate(told):
            size, case = shown.sizes[b], str(cases.ids[shown.indices[b]])
            near = self.nearest_place(row, case, seen.layout, size)
            reasons.append(Reason(self.in_picture(seen.layout.region(position), size), distance, *near))
        return reasons

    def in_picture(self, cell: Box | None, size: tuple[int, int] | None) -> Box | None:
        """Return a place of the input in pixels of the original picture, where there is one."""
        if cell is None or size is None or self.encoder.preprocess is None:
            return cell
        region: Box = self.encoder.preprocess.to_picture(cell, size)
        return region


def refuse_nan(values: Tensor, cases: CaseList, indices: Sequence[int]) -> None:
    """Name the first case of a batch that something is not finite of."""
    finite = values.flatten(1).isfinite().all(1) if values.ndim > 1 else values.isfinite()
    if not bool(finite.all()):
        case = cases.ids[indices[int((~finite).nonzero()[0])]]
        raise DataError(f"case {case!r} has features or a score that are not finite: repair or leave out the case")


def refuse_constant(values: Tensor, name: str) -> None:
    """Refuse rows ``(N, D)`` that are all the same: nothing normal varies, so that nothing can be told by them."""
    if len(values) > 1 and not bool((values != values[:1]).any()):
        raise DataError(
            f"{name}: all {len(values)} normal patches have the same features, so no distance to them means anything; "
            "is the encoder dead, or every case blank?"
        )


def refuse_none(cases: CaseList) -> None:
    """Refuse to learn from nothing."""
    if len(cases) == 0:
        raise DataError(f"{getattr(cases, 'name', 'the data')}: no normal case to learn from")


def positive(what: str, value: float, least: float = 1) -> None:
    """Refuse a setting below its least value."""
    if not value >= least:
        raise UsageError(f"{what} must be at least {least}, got {value}")
