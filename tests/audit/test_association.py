"""Associations with outside labels: planted ones are found, permuted ones are not, and what has no answer gets none."""

from __future__ import annotations

import csv
import io
import sys
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from protolearn.audit.association import AssociationTable, Regressors, association_table
from protolearn.audit.association_foretelling import auroc, foretell
from protolearn.audit.association_result import Association
from protolearn.audit.heterogeneity import heterogeneity, intra_class_distance
from protolearn.audit.logistic import fit_logistic, separated, standardised
from protolearn.errors import DataError, MissingExtra, UsageError


def family(values: np.ndarray, name: str = "prototype") -> Regressors:
    return Regressors(name, tuple(map(str, range(values.shape[1]))), values)


def drawn(n: int, p: int, seed: int = 0) -> tuple[np.random.Generator, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw, draw.standard_normal((n, p))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def row_of(table: AssociationTable, regressor: str, label: str) -> Association:
    (found,) = [row for row in table.rows if row.regressor == regressor and row.label == label]
    return found


# -- agreement ------------------------------------------------------------------------------------------------------


def test_each_pair_equals_statsmodels_and_scikit_learn() -> None:
    draw, a = drawn(300, 3)
    x = np.column_stack([draw.normal(60, 9, 300), draw.integers(0, 2, 300)])
    y = (draw.random(300) < sigmoid(a[:, 0] + 0.03 * (x[:, 0] - 60))).astype(float)
    table = association_table([family(5 + 2 * a)], y[:, None], ["sick"], x)
    for p in range(3):
        z = (a[:, p] - a[:, p].mean()) / a[:, p].std()
        plain = sm.Logit(y, np.column_stack([np.ones(300), z, x])).fit(disp=0, maxiter=100)
        other = LogisticRegression(C=1e10, max_iter=10000, tol=1e-10).fit(np.column_stack([z, standardised(x)]), y)
        row = row_of(table, str(p), "sick")
        assert row.odds_ratio == pytest.approx(np.exp(plain.params[1]), rel=1e-6)
        assert row.odds_ratio == pytest.approx(np.exp(other.coef_[0, 0]), rel=1e-3)
        assert row.interval == pytest.approx(tuple(np.exp(plain.conf_int()[1])), rel=1e-6)
        assert row.p == pytest.approx(plain.pvalues[1], rel=1e-5)


def test_errors_by_group_are_the_sandwich() -> None:
    draw, a = drawn(240, 1)
    groups = np.repeat(np.arange(60), 4)
    y = (draw.random(240) < sigmoid(0.7 * a[:, 0])).astype(float)
    row = association_table([family(a)], y[:, None], ["sick"], groups=groups).rows[0]
    z = np.column_stack([standardised(a)[:, 0], np.ones(240)])
    beta = fit_logistic(z, y)[0].params
    chance = sigmoid(z @ beta)
    bread = np.linalg.inv((z * (chance * (1 - chance))[:, None]).T @ z)
    sums = np.stack([(z[groups == g] * (y - chance)[groups == g, None]).sum(0) for g in range(60)])
    covariance = bread @ (sums.T @ sums) @ bread * (60 / 59) * (239 / 238)
    inside = z[:, 0] - (chance * (1 - chance) * z[:, 0]).sum() / (chance * (1 - chance)).sum()
    each = [(chance * (1 - chance) * inside**2)[groups == g].sum() for g in range(60)]
    freedom = sum(each) ** 2 / sum(h**2 for h in each) - 1
    assert 15 < freedom < 59
    error = np.sqrt(covariance[0, 0])
    assert row.p == pytest.approx(2 * t.sf(abs(beta[0]) / error, freedom), rel=1e-6)
    assert row.interval is not None
    assert np.log(row.interval[1]) == pytest.approx(beta[0] + t.ppf(0.975, freedom) * error, rel=1e-6)
    assert row.odds_ratio == pytest.approx(np.exp(beta[0]), rel=1e-6)


def test_correction_counts_every_family_and_what_is_not_estimable() -> None:
    draw, a = drawn(200, 4)
    y = (draw.random((200, 2)) < 0.4).astype(float)
    both = [
        family(a),
        Regressors("class prediction", ("a", "flat"), np.column_stack([a[:, 0] + a[:, 1], np.ones(200)])),
    ]
    table = association_table(both, y, ["x", "y"])
    assert table.tests == 12
    assert table.by_family()["class prediction"] == {"tests": 4, "estimable": 2, "significant": 0}
    for row in table.rows:
        if row.p is not None:
            assert row.corrected == pytest.approx(min(1.0, 12 * row.p), rel=1e-9)
    fdr = association_table(both, y, ["x", "y"], correction="benjamini-hochberg")
    raw = np.array([row.p for row in fdr.rows if row.p is not None])
    ranked = raw * 12 / np.arange(1, len(raw) + 1)
    expected = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    assert [row.corrected for row in fdr.rows if row.p is not None] == pytest.approx(expected.tolist())


# -- laws -----------------------------------------------------------------------------------------------------------


def test_a_planted_association_comes_first() -> None:
    draw, a = drawn(600, 6, seed=3)
    labels = np.column_stack([draw.random(600) < sigmoid(1.2 * a[:, 4] - 1), draw.random(600) < 0.3]).astype(float)
    table = association_table([family(a)], labels, ["planted", "noise"])
    first = table.rows[0]
    assert (first.regressor, first.label, first.significant) == ("4", "planted", True)
    assert first.interval is not None and first.interval[0] < np.exp(1.2 * a[:, 4].std()) < first.interval[1]
    assert {row.regressor for row in table.significant()} == {"4"}


def test_permuted_labels_give_no_more_than_the_level() -> None:
    """Uncorrected, about 5 % of the tests would pass; corrected, hardly one."""
    draw, a = drawn(250, 8, seed=1)
    planted = (draw.random((250, 4)) < sigmoid(a[:, :4])).astype(float)
    raw, held = [], []
    for _ in range(12):
        table = association_table([family(a)], planted[draw.permutation(250)], list("abcd"))
        raw += [row.p < 0.05 for row in table.rows if row.p is not None]
        held += [row.significant for row in table.rows]
    assert 0.02 < np.mean(raw) < 0.09
    assert np.mean(held) <= 0.05
    assert sum(held) <= 2
    assert len(association_table([family(a)], planted, list("abcd")).significant()) >= 4


def test_several_records_of_a_patient_need_groups() -> None:
    """A patient's records repeat one activation and one label: unaware of that, chance looks significant."""
    draw = np.random.default_rng(5)
    naive, aware = [], []
    groups = np.repeat(np.arange(80), 6)
    for _ in range(25):
        a = np.repeat(draw.standard_normal((80, 4)), 6, axis=0) + 0.05 * draw.standard_normal((480, 4))
        y = np.repeat(draw.random(80) < 0.4, 6).astype(float)[:, None]
        naive += [row.p < 0.05 for row in association_table([family(a)], y, ["sick"]).rows]
        aware += [row.p < 0.05 for row in association_table([family(a)], y, ["sick"], groups=groups).rows]
    assert np.mean(naive) > 0.25
    assert np.mean(aware) < 0.13


def test_a_prototype_that_few_patients_carry_is_not_found_by_chance() -> None:
    """With a normal distribution a tenth of these would pass at 0.001."""
    draw = np.random.default_rng(6)
    groups = np.repeat(np.arange(100), 4)
    found = []
    for _ in range(150):
        a = np.repeat(draw.permutation(100) < 3, 4).astype(float)[:, None]
        y = (draw.random((400, 1)) < 0.4).astype(float)
        found += [row.p for row in association_table([family(a)], y, ["sick"], groups=groups).rows if row.p is not None]
    assert len(found) > 100
    assert np.mean(np.array(found) < 0.001) < 0.02
    alone = np.repeat(np.arange(100) == 7, 4).astype(float)[:, None]
    y = np.tile([0.0, 1.0], 200)[:, None]
    (row,) = association_table([family(alone)], y, ["sick"], groups=groups).rows
    assert (row.p, row.status) == (None, "not estimable: hardly more than one group carries it")


def test_odds_ratios_do_not_know_the_scale_of_activations() -> None:
    draw, a = drawn(300, 3)
    y = (draw.random((300, 1)) < sigmoid(a[:, :1])).astype(float)
    one = association_table([family(a)], y, ["sick"])
    other = association_table([family(a * [3.0, 0.01, 1e6] + [5.0, -2.0, 1e7])], y, ["sick"])
    mirrored = association_table([family(-a)], y, ["sick"])
    for p in "012":
        assert row_of(other, p, "sick").odds_ratio == pytest.approx(row_of(one, p, "sick").odds_ratio, rel=1e-6)
        assert row_of(other, p, "sick").p == pytest.approx(row_of(one, p, "sick").p, rel=1e-5)
        assert row_of(mirrored, p, "sick").odds_ratio == pytest.approx(1 / row_of(one, p, "sick").odds_ratio, rel=1e-6)


def test_a_covariate_that_explains_it_takes_the_association_away() -> None:
    draw = np.random.default_rng(2)
    age = draw.standard_normal(800)
    a = (age + 0.5 * draw.standard_normal(800))[:, None]
    y = (draw.random(800) < sigmoid(1.5 * age)).astype(float)[:, None]
    assert association_table([family(a)], y, ["sick"]).rows[0].significant
    assert not association_table([family(a)], y, ["sick"], age[:, None]).rows[0].significant


# -- no number where there is none ----------------------------------------------------------------------------------


def test_separation_constants_and_repeated_columns_have_no_number() -> None:
    draw, a = drawn(120, 1)
    y = (draw.random(120) < 0.5).astype(float)
    age = draw.standard_normal(120)
    perfect = y * 2 + 0.1 * draw.random(120)
    quasi = np.where(y == 1, draw.random(120), 0.0)  # above 0 only in cases, but not in all of them by much
    values = np.column_stack([a[:, 0], perfect, quasi, np.full(120, 3.0), 2 * age + 1])
    table = association_table([family(values)], y[:, None], ["sick"], age[:, None])
    told = {row.regressor: row for row in table.rows}
    assert told["0"].p is not None
    assert told["1"].status == told["2"].status == "not estimable: separated"
    assert told["3"].status == "not estimable: the same in every record"
    assert told["4"].status == "not estimable: no more than the covariates say"
    for key in "1234":
        assert (told[key].odds_ratio, told[key].interval, told[key].p, told[key].corrected) == (None,) * 4
        assert not told[key].significant
    assert table.rows[0].regressor == "0"
    assert any("4 tests are not estimable" in note for note in table.notes)


def test_one_active_record_among_many_is_separation() -> None:
    """The usual prototype that fires once: software would print a coefficient of 20 with a huge error."""
    y = np.array([0.0, 1.0] * 40)
    a = np.zeros((80, 1))
    a[1] = 1.0
    (row,) = association_table([family(a)], y[:, None], ["sick"]).rows
    assert row.status == "not estimable: separated"
    a[0] = 1.0
    (row,) = association_table([family(a)], y[:, None], ["sick"]).rows
    assert row.p == pytest.approx(1.0)


def test_separation_by_two_columns_together_is_seen() -> None:
    draw = np.random.default_rng(4)
    u, v = draw.standard_normal((2, 200))
    y = (u + v > 0).astype(float)
    (row,) = association_table([family(u[:, None])], y[:, None], ["sick"], v[:, None]).rows
    assert row.status == "not estimable: separated"
    y[:4] = 1 - y[:4]
    (row,) = association_table([family(u[:, None])], y[:, None], ["sick"], v[:, None]).rows
    assert row.p is not None
    assert separated(np.ones((3, 1)), np.ones(3))


def test_a_column_with_few_large_values_is_still_fitted() -> None:
    """Newton's method steps too far here when it starts from the covariates alone."""
    draw = np.random.default_rng(0)
    a = (np.arange(5000) < 4).astype(float)[:, None]
    y = (draw.random(5000) < 0.02).astype(float)
    y[:4] = [1, 1, 0, 0]
    (row,) = association_table([family(a)], y[:, None], ["sick"]).rows
    assert row.odds_ratio is not None and row.interval is not None
    odds = (y[4:] == 0).sum() / (y[4:] == 1).sum()  # of 2 to 2, over those of the rest
    error = np.sqrt(0.5 + 0.5 + 1 / (y[4:] == 0).sum() + 1 / (y[4:] == 1).sum())
    assert np.log(row.odds_ratio) / a.std() == pytest.approx(np.log(odds), rel=1e-4)
    assert np.log(row.interval[1] / row.odds_ratio) / a.std() == pytest.approx(1.959964 * error, rel=1e-4)


def test_covariates_that_separate_a_label_take_all_its_tests() -> None:
    draw, a = drawn(100, 2)
    y = np.column_stack([np.arange(100) < 50, draw.random(100) < 0.5]).astype(float)
    table = association_table([family(a)], y, ["by site", "free"], y[:, :1])
    assert all(
        row.status.startswith("not estimable: the covariates alone") for row in table.rows if row.label == "by site"
    )
    assert all(row.p is not None for row in table.rows if row.label == "free")


def test_a_strong_but_estimable_association_keeps_its_number() -> None:
    draw = np.random.default_rng(0)
    a = draw.standard_normal((400, 1)) * 3
    y = (draw.random(400) < sigmoid(6 * a[:, 0])).astype(float)[:, None]
    (row,) = association_table([family(a)], y, ["sick"]).rows
    assert not separated(np.column_stack([standardised(a), np.ones(400)]), y[:, 0])
    assert row.odds_ratio is not None and row.odds_ratio > 1000


def test_rare_labels_are_dropped_and_missing_records_counted() -> None:
    draw, a = drawn(200, 2)
    labels = (draw.random((200, 3)) < 0.5).astype(float)
    labels[:, 1] = np.arange(200) < 7
    labels[:50, 2] = np.nan
    table = association_table([family(a)], labels, ["ok", "rare", "patchy"])
    assert {row.label for row in table.rows} == {"ok", "patchy"}
    assert table.dropped == {"rare": "7 of 200 records have it; fewer than 20 on one side"}
    assert table.missing == {"patchy": 50}
    assert row_of(table, "0", "patchy").n == 150
    assert any("rare" in note for note in table.notes)
    labels[:, 1] = 1.0
    assert "rare" in association_table([family(a)], labels, ["ok", "rare", "patchy"], least=1).dropped


def test_nothing_to_test_is_an_empty_table() -> None:
    table = association_table([family(np.zeros((3, 2)))], np.ones((3, 1)), ["sick"])
    assert (table.rows, table.tests, table.significant()) == ((), 0, ())
    assert table.csv_text().count("\n") == 1
    none = association_table([family(np.zeros((0, 2)))], np.zeros((0, 1)), ["sick"])
    assert none.rows == ()
    assert "regressor" in none.text()


def test_wrong_input_is_named() -> None:
    a, y = np.zeros((30, 2)), np.zeros((30, 1))
    with pytest.raises(UsageError, match="bonferroni"):
        association_table([family(a)], y, ["s"], correction="bonferoni")
    with pytest.raises(UsageError, match="one column a name"):
        association_table([family(a)], y, ["s", "t"])
    with pytest.raises(UsageError, match="0, 1 or NaN"):
        association_table([family(a)], y + 2, ["s"])
    with pytest.raises(UsageError, match="29 records in covariates"):
        association_table([family(a)], y, ["s"], np.zeros((29, 1)))
    with pytest.raises(DataError, match="same twice"):
        association_table([family(a)], y, ["s"], np.repeat(np.arange(30.0)[:, None], 2, 1))
    with pytest.raises(DataError, match="finite"):
        association_table([family(a)], y, ["s"], np.full((30, 1), np.nan))
    with pytest.raises(DataError, match="two groups"):
        association_table([family(a)], y, ["s"], groups=["x"] * 30)
    with pytest.raises(UsageError, match="one name"):
        association_table([family(a), family(a)], y, ["s"])
    with pytest.raises(UsageError, match="alpha"):
        association_table([family(a)], y, ["s"], alpha=1.5)
    with pytest.raises(DataError, match="prototype 1 holds NaN"):
        family(np.array([[0.0, np.nan]]))


def test_a_missing_statsmodels_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.api", None)
    draw, a = drawn(60, 1)
    with pytest.raises(MissingExtra, match=r"protolearn\[association\]"):
        association_table([family(a)], (draw.random((60, 1)) < 0.5).astype(float), ["sick"])


def test_the_csv_says_what_the_table_says() -> None:
    draw, a = drawn(100, 2)
    owned = Regressors("prototype", ("7", "9"), np.column_stack([a[:, 0], np.ones(100)]), ("cat", "dog"), ("a.png", ""))
    table = association_table([owned], (draw.random((100, 1)) < 0.5).astype(float), ["sick"])
    first, last = csv.DictReader(io.StringIO(table.csv_text()))
    assert (first["regressor"], first["owner"], first["source"], first["status"]) == ("7", "cat", "a.png", "")
    assert float(first["odds_ratio"]) == pytest.approx(table.rows[0].odds_ratio, rel=1e-7)
    assert (last["odds_ratio"], last["p"], last["significant"]) == ("", "", "0")
    assert table.to_dict()["rows"][1]["p"] is None


# -- spread of classes ----------------------------------------------------------------------------------------------


def test_distances_within_classes_are_means_over_pairs() -> None:
    vectors = torch.randn(9, 5)
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 0])
    found = intra_class_distance(vectors, torch.nn.functional.one_hot(owner, 4))
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    for label in (0, 1):
        own = unit[owner == label]
        pairs = [1 - float(own[i] @ own[j]) for i in range(len(own)) for j in range(i)]
        assert float(found[label]) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found[2:].isnan().all()
    usable = torch.ones(9, dtype=torch.bool)
    usable[1:3] = False
    assert float(intra_class_distance(vectors, torch.nn.functional.one_hot(owner), usable)[0]) == pytest.approx(
        1 - float(unit[0] @ unit[8])
    )
    with pytest.raises(UsageError, match=r"\(P, D\)"):
        intra_class_distance(vectors, torch.zeros(3, 2))


def test_distinct_prototypes_are_farther_apart_than_duplicates() -> None:
    vectors = torch.randn(4, 8)
    twins = torch.stack([vectors[0], vectors[0], vectors[0], vectors[0]])
    owned = torch.ones(4, 1)
    steps = [intra_class_distance(torch.cat([vectors[:k], twins[k:]]), owned).item() for k in range(1, 5)]
    assert steps[0] == pytest.approx(0.0, abs=1e-7)
    assert steps == sorted(steps) and steps[-1] > 0.3


def association(owner: str, label: str, significant: bool, p: float | None = 0.5) -> Association:
    return Association("prototype", "0", owner, "", label, 100, 30, 2.0, (1.0, 4.0), p, p, significant)


def test_mixed_classes_are_compared_with_uniform_ones() -> None:
    rows, far = [], []
    for c in range(12):
        mixed = c % 2 == 0
        rows += [association(str(c), "x", True), association(str(c), "x", not mixed)]
        rows += [association(str(c), "y", False), association(str(c), "y", False)]
        far.append(0.6 + 0.01 * c if mixed else 0.1 + 0.01 * c)
    found = heterogeneity(rows, torch.tensor(far), list(map(str, range(12))))
    assert found.mixed == tuple(map(str, range(0, 12, 2)))
    assert found.silent == ()
    assert found.p is not None and found.p < 0.01
    assert (found.statistic, found.effect) == (36.0, 1.0)
    alike = heterogeneity(rows, torch.full((12,), 0.3), list(map(str, range(12))))
    assert alike.effect == 0.5 and alike.p == pytest.approx(1.0, abs=0.1)


def test_heterogeneity_with_nothing_to_compare_says_so() -> None:
    rows = [association("a", "x", False), association("a", "x", False), association("b", "x", False, None)]
    found = heterogeneity(rows, torch.tensor([0.2, 0.3]), ["a", "b"])
    assert (found.uniform, found.silent, found.mixed, found.p) == (("a",), ("a",), (), None)
    assert "no class is mixed" in found.note
    assert heterogeneity([], torch.tensor([float("nan")]), ["a"]).uniform == ()
    assert found.to_dict()["uniform"] == ["a"]


# -- foretelling ----------------------------------------------------------------------------------------------------


def test_auroc_equals_scikit_learn_with_and_without_weights() -> None:
    draw = np.random.default_rng(0)
    scores, labels = draw.integers(0, 12, 90) / 3, draw.random(90) < 0.3
    weights = draw.integers(0, 3, (4, 90)).astype(float)
    one = auroc(torch.from_numpy(scores), torch.from_numpy(labels))
    assert one.tolist() == pytest.approx([roc_auc_score(labels, scores)])
    found = auroc(torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(weights))
    assert found.tolist() == pytest.approx([roc_auc_score(labels, scores, sample_weight=w) for w in weights])


def test_foretelling_is_judged_on_other_patients_only() -> None:
    draw, a = drawn(400, 5)
    groups = np.repeat(np.arange(100), 4)
    y = (draw.random(400) < sigmoid(2 * a[:, 2])).astype(float)
    held = groups >= 60
    how: Any = {"generator": torch.Generator().manual_seed(0)}
    labels = np.column_stack([y, draw.random(400) < 0.5])
    found = foretell([family(a), family(a[:, :2], "other")], labels, ["planted", "noise"], held, groups, **how)
    told = {(each.family, each.label): each for each in found}
    planted, noise, blind = (told[k] for k in [("prototype", "planted"), ("prototype", "noise"), ("other", "planted")])
    assert planted.auroc is not None and planted.interval is not None and planted.interval[0] > 0.7
    assert noise.interval is not None and noise.interval[0] < 0.5 < noise.interval[1]
    assert blind.auroc is not None and blind.auroc < 0.65
    assert (planted.train, planted.test) == (240, 160)
    held[1] = True
    with pytest.raises(UsageError, match="'0' has records in both parts"):
        foretell([family(a)], labels, ["planted", "noise"], held, groups, **how)


def test_too_few_records_have_no_figure() -> None:
    _, a = drawn(60, 2)
    labels = np.zeros((60, 1))
    labels[:5] = 1
    how: Any = {"generator": torch.Generator().manual_seed(0)}
    (found,) = foretell([family(a)], labels, ["rare"], np.arange(60) % 2 == 0, **how)
    assert (found.auroc, found.interval) == (None, None)
    assert "fewer than 10" in found.status
    assert found.to_dict()["interval"] is None
