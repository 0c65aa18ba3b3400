"""Terms of models whose prototypes or codes are distributions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over labelled cases and over samples of the cross-entropy, for logits ``(B, S, C)``.

    The logarithm is inside the average over samples, so this is never less than the cross-entropy of the averaged
    prediction. Source: Prob-PSENN (Vadillo et al., 2024), ``NLL``. 0 where no case is labelled.

    Examples
    --------
    >>> sampled_cross_entropy(torch.zeros(1, 5, 2), torch.tensor([1])).item() == torch.tensor(2.0).log().item()
    True
    """
    samples = logits.shape[1]
    repeated = labels.unsqueeze(1).expand(-1, samples)
    total = F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), ignore_index=-1, reduction="sum")
    return total / ((labels >= 0).sum() * samples).clamp_min(1)


def own_density(log_density: Tensor, own: Tensor, *, at_least: float = -1.0, at_most: float = 10_000.0) -> Tensor:
    """Return the mean over cases of ``clip(-log q_y(z), at_least, at_most)``.

    Source: Prob-PSENN, ``INT``, there with one prototype a class. With several, ``q_y`` is their mixture in equal
    parts (ours). The lower clip takes the reward away once the density is high, which is what keeps variances from
    collapsing; do not remove it.

    Parameters
    ----------
    log_density : Tensor
        ``(B, P)`` log density of each case under each prototype.
    own : Tensor
        ``(B, P)`` bool: prototypes of the case's class. A case without any is left out; 0 where none is left.

    Examples
    --------
    >>> own_density(torch.tensor([[-3.0, 0.0], [9.0, 0.0]]), torch.tensor([[True, False], [True, False]]))
    tensor(1.)
    """
    real = own.any(1)
    counted = own | ~real.unsqueeze(1)  # a row without own prototypes keeps finite numbers and gradients
    total = torch.logsumexp(log_density.masked_fill(~counted, float("-inf")), dim=1)
    cost = (own.sum(1).clamp_min(1).to(total.dtype).log() - total).clamp(at_least, at_most)
    return cost.where(real, cost.new_zeros(())).sum() / real.sum().clamp_min(1)


def divergence_from_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the mean over rows of ``KL(N(mean, exp(log_variance)) || N(0, 1))``, summed over the last axis.

    Source: the variational autoencoder (Kingma & Welling, 2014), as Prob-PSENN's variant uses it.

    Examples
    --------
    >>> divergence_from_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).abs()
    tensor(0.)
    """
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * terms.sum() / max(1, mean[..., 0].numel())
