"""ProtoPNet's formulas and projection against numbers from the authors' code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.matching import all_matches, best_match
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import NearestTokens
from protolearn.core.similarities import LogRatio
from protolearn.errors import UsageError
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.objectives.attraction import cluster, separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.sparsity import other_class_l1
from protolearn.structures import Output, Tokens

Reference = Callable[[str], dict[str, np.ndarray]]
Numbers = dict[str, Tensor]


def arrays(reference: Reference, name: str) -> Numbers:
    return {key: torch.from_numpy(value) for key, value in reference(name).items() if value.dtype.kind in "fi"}


@pytest.fixture
def want(reference: Reference) -> Numbers:
    return arrays(reference, "protopnet")


def tokens_of(maps: Tensor) -> Tokens:
    return Tokens(maps.flatten(2).transpose(1, 2).contiguous(), grid=(maps.shape[2], maps.shape[3]))


def table_of(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


class Given(nn.Module):
    def forward(self, maps: Tensor) -> Tokens:
        return tokens_of(maps)


def score(want: Numbers, weight: str) -> Output:
    bank = PrototypeBank(want["prototypes"].flatten(1), want["owner"])
    head = LinearEvidence(want[weight])
    similarity = LogRatio(float(want["eps"]))
    return PrototypeModel(Given(), nn.Identity(), bank, squared_l2, head, similarity=similarity)(want["z"])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


def test_distance_map_and_minimum(want: Numbers) -> None:
    x, p = tokens_of(want["z"]).values, want["prototypes"].flatten(1)
    expected = table_of(want["distance_map"])
    close(squared_l2.pairwise(x, p), expected)
    close(all_matches(x, p, squared_l2), expected)
    for exact in (False, True):
        best, at = best_match(x, p, squared_l2, exact=exact)
        close(best, want["min_distance"])
        assert torch.equal(at, expected.argmin(1))


def test_single_precision_is_near_enough(want: Numbers) -> None:
    x, p = tokens_of(want["z"]).values.float(), want["prototypes"].flatten(1).float()
    close(all_matches(x, p, squared_l2).double(), table_of(want["distance_map"]), 1e-5)
    close(best_match(x, p, squared_l2)[0].double(), want["min_distance"], 1e-5)


def test_similarity(want: Numbers) -> None:
    similar = LogRatio(float(want["eps"]))
    close(similar(want["distance_map"]), want["similarity_map"])
    close(similar(want["min_distance"]), want["pooled_similarity"])


def test_logits(want: Numbers) -> None:
    start = LinearEvidence.from_ownership(want["owner"])
    close(start.weight.detach().double(), want["last_layer_init"])
    close(score(want, "last_layer_init").logits.detach(), want["logits_init"])
    close(score(want, "last_layer").logits.detach(), want["logits"])


def test_terms(want: Numbers) -> None:
    out, labels = score(want, "last_layer"), want["labels"]
    assert out.distances is not None
    own = out.bank.owned_by(labels)
    other = ~own
    close(cross_entropy(out.logits, labels).detach(), want["cross_entropy"])
    close(cluster(out.distances, own).detach(), want["cluster_paper"])
    close(separation(out.distances, other).detach(), want["separation_paper"])
    close(other_class_l1(out.head.weight, out.bank.ownership).detach(), want["l1_masked"])


def test_the_page_as_a_whole(want: Numbers) -> None:
    method = ProtoPNet(eps=float(want["eps"]))
    terms = method.objective(score(want, "last_layer"), want["labels"])
    close(method.loss(terms).detach(), want["total_paper"], 1e-9)
    assert set(terms) == set(method.weights())


def test_a_masked_minimum_equals_the_trick_on_features_between_0_and_1() -> None:
    """The authors take max((max_dist - d) * mask), which is right while no distance exceeds max_dist = D."""
    tokens, prototypes = torch.rand(20, 30, 16, dtype=torch.double), torch.rand(12, 16, dtype=torch.double)
    bank = PrototypeBank(prototypes, torch.eye(4).repeat_interleave(3, 0))
    distances = best_match(tokens, prototypes, squared_l2)[0]
    labels = torch.randint(0, 4, (20,))
    own = bank.owned_by(labels)
    for term, counted in ((cluster, own), (separation, ~own)):
        trick = (16 - ((16 - distances) * counted).max(1).values).mean()
        close(term(distances, counted), trick, 1e-12)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_projection(reference: Reference, batch: int) -> None:
    want = arrays(reference, "protopnet_push")
    tokens, labels = tokens_of(want["z"]), want["labels"]
    bank = PrototypeBank(want["prototypes"].flatten(1), want["owner"])
    search = NearestTokens(bank, squared_l2, own_class=True)
    for part in torch.arange(len(labels)).split(batch):
        search.update(Tokens(tokens.values[part], grid=tokens.grid), labels[part], part)
    found = search.result
    assert tokens.grid is not None
    there = found.found[:, 0]
    assert torch.equal(found.cases[:, 0], want["chosen_image"])
    cells = want["chosen_cell"][:, 0] * tokens.grid[1] + want["chosen_cell"][:, 1]
    assert torch.equal(found.positions[there, 0], cells[there])
    assert torch.allclose(found.values[there, 0].double(), want["chosen_distance"][there], atol=1e-6)
    rows = there.nonzero().squeeze(1)
    bank.move(rows, found.vectors[rows, 0], [None] * len(rows))
    assert torch.equal(bank.vectors.detach(), want["prototypes_after_paper"].flatten(1))
    again = NearestTokens(bank, squared_l2, own_class=True)
    again.update(tokens, labels, torch.arange(len(labels)))
    assert again.result.values[rows].eq(0).all()
    assert torch.equal(again.result.vectors[rows, 0], bank.vectors.detach()[rows])


def test_a_class_without_pictures_keeps_its_prototypes(reference: Reference) -> None:
    """The authors' code overwrites them with zeros."""
    want = arrays(reference, "protopnet_push")
    tokens, labels = tokens_of(want["z"]), want["labels"]
    kept = (labels != 1).nonzero().squeeze(1)
    bank = PrototypeBank(want["prototypes"].flatten(1), want["owner"])
    search = NearestTokens(bank, squared_l2, own_class=True)
    search.update(Tokens(tokens.values[kept]), labels[kept], kept)
    there = search.result.found[:, 0]
    assert torch.equal(there, bank.owner() != 1)
    rows = there.nonzero().squeeze(1)
    bank.move(rows, search.result.vectors[rows, 0], [None] * len(rows))
    after = torch.where(there.unsqueeze(1), want["prototypes_after_paper"].flatten(1), want["prototypes"].flatten(1))
    assert torch.equal(bank.vectors.detach(), after)


def test_the_linear_similarity_is_minus_the_distance(want: Numbers) -> None:
    method = ProtoPNet(similarity="linear", prototypes_per_class=2, dim=6, neck="identity")
    built = method.build(Rows(6), 3).double()
    built.bank.vectors.data = want["prototypes"].flatten(1).double()
    built.head.weight.data = want["last_layer"].double()  # type: ignore[union-attr]
    out = built(tokens_of(want["z"]).values)
    close(out.similarities.detach(), -want["min_distance"])
    close(out.logits.detach(), -want["min_distance"] @ want["last_layer"].T)
    with pytest.raises(UsageError, match="similarity"):
        ProtoPNet(similarity="cubic", dim=6, neck="identity").build(Rows(6), 3)  # type: ignore[arg-type]


class Rows(Encoder):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs)

    def spec(self) -> dict[str, object]:
        return {}
