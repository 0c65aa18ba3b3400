"""Splits keep their promises; unfair ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from protolearn.data import (
    arrays,
    check_pair,
    check_training,
    duplicates,
    folder,
    group_split,
    stratified_split,
    train_test,
)
from protolearn.errors import DataError, UsageError

label_lists = st.lists(st.integers(-1, 4), min_size=1, max_size=60)
shares = st.floats(0.05, 0.95)


@given(label_lists, shares, st.integers(0, 5))
def test_stratified_split(labels: list[int], share: float, seed: int) -> None:
    train, test = stratified_split(labels, share, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    values = np.array(labels)
    for label in set(labels):
        count, held = (values == label).sum(), (values[test] == label).sum()
        assert abs(held - share * count) <= 1
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
    again = stratified_split(labels, share, seed)
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], test)


def test_the_seed_chooses() -> None:
    labels = [0] * 50 + [1] * 50
    assert not np.array_equal(stratified_split(labels, seed=0)[1], stratified_split(labels, seed=1)[1])


def test_with_ids_order_does_not_matter_and_a_dropped_case_moves_few() -> None:
    ids = [f"c/{i}.png" for i in range(200)]
    held = {ids[i] for i in stratified_split([0] * 200, ids=ids)[1]}
    order = np.random.default_rng(0).permutation(200)
    mixed = [ids[i] for i in order]
    assert {mixed[i] for i in stratified_split([0] * 200, ids=mixed)[1]} == held
    fewer = {ids[1:][i] for i in stratified_split([0] * 199, ids=ids[1:])[1]}
    assert len(held ^ fewer) <= 2
    with pytest.raises(DataError, match="3 labels and 1 ids"):
        stratified_split([0, 0, 0], ids=["a"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=60), shares, st.integers(0, 3))
def test_groups_are_never_on_both_sides(cases: list[tuple[int, int]], share: float, seed: int) -> None:
    labels, groups = [label for label, _ in cases], [f"p{group}" for _, group in cases]
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="at least two"):
            group_split(labels, groups, share, seed)
        return
    train, test = group_split(labels, groups, share, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(train)
    assert len(test)
    assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_groups_are_stratified_where_they_can_be() -> None:
    groups = [f"p{i // 5}" for i in range(200)]
    labels = [(i // 5) % 2 for i in range(200)]
    train, test = group_split(labels, groups, 0.25)
    assert len(test) == 50
    assert abs(np.mean(np.array(labels)[test]) - 0.5) <= 0.1
    assert abs(np.mean(np.array(labels)[train]) - 0.5) <= 0.1


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_the_share_is_checked(share: float) -> None:
    with pytest.raises(UsageError, match="held-out share must lie between 0 and 1"):
        stratified_split([0, 1], share)
    with pytest.raises(UsageError, match="held-out share must lie between 0 and 1"):
        group_split([0, 1], ["a", "b"], share)


def made(labels: list[int], **fields: object) -> object:
    pictures = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    return arrays(pictures, labels, classes=["a", "b", "c"], **fields)


def test_train_test_takes_own_parts_then_groups_then_strata() -> None:
    labels = [0, 1] * 10
    own = made(labels, splits=["train"] * 15 + ["val"] * 5)
    train, test = train_test(own)
    assert (train.ids, test.ids) == (own.ids[:15], own.ids[15:])
    grouped = made(labels, groups=[f"p{i // 4}" for i in range(20)])
    train, test = train_test(grouped)
    assert not set(train.groups) & set(test.groups)
    train, test = train_test(made(labels))
    assert test.counts() == {"a": 2, "b": 2, "c": 0}
    with pytest.raises(DataError, match="comes in the parts left, right: expected train and test"):
        train_test(made([0, 1], splits=["left", "right"]))


def test_duplicates_are_found_by_content(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(4)]
    for part, indices in (("train", (0, 1, 0)), ("test", (2, 1, 3))):
        (tmp_path / part / "a").mkdir(parents=True)
        for place, i in enumerate(indices):
            ending = "png" if part == "train" else "bmp"  # another file, the same picture
            pictures[i].save(tmp_path / part / "a" / f"{place}.{ending}")
    train, test = folder(tmp_path, "train"), folder(tmp_path, "test")
    assert duplicates(train, test) == [("train/a/1.png", "test/a/1.bmp")]
    assert duplicates(train) == [("train/a/0.png", "train/a/2.png")]
    assert duplicates(test) == []
    warned = check_pair(train, test)
    assert len(warned) == 1
    assert "1 pictures of" in warned[0]
    assert "test/a/1.bmp = train/a/1.png" in warned[0]


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(DataError, match="holds no cases: nothing to train on"):
        check_training(made([0, 1]).subset([]))
    with pytest.raises(DataError, match="has one class, 'b': telling apart needs at least two"):
        check_training(made([1, 1, 1]))
    with pytest.raises(DataError, match="has no labels: training needs a class"):
        check_training(made([-1, -1]))
    assert check_training(made([0, 1, 2, 0, 1, 2])) == []
    single, missing, unlabelled = made([0, 0, 1]), made([0, 0, 1, 1]), made([0, 0, 1, 1, 2, 2, -1])
    assert any("only one picture of 'b'" in warning for warning in check_training(single))
    assert check_training(missing) == ["arrays: no picture of 'c'"]
    assert check_training(unlabelled) == ["arrays: 1 of 7 pictures have no label"]
    assert check_training(made([-1, -1]), labels=False) == []
    with pytest.raises(DataError, match="no cases"):
        check_training(made([0, 1]).subset([]), labels=False)


def test_pairs_that_do_not_fit_are_refused() -> None:
    cases = made([0, 0, 1, 1, 2, 2], groups=["p", "q", "p", "q", "p", "q"])
    with pytest.raises(DataError, match=r"has pictures of 'c', unseen in"):
        check_pair(cases.subset([0, 2]), cases.subset([1, 3, 5]))
    with pytest.raises(DataError, match=r"match them by name with test\.with_classes"):
        check_pair(cases, cases.subset([0]).with_classes(["c", "b", "a"]))
    assert check_pair(cases.subset([0, 2, 4]), cases.subset([1, 3, 5])) == []
    assert check_pair(cases.subset([0, 2, 4, 1]), cases.subset([3, 5])) == [
        "1 groups are in both arrays and arrays: 'q'"
    ]
