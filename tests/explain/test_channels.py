"""Galleries of channels, and which of them to show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protolearn.audit.channel_purity import channel_purity
from protolearn.core.folding import folded
from protolearn.core.model import PrototypeModel
from protolearn.core.rotation import FoldedLinear
from protolearn.data import digits, features
from protolearn.data.cases import Cases
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, ProtolearnError, UsageError
from protolearn.explain import explain
from protolearn.explain.channels import channel_gallery, purity_before_after, telling_rows
from protolearn.methods import get_method


def some(count: int = 12, dim: int = 4) -> Cases:
    values = torch.randn(count, 5, dim, generator=torch.Generator().manual_seed(0)).numpy()
    return features(values, np.arange(count) % 2, ids=[f"{i:02d}" for i in range(count)])


def turned(dim: int = 4) -> PrototypeModel:
    model = get_method("epic")().build(FeatureEncoder(dim), 2)
    draw = torch.Generator().manual_seed(1)
    assert isinstance(model.head, FoldedLinear)
    with torch.no_grad():
        model.neck.raw.copy_(torch.randn(dim, dim, generator=draw))  # type: ignore[operator]
        model.head.trained.copy_(torch.randn(2, dim, generator=draw))
    return model.eval()


def test_every_number_by_a_plain_loop() -> None:
    cases, model = some(), turned()
    gallery = channel_gallery(model, cases, 3)
    values = [model.neck(cases[i].inputs).detach() for i in range(len(cases))]
    for k in range(4):
        order = sorted(range(len(cases)), key=lambda i: -float(values[i][:, k].sum()))[:3]
        assert gallery.cases[k] == tuple(cases.ids[i] for i in order)
        for place, i in enumerate(order):
            at = int(values[i][:, k].argmax())
            assert int(gallery.positions[k, place]) == at
            assert float(gallery.values[k, place]) == pytest.approx(float(values[i][at, k]), rel=1e-5)
            share = float(values[i][at, k] / values[i][at].norm())
            assert float(gallery.purity[k, place]) == pytest.approx(share, rel=1e-5)
            assert float(gallery.scores[k, place]) == pytest.approx(float(values[i][:, k].sum()), rel=1e-4, abs=1e-5)
    assert gallery.mean_purity == pytest.approx(float(gallery.per_channel.mean()))
    rows = gallery.rows()
    assert len(rows) == 12
    assert rows[0]["case"] == gallery.cases[0][0]
    assert [row["rank"] for row in rows[:3]] == [1, 2, 3]


def test_before_is_the_network_s_own() -> None:
    cases, model = some(), turned()
    change = purity_before_after(model, cases, 2)
    assert isinstance(model.head, FoldedLinear)
    plain = turned()
    with torch.no_grad():
        plain.neck.raw.zero_()  # type: ignore[operator]
    wanted = channel_gallery(plain, cases, 2)
    assert change.before.cases == wanted.cases
    torch.testing.assert_close(change.before.purity, wanted.purity)
    assert change.after.cases == channel_gallery(model, cases, 2).cases
    told = change.to_dict()
    assert told["gain"] == pytest.approx(told["after"] - told["before"])
    assert told["by"] == "sum"


def test_the_model_stays_as_it_is() -> None:
    model = turned().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channel_gallery(model, some())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cases_that_are_alike_come_by_their_ids_whatever_their_order() -> None:
    values = np.repeat(some(1)[0].inputs.numpy()[None], 4, axis=0)
    names = ["d", "b", "a", "c"]
    gallery = channel_gallery(turned(), features(values, [0, 1, 0, 1], ids=names), 3)
    assert set(gallery.cases) == {("a", "b", "c")}


def test_removed_channels_are_gone_and_few_cases_leave_gaps() -> None:
    model, cases = turned(), some(2)
    whole = channel_gallery(model, cases, 3)
    model.prune([1])
    left = channel_gallery(model, cases, 3)
    assert left.prototypes == (0, 2, 3)
    assert left.cases == (whole.cases[0], whole.cases[2], whole.cases[3])
    assert all(len(chosen) == 2 for chosen in left.cases)
    assert bool(left.purity[:, 2].isnan().all())
    assert left.mean_purity == pytest.approx(float(left.purity[:, :2].mean()))


def test_the_audit_s_channel_purity_is_the_same_number() -> None:
    cases, model = some(), turned()
    gallery = channel_gallery(model, cases, len(cases))
    out = model(torch.stack([cases[i].inputs for i in range(len(cases))]))
    found = channel_purity(folded(out))
    for k in range(4):
        wanted = torch.stack([found[cases.index(case), k] for case in gallery.cases[k]]).double()
        torch.testing.assert_close(gallery.purity[k], wanted, rtol=1e-5, atol=1e-6)


def test_regions_of_pictures() -> None:
    model = get_method("epic")().build(SmallEncoder(dim=8), 10)
    gallery = channel_gallery(model.eval(), digits("train").subset(range(6)), 2)
    for k in range(8):
        for place, region in enumerate(gallery.regions[k]):
            assert region is not None
            row, column = divmod(int(gallery.positions[k, place]), 8)
            assert region.x0 <= column * 4 < region.x1
            assert region.y0 <= row * 4 < region.y1


def test_channels_of_a_softmax_have_galleries_too_but_no_before() -> None:
    model = get_method("pipnet")(prototypes=6).build(FeatureEncoder(4), 2).eval()
    gallery = channel_gallery(model, some(), 2, by="peak")
    assert gallery.purity.shape == (6, 2)
    with pytest.raises(UsageError, match="turns no channels"):
        purity_before_after(model, some())


def test_wrong_input_is_named() -> None:
    other = get_method("protopnet")(prototypes_per_class=2, dim=4).build(FeatureEncoder(4), 2)
    with pytest.raises(UsageError, match="no channels"):
        channel_gallery(other, some())
    with pytest.raises(UsageError, match="n must"):
        channel_gallery(turned(), some(), 0)
    with pytest.raises(UsageError, match="sum or peak"):
        channel_gallery(turned(), some(), by="mean")  # type: ignore[arg-type]
    with pytest.raises(ProtolearnError, match="no case"):
        channel_gallery(turned(), some().subset([]))
    model = turned()
    with torch.no_grad():
        model.neck.raw.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(DataError, match="case '00' has tokens that are not finite"):
        channel_gallery(model, some())


def test_channels_to_show_speak_for_the_class_by_being_there() -> None:
    model = turned()
    for why in explain(model, some(), range(4), target=1):
        rows = telling_rows(why)
        assert all(row.evidence > 0 and row.weight > 0 for row in rows)
        parts = [row.contribution for row in rows]
        assert parts == sorted(parts, reverse=True)
        left = [row for row in why.rows if row.evidence > 0 and row.contribution > 0 and row not in rows]
        assert len(rows) == 4 or not left
    assert telling_rows(why, 0) == ()
    with pytest.raises(UsageError, match="most"):
        telling_rows(why, -1)
