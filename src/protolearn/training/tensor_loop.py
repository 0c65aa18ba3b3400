"""The plain loop: an epoch of small tensor steps over cached tokens or scores, without a trainer's cost per step."""

from __future__ import annotations

import numpy as np
import torch

from protolearn.core.method import Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.training.material import Material
from protolearn.training.steps import Run, Tally, epoch_order, epoch_seed, minimised, refuse_nonfinite, set_modes


def tensor_epoch(
    model: PrototypeModel,
    method: Method,
    phase: Train,
    run: Run,
    material: Material,
    labels: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    clip: float | None,
) -> dict[str, float]:
    """Train one epoch; return the means of loss, terms and accuracy.

    Each case comes once, in one of its cached views drawn at random.

    Raises
    ------
    TrainingError
        If a term is not finite.
    """
    set_modes(model, phase)
    this = epoch_seed(seed, phase.name, run.epochs)
    torch.manual_seed(this)
    device = model.bank.vectors.device
    views = torch.randint(material.views, (len(labels),), generator=torch.Generator().manual_seed(this + 1))
    targets = torch.from_numpy(np.array(labels)).to(device)
    tally = Tally()
    for cases in epoch_order(len(labels), batch_size, this):
        wanted = targets[cases.to(device)]
        loss, values = minimised(method, material(cases, views[cases]), wanted)
        refuse_nonfinite(values, phase.name, run.epochs)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            trained = [p for group in run.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, clip)
        run.optimizer.step()
        tally.add(values, len(cases))
    return tally.means()
