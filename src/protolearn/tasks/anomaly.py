"""Anomalies: learn what is normal from normal cases alone, then say how foreign a case is, where, and beside what.

Confidence is higher for what is more normal, as everywhere in the library; measures are in
:mod:`protolearn.audit.anomaly`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from protolearn.core.encoder import Encoder
from protolearn.errors import look_up
from protolearn.explain.passes import CaseList
from protolearn.tasks.anomaly_inp import InpModel, InpSettings
from protolearn.tasks.anomaly_memory import MemoryModel, MemorySettings
from protolearn.tasks.anomaly_model import AnomalyModel, AnomalyResult, Reason

__all__ = [
    "METHODS",
    "AnomalyModel",
    "AnomalyResult",
    "InpModel",
    "InpSettings",
    "MemoryModel",
    "MemorySettings",
    "Reason",
    "fit_anomaly",
]

METHODS: dict[str, type[AnomalyModel]] = {"memory": MemoryModel, "inp_former": InpModel}
"""Every way to learn what is normal."""


def fit_anomaly(
    encoder: Encoder,
    normal_cases: CaseList,
    method: str = "memory",
    *,
    held_out: CaseList | None = None,
    rate: float = 0.95,
    seed: int = 0,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    quiet: bool = True,
    **settings: Any,
) -> AnomalyModel:
    """Learn what is normal.

    Parameters
    ----------
    encoder : Encoder
        Used frozen and in eval mode; its weights and modes stay as they are. For ``memory`` any, an
        :class:`~protolearn.encoders.ImageEncoder` with one or several layers or ready features; for ``inp_former`` a
        vision transformer with an even number of layers.
    normal_cases : Cases
        All of them count as normal, whatever their labels.
    method : {"memory", "inp_former"}
        ``memory``: PatchCore (Roth et al., 2022). ``inp_former``: INP-Former (Luo et al., 2025).
    held_out : Cases, optional
        Other normal cases, for the threshold; without them there is a confidence and no verdict. A threshold on cases
        the model has learned from would be too strict, so none is ever set on those.
    rate : float
        Share of the held-out cases that reach the threshold.
    seed : int
        Of the first remembered patch and the projection, or of weights and batches.
    batch_size : int
        Cases that go through the encoder at a time.
    device : str or device
        Where to compute.
    quiet : bool
        No progress bars.
    **settings
        See :class:`MemorySettings` and :class:`InpSettings`.

    Raises
    ------
    DataError
        If there is no normal case, a feature is not finite, or all patches are the same.
    UsageError
        If a name is unknown, the encoder does not fit the method, or more patches are to be remembered than there are.

    Examples
    --------
    >>> import numpy as np
    >>> from protolearn.data.features import features
    >>> from protolearn.encoders import FeatureEncoder
    >>> normal = features(np.random.default_rng(0).normal(size=(40, 3)))
    >>> model = fit_anomaly(FeatureEncoder(3), normal.subset(range(30)), held_out=normal.subset(range(30, 40)), size=10)
    >>> found = model.judge(features(np.array([[0.0, 0, 0], [9.0, 9, 9]]), ids=["usual", "odd"]))
    >>> found.normal.tolist(), found.reasons[0].nearest_case in normal.ids
    ([True, False], True)
    """
    kind = look_up("anomaly method", method, METHODS)
    names = {field.name: field for field in dataclasses.fields(kind.Settings)}
    for name in settings:
        look_up(f"setting of {method}", name, names)
    model: AnomalyModel = kind(encoder, kind.Settings(**settings)).to(device)
    model.learn(normal_cases, seed=seed, batch_size=batch_size, quiet=quiet)
    return model if held_out is None else model.calibrate(held_out, rate, batch_size=batch_size)
