"""Whether ledgers add up and regions carry what they promise: planted models, laws, wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.audit.planted import planted, seen, setting
from torch import Tensor

from protolearn.audit.blanking import covered
from protolearn.audit.faithfulness import (
    additivity_gap,
    cell_boxes,
    leading,
    region_drops,
)
from protolearn.audit.look import Look
from protolearn.audit.marks import no_marks
from protolearn.audit.metric import Score, Seen, make_metric
from protolearn.audit.subject import AdaptedSubject
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.tasks.audit import audit

CELL, AROUND, CHANCE = "cell of the peak", "cells around it too", "a cell at random"


def local(inputs: Tensor) -> Tensor:
    """Maps of four prototypes, each the brightness of one channel, cell by cell: what a cell covers, it loses."""
    return torch.nn.functional.avg_pool2d(inputs, 4)


def bright(count: int = 12, side: int = 16) -> Tensor:
    """One bright cell a channel, in places and of strengths of their own; nothing elsewhere."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.zeros(count, 4, side, side)
    for i in range(count):
        cells = torch.randperm((side // 4) ** 2, generator=g)[:4].tolist()
        for channel, cell in enumerate(cells):
            y, x = 4 * (cell // (side // 4)), 4 * (cell % (side // 4))
            inputs[i, channel, y : y + 4, x : x + 4] = 0.2 + torch.rand(1, generator=g)
    return inputs


def subject(maps: object = local) -> AdaptedSubject:
    weight = torch.tensor([[2.0, 1.0, 0.5, 1.5], [0.0, 0.5, 0.0, 0.0]])
    return planted(maps, torch.eye(2).repeat_interleave(2, 0), weight, name="planted")  # type: ignore[arg-type]


def run(name: str, judged: AdaptedSubject, inputs: Tensor, sizes: tuple[int, ...] = (), **settings: object) -> Score:
    each = make_metric(name, **settings)
    each.start(setting(judged, count=len(inputs)))
    labels, start = torch.full((len(inputs),), -1), 0
    for size in sizes or (len(inputs),):
        rows = slice(start, start + size)
        start += size
        batch = seen(judged, inputs[rows], labels[rows], no_marks(len(inputs[rows])))
        indices = torch.arange(len(inputs))[rows]
        with judged.looking():
            each.update(Seen("cases", indices, batch.inputs, batch.labels, batch.look, batch.marks))
    return each.result()


def test_a_model_that_sees_one_cell_a_prototype_keeps_its_promises() -> None:
    inputs = bright()
    judged, kept = subject(), inputs.clone()
    before = judged.digest()
    score = run("prototype_faithfulness", judged, inputs)
    assert judged.digest() == before and torch.equal(inputs, kept)
    assert score.value == pytest.approx(1.0)
    found = score.extras[CELL]
    assert found["mean absolute gap"] == pytest.approx(0.0, abs=1e-6)
    assert found["Spearman correlation"] == pytest.approx(1.0)
    assert found["share of the prototype's own entry that goes"] == pytest.approx(1.0)
    assert found["mean observed drop"] == pytest.approx(score.extras["mean promised drop"])
    assert score.counts["pairs of a case and a prototype"] == 36 and score.counts["cases judged"] == 12
    assert score.over_cases == pytest.approx((1.0, 1.0)) and score.over_prototypes == pytest.approx((1.0, 1.0))
    # the larger region holds other prototypes' cells, and a cell at random mostly nothing
    assert score.extras[AROUND]["mean observed drop"] > found["mean observed drop"]
    assert score.extras[CHANCE]["mean observed drop"] < 0.5 * found["mean observed drop"]


def test_maps_that_point_beside_what_the_model_sees_are_found_out() -> None:
    def elsewhere(inputs: Tensor) -> Tensor:
        return local(inputs).roll(2, 3)  # the right scores, at the wrong cells

    score = run("prototype_faithfulness", subject(elsewhere), bright(40))
    assert score.value is not None and score.value < 0.5
    found = score.extras[CELL]
    assert found["mean absolute gap"] > 0.5 * score.extras["mean promised drop"]
    assert found["share of the prototype's own entry that goes"] < 0.1


def test_batches_change_nothing_but_the_last_digits() -> None:
    inputs = bright(9) + 0.1 * torch.rand(9, 4, 16, 16)
    whole = run("prototype_faithfulness", subject(), inputs)
    parts = run("prototype_faithfulness", subject(), inputs, (4, 1, 4), at_once=3)
    assert parts.value == pytest.approx(whole.value) and parts.over_cases == pytest.approx(whole.over_cases)
    for name, value in whole.extras[CHANCE].items():
        assert parts.extras[CHANCE][name] == pytest.approx(value), name
    order = torch.tensor([2, 0, 3, 1])
    other = planted(
        lambda x: local(x)[:, order],
        torch.eye(2).repeat_interleave(2, 0)[order],
        torch.tensor([[2.0, 1.0, 0.5, 1.5], [0.0, 0.5, 0.0, 0.0]])[:, order],
    )
    turned = run("prototype_faithfulness", other, inputs)
    assert turned.value == pytest.approx(whole.value, abs=1e-6)


def test_nothing_to_judge_by() -> None:
    dark = run("prototype_faithfulness", subject(), torch.zeros(3, 4, 16, 16))
    assert dark.value is None and dark.counts["pairs of a case and a prototype"] == 0
    assert dark.counts["cases without a contribution above 0 that points somewhere"] == 3
    assert "no correlation" in dark.notes[0]
    one = run("prototype_faithfulness", subject(), bright(1))
    assert one.value == pytest.approx(1.0) and one.over_cases is None
    pair = run("prototype_faithfulness", subject(), bright(1), top=2)
    assert pair.value is None, "two pairs always lie on a line"
    with pytest.raises(UsageError, match="top and at_once"):
        run("prototype_faithfulness", subject(), bright(1), top=0)
    with pytest.raises(UsageError, match="'fog'"):
        run("prototype_faithfulness", subject(), bright(1), kind="fog")


def test_only_contributions_for_the_class_that_point_somewhere_are_covered() -> None:
    size = torch.tensor([[3.0, -5.0, 1.0, 2.0], [-1.0, -2.0, 0.0, float("nan")]])
    able = torch.tensor([[True, True, True, False], [True] * 4])
    case, prototype = leading(size, able, 3)
    assert case.tolist() == [0, 0] and prototype.tolist() == [0, 2]
    assert leading(size, able, 1)[1].tolist() == [0]
    assert len(leading(size[:0], able[:0], 3)[0]) == 0
    with pytest.raises(UsageError, match="at least one"):
        leading(size, able, 0)


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (16, 16)), ((7, 5), (30, 64)), ((3, 3), (3, 3))])
@pytest.mark.parametrize("reach", [0, 1, 9])
def test_boxes_of_cells(grid: tuple[int, int], size: tuple[int, int], reach: int) -> None:
    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    boxes = cell_boxes(cells, grid, size, reach)
    shown = covered(torch.ones(len(cells), 2, *size), torch.zeros(len(cells), 2, *size), boxes)
    for (row, column), picture in zip(cells.tolist(), shown, strict=True):
        ys = np.arange(size[0])[:, None] * grid[0] / size[0]
        xs = np.arange(size[1])[None] * grid[1] / size[1]
        middle = (np.floor(ys) >= row - reach) & (np.floor(ys) <= row + reach)
        middle = middle & (np.floor(xs) >= column - reach) & (np.floor(xs) <= column + reach)
        gone = picture[0].numpy() == 0
        assert gone[middle].all() and torch.equal(picture[0], picture[1])
        step = (size[0] / grid[0], size[1] / grid[1])
        most = (2 * reach + 1) * step[0] + 2, (2 * reach + 1) * step[1] + 2
        assert gone.sum() <= most[0] * most[1]
        if size[0] % grid[0] == 0 and size[1] % grid[1] == 0:
            assert np.array_equal(gone, middle)


def test_drops_are_differences_of_looks() -> None:
    judged, inputs = subject(), bright(3)
    with judged.looking():
        look = judged.look(inputs)
        pairs = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])
        boxes = torch.tensor([[0, 16, 0, 16], [0, 0, 0, 0], [0, 16, 0, 16]])
        found = region_drops(judged, inputs, torch.zeros_like(inputs), look, torch.tensor([0, 1, 0]), pairs, boxes)
        none = region_drops(
            judged, inputs, inputs, look, look.predicted, (pairs[0][:0], pairs[1][:0]), boxes[:0], at_once=1
        )
    assert torch.allclose(found.score, torch.stack([look.logits[0, 0], torch.tensor(0.0), look.logits[2, 0]]))
    assert torch.allclose(found.own, torch.stack([look.scores[0, 1], torch.tensor(0.0), 2 * look.scores[2, 0]]))
    assert none.score.shape == none.own.shape == (0,)


# ----- additivity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["protopnet", "eval-protopnet", "pipnet"])
def test_the_ledgers_of_the_library_add_up(name: str) -> None:
    cases = digits("test").subset(range(8))
    method = get_method(name)() if name == "pipnet" else get_method(name)(prototypes_per_class=2)
    model = method.build(SmallEncoder(), 10)
    model.classes = cases.classes
    before = {key: values.clone() for key, values in model.state_dict().items()}
    found = audit(model, cases, metrics=["additivity", make_metric("prototype_faithfulness", top=1)])
    assert all(torch.equal(values, before[key]) for key, values in model.state_dict().items())
    score = found["additivity"]
    assert score.value is not None and score.value < 1e-4
    assert name == "pipnet" or score.extras["largest gap beside the largest score"] < 1e-5
    assert score.per_case is not None and len(score.per_case) == 8 and float(score.per_case.max()) == score.value
    assert found["prototype_faithfulness"].counts["cases judged"] <= 8
    json.loads(found.to_json())


def test_what_is_left_out_of_a_ledger_is_found() -> None:
    judged = subject()
    honest = judged._look

    def forgetful(inputs: Tensor) -> Look:
        look = honest(inputs)
        return Look(look.logits, look.probabilities, look.scores, look.maps, lambda part: look.ledger(part) * keep)

    keep = torch.tensor([1.0, 1.0, 0.0, 1.0])
    inputs = bright(5)
    assert run("additivity", judged, inputs).value == pytest.approx(0.0, abs=1e-6)
    judged._look = forgetful
    with judged.looking():
        look = judged.look(inputs)
    found = run("additivity", judged, inputs, (2, 3))
    assert found.value == pytest.approx(float((0.5 * look.scores[:, 2]).max()))
    assert torch.allclose(additivity_gap(look, judged.offset), (0.5 * look.scores[:, 2]).double())
    assert additivity_gap(honest(inputs[:0]), judged.offset).shape == (0,)


def test_a_gap_that_is_not_a_number_is_no_gap_of_zero() -> None:
    judged = subject()
    with torch.no_grad():
        judged.module.bias[0] = float("nan")
    found = run("additivity", judged, bright(3))
    assert found.value is None and found.counts["cases that are not a number"] == 3
    assert "not a number" in found.notes[-1]
