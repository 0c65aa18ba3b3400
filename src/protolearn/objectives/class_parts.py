"""The loss of a model whose classes own parts, term by term."""

from __future__ import annotations

from torch import Tensor

from protolearn.objectives.attraction import cluster, separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.sparsity import other_class_l1
from protolearn.structures import Output


def part_terms(out: Output, labels: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return cross-entropy, cluster, separation, and the L1 norm of last-layer weights ``(C, P)`` between classes.

    Source: ProtoPNet (Chen et al., 2019): cases come near some part of their class and stay away from those of others.

    Parameters
    ----------
    out : Output
        With distances.
    labels : Tensor
        ``(B,)``, -1 for a case that has none.
    weight : Tensor
        ``(C, P)``.
    """
    assert out.distances is not None, "these terms are of distances"
    return {
        "cross_entropy": cross_entropy(out.logits, labels),
        "cluster": cluster(out.distances, out.bank.owned_by(labels)),
        "separation": separation(out.distances, out.bank.others(labels)),
        "l1": other_class_l1(weight, out.bank.ownership),
    }
