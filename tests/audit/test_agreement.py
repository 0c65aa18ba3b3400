from __future__ import annotations

from itertools import permutations

import pytest
import torch

from protolearn.audit.agreement import cosines, matched, set_overlaps, top_sets, varying
from protolearn.errors import UsageError


def test_matching_is_the_best_of_all() -> None:
    table = torch.rand(4, 5)
    found = matched(table)
    best = max(sum(float(table[i, j]) for i, j in enumerate(chosen)) for chosen in permutations(range(5), 4))
    assert float(found.values.sum()) == pytest.approx(best)
    assert len(set(found.other.tolist())) == 4
    assert matched(torch.zeros(0, 3)).mean is None
    with pytest.raises(UsageError, match="NaN"):
        matched(torch.full((1, 1), float("nan")))


def test_a_permuted_copy_is_found_again() -> None:
    vectors, order = torch.randn(12, 5), torch.randperm(12)
    found = matched(cosines(vectors, 2 * vectors[order]))
    assert found.mean == pytest.approx(1.0)
    assert torch.equal(order[found.other], found.one)
    with pytest.raises(UsageError, match="one width"):
        cosines(vectors, vectors[:, :2])


def test_sets_against_python_sets() -> None:
    scores, other = torch.rand(15, 4), torch.rand(15, 3)
    one, two = top_sets(scores, 5), top_sets(other, 6)
    found = set_overlaps(one, two, 15)
    for i in range(4):
        assert one[i].tolist() == sorted(range(15), key=lambda n: -float(scores[n, i]))[:5]
        for j in range(3):
            a, b = set(one[i].tolist()), set(two[j].tolist())
            assert float(found[i, j]) == pytest.approx(len(a & b) / len(a | b))
    assert top_sets(torch.zeros(3, 1), 2).tolist() == [[0, 1]]
    assert top_sets(scores, 99).shape == (4, 15)
    with pytest.raises(UsageError, match="n must be"):
        top_sets(scores, 0)


def test_prototypes_that_never_vary() -> None:
    scores = torch.tensor([[1.0, 0.0, float("nan")], [2.0, 0.0, 1.0]])
    assert varying(scores).tolist() == [True, False, False]
    assert not varying(torch.zeros(0, 2)).any()
