"""What both training loops share: which parts move, in what order cases come, what a step minimises."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from protolearn.core.method import GROUPS, Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.precision import full_precision
from protolearn.errors import TrainingError
from protolearn.structures import Output


@dataclass
class Run:
    """The optimiser of one named run and how far it is; phases of the same name continue it."""

    optimizer: torch.optim.Optimizer
    epochs: int = 0
    best: float = float("inf")
    waited: int = 0


@dataclass
class Tally:
    """Means over an epoch, weighted by cases."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    cases: int = 0

    def add(self, values: Mapping[str, Tensor], cases: int) -> None:
        """Take in the means of one batch, without waiting for the device."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float() * cases
        self.cases += cases

    def means(self) -> dict[str, float]:
        """Return the means."""
        return {name: float(value) / max(1, self.cases) for name, value in self.sums.items()}


def start_run(model: PrototypeModel, phase: Train) -> Run:
    """Return a fresh optimiser over the groups that a phase trains."""
    groups = model.groups()
    parts = [
        {"params": groups[name], "lr": phase.rates[name], "weight_decay": phase.decay.get(name, 0.0)}
        for name in GROUPS
        if name in phase.rates and groups[name]
    ]
    if not parts:
        raise TrainingError(f"phase {phase.name!r} trains {', '.join(phase.rates)}, and nothing in them can be trained")
    if phase.optimizer == "sgd":
        return Run(torch.optim.SGD(parts, momentum=phase.momentum, nesterov=phase.nesterov))
    return Run(torch.optim.AdamW(parts) if phase.optimizer == "adamw" else torch.optim.Adam(parts))


def set_rates(run: Run, phase: Train, model: PrototypeModel, step: int = 0, steps: int = 1) -> dict[str, float]:
    """Set the learning rates of an epoch, or of one of its steps, by the schedule; return them by group."""
    named = [name for name in GROUPS if name in phase.rates and model.groups()[name]]
    unit = 1.0 / steps if phase.per == "step" else 1.0
    done = run.epochs + (step * unit if phase.per == "step" else 0)
    rates = {name: phase.rates[name] * phase.factor(done, unit, name) for name in named}
    for group, rate in zip(run.optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate
    return rates


def set_modes(model: PrototypeModel, phase: Train) -> None:
    """Make the phase's groups trainable and in train mode; freeze all others, in eval mode.

    Eval mode of what is frozen keeps batch-norm statistics where they are: after projection, prototypes must go on
    being tokens of training cases.
    """
    parts: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "neck": model.neck,
        "prototypes": model.bank,
        "head": model.head,
        "decoder": model.decoder,
    }
    model.requires_grad_(False)
    for name, module in parts.items():
        if module is None:
            continue
        trained = name in phase.rates
        module.train(trained)
        for parameter in model.groups()[name]:
            parameter.requires_grad_(trained)
        if trained and phase.freeze_batch_norm:
            for layer in module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
    if isinstance(model.across, nn.Module):  # a competition that draws does so only while prototypes are learned
        model.across.train("prototypes" in phase.rates)


def epoch_seed(seed: int, name: str, epoch: int) -> int:
    """Return the seed of one epoch of one run, so that an interrupted training goes on as if it had not been."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()[:6], "big")


def epoch_order(count: int, batch_size: int, seed: int, odds: Tensor | None = None) -> list[Tensor]:
    """Return the batches of an epoch as index tensors.

    Every case comes once; with ``odds`` ``(N,)`` cases are drawn in proportion to them with replacement, as many as
    whole batches hold.
    """
    generator = torch.Generator().manual_seed(seed)
    if odds is None:
        return list(torch.randperm(count, generator=generator).split(batch_size))
    whole = max(1, count // batch_size) * min(batch_size, count)
    ends = odds.double().cumsum(0)
    draws = torch.rand(whole, generator=generator, dtype=torch.float64) * ends[-1]
    return list(torch.searchsorted(ends, draws, right=True).clamp_(max=count - 1).split(batch_size))


def balance(labels: Tensor) -> Tensor | None:
    """Return the odds ``(N,)`` that make a labelled case (label >= 0) and an unlabelled one equally likely.

    None where there are cases of one kind only.

    Examples
    --------
    >>> balance(torch.tensor([0, 1, -1, 0, 1]))
    tensor([0.2500, 0.2500, 1.0000, 0.2500, 0.2500])
    """
    known = labels >= 0
    if bool(known.all()) or not bool(known.any()):
        return None
    return torch.where(known, 1.0 / known.sum(), 1.0 / (~known).sum())


def checked_pairs(pairs: Tensor, cases: int, prototypes: int, phase: str) -> Tensor:
    """Return what a method chose, as int64 pairs of a case and a prototype that there are.

    Raises
    ------
    TrainingError
        If there is none, or one of a case or prototype that is not there.
    """
    right = pairs.ndim == 2 and pairs.shape[1] == 2 and not pairs.is_floating_point() and len(pairs) > 0
    if not right or bool((pairs < 0).any() | (pairs >= torch.tensor([cases, prototypes])).any()):
        raise TrainingError(
            f"phase {phase!r} chose {tuple(pairs.shape)} pairs that are not all of the {cases} cases and {prototypes} "
            "prototypes, or none at all"
        )
    return pairs.long()


def minimised(
    method: Method, out: Output, labels: Tensor, weights: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and what is logged: every term by name, the loss, the accuracy."""
    with full_precision(out.logits.device):  # the network may run in half precision; what compares its scores may not
        terms = method.objective(out, labels)
        loss = method.loss(terms, weights)
    labelled = (labels >= 0).sum().clamp_min(1)
    right = ((out.logits.argmax(1) == labels) & (labels >= 0)).sum() / labelled
    return loss, {**terms, "loss": loss, "accuracy": right}


@torch.no_grad()
def after_step(model: PrototypeModel, method: Method, out: Output, labels: Tensor, steps: int) -> None:
    """Do what follows a step of the optimiser: the method's updates by rule, then the constraints."""
    method.after_step(model, out, labels, steps)
    model.constrain()


def other_views(views: Tensor, count: int) -> Tensor:
    """Return for each view another one of ``count``, by the global random state."""
    return (views + torch.randint(1, count, views.shape)) % count


def refuse_nonfinite(values: Mapping[str, Tensor], phase: str, epoch: int) -> None:
    """Stop training when a term is not finite.

    Raises
    ------
    TrainingError
        Names the terms and the phase.
    """
    bad = [name for name, value in values.items() if name != "loss" and not bool(torch.isfinite(value))]
    if bad or not bool(torch.isfinite(values["loss"])):
        raise TrainingError(
            f"{', '.join(bad) or 'loss'} became not finite in phase {phase!r}, epoch {epoch + 1}: try a lower learning "
            "rate, clip gradients, and look for NaN in the inputs"
        )
