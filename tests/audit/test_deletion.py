"""Deletion and insertion: planted models, laws, wrong input, and numbers from the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.audit.planted import planted, seen, setting
from torch import Tensor

from protolearn.audit.blanking import SUBSTRATES, exchanged, substrate
from protolearn.audit.deletion import ORDERS, area, deletion, deletion_curve, pixel_ranks, random_maps, shuffles
from protolearn.audit.look import Look
from protolearn.audit.metric import METRICS, Score, Seen, make_metric
from protolearn.audit.subject import AdaptedSubject
from protolearn.core.maps import upsample_maps
from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.tasks.audit import audit


def one_pixel(place: tuple[int, int] = (5, 9)) -> Callable[[Tensor], Tensor]:
    """Return a linear model of two classes that looks at one pixel of one channel."""

    def score(inputs: Tensor) -> Tensor:
        seen_ = 4 * inputs[:, 0, place[0], place[1]]
        return torch.stack([seen_, -seen_], 1).softmax(1)

    return score


def spot(place: tuple[int, int], side: int = 16, count: int = 1) -> Tensor:
    """Return maps that fall with the distance from one pixel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (-((y - place[0]) ** 2 + (x - place[1]) ** 2).double()).expand(count, side, side).clone()


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("kind", SUBSTRATES)
def test_one_pixel_is_found_at_once_by_the_true_saliency_only(kind: str, insert: bool) -> None:
    place, count = (5, 9), 60
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    inputs = (1.0 - 2.0 * ((y + x) % 2)).expand(count, 3, 16, 16)  # a chequerboard, of which blur leaves nothing
    targets = torch.zeros(count, dtype=torch.int64)
    g = torch.Generator().manual_seed(0)

    def run(saliency: Tensor) -> Tensor:
        return deletion(
            one_pixel(place), inputs, saliency, targets, step=8, kind=kind, insert=insert, seeds=range(count)
        ).areas

    true, elsewhere = run(spot(place, count=count)), run(torch.rand(count, 16, 16, generator=g))
    salient, inverse, chance = true.mean(0).tolist()
    best, worst = (max, min) if insert else (min, max)
    assert best(salient, chance, inverse) == salient and worst(salient, chance, inverse) == inverse
    # a saliency that knows nothing does as a random order does, forwards and backwards
    assert elsewhere.mean(0).tolist() == pytest.approx([chance] * 3, abs=0.07)
    assert abs(salient - chance) > 0.15


def test_no_order_is_better_than_the_true_one() -> None:
    """Of many saliencies none has a smaller deletion area than one whose largest value is the pixel."""
    inputs = torch.ones(40, 1, 8, 8)
    g = torch.Generator().manual_seed(3)
    maps = torch.cat([spot((2, 3), 8), torch.rand(39, 8, 8, generator=g).double()])
    score = one_pixel((2, 3))
    found = deletion(score, inputs, maps, torch.zeros(40, dtype=torch.int64), step=4, seeds=range(40)).areas[:, 0]
    assert found.argmin() == 0 and found[0] < found[1:].median() - 0.1


def test_numbers_of_the_authors(reference: Callable[[str], dict[str, np.ndarray]]) -> None:
    want = reference("mask_deletion")
    a, b, inputs, saliency = (torch.from_numpy(want[name]) for name in ("weights_a", "weights_b", "image", "saliency"))

    def score(shown: Tensor) -> Tensor:
        flat = shown.flatten(1)
        return ((flat @ a.T).softmax(1) + (flat @ b.T).softmax(1)) / 2

    targets = score(inputs).argmax(1)
    assert targets.item() == int(want["target_class"]) and str(want["mode"]) == "del"
    found = deletion(score, inputs, saliency.unsqueeze(0), targets, step=int(want["step"]), seeds=[0])
    assert np.allclose(found.curves[0, 0].numpy(), want["curve"], rtol=1e-6, atol=0)
    assert float(found.areas[0, 0]) == pytest.approx(float(want["auc"]), rel=1e-6)
    assert float(area(torch.from_numpy(want["curve"]))) == pytest.approx(float(want["auc"]), rel=1e-12)


def anything(count: int = 3, side: int = 12) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 3 * side * side, generator=g).double() / 10
    inputs = torch.randn(count, 3, side, side, generator=g).double()
    saliency = torch.rand(count, side, side, generator=g)
    return (lambda x: (x.flatten(1) @ weight.T).softmax(1)), inputs, saliency, torch.arange(count) % 4


@pytest.mark.parametrize("kind", SUBSTRATES)
@pytest.mark.parametrize("insert", [False, True])
def test_it_equals_the_plain_loop(kind: str, insert: bool) -> None:
    score, inputs, saliency, targets = anything()
    found = deletion(score, inputs, saliency, targets, step=20, kind=kind, insert=insert, seeds=[3, 4, 5], at_once=7)
    blank = substrate(inputs, kind)
    for i in range(len(inputs)):
        shuffle = shuffles([3 + i], 144)[0].tolist()
        order = saliency[i].flatten().argsort(descending=True).tolist()
        for r, pixels in enumerate((order, order[::-1], shuffle)):
            shown = (blank if insert else inputs)[i].clone()
            into = (inputs if insert else blank)[i]
            curve = [score(shown.unsqueeze(0))[0, targets[i]]]
            for start in range(0, 144, 20):
                for pixel in pixels[start : start + 20]:
                    shown[:, pixel // 12, pixel % 12] = into[:, pixel // 12, pixel % 12]
                curve.append(score(shown.unsqueeze(0))[0, targets[i]])
            assert torch.allclose(found.curves[i, r], torch.stack(curve), atol=1e-12), (i, r)
    assert torch.allclose(found.areas, torch.trapezoid(found.curves, dx=1 / 8))


def test_inserting_is_deleting_in_the_other_order_backwards() -> None:
    score, inputs, saliency, targets = anything()
    taken = deletion(score, inputs, saliency, targets, step=12, seeds=range(3)).curves
    put = deletion(score, inputs, saliency, targets, step=12, insert=True, seeds=range(3)).curves
    assert torch.allclose(put[:, 0], taken[:, 1].flip(1))
    assert torch.allclose(put[:, 1], taken[:, 0].flip(1))


def test_a_picture_is_the_same_in_any_company_and_no_input_is_touched() -> None:
    score, inputs, saliency, targets = anything(5)
    before = inputs.clone(), saliency.clone()
    whole = deletion(score, inputs, saliency, targets, seeds=range(5), at_once=64)
    assert whole.counts.tolist() == [round(k * 144 / 28) for k in range(29)] and whole.curves.shape == (5, 3, 29)
    for rows, size in (([3], 1), ([4, 0], 5)):
        part = deletion(score, inputs[rows], saliency[rows], targets[rows], seeds=rows, at_once=size)
        assert torch.allclose(part.curves, whole.curves[rows])
    assert torch.equal(inputs, before[0]) and torch.equal(saliency, before[1])
    none = deletion(score, inputs[:0], saliency[:0], targets[:0], seeds=[])
    assert none.areas.shape == (0, 3)


def test_the_step_of_a_picture_of_224() -> None:
    inputs = torch.zeros(1, 1, 224, 224)
    saliency = torch.arange(224.0 * 224).view(1, 224, 224)
    found = deletion(one_pixel(), inputs, saliency, torch.tensor([0]), seeds=[0])
    assert found.counts.tolist() == list(range(0, 224 * 224 + 1, 1792)) and found.curves.shape[2] == 29


def test_clean_and_blank_pictures_are_asked_about_once() -> None:
    score, inputs, saliency, targets = anything(2)
    asked: list[int] = []

    def counting(shown: Tensor) -> Tensor:
        asked.append(len(shown))
        return score(shown)

    deletion(counting, inputs, saliency, targets, step=12, seeds=[0, 1], at_once=16)
    assert sum(asked) == 2 * (2 + 3 * 11) and max(asked) == 16


def test_random_cells_make_holes_as_large_as_the_saliency_does() -> None:
    score, inputs, _, targets = anything(4)
    coarse = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(9))
    saliency = upsample_maps(coarse, (12, 12))
    found = deletion(score, inputs, saliency, targets, seeds=range(4), grid=(3, 3))
    assert found.curves.shape == (4, len(ORDERS), 29)
    alone = deletion(score, inputs, saliency, targets, seeds=range(4))
    assert torch.equal(found.curves[:, :3], alone.curves)
    there = deletion(score, inputs, random_maps(range(4), (3, 3), (12, 12)), targets, seeds=range(4))
    assert torch.allclose(found.curves[:, 3], there.curves[:, 0])

    def edges(ranks: Tensor) -> float:  # how often neighbours part ways when half of the pixels are gone
        gone = ranks < 72
        return float((gone[:, 1:] != gone[:, :-1]).double().mean())

    cells = pixel_ranks(random_maps(range(4), (3, 3), (12, 12)))
    pixels = shuffles(range(4), 144).view(4, 12, 12)
    assert edges(cells) == pytest.approx(edges(pixel_ranks(saliency)), rel=0.5)
    assert edges(pixels) > 2.5 * edges(cells)


def test_equally_salient_pixels_go_in_random_order() -> None:
    flat = torch.zeros(1, 4, 6)
    assert pixel_ranks(flat).flatten().tolist() == list(range(24))
    drawn = pixel_ranks(flat, shuffles([1], 24))
    assert drawn.flatten().tolist() != list(range(24)) and sorted(drawn.flatten().tolist()) == list(range(24))
    flat[0, 2] = 1.0
    first = pixel_ranks(flat, shuffles([1], 24))
    assert sorted(first[0, 2].tolist()) == list(range(6))


def test_a_saliency_that_points_nowhere_is_not_judged() -> None:
    score, inputs, saliency, targets = anything(3)
    saliency[0] = 0.3
    saliency[1, 0, 0] = float("nan")
    areas = deletion(score, inputs, saliency, targets, seeds=range(3)).areas
    assert areas.isnan().all(1).tolist() == [True, True, False]


def test_substrates() -> None:
    inputs = torch.rand(2, 3, 20, 31)
    assert substrate(inputs, "zero").eq(0).all()
    blurred = substrate(inputs, "blur")
    assert blurred.shape == inputs.shape and blurred.std() < 0.8 * inputs.std()
    assert torch.allclose(substrate(torch.full((1, 1, 9, 9), 2.5), "blur"), torch.tensor(2.5))
    assert substrate(torch.rand(1, 1, 1, 1), "blur").shape == (1, 1, 1, 1)
    with pytest.raises(UsageError, match="one of zero, blur, got 'noise'"):
        substrate(inputs, "noise")
    with pytest.raises(UsageError, match="pictures"):
        substrate(inputs[0], "zero")


def test_wrong_requests() -> None:
    score, inputs, saliency, targets = anything(2)
    with pytest.raises(UsageError, match="at least one pixel"):
        deletion(score, inputs, saliency, targets, step=0, seeds=[0, 1])
    with pytest.raises(UsageError, match="at least one step"):
        deletion(score, inputs, saliency, targets, steps=0, seeds=[0, 1])
    with pytest.raises(UsageError, match="must be"):
        deletion(score, inputs, saliency[:, :3], targets, seeds=[0, 1])
    with pytest.raises(UsageError, match="seeds as many, got 1"):
        deletion(score, inputs, saliency, targets, seeds=[0])
    with pytest.raises(UsageError, match="at_once"):
        exchanged(score, inputs, inputs, saliency.unsqueeze(1), torch.tensor([0]), targets, at_once=0)


# ----- cells of tokens ---------------------------------------------------------------------------------------------


def small() -> PrototypeModel:
    return get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(size=16), 2)


@pytest.mark.parametrize("window", [1, 3])
def test_cells_are_taken_out_one_after_the_other(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = small(), torch.rand(3, 3, 16, 16)
    own = model.encode
    monkeypatch.setattr(model, "encode", lambda x: own(x).replace(window=window))  # neighbours may overlap
    order = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    targets = torch.tensor([0, 1, 0])
    model.train()
    found = deletion_curve(model, inputs, order, targets, fill=0.5)
    assert model.training and all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad():
        tokens, shown = model.encode(inputs), inputs.clone()
        for step in range(6):
            assert torch.allclose(found[:, step], model(shown).logits[torch.arange(3), targets], atol=1e-6)
            for i in range(3 if step < 5 else 0):
                box = tokens.region(int(order[i, step]))
                assert box is not None
                x0, y0, x1, y1 = map(round, box)
                shown[i, :, y0:y1, x0:x1] = 0.5


# ----- as metrics --------------------------------------------------------------------------------------------------


def quarters(**more: object) -> AdaptedSubject:
    """Two classes: brightness of the upper left quarter, and of the lower right one."""

    def maps(inputs: Tensor) -> Tensor:
        cells = torch.nn.functional.avg_pool2d(inputs.mean(1, keepdim=True), 4)
        side = cells.shape[-1]
        table = torch.zeros(len(inputs), 2, side, side)
        table[:, 0, : side // 2, : side // 2] = cells[:, 0, : side // 2, : side // 2]
        table[:, 1, side // 2 :, side // 2 :] = cells[:, 0, side // 2 :, side // 2 :]
        return table

    return planted(maps, torch.eye(2), torch.tensor([[6.0, 0.0], [0.0, 6.0]]), **more)


def pictures(count: int = 6) -> Tensor:
    """A bright cell in the upper left or in the lower right, on faint noise."""
    inputs = 0.02 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        corner = 4 if i % 2 == 0 else 8
        inputs[i, :, corner : corner + 4, corner : corner + 4] += 1.0
    return inputs


def run(name: str, subject: AdaptedSubject, inputs: Tensor, sizes: tuple[int, ...] = (), **settings: object) -> Score:
    from protolearn.audit.marks import no_marks

    each = make_metric(name, **settings)
    each.start(setting(subject, count=len(inputs)))
    labels = torch.full((len(inputs),), -1)
    start = 0
    for size in sizes or (len(inputs),):
        rows = slice(start, start + size)
        start += size
        batch = seen(subject, inputs[rows], labels[rows], no_marks(len(inputs[rows])))
        indices = torch.arange(len(inputs))[rows]
        with subject.looking():
            each.update(Seen("cases", indices, batch.inputs, batch.labels, batch.look, batch.marks))
    return each.result()


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_a_planted_model_is_faithful_to_its_maps(name: str) -> None:
    subject, inputs = quarters(), pictures()
    before, kept = subject.digest(), inputs.clone()
    score = run(name, subject, inputs)
    assert subject.digest() == before and torch.equal(inputs, kept)
    sign = 1 if name == "insertion" else -1
    for kind in SUBSTRATES:
        found = score.extras[kind]
        for order in ("random pixels", "random cells"):
            assert sign * found["salient first"] > sign * found[order] > sign * found["inverse"]
            gain = f"salient first less {order}" if name == "insertion" else f"{order} less salient first"
            low, high = found[f"{gain}, interval over cases"]
            assert 0 < low <= found[gain] <= high
            assert found[gain] == pytest.approx(sign * (found["salient first"] - found[order]))
            assert len(found["mean curves"][order]) == 29
    first = "blur" if name == "insertion" else "zero"
    assert score.value == score.extras[first]["salient first"] == pytest.approx(float(area(
        torch.tensor(score.extras[first]["mean curves"]["salient first"])
    )), abs=1e-6)  # fmt: skip
    assert score.per_case is not None and not score.per_case.isnan().any()
    assert "random" in score.notes[-1] and score.notes[0] == "A step is 9.1429 of 256 pixels."


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_batches_change_nothing_and_cases_may_be_drawn(name: str) -> None:
    subject, inputs = quarters(), pictures(7)
    whole, parts = run(name, subject, inputs), run(name, subject, inputs, (3, 1, 3), at_once=5)
    assert whole.per_case is not None and parts.per_case is not None
    assert torch.allclose(whole.per_case, parts.per_case, atol=1e-6)
    for order in ("random pixels", "random cells"):
        assert whole.extras["zero"][order] == pytest.approx(parts.extras["zero"][order], abs=1e-6)
    some = run(name, subject, inputs, (3, 1, 3), most=4, substrates=("zero",), steps=4)
    assert some.counts["cases judged"] == 4 and some.counts["cases not drawn"] == 3
    assert list(some.extras) == ["zero"] and any("4 of 7 cases were drawn" in note for note in some.notes)


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_models_that_point_nowhere_and_inputs_without_pixels(name: str) -> None:
    dark = run(name, quarters(), torch.zeros(2, 3, 16, 16))
    assert dark.value is None and dark.counts["cases with a flat map"] == 2 and "flat in every case" in dark.notes[0]
    one = run(name, quarters(), pictures(1))
    assert one.value is not None and one.over_cases is None
    net = torch.nn.Linear(3, 2)

    def look(inputs: Tensor) -> Look:
        logits = net(inputs)
        return Look(
            logits, logits.softmax(1), inputs, torch.rand(len(inputs), 3, 2, 2), lambda p: inputs[p, None] * net.weight
        )

    flat = AdaptedSubject(net, look, classes=["a", "b"], ownership=torch.zeros(3, 2))
    assert "no pictures" in run(name, flat, torch.rand(2, 3)).notes[0]


@pytest.mark.parametrize("settings", [{"steps": 0}, {"most": 0}, {"at_once": 0}, {"substrates": ("fog",)}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="must be"):
        run("deletion", quarters(), pictures(), **settings)


def test_through_an_audit_of_a_real_model() -> None:
    cases = digits("test").subset(range(6))
    model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 10)
    model.classes = cases.classes
    before = {name: values.clone() for name, values in model.state_dict().items()}
    quick = [make_metric(name, steps=4) for name in ("deletion", "insertion")]
    found = audit(model, cases, metrics=quick, seed=1)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    again = audit(model, cases, metrics=[make_metric("insertion", steps=4)], seed=1, batch_size=4)
    assert found["insertion"].value == pytest.approx(again["insertion"].value, abs=1e-6)
    low, high = found["insertion"].over_cases or (0.0, 0.0)
    assert again["insertion"].over_cases == pytest.approx((low, high), abs=1e-6)
    json.loads(found.to_json())
    for name in ("deletion", "insertion"):
        assert METRICS[name].about.costly and name not in audit(model, cases, metrics="quick").scores
