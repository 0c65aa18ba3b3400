"""A person's edits: planted cases whose right answer is known, and laws that hold for any model of the core."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import log_sum_exp_pool, max_pool, mean_pool, top_k_pool
from protolearn.core.similarities import LogRatio, Negative
from protolearn.core.votes import Votes
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.edits import Edit, Interaction, read_log, write_log
from protolearn.explain.explain import explain
from protolearn.explain.groups import by_group
from protolearn.explain.interact import corrected, interact, touched_places, typical_evidence
from protolearn.methods import get_method
from protolearn.structures import Box, Tokens


class Plan(Encoder):
    """The input is the tokens of a 2 x 2 grid over 20 x 20 pixels."""

    dim = 2

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs, grid=(2, 2), input_size=(20, 20))

    def spec(self) -> dict[str, object]:
        return {}


CELLS = [Box(0, 0, 10, 10), Box(10, 0, 20, 10), Box(0, 10, 10, 20), Box(10, 10, 20, 20)]


def planted(weight: list[list[float]], bias: list[float], **parts: object) -> PrototypeModel:
    """Two groups of two prototypes along the axes; cosine similarity."""
    bank = PrototypeBank(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), torch.zeros(4, 2),
        groups=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    head = LinearEvidence(torch.tensor(weight), torch.tensor(bias))
    return PrototypeModel(Plan(), nn.Identity(), bank, cosine, head, **parts).eval()


def place(angle: float) -> list[float]:
    turned = torch.tensor(angle * torch.pi / 180)
    return [float(turned.cos()), float(turned.sin())]


WEIGHT, BIAS = [[1.0, 0.5, -0.3, 0.2], [-1.0, 2.0, 0.1, 0.7]], [0.25, -0.5]
PICTURE = torch.tensor([[place(0), place(100), place(120), place(150)]])


def logits_of(model: PrototypeModel, inputs: Tensor, interaction: Interaction, **how: Tensor) -> Tensor:
    return corrected(model, model(inputs), [interaction] * len(inputs), **how)[0].logits


def test_nothing_forbidden_changes_nothing() -> None:
    model = planted(WEIGHT, BIAS)
    before = model(PICTURE).logits
    for same in (Interaction(), Interaction(outside=1.0).positive((0, 0, 1, 1)), Interaction().positive((0, 0, 20, 20)),
                 Interaction().reject("group 0").accept("group 0")):  # fmt: skip
        assert torch.equal(logits_of(model, PICTURE, same), before)


def test_a_negative_box_takes_the_next_best_place_and_not_zero() -> None:
    """Multiplying the map by 0 there would leave 0, which is above the -0.17 that is left elsewhere."""
    model = planted([[1.0, 0.0, 0.0, 0.0]] * 2, [0.0, 0.0])
    out, absent = corrected(model, model(PICTURE), [Interaction().negative((2, 2, 3, 3))])
    assert model(PICTURE).evidence[0, 0].item() == pytest.approx(1.0)
    assert out.evidence[0, 0].item() == pytest.approx(torch.tensor(100 * torch.pi / 180).cos().item(), abs=1e-6)
    assert out.positions[0, 0].item() == 1
    assert not bool(absent.any())


def test_a_negative_box_over_the_only_place_removes_the_evidence() -> None:
    model = planted(WEIGHT, BIAS)
    model.bank.ban([1, 2, 3])
    one = model.score(Tokens(PICTURE, torch.tensor([[True, False, False, False]]), (2, 2), None, (20, 20)))
    out, absent = corrected(model, one, [Interaction().negative(CELLS[0])])
    assert out.evidence.eq(0).all()
    assert out.logits[0].tolist() == BIAS
    assert absent[0].tolist() == [True, False, False, False]
    whole, _ = corrected(model, model(PICTURE), [Interaction().negative((0, 0, 20, 20))])
    assert whole.logits[0].tolist() == BIAS


def test_rejecting_takes_away_exactly_what_a_concept_brought() -> None:
    model = planted(WEIGHT, BIAS)
    out = model(PICTURE)
    parts = model.head.contributions(out.evidence)
    for group, rows in ((0, [0, 1]), (1, [2, 3])):
        now = logits_of(model, PICTURE, Interaction().reject(f"group {group}"))
        assert torch.allclose(now, out.logits - parts[..., rows].sum(-1), atol=1e-6)
    nothing = Interaction().reject("group 0").reject("group 1")
    assert logits_of(model, PICTURE, nothing)[0].tolist() == BIAS
    one = logits_of(model, PICTURE, Interaction().reject(3))
    assert torch.allclose(one, out.logits - parts[..., 3], atol=1e-6)


def test_rejected_prototypes_can_bring_what_they_usually_bring() -> None:
    model = planted(WEIGHT, BIAS)
    usual = torch.tensor([0.1, 0.2, 0.3, 0.4])
    done = Interaction(absent="mean").reject("group 1")
    now = logits_of(model, PICTURE, done, typical=usual)
    evidence = torch.cat([model(PICTURE).evidence[:, :2], usual[None, 2:]], 1)
    assert torch.allclose(now, model.head(evidence))
    with pytest.raises(UsageError, match="typical_evidence"):
        logits_of(model, PICTURE, done)


def test_a_positive_box_says_where_to_look_and_may_be_for_one_concept() -> None:
    model = planted(WEIGHT, BIAS)
    out, _ = corrected(model, model(PICTURE), [Interaction().positive(CELLS[3])])
    assert out.positions[0].tolist() == [3, 3, 3, 3]
    assert torch.allclose(out.evidence[0], PICTURE[0, 3] @ model.bank.vectors.T, atol=1e-6)
    only, _ = corrected(model, model(PICTURE), [Interaction().positive(CELLS[3], "group 0")])
    assert only.positions[0, :2].tolist() == [3, 3]
    assert torch.equal(only.evidence[0, 2:], model(PICTURE).evidence[0, 2:])
    both = Interaction().positive(CELLS[3]).negative(CELLS[3])
    assert logits_of(model, PICTURE, both)[0].tolist() == BIAS, "a negative box wins"


def test_outside_a_positive_box_less_is_left_the_smaller_the_share() -> None:
    model = planted(WEIGHT, BIAS)
    values = []
    for share in (1.0, 0.7, 0.4, 0.1, 0.0):
        out, _ = corrected(model, model(PICTURE), [Interaction(outside=share).positive(CELLS[1])])
        values.append(out.evidence[0, 0].item())
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(place(100)[0], abs=1e-6)


MEASURES = [(cosine, None), (squared_l2, LogRatio()), (squared_l2, Negative())]
POOLINGS = [max_pool, mean_pool, partial(top_k_pool, k=2), partial(log_sum_exp_pool, sharpness=3.0)]


@given(st.integers(0, 10**6), st.sampled_from(range(len(MEASURES))), st.sampled_from(range(len(POOLINGS))))
def test_forbidding_places_equals_taking_them_out(seed: int, measure: int, pooling: int) -> None:
    """A negative box for everybody is a mask of the case; whatever the measure and the pooling."""
    g = torch.Generator().manual_seed(seed)
    how, similarity = MEASURES[measure]
    bank = PrototypeBank(torch.randn(3, 2, generator=g), torch.zeros(3, 2))
    head = LinearEvidence(torch.randn(2, 3, generator=g), torch.randn(2, generator=g))
    model = PrototypeModel(
        Plan(), nn.Identity(), bank, how, head, similarity=similarity, pooling=POOLINGS[pooling]
    )  # fmt: skip
    values = torch.randn(2, 4, 2, generator=g)
    gone = torch.rand(4, generator=g) < 0.5
    done = Interaction()
    for cell in gone.nonzero().squeeze(1).tolist():
        done = done.negative(CELLS[cell])
    found = logits_of(model, values, done)
    kept = model.score(Tokens(values, (~gone).expand(2, 4), (2, 2), None, (20, 20)))
    wanted = model.head.offset().expand(2, 2) if bool(gone.all()) else kept.logits
    assert torch.allclose(found, wanted, atol=1e-4)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_no_edit_raises_a_maximum(seed: int, outside: float) -> None:
    g = torch.Generator().manual_seed(seed)
    model, values = planted(WEIGHT, BIAS), torch.randn(2, 4, 2, generator=g)
    corners = (torch.rand(4, generator=g) * 15).tolist()
    done = Interaction(outside=outside).positive((corners[0], corners[1], corners[0] + 4, corners[1] + 4))
    done = done.negative((corners[2], corners[3], corners[2] + 4, corners[3] + 4), "group 1")
    out = model(values)
    new, absent = corrected(model, out, [done, Interaction()])
    assert bool((new.similarities <= out.similarities + 1e-6).all())
    assert torch.equal(new.logits[1], out.logits[1]), "edits of one case leave another alone"
    assert bool(new.evidence[absent].eq(0).all())


@pytest.mark.parametrize(
    ("box", "cells"),
    [((9, 9, 11, 11), [0, 1, 2, 3]), ((0, 0, 10, 10), [0]), ((9.9, 0, 10, 1), [0]), ((10, 10, 10.1, 10.1), [3]),
     ((25, 25, 30, 30), [])],
)  # fmt: skip
def test_any_overlap_counts(box: tuple[float, ...], cells: list[int]) -> None:
    tokens = Plan()(torch.zeros(1, 4, 2))
    assert touched_places(tokens, Box(*box)).nonzero().squeeze(1).tolist() == cells


def test_a_token_that_stands_for_a_window_is_touched_through_its_neighbours() -> None:
    tokens = Tokens(torch.zeros(1, 9, 2), grid=(3, 3), input_size=(30, 30), window=3)
    assert touched_places(tokens, Box(1, 1, 2, 2)).nonzero().squeeze(1).tolist() == [0, 1, 3, 4]


def test_places_are_needed_only_for_boxes() -> None:
    model = planted(WEIGHT, BIAS)
    out = model.score(Tokens(PICTURE))
    assert corrected(model, out, [Interaction().reject("group 0")])[1][0].tolist() == [True, True, False, False]
    with pytest.raises(UsageError, match="no grid"):
        corrected(model, out, [Interaction().negative((0, 0, 1, 1))])


def test_wrong_edits_are_refused_in_words() -> None:
    model = planted(WEIGHT, BIAS)
    with pytest.raises(UsageError, match="did you mean 'group 1'"):
        logits_of(model, PICTURE, Interaction().reject("grup 1"))
    with pytest.raises(UsageError, match="no prototype 9"):
        logits_of(model, PICTURE, Interaction().reject(9))
    with pytest.raises(UsageError, match="is empty"):
        Interaction().negative((3, 3, 3, 5))
    with pytest.raises(UsageError, match="outside must lie"):
        Interaction(outside=1.5)
    with pytest.raises(UsageError, match="needs a box"):
        Edit("positive")
    with pytest.raises(UsageError, match="draw no box"):
        Edit("reject", "group 0", Box(0, 0, 1, 1))
    with pytest.raises(DataError, match="no log of edits"):
        Interaction.from_json('{"format": 1}')
    with pytest.raises(DataError, match="format 7"):
        Interaction.from_json('{"format": 7}')


@pytest.fixture(scope="module")
def on_digits() -> PrototypeModel:
    model = get_method("protopnet")(prototypes_per_class=2, dim=16).build(SmallEncoder(), 10, seed=1)
    model.classes = digits("test").classes
    return model.eval()


def test_a_log_is_replayed(on_digits: PrototypeModel, tmp_path: Path) -> None:
    test = digits("test").subset([0, 1, 2])
    edits = {
        test.ids[0]: Interaction(case=test.ids[0]).reject(3).negative((0, 0, 4, 8)),
        test.ids[2]: Interaction(case=test.ids[2], outside=0.5).positive((2, 2, 6, 6)),
    }
    first = interact(on_digits, test, edits, target="7")
    write_log(tmp_path / "edits.jsonl", list(edits.values()))
    again = interact(on_digits, test, read_log(tmp_path / "edits.jsonl"), target="7")
    assert [json.loads(new.after.to_json()) for new in again] == [json.loads(old.after.to_json()) for old in first]
    assert torch.equal(first[1].logits_before, first[1].logits_after), "a case that nobody edited"
    assert not torch.equal(first[0].logits_before, first[0].logits_after)
    assert 3 in first[0].without
    one = edits[test.ids[0]]
    assert Interaction.load(one.save(tmp_path / "one.json")) == one
    assert one.undo().edits == one.edits[:1]
    with pytest.raises(UsageError, match="needs the case"):
        write_log(tmp_path / "x.jsonl", [Interaction()])


def test_explanations_follow_and_the_model_stays(on_digits: PrototypeModel) -> None:
    test = digits("test").subset([0, 1])
    state = {name: tensor.clone() for name, tensor in on_digits.state_dict().items()}
    (plain, *_) = explain(on_digits, test, target="3")
    done = interact(on_digits, test, Interaction().negative((0, 0, 8, 4)), target="3")
    for found in done:
        assert abs(found.before.total - found.before.logit) < 1e-4
        assert abs(found.after.total - found.after.logit) < 1e-4
        assert found.after.logit == pytest.approx(found.logits_after[3].item())
        for row in found.after.rows:
            assert row.region is None or row.region.y1 > 4, "no match lies wholly in the forbidden half"
    assert done[0].before == plain
    assert all(torch.equal(tensor, on_digits.state_dict()[name]) for name, tensor in state.items())
    mean = typical_evidence(on_digits, test)
    assert mean.shape == (20,)
    assert torch.allclose(mean, on_digits(torch.stack([on_digits.encoder.preprocess(test.picture(i)) for i in (0, 1)]))
                          .evidence.mean(0), atol=1e-5)  # fmt: skip


def test_groups_sum_up_an_explanation() -> None:
    model = planted(WEIGHT, BIAS)
    inputs = PICTURE

    class Plans:
        ids, classes, labels = ("one",), ("a", "b"), torch.tensor([0]).numpy()
        pictured = False

        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
            return inputs[i], 0, "one"

    model.classes = ("a", "b")
    (found,) = explain(model, Plans(), target="b")
    rows = by_group(found, model)
    assert len(rows) == 2, "as many as groups, not as prototypes"
    assert found.bias + sum(row.contribution for row in rows) == pytest.approx(found.logit, abs=1e-6)
    assert {row.name for row in rows} == {"group 0", "group 1"}
    assert {row.best.prototype for row in rows} == {0, 2}
    json.dumps([row.to_dict() for row in rows])
    model.bank.groups = None
    with pytest.raises(UsageError, match="no groups"):
        by_group(found, model)


def test_a_concept_that_was_rejected_is_written_as_json() -> None:
    model = planted(WEIGHT, BIAS)

    class Plans:
        ids, classes, labels = ("one",), ("a", "b"), torch.tensor([0]).numpy()
        pictured = False

        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
            return PICTURE[i], 0, "one"

    model.classes = ("a", "b")
    (found,) = interact(model, Plans(), Interaction().reject("group 0"), target="b")
    rows = {row.name: json.loads(json.dumps(row.to_dict(), allow_nan=False)) for row in by_group(found.after, model)}
    assert rows["group 0"]["best"]["similarity"] is None
    assert rows["group 1"]["best"]["similarity"] is not None


def test_boxes_reach_an_encoder_that_compares_by_itself() -> None:
    table = torch.tensor([[[0.9, 0.1, 0.0, 0.2], [0.5, 0.3, 0.1, 0.1], [0.2, 0.8, 0.3, 0.0], [0.1, 0.2, 0.7, 0.4]]])
    model = planted(WEIGHT, BIAS, compare=lambda tokens: table.expand(len(tokens.values), -1, -1))
    out, _ = corrected(model, model(PICTURE), [Interaction().negative((1, 1, 2, 2))])
    assert torch.allclose(out.evidence, table[:, 1:].amax(1))
    assert torch.allclose(out.logits, model.head(table[:, 1:].amax(1)))


def test_usual_evidence_needs_a_head_that_reads_it() -> None:
    bank = PrototypeBank(torch.eye(2), torch.eye(2), learned=False)
    model = PrototypeModel(Plan(), nn.Identity(), bank, cosine, Votes(bank)).eval()
    with pytest.raises(UsageError, match=r'reads similarities: use absent="zero"'):
        logits_of(model, PICTURE, Interaction(absent="mean").reject(0), typical=torch.zeros(2))
    assert logits_of(model, PICTURE, Interaction().reject(0))[0].tolist() == [0.0, 1.0]
