"""Binary trees as three arrays of integers, and the ways through them, level by level.

``left`` and ``right`` ``(N,)`` hold the codes of each inner node's children, and ``root`` the code of the first. A code
of 0 or more is the row of an inner node, which is the row of its prototype in the bank; a negative code ``-1 - l`` is
leaf ``l``. Routing goes level by level, all nodes of a level at once, in the logarithm, so that a path of many small
probabilities does not vanish.

Source: ProtoTree (Nauta et al., CVPR 2021), after soft decision trees (Frosst and Hinton, 2017) and the rule that
moves leaves without a gradient (Kontschieder et al., 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Level:
    """All nodes of one depth.

    Attributes
    ----------
    nodes : Tensor
        ``(n,)`` rows; their ``2n`` children are counted left, right, left, right ...
    inner : Tensor
        Which of the children are nodes: those of the next level, in this order.
    leaves, ends : Tensor
        Which of the children are leaves, and the row of each.
    """

    nodes: Tensor
    inner: Tensor
    leaves: Tensor
    ends: Tensor


def complete_tree(depth: int) -> tuple[Tensor, Tensor]:
    """Return ``left`` and ``right`` of a complete tree, nodes in pre-order with the left subtree first.

    Examples
    --------
    >>> complete_tree(2)
    (tensor([ 1, -1, -3]), tensor([ 2, -2, -4]))
    """
    if depth < 1:
        raise ValueError(f"a tree is at least 1 deep, got {depth}")
    left, right = [0] * (2**depth - 1), [0] * (2**depth - 1)
    level = [(0, 0)]  # node, first leaf below it
    for d in range(depth):
        below = 2 ** (depth - d - 1)  # leaves below a child
        for node, leaf in level:
            left[node] = node + 1 if below > 1 else -1 - leaf
            right[node] = node + below if below > 1 else -2 - leaf
        level = [child for node, leaf in level for child in ((node + 1, leaf), (node + below, leaf + below))]
    return torch.tensor(left), torch.tensor(right)


def levels_of(left: Tensor, right: Tensor, root: Tensor) -> tuple[Level, ...]:
    """Return the nodes that can be reached from the root, level by level.

    Examples
    --------
    >>> [level.nodes.tolist() for level in levels_of(*complete_tree(3), torch.tensor(0))]
    [[0], [1, 4], [2, 3, 5, 6]]
    """
    made: list[Level] = []
    frontier = root.reshape(1)[root.reshape(1) >= 0]
    while len(frontier):
        if len(made) >= len(left):
            raise ValueError("the children of a tree's nodes go round in a circle")
        children = torch.stack([left[frontier], right[frontier]], 1).flatten()
        inner, leaves = (children >= 0).nonzero().squeeze(1), (children < 0).nonzero().squeeze(1)
        made.append(Level(frontier, inner, leaves, -1 - children[leaves]))
        frontier = children[inner]
    return tuple(made)


def route(log_left: Tensor, log_right: Tensor, levels: tuple[Level, ...], leaves: int) -> tuple[Tensor, Tensor]:
    """Return the log-probability of reaching every node ``(B, N)`` and every leaf ``(B, L)``; -inf where none leads to.

    Parameters
    ----------
    log_left, log_right : Tensor
        ``(B, N)`` log-probabilities of the two ways at every node.
    levels : tuple of Level
        At least one.
    leaves : int
        How many leaves there are.

    Examples
    --------
    >>> present = torch.tensor([[0.9, 0.5, 0.2]])
    >>> levels = levels_of(*complete_tree(2), torch.tensor(0))
    >>> route((1 - present).log(), present.log(), levels, 4)[1].exp().round(decimals=2)
    tensor([[0.0500, 0.0500, 0.7200, 0.1800]])
    """
    current = log_left.new_zeros(log_left.shape[0], 1)
    reached, ended = [], []
    for level in levels:
        reached.append(current)
        ways = torch.stack([current + log_left[:, level.nodes], current + log_right[:, level.nodes]], 2).flatten(1)
        ended.append(ways[:, level.leaves])
        current = ways[:, level.inner]

    def by_row(parts: list[Tensor], rows: list[Tensor], count: int) -> Tensor:
        table = log_left.new_full((log_left.shape[0], count), float("-inf"))
        return table.index_copy(1, torch.cat(rows), torch.cat(parts, 1))

    return (
        by_row(reached, [level.nodes for level in levels], log_left.shape[1]),
        by_row(ended, [level.ends for level in levels], leaves),
    )


def halves(levels: tuple[Level, ...], leaves: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return what a node's decision is worth ``(N, C)``, right minus left, and the value of the root ``(C,)``.

    The value of a leaf ``(L, C)`` is given; that of a node is the mean of its children's, which is what the tree would
    say if every prototype below were half present.
    """
    worth = leaves.new_zeros(nodes, leaves.shape[1])
    below = leaves.new_zeros(0, leaves.shape[1])
    for level in reversed(levels):
        children = leaves.new_zeros(2 * len(level.nodes), leaves.shape[1])
        children[level.inner], children[level.leaves] = below, leaves[level.ends]
        worth[level.nodes] = children[1::2] - children[::2]
        below = (children[1::2] + children[::2]) / 2
    return worth, below[0]


def follow(similarities: Tensor, left: Tensor, right: Tensor, root: Tensor, depth: int) -> Tensor:
    """Return ``(B,)`` the leaf reached by going right where the similarity ``(B, N)`` is 0.5 or more, else left.

    Examples
    --------
    >>> left, right = complete_tree(2)
    >>> follow(torch.tensor([[0.9, 0.5, 0.2], [0.4, 0.5, 0.9]]), left, right, torch.tensor(0), 2)
    tensor([2, 1])
    """
    at = root.expand(len(similarities))
    for _ in range(depth):
        node = at.clamp_min(0)
        present = similarities.gather(1, node.unsqueeze(1)).squeeze(1) >= 0.5
        at = torch.where(at >= 0, torch.where(present, right[node], left[node]), at)
    return -1 - at


def responsibilities(log_leaf: Tensor, log_distribution: Tensor, labels: Tensor) -> Tensor:
    """Return ``(B, L)``: how much of each case's label each leaf explains; rows sum to 1, or are 0 where unlabelled.

    Parameters
    ----------
    log_leaf : Tensor
        ``(B, L)`` log-probability of reaching a leaf.
    log_distribution : Tensor
        ``(L, C)``.
    labels : Tensor
        ``(B,)``, -1 where there is none.
    """
    joint = log_leaf + log_distribution.T[labels.clamp_min(0)]
    return joint.softmax(1) * (labels >= 0).unsqueeze(1)


def leaf_rule(leaves: Tensor, before: Tensor, explained: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Return the leaves' parameters ``(L, C)`` after one batch, without a gradient.

    ``max(0, w - w0 / steps) + sum over cases of their class of what the leaf explains``: within an epoch the old
    parameters ``w0`` are worn off, one share a batch, and what the leaf explains now takes their place.

    Parameters
    ----------
    leaves, before : Tensor
        ``(L, C)`` now, and when the epoch began.
    explained : Tensor
        ``(B, L)``, see :func:`responsibilities`.
    labels : Tensor
        ``(B,)``.
    steps : int
        Batches of an epoch.

    Examples
    --------
    >>> old = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    >>> leaf_rule(old, old, torch.tensor([[0.25, 0.75]]), torch.tensor([1]), steps=2)
    tensor([[2.0000, 0.2500],
            [0.0000, 0.7500]])
    """
    labelled = F.one_hot(labels.clamp_min(0), leaves.shape[1]).to(leaves) * (labels >= 0).unsqueeze(1)
    return (leaves - before / steps).clamp_min(0.0) + explained.to(leaves).T @ labelled
