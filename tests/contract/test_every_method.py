"""What every registered method must do, whatever its paper says: the library's verbs work on it as on any other."""

from __future__ import annotations

import inspect
import json
import math
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.core.method import Project, make_method, registered
from protolearn.core.model import PrototypeModel
from protolearn.data import Augment, Cases
from protolearn.errors import ProtolearnError, UsageError
from protolearn.explain import explain
from protolearn.explain.alter import Alteration, altered
from protolearn.explain.bag_tokens import without_each_token
from protolearn.explain.counterfactual import counterfactuals
from protolearn.explain.report import report
from protolearn.explain.what_if import what_if
from protolearn.structures import Output
from protolearn.tasks.retrieve import similar_cases
from protolearn.tasks.verify import verify
from protolearn.training import record
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save

from .small import SMALL, Small

ROOT = Path(__file__).resolve().parents[2]
SLUGS = sorted(SMALL)
TRAIN, TEST = 200, 60


def train(slug: str, **more: Any) -> Fit:
    how = SMALL[slug]
    options = {"batch_size": 40, "device": "cpu", "quiet": True, **how.options, **more}
    augment = Augment() if how.augment else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", record.TrainingWarning)
        return fit(how.method(slug), data(slug, "train"), encoder=how.encoder(), augment=augment, **options)


@lru_cache
def data(slug: str, part: str) -> Cases:
    return SMALL[slug].cases(part, TRAIN if part == "train" else TEST)


@lru_cache
def trained(slug: str) -> Fit:
    return train(slug)


def run(model: PrototypeModel, cases: Cases) -> Output:
    shown = cases if model.encoder.preprocess is None else cases.with_transform(model.encoder.preprocess)
    model.eval()
    with torch.no_grad():
        return model(torch.stack([shown[i].inputs for i in range(len(shown))]))


def test_every_method_is_tried_here() -> None:
    assert set(registered()) >= set(SMALL)
    ours = {slug for slug, cls in registered().items() if cls.__module__.startswith("protolearn.methods.")}
    assert ours == set(SMALL)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_ledger_sums_to_the_score_for_every_class(slug: str) -> None:
    model = trained(slug).model
    out = run(model, data(slug, "test"))
    assert bool(torch.isfinite(out.logits).all())
    total = model.head.ledger(out).sum(-1) + model.head.offset()
    torch.testing.assert_close(total, out.logits, rtol=1e-4, atol=1e-4)
    probabilities = model.head.probabilities(out.logits.double())
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(TEST, dtype=torch.double), rtol=1e-6, atol=1e-6)
    assert torch.equal(probabilities.argmax(1), out.logits.argmax(1))


@pytest.mark.parametrize("slug", SLUGS)
def test_an_explanation_needs_no_code_of_its_own(slug: str, tmp_path: Path) -> None:
    model, test = trained(slug).model, data(slug, "test").subset(range(4))
    for why in explain(model, test):
        assert why.total == pytest.approx(why.logit, rel=1e-4, abs=1e-4)
        assert 0 <= why.probability <= 1
        json.loads(json.dumps(why.to_dict(), allow_nan=True))
    page = report(model, train=data(slug, "train"), test=test, path=tmp_path / "report.html", quiet=True)
    assert Path(page).stat().st_size > 5000


@pytest.mark.parametrize("slug", SLUGS)
def test_other_questions_need_no_code_of_their_own(slug: str) -> None:
    """What if, what else, what is similar: answered for every head, and true when done."""
    model, test = trained(slug).model, data(slug, "test").subset(range(8))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gone = tuple(model.bank.ids[model.bank.usable].tolist()[::3][:4])
    out, without = run(model, test), run(altered(model, Alteration(ban=gone)), test)
    if model.head.linear:
        left = out.logits - model.head.ledger(out)[:, :, model.bank.rows(gone)].sum(2)
        torch.testing.assert_close(without.logits, left, rtol=1e-4, atol=1e-4)
    found = what_if(model, test, Alteration(ban=gone))
    np.testing.assert_allclose(found.after.logits, without.logits, rtol=1e-4, atol=1e-4)
    for other in counterfactuals(model, test, most_removed=5):
        if other.fewer is None:
            continue
        one = test.subset([test.index(other.case)])
        now = run(altered(model, Alteration(ban=other.fewer.prototypes)), one)
        assert int(now.logits.argmax()) == other.fewer.becomes != other.predicted
    for by in ("evidence", "embedding", "prototype"):
        queries = similar_cases(model, test, data(slug, "train"), k=3, by=by).queries
        assert all(len(query.found) == 3 for query in queries if query.prototype is not None or by != "prototype")
    tokens = without_each_token(model, out)
    assert tokens.logits.shape == (*tokens.mask.shape, len(model.classes))
    assert bool(torch.isfinite(tokens.logits).all())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize("slug", SLUGS)
def test_it_learns(slug: str) -> None:
    out = run(trained(slug).model, data(slug, "test"))
    right = float((out.logits.argmax(1).numpy() == data(slug, "test").labels).mean())
    assert right >= SMALL[slug].accuracy, f"{slug}: {right:.2f} of the test digits"


@pytest.mark.parametrize("slug", SLUGS)
def test_sources_are_real_and_verify(slug: str) -> None:
    model = trained(slug).model
    if any(isinstance(phase, Project) for phase in SMALL[slug].method(slug).phases()):
        assert any(source is not None for source in model.bank.sources)
    for check in verify(model, data(slug, "train")).failures:
        assert check.status == "no source", check


@pytest.mark.parametrize("slug", SLUGS)
def test_a_saved_model_is_the_same_model(slug: str, tmp_path: Path) -> None:
    model, test = trained(slug).model, data(slug, "test")
    save(model, tmp_path / "model", data(slug, "train"))
    again = load(tmp_path / "model")
    assert again.method == model.method
    assert again.bank.sources == model.bank.sources
    torch.testing.assert_close(run(again, test).logits, run(model, test).logits, rtol=0, atol=0)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_same_seed_gives_the_same_model(slug: str) -> None:
    one, other = trained(slug).model.state_dict(), train(slug).model.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Killed(BaseException):
    """What a test stops a training with."""


@pytest.mark.parametrize("slug", SLUGS)
def test_a_killed_training_goes_on_to_the_same_model(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped right after each checkpoint in turn, so every phase is resumed from its start once."""
    written = record.save_checkpoint
    pending = [True]

    def once(*args: Any) -> None:
        written(*args)
        if pending[0]:
            pending[0] = False
            raise Killed

    monkeypatch.setattr(record, "save_checkpoint", once)
    for _ in range(100):
        pending[0] = True
        try:
            done = train(slug, directory=tmp_path)
            break
        except Killed:
            continue
    else:
        raise AssertionError("never finished")
    straight = trained(slug).model.state_dict()
    resumed = done.model.state_dict()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


@pytest.mark.parametrize("slug", SLUGS)
def test_settings_round_trip_and_wrong_ones_are_refused(slug: str) -> None:
    how, cls = SMALL[slug], registered()[slug]
    method = how.method(slug)
    assert make_method(json.loads(json.dumps(method.settings()))) == method
    assert cls().settings()["method"] == slug, "the paper's defaults need no argument"
    assert set(method.weights()), slug
    assert how.wrong, f"{slug}: name a setting that must be refused"
    with pytest.raises(UsageError, match="|".join(how.wrong)):
        cls(**how.wrong)
    name = next(iter(inspect.signature(cls).parameters))
    with pytest.raises(UsageError, match=name):
        make_method({"method": slug, f"{name}x": 1})


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("labels", ["one class", "unlabelled", "single case"])
def test_odd_batches_give_finite_terms(slug: str, labels: str) -> None:
    done = trained(slug)
    count = 1 if labels == "single case" else 8
    cases = data(slug, "train").subset(range(count))
    out = run(done.model, cases)
    out = out.replace(targets={name: torch.from_numpy(rows) for name, rows in cases.targets.items()})
    given = torch.full((count,), -1 if labels == "unlabelled" else int(cases.labels[0]))
    assert done.model.method is not None
    terms = done.model.method.objective(out, given)
    assert set(terms) <= set(done.model.method.weights())
    bad = {name: float(term.detach()) for name, term in terms.items() if not math.isfinite(float(term.detach()))}
    assert not bad
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize("slug", SLUGS)
def test_a_pruned_or_banned_prototype_leaves_the_ledger_exact(slug: str, tmp_path: Path) -> None:
    save(trained(slug).model, tmp_path / "model")
    model, test = load(tmp_path / "model"), data(slug, "test").subset(range(8))
    model.bank.ban([int(model.bank.ids[0])])
    out = run(model, test)
    torch.testing.assert_close(model.head.ledger(out).sum(-1) + model.head.offset(), out.logits, rtol=1e-4, atol=1e-4)
    assert float(out.evidence[:, 0].abs().max()) == 0
    model.bank.unban([int(model.bank.ids[0])])
    try:
        model.prune([int(model.bank.ids[-1])])
    except ProtolearnError:
        return  # a method whose prototypes hold each other up says that one cannot go
    out = run(model, test)
    torch.testing.assert_close(model.head.ledger(out).sum(-1) + model.head.offset(), out.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slug", SLUGS)
def test_bad_input_is_named(slug: str) -> None:
    how = SMALL[slug]
    if how.pictures:
        pytest.skip("pictures cannot hold NaN; features can")
    broken = np.array([data(slug, "train")[i].inputs.numpy() for i in range(20)])
    broken[3, 0, 0] = np.nan
    from protolearn.data import features

    with pytest.raises(ProtolearnError, match="row 3"):
        features(broken, np.arange(20) % 2)


@pytest.mark.parametrize("slug", SLUGS)
def test_it_has_a_page_that_says_what_was_checked(slug: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{slug}.md").read_text(encoding="utf-8")
    cls = registered()[slug]
    assert f"{{{{ settings: {slug} }}}}" in page
    assert "checked" in page.lower()
    assert "depart" in page.lower()
    assert cls.verified
    if "unverified" in cls.verified:
        assert "unverified" in page.lower() or "not verified" in page.lower()
    source = inspect.getmodule(cls)
    assert source is not None
    assert source.__doc__ is not None
    assert re.search("depart|beyond the paper|ours:", source.__doc__.lower()), "say where the page is not the paper"
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"methods/{slug}.md" in nav


def test_small_is_small() -> None:
    assert all(isinstance(how, Small) for how in SMALL.values())
