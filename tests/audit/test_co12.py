"""Every metric stands under a property of an explanation, and every property names metrics that exist."""

from __future__ import annotations

import protolearn.audit.metrics  # noqa: F401
from protolearn.audit.co12 import CO12
from protolearn.audit.metric import METRICS


def test_metrics_and_properties_know_each_other() -> None:
    placed = {name for each in CO12 for name in each.metrics}
    assert placed == set(METRICS)
    assert len(CO12) == 12
    assert all(each.people for each in CO12)


def test_every_metric_says_what_it_is() -> None:
    for name, cls in METRICS.items():
        about = cls.about
        assert about.title and about.variant and about.source and about.unit, name
        assert set(about.instead) <= set(METRICS), name
        if {"points", "objects"} & set(about.needs):
            assert about.instead, f"{name} needs marks and names nothing that does without"
        for other in about.instead:
            assert not {"points", "objects"} & set(METRICS[other].about.needs), (name, other)
