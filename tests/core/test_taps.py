"""What is tapped is what came out, and the network does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protolearn.core.taps import module_at, pool, tapping
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


def test_outputs_and_gradients_are_those_of_a_plain_pass() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    plain = net[0](x).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(net[3](net[2](torch.relu(plain))).square().sum(), [plain])
    with torch.no_grad(), tapping(net, ["0", "1"], gradients=True) as seen:
        out = net(x)
        found = torch.autograd.grad(out.square().sum(), [seen["0"].values, seen["1"].values])
    assert torch.equal(seen["0"].values, plain)  # although the next layer works in place
    assert torch.allclose(found[0], wanted, atol=1e-6)
    assert torch.equal(out, net(x))


def test_nothing_stays_behind() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    net[3].weight.requires_grad_(False)
    trained = [each.requires_grad for each in net.parameters()]
    with pytest.raises(RuntimeError, match="on purpose"), tapping(net, ["0"], gradients=True) as seen:
        _differentiate_and_fail(net, x, seen)
    assert [each.requires_grad for each in net.parameters()] == trained
    assert all(each.grad is None for each in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    with tapping(net, ["1"]) as seen:
        net(x)
    assert seen["1"].values.shape == (2, 4, 6, 6)


def _differentiate_and_fail(net: nn.Module, x: Tensor, seen: dict[str, Any]) -> None:
    torch.autograd.grad(net(x).sum(), [seen["0"].values])
    raise RuntimeError("on purpose")


def test_tokens_and_tuples() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x * 2, "more"

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.two = SmallEncoder(dim=8, size=16), Two()

        def forward(self, x: Tensor) -> Tensor:
            values, more = self.two(self.encoder(x).values)
            assert more == "more"
            return values.sum((1, 2))

    net = Whole().eval()
    with tapping(net, ["encoder", "two"], gradients=True) as seen:
        net(torch.rand(3, 3, 16, 16))
    assert seen["encoder"].values.shape == seen["two"].values.shape == (3, 16, 8)


def test_pooling() -> None:
    maps = torch.randn(2, 5, 3, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    for how in ("sum", "mean"):
        assert torch.allclose(pool(maps, how), pool(tokens, how))
    assert torch.allclose(pool(maps, "sum"), maps.sum((2, 3)), atol=1e-6)
    assert torch.equal(pool(tokens, "first"), tokens[:, 0])
    mask = torch.arange(12) < torch.tensor([[12], [3]])
    assert torch.allclose(pool(tokens, "mean", mask)[1], tokens[1, :3].mean(0), atol=1e-6)
    assert torch.equal(pool(tokens[:, 0], "sum"), tokens[:, 0])


def test_wrong_requests() -> None:
    net = network()
    with pytest.raises(UsageError, match="no module '4'"):
        module_at(net, "4")
    with pytest.raises(UsageError, match="no module ''"):
        module_at(net, "")
    twice = nn.Sequential(net[1], net[1])
    with pytest.raises(UsageError, match="runs more than once"), tapping(twice, ["0"]):
        twice(torch.ones(1))
    with pytest.raises(UsageError, match="did you mean 'mean'"):
        pool(torch.ones(1, 2), "maen")
    with pytest.raises(UsageError, match=r"pooled as \(B, N\)"):
        pool(torch.ones(1), "sum")

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "odd"

    odd = nn.Sequential(Odd())
    with pytest.raises(UsageError, match="puts out str"), tapping(odd, ["0"]):
        odd(torch.ones(1))
