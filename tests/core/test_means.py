"""The mean of a measure over positions, and prototypes that start on tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.matching import all_matches, mean_match
from protolearn.core.measures import Measure, cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import make_neck
from protolearn.core.similarities import LogRatio
from protolearn.core.starts import fit_axes, pool_on_tokens
from protolearn.encoders import FeatureEncoder
from protolearn.structures import Tokens


@pytest.mark.parametrize("measure", [squared_l2, cosine])
def test_the_mean_over_real_positions(measure: Measure) -> None:
    values, prototypes = torch.randn(5, 7, 4).double(), torch.randn(3, 4).double()
    mask = torch.rand(5, 7) > 0.4
    mask[0] = False
    mask[1] = torch.arange(7) == 2
    table = all_matches(values, prototypes, measure)
    assert torch.allclose(mean_match(values, prototypes, measure), table.mean(1))
    found = mean_match(values.masked_fill(~mask.unsqueeze(2), float("nan")), prototypes, measure, mask)
    assert torch.equal(found[0], torch.full((3,), measure.farthest).double())
    for case in range(1, 5):
        assert torch.allclose(found[case], table[case][mask[case]].mean(0))


def test_the_mean_has_a_gradient_and_nan_surfaces() -> None:
    values = torch.randn(2, 6, 3, dtype=torch.double, requires_grad=True)
    prototypes = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, p: mean_match(v, p, squared_l2), (values, prototypes))
    assert mean_match(torch.full((1, 2, 3), float("nan")), torch.ones(1, 3), squared_l2).isnan().all()


def test_a_pool_starts_on_the_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    spots = 3 * torch.randn(4, 6, generator=draw)
    values = spots[torch.randint(4, (30, 5), generator=draw)] + 0.01 * torch.randn(30, 5, 6, generator=draw)
    bank = PrototypeBank(torch.zeros(4, 6), torch.zeros(4, 2))
    head = LinearEvidence(torch.ones(2, 4))
    neck = make_neck("principal", 6, 6)
    model = PrototypeModel(FeatureEncoder(6), neck, bank, squared_l2, head, similarity=LogRatio())
    batches = [(Tokens(values[:20]), torch.zeros(20)), (Tokens(values[20:]), torch.zeros(10))]
    fit_axes(model.neck, batches)
    pool_on_tokens(model, batches, seed=1)
    with torch.no_grad():
        wanted = neck(spots)
    gaps = torch.cdist(wanted, bank.vectors.detach())
    assert gaps.amin(1).max() < 0.05
    model.neck = nn.Identity()
    fit_axes(model.neck, batches)
    few = PrototypeBank(torch.zeros(200, 6), torch.zeros(200, 2))
    model.bank = few
    pool_on_tokens(model, batches, seed=1)
    assert float(few.vectors.detach().abs().sum()) == 0, "fewer tokens than prototypes: nothing to stand on"
