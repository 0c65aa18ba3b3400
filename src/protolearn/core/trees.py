"""A binary tree of prototypes as a head: present goes right, absent goes left, a leaf says how likely each class is.

Source: ProtoTree (Nauta et al., CVPR 2021), after soft decision trees (Frosst and Hinton, 2017) and the rule that
moves leaves without a gradient (Kontschieder et al., 2015).

How a tree is stored, and the ways through it, are in :mod:`~protolearn.core.routing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.heads import Head, resize_to
from protolearn.core.routing import Level, complete_tree, follow, halves, leaf_rule, levels_of, responsibilities, route
from protolearn.errors import UsageError

_SOME = 1e-2
"""What every class has in every leaf beside its counts, where counts are divided by their sum."""

HardRouting = Literal["max_leaf", "greedy"]
"""``max_leaf``: to the most probable leaf. ``greedy``: at every node to the likelier side."""
Routing = Literal["soft", "max_leaf", "greedy"]


@dataclass(frozen=True)
class Step:
    """One decision on the way to a leaf.

    Attributes
    ----------
    node : int
        Row of the node, which is the row of its prototype.
    similarity : float
        How present the prototype is, from 0 to 1.
    present : bool
        The way that was taken.
    probability : float
        Of that way: the similarity, or one minus it.
    """

    node: int
    similarity: float
    present: bool
    probability: float


@runtime_checkable
class Branching(Protocol):
    """What a head with a tree offers to whoever draws it or retells a decision."""

    left: Tensor
    right: Tensor
    root: Tensor

    def leaf_distributions(self) -> Tensor:
        """Return ``(L, C)``."""

    def hard_leaf(self, evidence: Tensor, routing: HardRouting) -> Tensor:
        """Return ``(B,)`` the leaf that each case is sent to."""

    def path(self, evidence: Tensor, leaf: int) -> list[Step]:
        """Return the decisions of one case, evidence ``(P,)``, on the way to a leaf."""

    def routed(self, evidence: Tensor, routing: Routing) -> Tensor:
        """Return ``(B, C)`` probabilities."""


class TreeHead(Head):
    """A soft decision tree over similarities between 0 and 1; its scores are the probabilities of the classes.

    A score is the value of the root, which says nothing about the case, plus one contribution a prototype: the
    probability of reaching its node, times how far its similarity is from a half, times what the decision is worth.

    Parameters
    ----------
    left, right : Tensor
        ``(N,)`` codes of the children, see the module.
    leaves : Tensor
        ``(L, C)`` parameters >= 0 whose softmax is a leaf's distribution; moved by :meth:`adapt`, never by a gradient.
    root : int
        Code of the first node.
    normalised : bool
        Divide a leaf's parameters by their sum in place of the softmax (Kontschieder et al.): counts of few cases then
        say as much as counts of many.
    log_space : bool
        Mix the leaves in the logarithm, which cannot vanish, or as a product of probabilities, which is faster.

    Examples
    --------
    >>> head = TreeHead.complete(depth=1, classes=2)
    >>> head.leaves.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]])).shape
    torch.Size([2, 2])
    >>> head(torch.tensor([[0.8]]))
    tensor([[0.2000, 0.8000]])
    >>> head.offset(), head.contributions(torch.tensor([[0.8]]))
    (tensor([0.5000, 0.5000]), tensor([[[-0.3000],
             [ 0.3000]]]))
    """

    score_name: ClassVar[str] = "probability"

    left: Tensor
    right: Tensor
    root: Tensor
    leaves: Tensor
    before: Tensor
    done: Tensor
    sized_apart = ("left", "right", "leaves", "before")

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        leaves: Tensor,
        *,
        root: int = 0,
        normalised: bool = False,
        log_space: bool = True,
    ) -> None:
        super().__init__()
        if left.shape != right.shape or left.ndim != 1 or leaves.ndim != 2:
            raise ValueError(
                f"a tree needs two children for each of N nodes and leaves (L, C), got {tuple(left.shape)}, "
                f"{tuple(right.shape)}, {tuple(leaves.shape)}"
            )
        self.register_buffer("left", left.clone())
        self.register_buffer("right", right.clone())
        self.register_buffer("root", torch.tensor(root))
        self.register_buffer("leaves", leaves.clone())
        self.register_buffer("before", leaves.clone())
        self.register_buffer("done", torch.tensor(0))
        self.normalised, self.log_space = normalised, log_space
        self._levels: tuple[Level, ...] | None = None

    @classmethod
    def complete(cls, depth: int, classes: int, **options: bool) -> TreeHead:
        """Make a complete tree whose leaves say nothing yet."""
        left, right = complete_tree(depth)
        return cls(left, right, torch.zeros(2**depth, classes), **options)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The tree, level by level."""
        if self._levels is None or (self._levels and self._levels[0].nodes.device != self.left.device):
            self._levels = levels_of(self.left, self.right, self.root)
        return self._levels

    def leaf_distributions(self) -> Tensor:
        """Return ``(L, C)`` probabilities."""
        return self.log_leaves().exp()

    def log_leaves(self) -> Tensor:
        """Return ``(L, C)`` log-probabilities; a leaf of zeros says nothing."""
        if not self.normalised:
            return self.leaves.log_softmax(1)
        some = self.leaves + _SOME
        return (some / some.sum(1, keepdim=True)).log()

    # -- soft -----------------------------------------------------------------------------------------------------

    def forward(self, evidence: Tensor) -> Tensor:
        """Return probabilities ``(B, C)``."""
        if self.log_space:
            return self.log_scores(evidence).exp()
        return self.reach(evidence)[1].exp() @ self.leaf_distributions()

    def log_scores(self, evidence: Tensor) -> Tensor:
        """Return log-probabilities ``(B, C)``."""
        if not self.log_space:
            mixed: Tensor = self(evidence)
            return mixed.clamp_min(torch.finfo(evidence.dtype).tiny).log()
        log_leaf = self.reach(evidence)[1]
        return torch.logsumexp(log_leaf.unsqueeze(2) + self.log_leaves(), 1)

    def reach(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of reaching every node ``(B, N)`` and every leaf ``(B, L)``."""
        if not self.levels:
            ends = evidence.new_full((len(evidence), len(self.leaves)), float("-inf"))
            ends[:, -1 - int(self.root)] = 0.0
            return torch.full_like(evidence, float("-inf")), ends
        present = _inside(evidence)
        return route((-present).log1p(), present.log(), self.levels, len(self.leaves))

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``(B, C, P)``: P(node) (s - 1/2) (value to the right - value to the left)."""
        worth, _ = self._worth()
        pull = self.reach(evidence)[0].exp() * (_inside(evidence) - 0.5)
        return pull.unsqueeze(1) * worth.T

    def offset(self) -> Tensor:
        """Return the value of the root: what the tree says when every prototype is half present."""
        return self._worth()[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the scores, which are probabilities."""
        return logits / logits.sum(1, keepdim=True)

    def per_unit(self, count: int, usable: Tensor | None = None) -> Tensor | None:
        """Return None: what a prototype adds depends on the others."""
        return None

    def _worth(self) -> tuple[Tensor, Tensor]:
        leaves = self.leaf_distributions()
        if not self.levels:
            return leaves.new_zeros(len(self.left), leaves.shape[1]), leaves[-1 - int(self.root)]
        return halves(self.levels, leaves, len(self.left))

    def predicted_below(self) -> Tensor:
        """Return ``(N, C)`` 0 or 1: the classes that are most probable in some leaf below each node."""
        leaves = F.one_hot(self.leaves.argmax(1), self.leaves.shape[1]).to(self.leaves)
        reached = leaves.new_zeros(len(self.left), leaves.shape[1])
        for level in reversed(self.levels):
            for codes in (self.left[level.nodes], self.right[level.nodes]):
                inner = (codes >= 0).unsqueeze(1)
                below = torch.where(inner, reached[codes.clamp_min(0)], leaves[(-1 - codes).clamp_min(0)])
                reached[level.nodes] = torch.maximum(reached[level.nodes], below)
        return reached

    # -- hard -----------------------------------------------------------------------------------------------------

    def hard_leaf(self, evidence: Tensor, routing: HardRouting) -> Tensor:
        """Return ``(B,)`` the one leaf that each case is sent to."""
        if routing == "max_leaf":
            return self.reach(evidence)[1].argmax(1)
        if routing == "greedy":
            return follow(evidence, self.left, self.right, self.root, len(self.levels))
        raise UsageError(f"routing must be 'max_leaf' or 'greedy', got {routing!r}")

    def routed(self, evidence: Tensor, routing: Routing) -> Tensor:
        """Return probabilities ``(B, C)``: of all leaves (``soft``), or those of one leaf."""
        if routing == "soft":
            mixed: Tensor = self(evidence)
            return mixed
        return self.leaf_distributions()[self.hard_leaf(evidence, routing)]

    def path(self, evidence: Tensor, leaf: int) -> list[Step]:
        """Return the decisions of one case, evidence ``(P,)``, on the way to a leaf, from the root down."""
        above: dict[int, tuple[int, bool]] = {}
        for node, (absent, present) in enumerate(zip(self.left.tolist(), self.right.tolist(), strict=True)):
            above[absent], above[present] = (node, False), (node, True)
        steps: list[Step] = []
        code, root = -1 - leaf, int(self.root)
        while code != root:
            if code not in above:
                raise UsageError(f"no way leads to leaf {leaf}")
            code, present = above[code]
            s = float(evidence[code])
            steps.append(Step(code, s, present, s if present else 1.0 - s))
        return steps[::-1]

    # -- change ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, evidence: Tensor, labels: Tensor, steps: int) -> None:
        """Move the leaves by the rule after a batch, :func:`leaf_rule`; ``steps`` batches are an epoch."""
        if int(self.done) % max(steps, 1) == 0:
            self.before.copy_(self.leaves)
        self.done += 1
        explained = responsibilities(self.reach(evidence)[1], self.log_leaves(), labels)
        self.leaves.copy_(leaf_rule(self.leaves, self.before, explained, labels, max(steps, 1)))

    @torch.no_grad()
    def trim(self, threshold: float) -> Tensor:
        """Cut off leaves that are unsure, and subtrees of nothing else; return ``(n,)`` the rows no longer reached.

        A leaf is unsure when none of its probabilities exceeds ``threshold``. What stood beside a cut subtree takes
        the place of the node above both. One node at least stays. The caller removes the rows from bank and head
        together (``PrototypeModel.prune``).
        """
        was = torch.cat([level.nodes for level in self.levels]) if self.levels else self.left[:0]
        unsure_leaf = self.leaf_distributions().amax(1) <= threshold
        unsure = torch.zeros_like(self.left, dtype=torch.bool)

        def told(codes: Tensor) -> Tensor:
            return torch.where(codes >= 0, unsure[codes.clamp_min(0)], unsure_leaf[(-1 - codes).clamp_min(0)])

        for level in reversed(self.levels):
            unsure[level.nodes] = told(self.left[level.nodes]) & told(self.right[level.nodes])
        left, right = self.left.clone(), self.right.clone()

        def settled(codes: Tensor) -> Tensor:
            for _ in range(len(self.levels)):
                node = codes.clamp_min(0)
                a, b = told(left[node]), told(right[node])
                codes = torch.where((codes >= 0) & (a != b), torch.where(a, right[node], left[node]), codes)
            return codes

        first = settled(self.root.reshape(1))[0]
        if bool(told(self.root.reshape(1))) or int(first) < 0:
            return was[:0]
        self.left, self.right, self.root, self._levels = settled(left), settled(right), first, None
        reached = torch.cat([level.nodes for level in self.levels])
        return was[~torch.isin(was, reached)]

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Keep only these nodes; one that goes counts as absent, so that its left child takes its place."""
        kept = torch.zeros_like(self.left, dtype=torch.bool)
        kept[rows] = True
        new = torch.zeros_like(self.left)
        new[rows] = torch.arange(len(rows), device=rows.device)

        def settled(codes: Tensor) -> Tensor:
            for _ in range(len(self.left)):
                gone = (codes >= 0) & ~kept[codes.clamp_min(0)]
                if not gone.any():
                    break
                codes = torch.where(gone, self.left[codes.clamp_min(0)], codes)
            return torch.where(codes >= 0, new[codes.clamp_min(0)], codes)

        codes = [settled(part) for part in (self.left[rows], self.right[rows], self.root.reshape(1))]
        ends = -1 - torch.cat(codes)
        used = torch.unique(ends[ends >= 0])
        place = torch.zeros(len(self.leaves), dtype=torch.long, device=rows.device)
        place[used] = torch.arange(len(used), device=rows.device)
        self.left, self.right, (self.root,) = (
            torch.where(part >= 0, part, -1 - place[(-1 - part).clamp_min(0)]) for part in codes
        )
        self.leaves, self.before, self._levels = self.leaves[used], self.before[used], None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, self.sized_apart)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._levels = None


def _inside(evidence: Tensor) -> Tensor:
    """Return similarities a rounding error away from 0 and 1, where both logarithms and their gradients are finite."""
    limits = torch.finfo(evidence.dtype)
    return evidence.clamp(limits.tiny, 1.0 - limits.eps)
