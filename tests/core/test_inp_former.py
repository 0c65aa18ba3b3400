"""What INP-Former must show, whatever its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protolearn.core.inp_former import InpFormer, PrototypeDecoder, coherence, layer_groups, soft_mining_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(module: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """Give every weight matrix a size at which it matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return module


def test_prototypes_belong_to_the_picture_and_are_those_of_a_set() -> None:
    net = lively(InpFormer(16, 4, layers=2, prototypes=3))
    groups = draw(2, 2, 9, 16)
    own = net(groups).prototypes.detach()
    assert float((own[0] - own[1]).abs().max()) > 0.01
    shuffled = net(groups[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(0))]).prototypes
    torch.testing.assert_close(shuffled, own, rtol=0, atol=1e-5)


def test_soft_mining_changes_gradients_and_not_the_loss() -> None:
    wanted, noise = draw(2, 3, 8, 16), draw(2, 3, 8, 16, seed=1)
    size = torch.linspace(0.1, 2.0, 8).view(1, 1, 8, 1)  # later places are rebuilt worse
    found = {}
    for gamma in (0.0, 3.0):
        decoded = (wanted + size * noise).requires_grad_()
        loss = soft_mining_loss(wanted, decoded, gamma)
        loss.backward()
        assert decoded.grad is not None
        norms = decoded.grad.norm(dim=-1).mean((0, 1))
        found[gamma] = (loss.detach(), norms / norms.sum())
    assert torch.equal(found[0.0][0], found[3.0][0])
    assert float(found[3.0][1][-2:].sum()) > 1.3 * float(found[0.0][1][-2:].sum())


def test_a_perfect_reconstruction_has_a_finite_gradient() -> None:
    wanted = draw(2, 1, 4, 8)
    decoded = wanted.clone().requires_grad_()
    soft_mining_loss(wanted, decoded).backward()
    assert decoded.grad is not None
    assert bool(decoded.grad.isfinite().all())


def test_no_gradient_reaches_what_is_to_be_rebuilt() -> None:
    wanted, decoded = draw(2, 1, 4, 8).requires_grad_(), draw(2, 1, 4, 8, seed=1).requires_grad_()
    soft_mining_loss(wanted, decoded).backward()
    assert wanted.grad is None


def test_one_prototype_leaves_a_non_negative_multiple_of_one_value_for_each_head() -> None:
    block = lively(PrototypeDecoder(12, 3))
    assert isinstance(block, PrototypeDecoder)
    tokens, prototype = draw(2, 7, 12), draw(2, 1, 12, seed=1)
    weights = block.weights(tokens, prototype)
    assert weights.shape == (2, 3, 7, 1)
    assert bool((weights >= 0).all())
    value = block.asked(tokens, prototype)[2]  # (B, heads, 1, D / heads)
    torch.testing.assert_close(block(tokens, prototype), block.refined(block.joined(weights * value)))


def test_the_decoder_hears_of_tokens_through_queries_only() -> None:
    block = lively(PrototypeDecoder(12, 3))
    assert isinstance(block, PrototypeDecoder)
    prototypes = draw(1, 4, 12, seed=1)
    with torch.no_grad():
        block.query.weight.zero_()
    torch.testing.assert_close(block(draw(1, 5, 12), prototypes), block(draw(1, 5, 12, seed=2), prototypes))


def trained(weight: float) -> float:
    """Train on normal tokens with this weight of the coherence loss; return how far tokens end from prototypes."""
    torch.manual_seed(0)
    directions = draw(3, 16)
    which = torch.randint(3, (2, 8, 12), generator=torch.Generator().manual_seed(2))
    groups = directions[which] + 0.3 * draw(2, 8, 12, 16, seed=3)
    groups = groups.mean(0, keepdim=True).expand(2, -1, -1, -1)
    net = InpFormer(16, 4, layers=2, prototypes=3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        net.loss(groups, coherence_weight=weight).backward()
        optimizer.step()
    with torch.no_grad():
        rebuilt = net(groups)
        return float(coherence(rebuilt.tokens, rebuilt.prototypes)[0].mean())


def test_without_the_coherence_loss_tokens_lie_farther_from_their_prototypes() -> None:
    assert trained(0.2) < 0.8 * trained(0.0)


def test_layers_are_grouped_in_halves_and_the_last_block_rebuilds_the_first() -> None:
    maps = [torch.full((1, 4, 2, 2), float(k)) for k in range(4)]
    assert layer_groups(maps).mean((1, 2, 3)).tolist() == [0.5, 2.5]
    net = lively(InpFormer(4, 2, layers=4, prototypes=2))
    assert isinstance(net, InpFormer)
    rebuilt = net(draw(2, 1, 3, 4))
    values, each = net.bottleneck(rebuilt.tokens), []
    for block in net.decoder:
        values = block(values, rebuilt.prototypes)
        each.append(values)
    torch.testing.assert_close(rebuilt.groups[0], (each[3] + each[2]) / 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: InpFormer(8, 3), "3 heads cannot share"),
        (lambda: InpFormer(8, 2, layers=3), "even number"),
        (lambda: InpFormer(8, 2, prototypes=0), "at least one prototype"),
        (lambda: layer_groups([torch.zeros(1, 2, 2, 2)]), "even number of layers"),
        (lambda: soft_mining_loss(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 4, 4)), "both maps"),
    ],
)
def test_wrong_settings_are_refused(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
