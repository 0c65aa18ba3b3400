from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import Head, LinearEvidence
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.scoring import ScoringSheet
from protolearn.core.similarities import Exponential
from protolearn.data import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain import (
    PictureList,
    contrast,
    explain,
    explain_each,
    explanation_dict,
    save_explanation,
    write_explanations,
)
from protolearn.explain.passes import labels_for, run_over
from protolearn.explain.survey import predicted_contribution
from protolearn.structures import Explanation, Tokens


def adds_up(explanation: Explanation) -> bool:
    size = abs(explanation.bias) + sum(abs(row.contribution) for row in explanation.rows)
    return abs(explanation.total - explanation.logit) <= 1e-4 * max(size, 1e-12)


@pytest.mark.parametrize("target", ["predicted", "runner_up", "label", 3, "7"])
def test_contributions_and_bias_are_the_logit(model: PrototypeModel, parts: Any, target: Any) -> None:
    found = explain(model, parts[1], range(20), target=target)
    assert len(found) == 20
    for explanation in found:
        assert adds_up(explanation)
        assert len(explanation.rows) == len(model.bank)
        sizes = [abs(row.contribution) for row in explanation.rows]
        assert sizes == sorted(sizes, reverse=True)
        for row in explanation.rows:
            assert row.contribution == pytest.approx(row.evidence * row.weight, rel=1e-5, abs=1e-6)


def test_it_explains_what_the_model_says(model: PrototypeModel, parts: Any) -> None:
    test = parts[1]
    inputs = torch.stack([model.encoder.preprocess(test.picture(i)) for i in range(12)])
    with torch.no_grad():
        out = model(inputs)
    order = out.logits.argsort(1, descending=True)
    for i, (first, second) in enumerate(contrast(model, test, range(12), batch_size=5)):
        assert second is not None
        assert (first.target, second.target) == (order[i, 0], order[i, 1])
        assert first.predicted == second.predicted == order[i, 0]
        assert first.case == test.ids[i]
        assert first.label == test.labels[i]
        assert first.logit == pytest.approx(float(out.logits[i, first.target]), rel=1e-4, abs=1e-4)
        assert first.probability == pytest.approx(float(out.logits[i].softmax(0)[first.target]), rel=1e-4)


def test_regions_are_the_matched_cells_in_the_original_picture(model: PrototypeModel, parts: Any) -> None:
    picture = Image.new("RGB", (160, 80), "white")
    picture.paste(parts[1].picture(0).resize((40, 20)), (120, 60))
    row = explain(model, PictureList([picture], ["wide"]))[0].rows[0]
    assert row.region is not None
    r, c = divmod(row.position, 4)
    assert tuple(row.region) == (c * 40, r * 20, c * 40 + 40, r * 20 + 20)


def test_a_prototype_finds_itself_in_its_source(model: PrototypeModel, parts: Any) -> None:
    train, source = parts[0], model.bank.sources[4]
    assert source is not None
    rows = explain(model, train, [train.index(source.case)])[0].rows
    mine = next(row for row in rows if row.prototype == 4)
    assert mine.source == source
    assert mine.distance == pytest.approx(0.0, abs=1e-6)
    assert mine.position == source.position
    assert mine.region == source.region


def test_unusable_prototypes_do_not_speak(model: PrototypeModel, parts: Any) -> None:
    model.bank.ban([0])
    model.bank.active[5] = False
    model.bank.sources[1] = None
    explanation = explain(model, parts[1], [0])[0]
    ids = {row.prototype for row in explanation.rows}
    assert ids == set(range(len(model.bank))) - {0, 5}
    assert next(row for row in explanation.rows if row.prototype == 1).source is None
    assert adds_up(explanation)


def test_ids_survive_pruning(model: PrototypeModel, parts: Any) -> None:
    model.prune([0, 1, 2])
    explanation = explain(model, parts[1], [0])[0]
    assert {row.prototype for row in explanation.rows} == set(range(3, 30))
    assert adds_up(explanation)


class Squares(Head):
    """A head without a weight table: evidence squared, and an offset."""

    def forward(self, evidence: Tensor) -> Tensor:
        return self.contributions(evidence).sum(2) + self.offset()

    def contributions(self, evidence: Tensor) -> Tensor:
        return torch.stack([evidence.square(), -0.5 * evidence.square()], 1)

    def offset(self) -> Tensor:
        return torch.tensor([0.25, -0.5])

    def keep(self, rows: Tensor) -> None:
        pass


class Numbers(nn.Module):
    """Tokens without pictures, grid or preprocessing, some padded."""

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs, mask=(inputs != 0).any(2))


class NumberCases:
    def __init__(self, values: Tensor, labels: list[int]) -> None:
        self.values, self.labels, self.classes = values, np.array(labels), ("no", "yes")
        self.ids = [f"bag {i}" for i in range(len(values))]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
        return self.values[i], int(self.labels[i]), self.ids[i]


def test_any_head_any_measure_and_inputs_that_are_no_pictures(tmp_path: Path) -> None:
    values = torch.randn(6, 4, 3)
    values[0, 2:] = 0.0
    values[1] = 0.0  # nothing real in it
    bank = PrototypeBank(torch.randn(5, 3), torch.eye(2)[[0, 0, 1, 1, 1]])
    model = PrototypeModel(Numbers(), nn.Identity(), bank, cosine, Squares())
    model.classes = ("no", "yes")
    cases = NumberCases(values, [0, 1, 0, 1, -1, 1])
    for explanation in explain(model, cases):  # type: ignore[arg-type]
        assert adds_up(explanation)
        assert all(row.region is None and row.distance is None for row in explanation.rows)
    assert write_explanations(model, cases, tmp_path / "e.jsonl", quiet=True) == 6  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert lines[1]["rows"][0]["similarity"] is None  # matched nowhere: null, not NaN
    assert lines[4]["label"] is None


def test_one_prototype_one_class(parts: Any) -> None:
    from protolearn.core.similarities import LogRatio

    bank = PrototypeBank(torch.rand(1, 3), torch.ones(1, 1))
    model = PrototypeModel(
        Numbers(), nn.Identity(), bank, squared_l2, LinearEvidence(torch.ones(1, 1)), similarity=LogRatio()
    )
    cases = NumberCases(torch.rand(2, 4, 3), [-1, -1])
    first, second = contrast(model, cases)[0]  # type: ignore[arg-type]
    assert second is None
    assert adds_up(first)
    assert first.probability == 1.0
    with pytest.raises(UsageError, match="runner-up"):
        explain(model, cases, target="runner_up")  # type: ignore[arg-type]


def test_wrong_targets_and_places_are_named(model: PrototypeModel, parts: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'predicted'"):
        explain(model, parts[1], [0], target="predictd")
    with pytest.raises(UsageError, match="0 to 9"):
        explain(model, parts[1], [0], target=10)
    with pytest.raises(UsageError, match="no case 999"):
        explain(model, parts[1], [999])
    with pytest.raises(DataError, match="no label"):
        explain(model, PictureList([parts[1].picture(0)], ["mine"]), target="label")
    with pytest.raises(UsageError, match="batch_size"):
        explain(model, parts[1], [0], batch_size=0)


def test_the_model_is_left_as_it_was(model: PrototypeModel, parts: Any) -> None:
    model.train()
    model.encoder.layers[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    first = explain(model, parts[1], [0])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert explain(model, parts[1], [0]) == first  # no dropout
    assert all(p.grad is None for p in model.parameters())


def test_a_model_in_training_is_explained_as_it_predicts() -> None:
    """A scoring sheet leaves small evidence out in eval mode alone: predictions are made there, and so are ledgers."""
    bank = PrototypeBank(torch.tensor([[0.0], [1.0], [2.0]]), torch.zeros(3, 2))
    sheet = ScoringSheet(torch.tensor([[1.0, 0.5, 2.0], [0.2, 1.0, 0.3]]), clip=0.3)
    made = PrototypeModel(FeatureEncoder(1), nn.Identity(), bank, squared_l2, sheet, similarity=Exponential()).train()
    cases = features(np.array([[0.2]], dtype=np.float32), [0], classes=["0", "1"])
    (told,) = explain(made, cases)
    assert made.training and sheet.training
    assert told.total == pytest.approx(told.logit, abs=1e-6)
    assert {row.prototype: row.evidence > 0 for row in told.rows} == {0: True, 1: True, 2: False}
    (seen,) = run_over(made, cases)
    assert predicted_contribution(seen.output).sum().item() == pytest.approx(told.logit, abs=1e-6)


def test_labels_are_matched_by_name(model: PrototypeModel, parts: Any) -> None:
    turned = parts[1].subset(range(30))
    turned.classes = tuple(reversed(turned.classes))
    turned.labels = 9 - turned.labels
    assert labels_for(model, turned).tolist() == parts[1].labels[:30].tolist()
    turned.classes = ("sheep", *turned.classes[1:])
    assert -1 in labels_for(model, turned)
    with pytest.raises(DataError, match="'sheep', which the model was not trained on"):
        labels_for(model, turned, strict=True)


def test_a_batch_job_writes_lines_that_sum(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "all.jsonl"
    assert write_explanations(model, parts[1], path, most=3, quiet=True) == len(parts[1])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["case"] for line in lines] == list(parts[1].ids)
    for line in lines:
        assert len(line["rows"]) == 3
        assert line["others"]["prototypes"] == 27
        total = line["bias"] + sum(row["contribution"] for row in line["rows"]) + line["others"]["contribution"]
        assert total == pytest.approx(line["logit"], rel=1e-4, abs=1e-5)
    assert not list(path.parent.glob(".*"))
    whole = explain(model, parts[1], [0])[0]
    assert lines[0]["others"]["contribution"] == pytest.approx(sum(r.contribution for r in whole.rows[3:]), abs=1e-4)


def test_a_batch_job_that_fails_leaves_nothing(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_explanations(model, parts[1], tmp_path / "x.jsonl", target="nobody", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_explaining_holds_one_batch_at_a_time(model: PrototypeModel, parts: Any) -> None:
    class Counted:
        def __init__(self, inner: Any) -> None:
            self.inner, self.read = inner, 0
            self.ids, self.labels, self.classes = inner.ids, inner.labels, inner.classes

        def __len__(self) -> int:
            return len(self.inner)

        def picture(self, i: int) -> Image.Image:
            self.read += 1
            return self.inner.picture(i)

    cases = Counted(parts[1])
    each = explain_each(model, cases, batch_size=8)
    next(each)
    assert cases.read == 8
    assert len(list(each)) == len(cases) - 1
    assert cases.read == len(cases)  # every picture is read once


def test_json_has_no_nan(model: PrototypeModel, parts: Any) -> None:
    plain = explanation_dict(explain(model, parts[1], [0])[0], model)
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again["predicted_class"] in model.classes
    assert again["others"] == {"prototypes": 0, "contribution": 0.0}


def test_sizes_and_places_travel_with_a_batch(model: PrototypeModel, parts: Any) -> None:
    seen = list(run_over(model, parts[1], [5, 3, 1], batch_size=2))
    assert [s.indices for s in seen] == [[5, 3], [1]]
    assert seen[0].sizes == [(8, 8), (8, 8)]


def test_a_score_is_called_what_it_is(tmp_path: Path) -> None:
    """A tree's ledger sums to a probability, and its contributions are no products."""
    from protolearn.data import digits
    from protolearn.encoders import SmallEncoder
    from protolearn.methods import get_method

    cases = digits("test").subset(range(2))
    for slug, word, product in (("prototree", "probability", False), ("protopnet", "logit", True)):
        cls = get_method(slug)
        model = cls(depth=3) if slug == "prototree" else cls(prototypes_per_class=1)
        built = model.build(SmallEncoder(), 10)
        found = explain(built, cases)[0]
        assert found.score_name == word
        assert all(row.quotient != product for row in found.rows)
        html = save_explanation(built, cases, 0, tmp_path / f"{slug}.html").read_text(encoding="utf-8")
        assert f"<b>{word} " in html
        assert ("times the weight" in html) == product
        assert ("×" in html) == product
        if not product:
            assert ">logit<" not in html
