"""INP-Former's parts against numbers of the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.anomaly_maps import blurred, cosine_gap, enlarged, top_mean
from protolearn.core.inp_former import PrototypeDecoder, PrototypeExtractor, coherence, soft_mining_loss

Arrays = dict[str, Tensor]
NAMES = {
    "n1": "norm", "n2": "norm_after", "q": "query", "kv": "key_value", "p": "out", "f1": "mlp.0", "f2": "mlp.2",
}  # fmt: skip


@pytest.fixture
def arrays(reference: Callable[[str], dict[str, np.ndarray]]) -> Arrays:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in reference("inp_former").items()}


def filled(module: torch.nn.Module, arrays: Arrays, part: str) -> torch.nn.Module:
    state = {
        f"{name}.{kind}": arrays[f"{part}_{short}{kind[0]}"]
        for short, name in NAMES.items()
        for kind in ("weight", "bias")
    }
    if part == "dec":
        state["scale"] = arrays["dec_learn_scale"]
    module.double().load_state_dict(state)
    return module


def near(one: Tensor, other: Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(one.detach(), other, rtol=rtol, atol=1e-12)


def extractor(arrays: Arrays) -> torch.nn.Module:
    made = PrototypeExtractor(8, int(arrays["nh"]), float(arrays["mlp_ratio"]))
    return filled(made, arrays, "ext")


def test_prototypes_and_their_coherence(arrays: Arrays) -> None:
    prototypes = extractor(arrays)(arrays["T"], arrays["F"])
    near(prototypes, arrays["proto"])
    distances, which = coherence(arrays["F"], prototypes)
    near(distances, arrays["coherence_dist"])
    near(distances.mean(), arrays["coherence_loss"])
    assert torch.equal(which, arrays["coherence_index"])


def test_a_decoder_block(arrays: Arrays) -> None:
    block = filled(PrototypeDecoder(8, int(arrays["nh"]), float(arrays["mlp_ratio"])), arrays, "dec")
    assert isinstance(block, PrototypeDecoder)
    near(block.weights(arrays["dec_in"], arrays["proto"]), arrays["dec_attn"])
    near(block(arrays["dec_in"], arrays["proto"]), arrays["dec_out"])


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def test_soft_mining_and_its_gradients(arrays: Arrays) -> None:
    decoded = torch.stack([tokens(arrays[name]) for name in ("D1", "D2")]).requires_grad_()
    wanted = torch.stack([tokens(arrays[name]) for name in ("E1", "E2")])
    loss = soft_mining_loss(wanted, decoded, float(arrays["gamma"]))
    loss.backward()
    near(loss, arrays["soft_mining_loss"])
    assert decoded.grad is not None
    for g, name in enumerate(("grad_D1", "grad_D2")):
        near(decoded.grad[g], tokens(arrays[name]))


def test_map_and_score(arrays: Arrays) -> None:
    side = int(arrays["S"])
    gaps = torch.stack([cosine_gap(arrays[f"E{g}"], arrays[f"D{g}"], 1) for g in (1, 2)])
    maps = torch.stack([enlarged(one, (side, side), corners=True) for one in gaps]).mean(0)
    near(maps, arrays["amap"][:, 0])
    smooth = blurred(maps, 4.0, size=5, zeros_outside=True)
    near(smooth, arrays["amap_blur"][:, 0])
    near(top_mean(smooth, float(arrays["top"])), arrays["score"])
