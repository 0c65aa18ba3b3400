"""What a faithful CSR must show, with concepts measured in real pictures: digits, and white blood cells by their masks.

The concepts of digits are read off each picture, not off its class: whether ink encloses paper (a loop), whether it is
wide, whether its upper half holds more ink than its lower half.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.method import Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, Concepts, Preprocess, arrays, digits, with_concepts
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain.edits import Interaction
from protolearn.explain.explain import explain
from protolearn.explain.groups import by_group
from protolearn.explain.interact import interact
from protolearn.methods import get_method, make_method
from protolearn.objectives.soft_triple import group_similarity
from protolearn.structures import Output, Tokens
from protolearn.tasks.classify import evaluate
from protolearn.tasks.verify import verify
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save

CSR = get_method("csr")
NAMES = ("loop", "wide", "top-heavy")


class Patches(Encoder):
    """Pixels of 4 x 4 windows of an 8 x 8 picture, each in a slot of its own, so that places can be told apart."""

    dim = 9 * 16

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)

    def forward(self, inputs: Tensor) -> Tokens:
        windows = torch.nn.functional.unfold(inputs[:, :1], 4, stride=2)  # (B, 16, 9)
        slots = torch.zeros(len(inputs), 9, 9, 16)
        slots[:, range(9), range(9)] = windows.transpose(1, 2)
        return Tokens(slots.flatten(2), grid=(3, 3), input_size=(8, 8))

    def spec(self) -> dict[str, object]:
        return {"encoder": "patches of a test"}


def measured(cases: Cases) -> Cases:
    from scipy.ndimage import label

    values = {}
    for i, case in enumerate(cases.ids):
        ink = np.asarray(cases.picture(i).convert("L")).astype(float)
        _, parts = label(np.pad(ink < 90, 1, constant_values=True))  # paper; the outside is one part of it
        across = np.flatnonzero((ink > 90).any(0))
        wide = len(across) > 0 and across[-1] - across[0] >= 5
        values[case] = np.array([parts > 1, wide, ink[:4].sum() > ink[4:].sum()], dtype=np.float32)
    return with_concepts(cases, Concepts(NAMES, values))


QUICK = {
    "concepts": NAMES, "prototypes_per_concept": 4, "dim": 16, "encoder_rate": None, "concept_epochs": 30,
    "contrast_epochs": 20, "task_epochs": 40, "concept_rate": 1e-2, "task_rate": 5e-2, "margin": 0.1, "scale": 10.0,
}  # fmt: skip


@lru_cache
def trained(**changes: object) -> Fit:
    train = measured(digits("train").subset(range(0, 1200, 4)))
    return fit(
        CSR(**{**QUICK, **changes}), train, encoder=Patches(), batch_size=50, quiet=True, device="cpu"
    )  # fmt: skip


@lru_cache
def held_out() -> Cases:
    return measured(digits("test").subset(range(0, 359, 3)))


def seen(model: PrototypeModel, cases: Cases) -> tuple[Output, Tensor]:
    with torch.no_grad():
        inputs = torch.stack([model.encoder.preprocess(cases.picture(i)) for i in range(len(cases))])
        return model(inputs), torch.from_numpy(cases.targets["concepts"])


def test_the_stages_train_what_they_should_and_nothing_else() -> None:
    plan = CSR(concepts=("a",)).phases()
    assert [(phase.name, phase.rates, phase.weights) for phase in plan if isinstance(phase, Train)] == [
        ("concepts", {"encoder": 1e-4, "neck": 1e-3}, {"concepts": 1.0}),
        ("contrast", {"neck": 1e-3, "prototypes": 1e-3}, {"contrast": 1.0}),
        ("task", {"head": 1e-2}, {"cross_entropy": 1.0}),
    ]
    assert plan[2] == Project(rule="any", move=False)
    model = CSR(**QUICK).build(SmallEncoder(), 10, seed=0)
    cases = measured(digits("train").subset(range(12)))
    method = CSR(**QUICK)
    out = model(torch.stack([model.encoder.preprocess(cases.picture(i)) for i in range(12)]))
    out = out.replace(targets={"concepts": torch.from_numpy(cases.targets["concepts"])})
    terms = method.objective(out, torch.from_numpy(cases.labels.copy()))
    moved = {}
    for name in terms:
        model.zero_grad()
        terms[name].backward(retain_graph=True)
        moved[name] = {
            part.split(".")[0] + "." + part.split(".")[1]
            for part, p in model.named_parameters()
            if p.grad is not None and bool(p.grad.ne(0).any()) and not part.startswith("encoder")
        }
    assert moved["concepts"] == {"neck.maps"}
    assert moved["contrast"] == {"neck.project", "bank.vectors"}, "the concept model is frozen in the second stage"
    assert {"head.weight", "head.bias"} <= moved["cross_entropy"]


def test_the_concept_model_stays_as_the_first_stage_left_it() -> None:
    one = trained(contrast_epochs=0, task_epochs=0).model
    all_three = trained().model
    assert torch.equal(one.neck.maps.weight, all_three.neck.maps.weight)
    assert not torch.equal(one.neck.project.weight, all_three.neck.project.weight)
    assert all_three.bank.vectors.detach().norm(dim=1).allclose(torch.ones(12), atol=1e-5)


def test_the_concept_model_learns_its_concepts() -> None:
    out, known = seen(trained().model, held_out())
    found = out.tokens.extras["concept_maps"].mean(1) > 0
    right = (found == (known > 0.5)).float().mean(0)
    usual = torch.maximum(known.mean(0), 1 - known.mean(0))
    assert bool((right > usual + 0.05).all()), f"{right} against always saying the usual answer: {usual}"


def gap(vectors: Tensor, out: Output, known: Tensor) -> float:
    """Return the mean of own-concept similarity less the largest other one, over concepts present."""
    bank = out.bank
    groups, case, concept = len(NAMES), *(known > 0.5).nonzero(as_tuple=True)
    cosines = torch.nn.functional.normalize(vectors[case, concept], dim=-1) @ bank.vectors.T
    similar = group_similarity(cosines, bank.groups, groups, 10.0)
    own = similar.gather(1, concept[:, None])[:, 0]
    other = similar.masked_fill(torch.nn.functional.one_hot(concept, groups).bool(), -2.0).amax(1)
    return (own - other).mean().item()


def test_the_contrast_sets_concepts_apart_on_cases_it_has_not_seen() -> None:
    after, known = seen(trained().model, held_out())
    before, _ = seen(trained(contrast_epochs=0, task_epochs=0).model, held_out())
    assert gap(after.tokens.extras["concept_vectors"], after, known) > gap(
        before.tokens.extras["concept_vectors"], before, known
    ) + 0.2  # fmt: skip


def test_raw_vectors_with_their_own_means_as_prototypes_lie_closer_together() -> None:
    """The fairest stand-in for "the raw v_k": prototypes are the training means of each concept's raw vectors."""
    train = measured(digits("train").subset(range(0, 1200, 4)))

    def raw(cases: Cases, model: PrototypeModel) -> tuple[Tensor, Tensor]:
        out, known = seen(model, cases)
        weights = out.tokens.extras["concept_maps"].softmax(1)
        return weights.transpose(1, 2) @ out.encoded.values, known

    model = trained().model
    out, _ = seen(model, held_out())
    vectors, known = raw(train, model)
    means = torch.stack([vectors[known[:, k] > 0.5, k].mean(0) for k in range(3)])
    vectors, known = raw(held_out(), model)
    bank = PrototypeBank(torch.nn.functional.normalize(means, dim=-1), torch.zeros(3, 10), groups=torch.arange(3))
    plain = gap(vectors, out.replace(bank=bank), known)
    assert gap(out.tokens.extras["concept_vectors"], out, known) > plain + 0.2


def test_it_predicts_far_above_chance_with_a_ledger_that_adds_up() -> None:
    done = trained()
    result = evaluate(done.model, held_out())
    assert result.accuracy > 0.4
    out, _ = seen(done.model, held_out())
    total = done.model.head.ledger(out).sum(-1) + done.model.head.offset()
    assert torch.allclose(total, out.logits, atol=1e-5)


def test_an_explanation_has_as_many_rows_as_concepts() -> None:
    model = trained().model
    for found in explain(model, held_out(), [0, 1, 2]):
        rows = by_group(found, model)
        assert {row.name for row in rows} == set(NAMES)
        assert len(found.rows) == 12
        assert found.bias + sum(row.contribution for row in rows) == pytest.approx(found.logit, abs=1e-4)
        for row in rows:
            assert row.prototypes == 4
            mine = [r for r in found.rows if model.bank.groups[model.bank.rows([r.prototype])] == row.group]
            assert row.best.similarity == max(r.similarity for r in mine)
            assert row.best.source is not None, "the training picture of the prototype is known"


def test_a_person_rejects_concepts() -> None:
    model = trained().model
    everything = Interaction()
    for name in NAMES:
        everything = everything.reject(name)
    for found in interact(model, held_out(), everything, [0, 1], target="3"):
        assert torch.allclose(found.logits_after, model.head.offset(), atol=1e-6)
        assert found.after.logit == pytest.approx(found.after.bias, abs=1e-5)
    (one,) = interact(model, held_out(), Interaction().reject("loop"), [0], target="3")
    loop = next(row for row in by_group(one.before, model) if row.name == "loop")
    assert one.after.logit == pytest.approx(one.before.logit - loop.contribution, abs=1e-4)


def test_a_negative_box_moves_a_match_elsewhere() -> None:
    model = trained().model
    (found,) = explain(model, held_out(), [0])
    box = by_group(found, model)[0].best.region
    (done,) = interact(model, held_out(), Interaction().negative(box), [0], target=found.target)
    for row in done.after.rows:
        apart = row.region is None or row.region.x1 <= box.x0 or row.region.x0 >= box.x1
        assert apart or row.region.y1 <= box.y0 or row.region.y0 >= box.y1
    before = {row.prototype: row.similarity for row in done.before.rows}
    assert all(row.similarity <= before[row.prototype] + 1e-6 for row in done.after.rows)


def test_pruned_prototypes_are_gone_and_the_head_fits(tmp_path: Path) -> None:
    train = measured(digits("train").subset(range(0, 400, 4)))
    method = CSR(**{**QUICK, "concept_epochs": 5, "contrast_epochs": 3, "task_epochs": 5})
    model = fit(method, train, encoder=SmallEncoder(), quiet=True, device="cpu").model
    gone = [0, 5, 6, 7]
    model.prune(gone)
    assert model.head.weight.shape == (10, 8)
    assert model.bank.groups.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    (found,) = explain(model, held_out(), [0])
    assert not {row.prototype for row in found.rows} & set(gone)
    assert found.total == pytest.approx(found.logit, abs=1e-4)
    again = load(save(model, tmp_path / "model", train))
    assert again.bank.groups.tolist() == model.bank.groups.tolist()
    assert again.method.group_names(again.classes) == NAMES, "names are saved with the model"
    (same,) = explain(again, held_out(), [0])
    assert same.logit == pytest.approx(found.logit, abs=1e-6)


def test_prototypes_name_the_nearest_training_token() -> None:
    model = trained().model
    assert all(source is not None and not source.moved for source in model.bank.sources)
    result = verify(model, measured(digits("train").subset(range(0, 1200, 4))))
    assert result.ok


def test_labels_are_needed_and_their_absence_is_told_in_words() -> None:
    plain = digits("train").subset(range(0, 200, 4))
    with pytest.raises(UsageError, match="no concept labels: give concept labels"):
        fit(CSR(**QUICK), plain, encoder=SmallEncoder(), quiet=True, device="cpu")
    with pytest.raises(UsageError, match=r"must name the .* columns"):
        fit(CSR(**{**QUICK, "concepts": ("loop",)}), measured(plain), encoder=SmallEncoder(), quiet=True, device="cpu")
    with pytest.raises(UsageError, match="name at least one concept"):
        CSR().build(SmallEncoder(), 10)


def test_without_labels_every_class_can_be_its_own_concept() -> None:
    method = CSR(concepts_from="classes", **{k: v for k, v in QUICK.items() if k != "concepts"})
    model = method.build(SmallEncoder(), 10, seed=0)
    assert model.bank.groups.bincount().tolist() == [4] * 10
    out = model(torch.zeros(3, 3, 32, 32))
    terms = method.objective(out, torch.tensor([2, -1, 2]))
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    nobody = method.objective(out, torch.tensor([-1, -1, -1]))
    assert [nobody[name].item() for name in ("concepts", "contrast", "cross_entropy")] == [0.0, 0.0, 0.0]


def test_one_concept_one_prototype_and_unknown_concepts() -> None:
    method = CSR(concepts=("only",), prototypes_per_concept=1, dim=4)
    model = method.build(SmallEncoder(), 1, seed=0)
    out = model(torch.rand(2, 3, 32, 32)).replace(targets={"concepts": torch.tensor([[1.0], [-1.0]])})
    terms = method.objective(out, torch.tensor([0, 0]))
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    unknown = method.objective(out.replace(targets={"concepts": torch.full((2, 1), -1.0)}), torch.tensor([0, 0]))
    assert unknown["concepts"].item() == unknown["contrast"].item() == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prototypes_per_concept": 0}, "prototypes_per_concept must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"scale": float("nan")}, "scale must be above 0"),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"concepts_from": "people"}, "concepts_from must be"),
        ({"concepts": ("a", "a")}, "different names"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=f"csr: {words}|csr: .*{words}"):
        CSR(**settings)


def test_settings_round_trip() -> None:
    method = CSR(**QUICK)
    assert make_method({**method.settings(), "concepts": list(NAMES)}) == method


def test_the_encoder_can_be_trained_in_the_first_stage() -> None:
    train = measured(digits("train").subset(range(0, 160, 4)))
    method = CSR(**{**QUICK, "encoder_rate": 1e-3, "concept_epochs": 1, "contrast_epochs": 1, "task_epochs": 1})
    encoder = SmallEncoder()
    before = encoder.net[0].weight.clone()
    done = fit(method, train, encoder=encoder, quiet=True, device="cpu")
    assert not torch.equal(before, done.model.encoder.net[0].weight)
    assert [row["phase"] for row in done.history] == ["concepts", "contrast", "task"]


@pytest.mark.slow
def test_white_blood_cells_by_their_masks(shared_data: Path) -> None:
    """Concepts from expert masks: a large cell, a nucleus that fills it, a nucleus in several pieces."""
    from scipy.ndimage import label

    with np.load(shared_data / "wbc_tecom" / "wbc_tecom.npz") as z:
        keep = z["y"] < 4
        pictures, masks, y, test = z["x"][keep], z["mask"][keep], z["y"][keep], z["test"][keep].astype(bool)
        classes = [str(c) for c in z["classes"]][:4]
    cell, nucleus = (masks > 0).sum((1, 2)), (masks == 2).sum((1, 2))
    pieces = np.array([(np.bincount(label(m == 2)[0].ravel())[1:] > 40).sum() for m in masks])
    table = np.stack([cell > np.median(cell), nucleus > np.median(nucleus / cell) * cell, pieces > 1], 1)
    cases = arrays(pictures, [classes[i] for i in y], classes=classes, name="wbc")
    cases = with_concepts(
        cases,
        Concepts(
            ("large cell", "full nucleus", "lobes"),
            {case: row.astype(np.float32) for case, row in zip(cases.ids, table, strict=True)},
        ),
    )
    method = CSR(
        concepts=("large cell", "full nucleus", "lobes"), prototypes_per_concept=8, dim=32, encoder_rate=None,
        concept_rate=1e-2, concept_epochs=60, contrast_epochs=30, task_epochs=100, task_rate=5e-2, scale=10.0,
        margin=0.2,
    )  # fmt: skip
    done = fit(method, cases.subset(~test), encoder=SmallEncoder(size=64), batch_size=40, quiet=True, device="cpu")
    out, known = seen(done.model, cases.subset(test))
    own = out.tokens.extras["concept_vectors"]
    assert gap(own, out, known) > 0.1
    assert evaluate(done.model, cases.subset(test)).accuracy > np.bincount(y[test]).max() / test.sum()


def test_validation_needs_concept_labels_only_where_their_terms_count() -> None:
    train, test = digits("train").subset(range(40)), digits("test").subset(range(20))
    labelled = with_concepts(
        train, Concepts(("a",), {c: np.array([i % 2], np.float32) for i, c in enumerate(train.ids)})
    )
    settings = {"concepts": ("a",), "prototypes_per_concept": 2, "dim": 8, "encoder_rate": None, "task_epochs": 1}
    how = {"validation": test, "encoder": SmallEncoder(), "quiet": True, "device": "cpu"}
    done = fit(get_method("csr")(**settings, concept_epochs=0, contrast_epochs=0), labelled, **how)
    assert np.isfinite(done.history[-1]["validation_loss"])
    with pytest.raises(UsageError, match="no concept labels"):
        fit(get_method("csr")(**settings, concept_epochs=1, contrast_epochs=0), labelled, **how)
