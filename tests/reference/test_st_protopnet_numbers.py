"""ST-ProtoPNet's formulas against numbers from the authors' code for full pictures (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank
from protolearn.core.constraints import WithinPart
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine_in_parts, dot
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import NearestTokens
from protolearn.core.similarities import Relu
from protolearn.errors import UsageError
from protolearn.methods.parts.st_protopnet import BRANCHES, STProtoPNet
from protolearn.structures import Output, Tokens

Numbers = dict[str, Tensor]


@pytest.fixture
def want(reference: Callable[[str], dict[str, np.ndarray]]) -> Numbers:
    return {key: torch.from_numpy(value) for key, value in reference("st_protopnet").items()}


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == expected.shape
    assert (got.detach() - expected).abs().max() <= tolerance


def tokens_of(want: Numbers) -> Tokens:
    maps = torch.cat([want["z_trivial"], want["z_support"]], 1)
    return Tokens(maps.flatten(2).transpose(1, 2).contiguous(), grid=(maps.shape[2], maps.shape[3]))


def score(want: Numbers, pictures: str) -> Output:
    """Both branches in one bank, as the page builds them."""
    trivial, support = want["prototypes_trivial"], want["prototypes_support"]
    vectors = torch.cat([F.pad(trivial, (0, trivial.shape[1])), F.pad(support, (support.shape[1], 0))])
    bank = PrototypeBank(vectors, want["owner"].repeat(2, 1), groups=torch.arange(2).repeat_interleave(len(trivial)))
    bank.constraint = WithinPart(bank, 2)
    bank.constrain()
    head = LinearEvidence(torch.cat([want["last_layer_trivial"], want["last_layer_support"]], 1))
    full = pictures == "full"
    measure, similarity = (cosine_in_parts(2), Relu()) if full else (dot, None)
    return PrototypeModel(nn.Identity(), nn.Identity(), bank, measure, head, similarity=similarity).score(
        tokens_of(want)
    )


def page(want: Numbers, pictures: str = "full") -> STProtoPNet:
    return STProtoPNet(pictures=pictures, dim=want["z_trivial"].shape[1])


def test_similarities_and_logits(want: Numbers) -> None:
    out = score(want, "full")
    close(out.similarities, torch.cat([want["score_trivial"], want["score_support"]], 1))
    close(out.logits, want["logits"])
    assert want["map_trivial"].min() == 0, "the similarities are cut at zero"


def test_every_term_and_both_totals(want: Numbers) -> None:
    method = page(want)
    terms = method.objective(score(want, "full"), want["labels"])
    for name, turn in zip(BRANCHES, method.turns(), strict=True):
        close(terms[f"{name}_cross_entropy"], want[f"ce_{name}"])
        close(terms[f"{name}_cluster"], want[f"cluster_{name}_paper"])
        close(terms[f"{name}_separation"], want[f"separation_{name}_paper"])
        close(terms[f"{name}_orthogonality"], want[f"orth_{name}"])
        close(terms[f"{name}_l1"], want[f"l1_{name}"])
        close(method.loss({key: terms[key] for key in turn}, turn), want[f"total_{name}"])
    close(terms["discrimination"], want["discrimination"])
    close(terms["closeness"], want["closeness"])
    assert set(terms) == set(method.weights())


def test_cropped_pictures_are_scored_by_projection_and_clustered_by_cosine(want: Numbers) -> None:
    """The formula worked by hand: the reference numbers are of full pictures."""
    out, method = score(want, "cropped"), page(want, "cropped")
    terms = method.objective(out, want["labels"])
    own = want["owner"][:, want["labels"]].T > 0
    logits = []
    for name in BRANCHES:
        z, vectors = want[f"z_{name}"].flatten(2), want[f"prototypes_{name}"]
        lengths = torch.einsum("bds,md->bms", z, vectors).amax(2)
        cosines = torch.einsum("bds,md->bms", F.normalize(z, dim=1), vectors).amax(2)
        logits.append(lengths @ want[f"last_layer_{name}"].T)
        close(terms[f"{name}_cross_entropy"], F.cross_entropy(logits[-1], want["labels"]))
        close(terms[f"{name}_cluster"], cosines.masked_fill(~own, -9).amax(1).mean())
        close(terms[f"{name}_separation"], cosines.masked_fill(own, -9).amax(1).mean())
    close(out.logits, logits[0] + logits[1])
    without = method.objective(out.replace(tokens=None), want["labels"])
    assert set(terms) - set(without) == {f"{b}_{t}" for b in BRANCHES for t in ("cluster", "separation")}


def test_projection_looks_for_the_largest_cosine_and_copies_the_unit_vector(want: Numbers) -> None:
    out = score(want, "full")
    tokens, labels, bank = tokens_of(want), want["labels"], out.bank
    search = NearestTokens(bank, cosine_in_parts(2), own_class=True)
    search.update(tokens, labels, torch.arange(len(labels)))
    count = len(want["owner"])
    similar = want["push_similarity_trivial"].flatten(2)  # (B, M, S)
    allowed = want["owner"].argmax(1).unsqueeze(0) == labels.unsqueeze(1)
    flat = similar.masked_fill(~allowed.unsqueeze(2), -9).transpose(0, 1).flatten(1)
    found = search.result.found[:count, 0]
    assert torch.equal(found, (flat.amax(1) > -9))
    case, cell = flat.argmax(1) // similar.shape[2], flat.argmax(1) % similar.shape[2]
    assert torch.equal(search.result.cases[:count, 0][found], case[found])
    assert torch.equal(search.result.positions[:count, 0][found], cell[found])
    rows = found.nonzero().squeeze(1)
    bank.move(rows, search.result.vectors[rows, 0], [None] * len(rows))
    pushed = want["push_vectors_trivial"].flatten(2)[case[rows], :, cell[rows]]
    close(bank.vectors[rows][:, : pushed.shape[1]], pushed, 1e-6)  # the search keeps tokens in single precision
    assert bank.vectors[rows][:, pushed.shape[1] :].eq(0).all()


def test_impossible_settings_are_named() -> None:
    for settings, words in (
        ({"pictures": "half"}, "pictures must be full or cropped"),
        ({"enlarge": 0}, "enlarge must be at least 1"),
        ({"project_at": ()}, "project_at must be rising"),
        ({"start": "zero"}, "start must be"),
    ):
        with pytest.raises(UsageError, match=f"st-protopnet: {words}"):
            STProtoPNet(**settings)  # type: ignore[arg-type]
