"""What a faithful ProtoPNet must show, on scikit-learn's real handwritten digits: laws and directions of the paper."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from protolearn.core.method import Project, Prune, Train
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method, make_method
from protolearn.training.fit import Fit, fit

ProtoPNet = get_method("protopnet")


@lru_cache
def trained(cluster: float = 0.8, separation: float = -0.08, seed: int = 0) -> Fit:
    method = ProtoPNet(
        prototypes_per_class=3,
        dim=32,
        warm_epochs=24,
        project_at=(16, 24),
        last_layer_epochs=15,
        encoder_rate=None,
        neck_rate=1e-2,
        prototype_rate=1e-2,
        head_rate=1e-2,
        cluster_weight=cluster,
        separation_weight=separation,
    )
    train = digits("train").subset(range(0, 1200, 3))
    return fit(method, train, encoder=SmallEncoder(), batch_size=40, seed=seed, quiet=True, device="cpu")


def last(done: Fit, phase: str, term: str) -> float:
    return [row[term] for row in done.history if row["phase"] == phase][-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_without_separation_other_classes_come_nearer(seed: int) -> None:
    assert last(trained(separation=0.0, seed=seed), "warm", "separation") < last(
        trained(seed=seed), "warm", "separation"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_without_cluster_own_prototypes_are_farther_and_projection_moves_more(seed: int) -> None:
    without, with_it = trained(cluster=0.0, seed=seed), trained(seed=seed)
    assert last(without, "warm", "cluster") > last(with_it, "warm", "cluster")
    moved = [done.model.metadata["projections"][0]["mean_distance"] for done in (without, with_it)]
    assert moved[0] > moved[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_projection_harms_less_with_cluster(seed: int) -> None:
    """In cross-entropy: without the cluster term the model is near chance already, so accuracy has little to lose."""

    def rise(cluster: float) -> float:
        done = trained(cluster, seed=seed)
        first = next(row for row in done.history if row["phase"] == "last_layer")
        return first["cross_entropy"] - last(done, "warm", "cross_entropy")

    assert rise(0.8) < rise(0.0)
    after = [trained(c, seed=seed).model.metadata["projections"][-1]["accuracy_after"] for c in (0.8, 0.0)]
    assert after[0] > after[1] + 0.2


def test_last_layer_lowers_its_objective() -> None:
    rows = [row for row in trained().history if row["phase"] == "last_layer" and row["stage"] == 4]
    values = [row["cross_entropy"] + 1e-4 * row["l1"] for row in rows]
    assert values[-1] < values[0]
    assert [row["cluster"] for row in rows] == pytest.approx([rows[0]["cluster"]] * len(rows), rel=1e-5), (
        "only the head moves"
    )


def test_contributions_sum_to_the_logit_and_similarity_falls_with_distance() -> None:
    model = trained().model
    test = digits("test").subset(range(20)).with_transform(model.encoder.preprocess)
    out = model(torch.stack([test[i].inputs for i in range(20)]))
    total = model.head.contributions(out.evidence).sum(-1) + model.head.offset()
    torch.testing.assert_close(total, out.logits, rtol=1e-5, atol=1e-5)
    order = out.distances.flatten().argsort()
    assert bool((out.evidence.flatten()[order].diff() <= 1e-6).all())
    assert model.similarity(torch.tensor(0.0)).item() == pytest.approx(9.2103, abs=1e-4)


def test_it_learns() -> None:
    done = trained()
    test = digits("test").with_transform(done.model.encoder.preprocess)
    with torch.no_grad():
        out = done.model(torch.stack([test[i].inputs for i in range(len(test))]))
    accuracy = (out.logits.argmax(1).numpy() == test.labels).mean()
    assert accuracy > 0.7, "far above the 0.1 of chance, on a frozen random encoder"


def test_the_schedule_is_the_papers() -> None:
    plan = ProtoPNet().phases()
    epochs = [(p.name, p.epochs) if isinstance(p, Train) else (p.name, 0) for p in plan]
    assert epochs == [
        ("warm", 5), ("joint", 5), ("projection", 0), ("last_layer", 20),
        ("joint", 10), ("projection", 0), ("last_layer", 20),
        ("joint", 10), ("projection", 0), ("last_layer", 20),
    ]  # fmt: skip
    warm, joint = plan[0], plan[1]
    assert isinstance(warm, Train)
    assert isinstance(joint, Train)
    assert warm.rates == {"neck": 3e-3, "prototypes": 3e-3}
    assert joint.rates == {"encoder": 1e-4, "neck": 3e-3, "prototypes": 3e-3}
    assert joint.decay == {"encoder": 1e-3, "neck": 1e-3}
    assert [joint.factor(done) for done in (0, 3, 4, 9)] == pytest.approx([1, 1, 0.1, 0.01])
    assert ProtoPNet(prune=True).phases()[-2] == Prune(k=6, minimum=3)
    assert all(phase == Project() for phase in plan if isinstance(phase, Project))


def test_initial_weights_are_the_papers() -> None:
    model = ProtoPNet().build(SmallEncoder(), classes=3, seed=4)
    assert model.bank.vectors.shape == (30, 128)
    assert 0 <= float(model.bank.vectors.detach().min()) <= float(model.bank.vectors.detach().max()) < 1
    assert sorted(set(model.head.weight.flatten().tolist())) == [-0.5, 1.0]
    assert model.head.bias is None
    again = ProtoPNet().build(SmallEncoder(), classes=3, seed=4)
    assert torch.equal(model.neck[0].weight, again.neck[0].weight)


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = ProtoPNet(project_at=(3, 5), dim=7)
    assert make_method(method.settings()) == method
    assert make_method({**method.settings(), "project_at": [3, 5]}) == method
    with pytest.raises(UsageError, match="prototypes_per_class"):
        make_method({"method": "protopnet", "prototype_per_class": 3})
    with pytest.raises(UsageError, match="did you mean 'protopnet'"):
        make_method({"method": "protopet"})
    with pytest.raises(UsageError, match="dim"):
        ProtoPNet(dim=0)
    with pytest.raises(UsageError, match="project_at"):
        ProtoPNet(project_at=(5, 3))
