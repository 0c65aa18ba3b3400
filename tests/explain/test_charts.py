"""The chart of risk over coverage: what it says, at its edges, and in a page that is read strictly."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from protolearn.audit.risk_coverage import risk_coverage
from protolearn.explain.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, risk_coverage_chart


def places(chart: str) -> list[tuple[float, float]]:
    found = re.search(r'polyline points="([^"]+)"', chart)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_it_draws_the_curve_and_says_it() -> None:
    draw = np.random.default_rng(0)
    sure = draw.random(400)
    found = risk_coverage(sure, draw.random(400) < 0.3 + 0.7 * sure)
    chart = risk_coverage_chart(found.coverage.tolist(), found.risk.tolist())
    assert chart.count("<polyline") == 1
    points = places(chart)
    assert len(points) == 400
    assert points[-1][0] == pytest.approx(WIDTH - RIGHT, abs=0.1)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)
    assert f"0.80 answered: {found.risk[319]:.3g} wrong" in chart
    assert f"all answered: {found.risk[-1]:.3g} wrong" in chart
    ET.fromstring(chart)


@pytest.mark.parametrize("risk", [[0.0], [1.0], [0.0] * 5, [1.0] * 5, [0.0, 0.0, 0.0, 0.0, 1e-6]])
def test_edges(risk: list[float]) -> None:
    count = len(risk)
    chart = risk_coverage_chart([(k + 1) / count for k in range(count)], risk, title="<b>")
    assert "nan" not in chart
    assert "<b>" not in chart
    assert all(TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for _, y in places(chart))
    ET.fromstring(chart)


def test_nothing_is_no_chart() -> None:
    assert risk_coverage_chart([], []) == ""
