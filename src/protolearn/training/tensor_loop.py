"""The plain loop: an epoch of small tensor steps over cached tokens or scores, without a trainer's cost per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from protolearn.core.method import Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.training.material import Material
from protolearn.training.steps import (
    Run,
    Tally,
    after_step,
    balance,
    epoch_order,
    epoch_seed,
    minimised,
    other_views,
    refuse_nonfinite,
    set_modes,
    set_rates,
)


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
    targets: Mapping[str, np.ndarray] | None = None,
    ids: Sequence[str] = (),
    chosen: Tensor | None = None,
) -> dict[str, float]:
    """Train one epoch; return the means of loss, terms and accuracy.

    Each case comes once, in one of its cached views drawn at random; in two different ones where the phase asks for
    pairs. With ``chosen`` ``(N, 2)`` each pair of case and prototype comes once instead, and a step runs the cases of
    its pairs once each.

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
    wanted = torch.from_numpy(np.array(labels)).to(device)
    more = {name: torch.from_numpy(np.array(rows)).to(device) for name, rows in (targets or {}).items()}
    if phase.pairs not in (False, "same_view") and material.views < 2:
        raise UsageError(f"phase {phase.name!r} compares two views of each case: give augment, and views=2 or more")
    tally = Tally()
    numbers = phase.numbers(run.epochs)
    odds = balance(wanted.cpu()) if phase.balanced else None
    batches = epoch_order(len(labels if chosen is None else chosen), batch_size, this, odds)
    for step, items in enumerate(batches):
        cases, about = items, None
        if chosen is not None:
            cases, rows = chosen[items, 0].unique(return_inverse=True)
            about = torch.stack([rows, chosen[items, 1]], 1).to(device)
        seen, shown = cases, views[cases]
        if phase.pairs:
            other = shown if phase.pairs == "same_view" else other_views(shown, material.views)
            seen, shown = torch.cat([cases, cases]), torch.cat([shown, other])
        if phase.per == "step":
            set_rates(run, phase, model, step, len(batches))
        rows = seen.to(device)
        beside = {name: values[rows] for name, values in more.items()}
        named = tuple(ids[i] for i in seen.tolist()) if ids else ()
        out = material(seen, shown).replace(
            targets=beside, paired=bool(phase.pairs), cases=named, chosen=about, scheduled=numbers
        )
        weights = phase.coefficients(method.weights(), run.epochs, step)
        loss, values = minimised(method, out, wanted[rows], weights)
        if about is not None:
            del values["accuracy"]  # of the cases that happen to be chosen, each as often as it is
        refuse_nonfinite(values, phase.name, run.epochs)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            trained = [p for group in run.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, clip)
        run.optimizer.step()
        after_step(model, method, out, wanted[rows], len(batches))
        tally.add(values, len(items))
    return tally.means()
