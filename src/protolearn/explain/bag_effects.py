"""The effect of one kind of edit over many bags: how large, how sure, how often it changes the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from protolearn.audit.bootstrap import mean_interval
from protolearn.errors import UsageError
from protolearn.explain.bag_edits import Effect
from protolearn.explain.passes import plain_json


@dataclass(frozen=True)
class OverBags:
    """An effect over several bags.

    Attributes
    ----------
    count : int
        Bags.
    mean, median : float or None
        Of the effects in probability; None without bags.
    interval : tuple of float or None
        Of the mean, by resampling bags; None for fewer than two.
    mean_logit : float or None
        Of the effects in logits.
    statistic, p_value : float or None
        Wilcoxon's signed-rank test, two-sided, of the target's score before against after; in logits where there are
        some (ranks of probabilities near 0 or 1 are ranks of rounding). None where no bag's score changed.
    flipped : float or None
        Share of the bags with another prediction.
    """

    count: int
    mean: float | None
    median: float | None
    interval: tuple[float, float] | None
    mean_logit: float | None
    statistic: float | None
    p_value: float | None
    flipped: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return plain_json(vars(self))


def over_bags(effects: Sequence[Effect], *, seed: int = 0) -> OverBags:
    """Sum up effects of one kind, one a bag, with a paired test; ``seed`` is of the resampling.

    Raises
    ------
    UsageError
        If the effects are of several kinds or classes: they do not belong together.
    """
    if len({(effect.kind, effect.target) for effect in effects}) > 1:
        raise UsageError("effects of several kinds or of several classes cannot be summed up together")
    if not effects:
        return OverBags(0, None, None, None, None, None, None, None)
    values = torch.tensor([effect.value for effect in effects], dtype=torch.float64)
    in_logits = [effect.logit_value for effect in effects if effect.logit_value is not None]
    on: Literal["probability", "logit"] = "logit" if len(in_logits) == len(effects) else "probability"
    target = effects[0].target
    gap = np.array([float(e.before.of(target, on)) - float(e.after.of(target, on)) for e in effects])
    statistic = p_value = None
    if bool((gap != 0).any()):
        from scipy.stats import wilcoxon

        test = wilcoxon(gap)
        statistic, p_value = float(test.statistic), float(test.pvalue)
    return OverBags(
        count=len(effects),
        mean=float(values.mean()),
        median=float(values.quantile(0.5)),
        interval=mean_interval(values, torch.Generator().manual_seed(seed)),
        mean_logit=sum(in_logits) / len(in_logits) if on == "logit" else None,
        statistic=statistic,
        p_value=p_value,
        flipped=sum(effect.flipped for effect in effects) / len(effects),
    )
