"""Routing, mixture, leaf rule and pruning of a prototype tree against numbers made elsewhere (README.md says how)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.matching import all_matches, best_match
from protolearn.core.measures import squared_l2
from protolearn.core.similarities import ExponentialRoot
from protolearn.core.trees import TreeHead
from protolearn.objectives.classification import negative_log_likelihood

Reference = Callable[[str], dict[str, np.ndarray]]
Numbers = dict[str, Tensor]


def arrays(reference: Reference, name: str) -> Numbers:
    return {key: torch.from_numpy(value) for key, value in reference(name).items()}


@pytest.fixture
def want(reference: Reference) -> Numbers:
    return arrays(reference, "prototree")


def similarities(want: Numbers) -> Tensor:
    tokens = want["features"].flatten(2).transpose(1, 2)
    return ExponentialRoot()(best_match(tokens, want["prototypes"], squared_l2)[0])


def tree(params: Tensor, *, log_space: bool = True) -> TreeHead:
    head = TreeHead.complete(len(params).bit_length() - 1, params.shape[1], log_space=log_space).double()
    head.leaves.copy_(params)
    return head


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


def test_similarity(want: Numbers) -> None:
    tokens = want["features"].flatten(2).transpose(1, 2)
    table = ExponentialRoot()(all_matches(tokens, want["prototypes"], squared_l2))
    close(table.transpose(1, 2), want["similarity_map"].flatten(2))
    close(similarities(want), want["pooled"])


def test_the_numbering_is_the_references(want: Numbers) -> None:
    head = tree(want["leaf_params"])
    for leaf, (nodes, ways) in enumerate(zip(want["leaf_path"].tolist(), want["leaf_dir"].tolist(), strict=True)):
        steps = head.path(torch.zeros(3), leaf)
        assert [(step.node, int(step.present)) for step in steps] == list(zip(nodes, ways, strict=True))


@pytest.mark.parametrize("log_space", [True, False])
def test_soft_routing(want: Numbers, log_space: bool) -> None:
    head, s = tree(want["leaf_params"], log_space=log_space), similarities(want)
    close(head.reach(s)[1].exp(), want["leaf_probability"], 1e-7)
    close(head.leaf_distributions(), want["leaf_distribution"])
    close(head(s), want["prediction"], 1e-7)
    close(negative_log_likelihood(head.log_scores(s), want["labels"]), want["nll"], 1e-7)


def test_hard_routing(want: Numbers) -> None:
    """The package's greedy routing returns the most probable leaf; the paper's follows the likelier side."""
    head, s = tree(want["leaf_params"]), similarities(want)
    close(head.routed(s, "max_leaf"), want["prediction_max_leaf"])
    close(head.routed(s, "greedy"), want["prediction_greedy_paper"])
    assert torch.equal(head.hard_leaf(s, "greedy"), want["greedy_leaf"].argmax(1))


def test_leaf_rule(want: Numbers) -> None:
    head, s, steps = tree(want["leaf_params"]), similarities(want), int(want["n_batches"])
    for _ in range(steps):
        head.adapt(s, want["labels"], steps)
    close(head.leaves, want["leaf_params_after"], 1e-6)


def test_pruning(reference: Reference) -> None:
    want = arrays(reference, "prototree_pruned")
    head, s = tree(want["leaf_params"]), similarities(want)
    close(head(s), want["prediction"], 1e-7)
    bank = PrototypeBank(want["prototypes"], torch.zeros(len(want["prototypes"]), 1))
    gone = head.trim(float(want["threshold"])).tolist()
    kept = torch.tensor([row for row in range(len(bank)) if row not in gone])
    assert kept.tolist() == want["prototypes_left"].tolist()
    head.keep(kept)
    close(head.leaves, want["leaf_params"][want["leaves_left"]], 0.0)
    close(head(s[:, kept]), want["prediction_after"], 1e-7)
    close(head.routed(s[:, kept], "max_leaf"), want["prediction_max_leaf_after"], 1e-7)
