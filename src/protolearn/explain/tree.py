"""A head that is a tree, retold: which prototypes a case was asked for, and where that led.

Works for any head that branches (``core.trees.Branching``); :mod:`~protolearn.explain.tree_picture` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protolearn.core.model import PrototypeModel
from protolearn.core.trees import Branching, HardRouting
from protolearn.errors import UsageError
from protolearn.explain.lettering import share
from protolearn.explain.passes import CaseList, run_over
from protolearn.explain.regions import Cells
from protolearn.structures import Box, Source


@dataclass(frozen=True)
class Decision:
    """One question on the way: is this prototype there? ``probability`` is that of the way taken."""

    prototype: int
    similarity: float
    present: bool
    probability: float
    position: int
    region: Box | None
    source: Source | None


@dataclass(frozen=True)
class Route:
    """The way of one case to one leaf.

    Attributes
    ----------
    case : str
        Id.
    routing : str
        ``greedy`` or ``max_leaf``.
    predicted : int
        Most probable class of the leaf.
    distribution : tuple of float
        What the leaf says, one probability a class.
    probability : float
        Of the whole way: the product over its decisions.
    decisions : tuple of Decision
        From the root down.
    soft : int
        What all leaves together predict.
    """

    case: str
    routing: HardRouting
    predicted: int
    distribution: tuple[float, ...]
    probability: float
    decisions: tuple[Decision, ...]
    soft: int

    def told(self, classes: Sequence[str]) -> list[str]:
        """Return the way in words, one line a decision and one for the leaf."""
        lines = [
            f"prototype {d.prototype} is {'present' if d.present else 'absent'} (similarity {share(d.similarity)})"
            for d in self.decisions
        ]
        return [*lines, f"then it is {classes[self.predicted]} with probability {share(max(self.distribution))}"]


@dataclass(frozen=True)
class Routings:
    """How single ways compare with the mixture of all: accuracy of each, and how often they agree with the mixture."""

    accuracy: dict[str, float]
    fidelity: dict[str, float]
    mean_length: dict[str, float]


def branching(model: PrototypeModel) -> Branching:
    """Return a model's head, if it is a tree.

    Raises
    ------
    UsageError
        If it is none.
    """
    if not isinstance(model.head, Branching):
        raise UsageError(f"a {type(model.head).__name__} has no tree to draw or to follow")
    return model.head


def routes(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    routing: HardRouting = "greedy",
    batch_size: int = 64,
) -> list[Route]:
    """Return the way of each case through the tree.

    Parameters
    ----------
    model : PrototypeModel
        With a head that branches.
    cases : Cases
        Of any kind the library knows.
    indices : sequence of int, optional
        Which; all by default.
    routing : {"greedy", "max_leaf"}
        At every node to the likelier side, or to the most probable leaf.
    batch_size : int
        Cases at a time.
    """
    head = branching(model)
    leaves, ids = head.leaf_distributions().double().cpu(), model.bank.ids.tolist()
    found: list[Route] = []
    for seen in run_over(model, cases, indices, batch_size=batch_size):
        out = seen.output
        assert out.tokens is not None  # a whole pass keeps them
        cells = Cells(out.tokens, getattr(model.encoder, "preprocess", None))
        for b, leaf in enumerate(head.hard_leaf(out.evidence, routing).tolist()):
            steps = head.path(out.evidence[b], leaf)
            decisions, probability = [], 1.0
            for step in steps:
                position = int(out.positions[b, step.node])
                region = cells.box(position, seen.sizes[b])
                source = model.bank.sources[step.node]
                decisions.append(
                    Decision(ids[step.node], step.similarity, step.present, step.probability, position, region, source)
                )
                probability *= step.probability
            says = tuple(leaves[leaf].tolist())
            soft = int(out.logits[b].argmax())
            name = str(cases.ids[seen.indices[b]])
            best = max(range(len(says)), key=says.__getitem__)
            found.append(Route(name, routing, best, says, probability, tuple(decisions), soft))
    return found


def compare_routings(model: PrototypeModel, cases: CaseList, *, batch_size: int = 64) -> Routings:
    """Return accuracy, agreement with the mixture and length of the way, for soft and both hard routings.

    Cases without a label count for agreement and length only.
    """
    head = branching(model)
    lengths = torch.tensor(_depths(head), dtype=torch.float64)
    right = dict.fromkeys(("soft", "max_leaf", "greedy"), 0)
    same, length = {"max_leaf": 0, "greedy": 0}, {"max_leaf": 0.0, "greedy": 0.0}
    labelled = total = 0
    for seen in run_over(model, cases, batch_size=batch_size):
        evidence, known = seen.output.evidence, seen.labels >= 0
        labelled, total = labelled + int(known.sum()), total + len(known)
        soft = head.routed(evidence, "soft").argmax(1)
        right["soft"] += int(((soft == seen.labels) & known).sum())
        hard: HardRouting
        for hard in ("max_leaf", "greedy"):
            leaf = head.hard_leaf(evidence, hard)
            said = head.leaf_distributions()[leaf].argmax(1)
            right[hard] += int(((said == seen.labels) & known).sum())
            same[hard] += int((said == soft).sum())
            length[hard] += float(lengths[leaf.cpu()].sum())
    return Routings(
        {name: count / max(labelled, 1) for name, count in right.items()},
        {name: count / max(total, 1) for name, count in same.items()},
        {name: count / max(total, 1) for name, count in length.items()},
    )


def _depths(head: Branching) -> list[int]:
    """Return how many decisions lie above each leaf."""
    left, right = head.left.tolist(), head.right.tolist()
    depths = [0] * len(head.leaf_distributions())
    ahead = [(int(head.root), 0)]
    while ahead:
        code, depth = ahead.pop()
        if code < 0:
            depths[-1 - code] = depth
        else:
            ahead += [(left[code], depth + 1), (right[code], depth + 1)]
    return depths
