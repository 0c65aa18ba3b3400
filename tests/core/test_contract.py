"""What a page can ask of the core beyond one bank and one linear head: each part alone, on small numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.decoders import Decoder
from protolearn.core.encoder import Encoder
from protolearn.core.heads import Head, LinearEvidence
from protolearn.core.measures import dot, squared_l2
from protolearn.core.method import Method, Phase, Project, Ramp, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import mean_pool
from protolearn.core.similarities import Negative, RadialBasis
from protolearn.data import digits, features
from protolearn.data.augment import Augment
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output, Source, Tokens
from protolearn.tasks.verify import verify
from protolearn.training.fit import fit
from protolearn.training.steps import set_rates, start_run


class Rows(Encoder):
    dim = 3

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs, grid=(2, 2), input_size=(8, 8))

    def spec(self) -> dict[str, object]:
        return {}


def small(**parts: object) -> PrototypeModel:
    bank = PrototypeBank(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]), torch.eye(3))
    head = LinearEvidence.from_ownership(bank.ownership)
    return PrototypeModel(Rows(), nn.Identity(), bank, squared_l2, head, similarity=Negative(), **parts)


# -- the bank -----------------------------------------------------------------------------------------------------


def test_a_constraint_holds_at_the_start_after_a_step_and_after_a_projection() -> None:
    bank = PrototypeBank(torch.rand(4, 3) + 0.1, torch.eye(4), constraint=unit_norm)
    assert torch.allclose(bank.vectors.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        bank.vectors.mul_(3.0)
    bank.constrain()
    assert torch.allclose(bank.vectors.norm(dim=1), torch.ones(4))
    token = torch.tensor([[0.0, 0.0, 5.0]])
    settled = bank.settled(torch.tensor([2]), token)
    assert settled.tolist() == [[0.0, 0.0, 1.0]]
    bank.move(torch.tensor([2]), token, [None])
    assert torch.equal(bank.vectors[2].detach(), settled[0])
    bank.merge([0, 1])
    assert torch.allclose(bank.vectors.norm(dim=1), torch.ones(3))


def test_groups_travel_with_the_bank() -> None:
    bank = PrototypeBank(torch.rand(3, 2), torch.eye(3), groups=torch.tensor([5, 6, 7]))
    bank.prune([1])
    assert bank.groups is not None
    assert bank.groups.tolist() == [5, 7]
    bank.grow(torch.rand(1, 2), torch.eye(3)[:1], groups=torch.tensor([9]))
    other = PrototypeBank(torch.rand(1, 2), torch.eye(3)[:1], groups=torch.tensor([0]))
    other.load_state_dict(bank.state_dict())
    assert other.groups is not None
    assert other.groups.tolist() == [5, 7, 9]
    with pytest.raises(ValueError, match="groups"):
        bank.grow(torch.rand(1, 2), torch.eye(3)[:1])
    with pytest.raises(ValueError, match="groups"):
        PrototypeBank(torch.rand(3, 2), torch.eye(3), groups=torch.tensor([1]))


# -- the path -----------------------------------------------------------------------------------------------------


def test_prototypes_compete_at_a_position() -> None:
    def softmax(table: Tensor, usable: Tensor) -> Tensor:
        return table.masked_fill(~usable, float("-inf")).softmax(-1)

    model = small(across=softmax, pooling=mean_pool)
    x = torch.rand(2, 4, 3)
    out = model(x)
    assert out.table is not None
    assert torch.allclose(out.table.sum(-1), torch.ones(2, 4))
    assert torch.allclose(out.evidence, out.table.mean(1))
    assert torch.equal(out.positions, out.table.argmax(1))
    tokens = model.embed(model.encode(x))
    assert torch.allclose(model.maps(tokens), out.table.transpose(1, 2))
    assert torch.allclose(model.maps(tokens, torch.tensor([2])), out.table[..., 2:].transpose(1, 2))
    model.bank.ban([0])
    assert torch.allclose(model(x).table[..., 1:].sum(-1), torch.ones(2, 4)), "the others share what it had"


def test_the_output_keeps_inputs_encoded_tokens_and_reconstruction() -> None:
    class Back(Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 3)

        def forward(self, values: Tensor) -> Tensor:
            return self.net(values)

        def original(self, inputs: Tensor | None, encoded: Tokens) -> Tensor | None:
            return encoded.values

    model = small(decoder=Back())
    x = torch.rand(2, 4, 3)
    out = model(x)
    assert torch.equal(out.inputs, x)
    assert torch.equal(out.encoded.values, x)
    assert out.reconstruction.shape == (2, 4, 3)
    assert torch.equal(out.original, x)
    assert len(model.groups()["decoder"]) == 2
    part = out.replace(targets={"concepts": torch.eye(2)}).part(slice(1, 2))
    assert part.evidence.shape == (1, 3)
    assert part.tokens.values.shape == (1, 4, 3)
    assert part.targets["concepts"].tolist() == [[0.0, 1.0]]
    assert torch.equal(part.logits, out.logits[1:])


def test_a_neck_may_change_the_layout() -> None:
    class Quarter(nn.Module):
        def on_tokens(self, tokens: Tokens) -> Tokens:
            return tokens.replace(values=tokens.values.mean(1, keepdim=True), grid=(1, 1))

    model = small()
    model.neck = Quarter()
    assert model(torch.rand(2, 4, 3)).tokens.grid == (1, 1)


class OfDistances(Head):
    """Reads distances: logit c is minus the distance of prototype c."""

    reads = ("distances",)

    def forward(self, evidence: Tensor) -> Tensor:
        raise AssertionError("not from evidence alone")

    def read(self, out: Output) -> Tensor:
        assert out.distances is not None
        return -out.distances

    def contributions(self, evidence: Tensor) -> Tensor:
        raise AssertionError("not from evidence alone")

    def ledger(self, out: Output) -> Tensor:
        assert out.distances is not None
        return torch.diag_embed(-out.distances)

    def offset(self) -> Tensor:
        return torch.zeros(3)

    def keep(self, rows: Tensor) -> None:
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.exp() / logits.exp().sum(-1, keepdim=True)


def test_a_head_may_read_more_than_evidence() -> None:
    from protolearn.explain import explain

    model = small()
    model.head = OfDistances()
    assert model.head.per_unit(3) is None
    cases = features(np.random.default_rng(0).random((3, 4, 3), dtype=np.float32))
    for why in explain(model, cases):
        assert why.total == pytest.approx(why.logit, abs=1e-6)
        assert 0 < why.probability < 1


# -- phases -------------------------------------------------------------------------------------------------------


def test_rates_warm_up_fall_by_milestones_and_along_a_cosine() -> None:
    rates = {"neck": 1.0}
    assert [Train("a", 4, rates, milestones=(1, 3), gamma=0.5).factor(e) for e in range(4)] == [1, 0.5, 0.5, 0.25]
    cosine = Train("b", 6, rates, cosine=True, warmup=2, floor=0.1)
    assert [round(cosine.factor(e), 4) for e in range(7)] == [
        0.5, 1.0, *(round(0.1 + 0.45 * (1 + math.cos(math.pi * k / 4)), 4) for k in range(5)),
    ]  # fmt: skip
    hidden = Train("b", 6, rates, cosine=True, warmup=2, overlap=True)
    assert [hidden.factor(e) for e in range(7)] == pytest.approx(
        [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(2, 7))]
    )
    by_step = Train("c", 2, {"prototypes": 1.0}, cosine=True, per="step")
    model = small()
    run = start_run(model, by_step)
    seen = [set_rates(run, by_step, model, step, 4)["prototypes"] for step in range(4)]
    assert seen == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(4)])
    with pytest.raises(UsageError, match="optimizer"):
        Train("d", 1, rates, optimizer="lion")


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_a_phase_chooses_its_optimiser(name: str, kind: str) -> None:
    run = start_run(small(), Train("a", 1, {"prototypes": 0.1}, optimizer=name, momentum=0.7))
    assert type(run.optimizer).__name__ == kind
    assert name != "sgd" or run.optimizer.param_groups[0]["momentum"] == 0.7


def test_coefficients_take_turns_and_ramp() -> None:
    default = {"a": 1.0, "b": 2.0}
    assert Train("x", 4, {"neck": 1.0}).coefficients(default, 0, 0) == default
    turns = Train("x", 4, {"neck": 1.0}, weights=({"a": 3.0}, {"b": Ramp(0.0, 1.0)}))
    assert turns.coefficients(default, 1, 0) == {"a": 3.0, "b": 0.0}
    assert turns.coefficients(default, 1, 3) == {"a": 0.0, "b": 0.5}
    with pytest.raises(UsageError, match="'b'"):
        Train("x", 1, {"neck": 1.0}, weights={"bb": 1.0}).coefficients(default, 0, 0)


@dataclass(frozen=True)
class Probe(Method):
    """A method that writes down what its objective was given."""

    seen: list = None  # type: ignore[assignment, type-arg]
    plan: tuple = ()  # type: ignore[type-arg]
    slug = "probe"

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        draw = torch.Generator().manual_seed(seed)
        neck = nn.Linear(encoder.dim, 4)
        bank = PrototypeBank.per_class(classes, 1, 4, generator=draw)
        return PrototypeModel(encoder, neck, bank, dot, LinearEvidence.from_ownership(bank.ownership))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        self.seen.append((out, labels))
        return {"cross_entropy": cross_entropy(out.logits, labels), "broken": out.logits.sum() * float("inf") * 0}

    def weights(self) -> dict[str, float]:
        return {"cross_entropy": 1.0, "broken": 0.0}

    def phases(self) -> list[Phase]:
        return list(self.plan)

    def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
        assert not torch.is_grad_enabled()
        model.metadata["steps"] = model.metadata.get("steps", 0) + 1
        model.metadata["of"] = steps


@pytest.mark.parametrize("group", ["neck", "encoder"])
def test_pairs_and_targets_reach_the_objective_in_both_loops(group: str) -> None:
    train = digits("train").subset(range(30))
    train = train.with_targets({"number": np.arange(30, dtype=np.float32)})
    seen: list[tuple[Output, Tensor]] = []

    @dataclass(frozen=True)
    class Finite(Probe):
        def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
            self.seen.append((out, labels))
            return {"cross_entropy": cross_entropy(out.logits, labels)}

        def weights(self) -> dict[str, float]:
            return {"cross_entropy": 1.0}

    method = Finite(seen, (Train("both", 1, {group: 1e-3}, pairs=True),))
    done = fit(
        method, train, encoder=SmallEncoder(dim=8, size=16), augment=Augment(), views=2, batch_size=16,
        quiet=True, device="cpu",
    )  # fmt: skip
    assert [len(labels) for _, labels in seen] == [32, 28]
    for out, labels in seen:
        half = len(labels) // 2
        numbers = out.targets["number"].long()
        assert torch.equal(labels[:half], labels[half:])
        assert torch.equal(numbers[:half], numbers[half:])
        assert torch.equal(labels.cpu(), torch.from_numpy(train.labels)[numbers.cpu()])
        values = out.encoded.values
        assert not torch.equal(values[:half], values[half:]), "two views of a case differ"
        assert (out.inputs is None) == (group == "neck")
    assert done.history[0]["phase"] == "both"


def test_pairs_need_views() -> None:
    method = Probe([], (Train("both", 1, {"neck": 1e-3}, pairs=True),))
    with pytest.raises(UsageError, match="views"):
        fit(method, digits("train").subset(range(20)), encoder=SmallEncoder(dim=8), quiet=True, device="cpu")


def test_updates_by_rule_follow_every_step() -> None:
    @dataclass(frozen=True)
    class Once(Probe):
        def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
            return {"cross_entropy": cross_entropy(out.logits, labels)}

        def weights(self) -> dict[str, float]:
            return {"cross_entropy": 1.0}

    method = Once([], (Train("a", 2, {"prototypes": 1e-3}), Train("b", 1, {"encoder": 1e-3})))
    seen = []

    class Watched(Once):
        def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
            assert not torch.is_grad_enabled()
            seen.append((len(labels), steps))

    fit(Watched(method.seen, method.plan), digits("train").subset(range(20)), encoder=SmallEncoder(dim=8, size=16),
        batch_size=10, quiet=True, device="cpu")  # fmt: skip
    assert seen == [(10, 2)] * 6


def test_a_term_without_weight_is_left_out() -> None:
    terms = {"cross_entropy": torch.tensor(2.0), "broken": torch.tensor(float("nan"))}
    assert Probe([]).loss(terms).item() == 2.0
    assert Probe([]).loss(terms, {"cross_entropy": 0.0, "broken": 0.0}).item() == 0.0


def test_a_projection_that_does_not_move_records_the_nearest_case_and_verifies() -> None:
    rng = np.random.default_rng(0)
    cases = features(rng.random((12, 3, 5), dtype=np.float32), np.arange(12) % 3)

    @dataclass(frozen=True)
    class Still(Probe):
        def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
            return {"cross_entropy": cross_entropy(out.logits, labels)}

        def weights(self) -> dict[str, float]:
            return {"cross_entropy": 1.0}

    method = Still([], (Train("a", 1, {"neck": 1e-2}), Project(move=False)))
    model = fit(method, cases, encoder=FeatureEncoder(5), quiet=True, device="cpu").model
    start = PrototypeBank.per_class(3, 1, 4, generator=torch.Generator().manual_seed(0)).vectors
    assert torch.equal(model.bank.vectors, start), "they stayed"
    assert all(source is not None and not source.moved for source in model.bank.sources)
    assert verify(model, cases).ok
    with torch.no_grad():
        model.bank.vectors[0] *= 1.5
    assert [check.status for check in verify(model, cases).failures] == ["token differs"]


def test_sources_of_older_models_were_moved() -> None:
    plain = Source("a", "b", 0, None, 0.5, "c", 1).to_dict()
    del plain["moved"]
    assert Source.from_dict(plain).moved


def test_targets_are_checked_and_follow_a_subset() -> None:
    cases = digits("test").subset([3, 4, 5]).with_targets({"loops": np.array([[1], [2], [3]])})
    assert cases.subset([2, 0]).targets["loops"].tolist() == [[3.0], [1.0]]
    assert cases.targets_digest() != cases.subset([0, 1]).targets_digest()
    assert digits("test").targets_digest() == ""
    with pytest.raises(DataError, match="a row each"):
        cases.with_targets({"loops": np.zeros((2, 1))})
    with pytest.raises(DataError, match="NaN"):
        cases.with_targets({"loops": np.full((3, 1), np.nan)})


def test_rows_of_cases_follow_every_change_of_the_bank() -> None:
    def source(case: str) -> Source:
        return Source(case, "x", 0, None, 0.0, "e", 0)

    bank = PrototypeBank(torch.eye(3), torch.eye(3))
    assert bank.rows_of(["a", "b"]).tolist() == [-1, -1]
    bank.move(torch.tensor([1]), torch.ones(1, 3), [source("a")])
    assert bank.rows_of(["a", "b"]).tolist() == [1, -1]
    bank.record(torch.tensor([2]), [source("b")])
    assert bank.rows_of(["a", "b"]).tolist() == [1, 2]
    bank.grow(torch.ones(1, 3), torch.eye(3)[:1], [source("c")])
    bank.prune([0])
    assert bank.rows_of(["a", "b", "c"]).tolist() == [0, 1, 2]
    state = bank.state_dict()
    bank.merge(bank.ids[:2])
    assert bank.rows_of(["a", "b", "c"]).tolist() == [-1, -1, 1]
    bank.load_state_dict(state)
    assert bank.rows_of(["a", "b", "c"]).tolist() == [0, 1, 2]
    table = bank._first_rows
    assert bank.rows_of(["c"]).tolist() == [2] and bank._first_rows is table, "made once"


def test_bumps_of_what_cannot_match_have_no_gradient_rather_than_nan() -> None:
    bump = RadialBasis(torch.tensor([1.0, 2.0]))
    distance = torch.tensor([[0.5, float("inf")]], requires_grad=True)
    found = bump(distance)
    assert found[0, 1] == 0 and torch.equal(found, bump.of(torch.arange(2))(distance))
    found.sum().backward()
    assert bump.raw.grad is not None and bool(torch.isfinite(bump.raw.grad).all()) and bump.raw.grad[0] != 0
    assert distance.grad is not None and bool(torch.isfinite(distance.grad).all())
    assert bool(torch.isnan(bump(torch.tensor([[float("nan"), 1.0]]))[0, 0])), "nan must surface"
