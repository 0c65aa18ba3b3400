"""Heads that read tokens, against plain loops; shares that sum to 1; exact ledgers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.competition import SoftShares
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.part_heads import PartFeatures, SharedScore
from protolearn.core.pooling import mean_pool
from protolearn.core.similarities import Negative
from protolearn.structures import Tokens

KINDS = ("layer_norm", "elementwise", "mlp", "none")


class AsTokens(nn.Module):
    """An encoder for tests: the input is the tokens, a row of zeros is none."""

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs, mask=inputs.abs().sum(-1) > 0)


def model_of(parts: int, classes: int, dim: int, kind: str, seed: int) -> PrototypeModel:
    draw = torch.Generator().manual_seed(seed)
    counted = torch.tensor([True] * parts + [False])
    bank = PrototypeBank(torch.randn(parts + 1, dim, generator=draw), torch.zeros(parts + 1, classes))
    head = PartFeatures(counted, classes, dim, modulation=kind, dropout=0.5, generator=draw)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    model = PrototypeModel(
        AsTokens(), nn.Identity(), bank, squared_l2, head, similarity=Negative(), pooling=mean_pool,
        across=SoftShares(),
    )  # type: ignore[arg-type]  # fmt: skip
    return model.double().eval()


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.sampled_from(KINDS),
    st.integers(0, 10**6),
)  # fmt: skip
def test_logits_against_loops(batch: int, places: int, parts: int, classes: int, kind: str, seed: int) -> None:
    dim = 3
    model = model_of(parts, classes, dim, kind, seed)
    x = torch.randn(batch, places, dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    if places > 1:
        x[0, -1] = 0.0  # no real place
    with torch.no_grad():
        out = model(x)
    head = model.head
    assert isinstance(head, PartFeatures)
    w, vectors = head.weight.tolist(), model.bank.vectors.tolist()
    factor = None if head.factor is None else head.factor.tolist()
    shift = None if head.shift is None else head.shift.tolist()
    for b in range(batch):
        real = [s for s in range(places) if any(v != 0 for v in x[b, s].tolist())]
        features = [[0.0] * dim for _ in range(parts + 1)]
        for s in real:
            z = x[b, s].tolist()
            near = [math.exp(-sum((p - q) ** 2 for p, q in zip(z, v, strict=True))) for v in vectors]
            for k in range(parts + 1):
                for d in range(dim):
                    features[k][d] += near[k] / sum(near) * z[d] / len(real)
        every = [v for row in features for v in row]
        mean = sum(every) / len(every)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in every) / len(every) + 1e-5)
        logits = [0.0] * classes
        for k in range(parts):
            row = features[k]
            if kind == "elementwise":
                row = [factor[k][d] * row[d] for d in range(dim)]
            elif kind == "layer_norm":
                row = [factor[k][d] * (row[d] - mean) / deviation + shift[k][d] for d in range(dim)]
            elif kind == "mlp":
                sums = [sum(factor[k][e][d] * row[d] for d in range(dim)) + shift[k][e] for e in range(dim)]
                row = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in sums]
            for c in range(classes):
                logits[c] += sum(w[c][d] * row[d] for d in range(dim)) / parts
        assert out.logits[b].tolist() == pytest.approx(logits, abs=1e-9)
    ledger = head.ledger(out)
    torch.testing.assert_close(ledger.sum(2) + head.offset(), out.logits)
    assert ledger[:, :, -1].eq(0).all()  # the background says nothing


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_shares_sum_to_1_at_every_place(batch: int, places: int, count: int, gumbel: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table = 100 * torch.randn(batch, places, count, generator=draw)
    table[0, 0] = float("-inf")  # a place that is none
    usable = torch.rand(count, generator=draw) > 0.3
    shares = SoftShares(0.5, gumbel=gumbel).train()(table, usable)
    assert shares.isfinite().all()
    assert shares[..., ~usable].eq(0).all()
    if usable.any():
        torch.testing.assert_close(shares.sum(-1), torch.ones(batch, places))


def test_gumbel_noise_draws_parts_in_proportion_and_only_in_training() -> None:
    table = torch.tensor([0.0, 1.0, 2.0]).expand(1, 20_000, 3)
    shares, usable = SoftShares(gumbel=True), torch.ones(3, dtype=torch.bool)
    torch.manual_seed(0)
    drawn = shares.train()(table, usable).argmax(-1)
    often = torch.bincount(drawn.flatten(), minlength=3) / 20_000
    torch.testing.assert_close(often, torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.015, rtol=0)
    plain = table.softmax(-1)
    torch.testing.assert_close(shares.eval()(table, usable), plain)


def test_whole_parts_are_left_out_in_training() -> None:
    model = model_of(4, 2, 3, "none", 0)
    x = torch.randn(1, 5, 3, dtype=torch.float64).expand(4000, 5, 3)
    with torch.no_grad():
        fixed = model(x[:1])
        model.head.train()
        torch.manual_seed(0)
        drawn = model(x).logits
    parts = model.head.ledger(fixed)[0, :, :4]  # a part is all there, twice as large, or not at all
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 2.0], dtype=torch.float64)] * 4) @ parts.T
    assert (drawn.unsqueeze(1) - patterns).abs().amax(2).amin(1).max() < 1e-9
    torch.testing.assert_close(drawn.mean(0), fixed.logits[0], atol=0.15, rtol=0)


def test_banned_and_pruned_parts() -> None:
    model = model_of(3, 2, 3, "layer_norm", 0)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    model.bank.ban([1])
    out = model(x)
    ledger = model.head.ledger(out)
    assert ledger[:, :, 1].eq(0).all()
    torch.testing.assert_close(ledger.sum(2), out.logits)
    model.bank.unban([1])
    model.prune([0])
    again = model(x)
    torch.testing.assert_close(model.head.ledger(again).sum(2), again.logits)
    fresh = model_of(3, 2, 3, "layer_norm", 1)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x).logits, again.logits)


def test_a_shared_score_knows_classes_by_ownership_alone() -> None:
    ownership = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    bank = PrototypeBank(torch.rand(3, 4), ownership)
    head = SharedScore(ownership, 4, extra="seen")
    model = PrototypeModel(AsTokens(), nn.Identity(), bank, squared_l2, head, similarity=Negative())  # type: ignore[arg-type]
    seen = torch.rand(5, 3, 4)
    out = model.score(Tokens(torch.rand(5, 2, 4), extras={"seen": seen}))
    scores = seen @ head.weight
    torch.testing.assert_close(out.logits[:, 0], scores[:, 0] + head.bias)
    torch.testing.assert_close(out.logits[:, 1], scores[:, 1] + scores[:, 2] + head.bias)
    torch.testing.assert_close(head.ledger(out).sum(2) + head.offset(), out.logits)
    with pytest.raises(ValueError, match="seen"):
        model.score(Tokens(torch.rand(5, 2, 4)))


def test_wrong_parts() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PartFeatures(torch.tensor([False]), 2, 3)
    with pytest.raises(ValueError, match="temperature"):
        SoftShares(0.0)


def test_what_is_not_there_has_no_share_whatever_the_table_holds() -> None:
    """Similarities that are all minus infinity, as padding has them, have no softmax."""
    head = PartFeatures(torch.tensor([True, True]), classes=2, dim=3)
    table, values = torch.rand(1, 3, 2), torch.randn(1, 3, 3)
    mask = torch.tensor([[True, True, False]])
    expected = head.features(table[:, :2], values[:, :2])
    table[:, 2], values[:, 2] = float("nan"), float("nan")
    torch.testing.assert_close(head.features(table, values, mask), expected)
