"""How likely groups of rows are, each as one Gaussian whose mean and covariance nobody knows.

A normal inverse-Wishart law says what means and covariances are expected before any row; integrated over it, the
likelihood of a group needs no fit, and groups of different numbers of rows and of clusters can be compared. Everything
is in float64 and by Cholesky factors; all groups at once, in bounded memory, without a loop over groups.

N rows of width D, G groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.errors import UsageError


class Expected(NamedTuple):
    """Normal inverse-Wishart: mean ``(D,)``, ``strength`` (kappa), ``freedom`` (nu), ``scatter`` (Psi = scatter * I).

    ``strength`` > 0 is how many rows the mean counts for; ``freedom`` > D - 1; ``scatter`` > 0 in squared units of the
    rows.
    """

    mean: Tensor
    strength: float
    freedom: float
    scatter: float

    @classmethod
    def of(cls, values: Tensor, *, strength: float = 1e-4, scatter: float = 0.005) -> Expected:
        """Return GPC's for rows ``(N, D)`` of unit length: their mean, D + 1 degrees of freedom.

        Examples
        --------
        >>> Expected.of(torch.eye(2)).freedom
        3.0
        """
        return cls(values.double().mean(0), strength, values.shape[1] + 1.0, scatter)


def gaussian_evidence(
    values: Tensor,
    groups: Tensor,
    count: int,
    expected: Expected,
    *,
    rows: Tensor | None = None,
    means: Tensor | None = None,
    budget: int | None = None,
) -> Tensor:
    r"""Return ``(G,)`` float64 log marginal likelihoods of the rows of each group; 0 for a group without rows.

    ``log p(X) = -n D/2 log pi + log G_D(nu*/2) - log G_D(nu/2) + nu/2 log|Psi| - nu*/2 log|Psi*| + D/2 log(k/k*)`` with
    ``k* = k + n``, ``nu* = nu + n`` and ``Psi* = Psi + sum (x - mu)(x - mu)' + k n/k* (mu - m)(mu - m)'``, where ``mu``
    is the mean of the group.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``, finite.
    groups : Tensor
        ``(M,)`` int64: the group of each row; -1 = none.
    count : int
        G.
    expected : Expected
        What is known before.
    rows : Tensor, optional
        ``(M,)`` int64 into ``values``, where a row may be in several groups; all rows in order by default.
    means : Tensor, optional
        ``(G, D)`` in place of the groups' means: the formula as it stands in the paper, with any ``mu``.
    budget : int, optional
        Bytes of the largest temporary.

    Notes
    -----
    A group of fewer rows than D costs a determinant of its own size: ``|Psi + Y'Y| = |Psi| |I + Y Psi^-1 Y'|``.

    Source: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution", 2007; used by GPC (Zhao et al., ICCV
    2023).

    Examples
    --------
    >>> expected = Expected(torch.zeros(1), 1.0, 2.0, 1.0)  # one row has a Student t law
    >>> found = gaussian_evidence(torch.tensor([[0.0]]), torch.tensor([0]), 1, expected)
    >>> torch.distributions.StudentT(2.0, 0.0, 1.0).log_prob(torch.tensor(0.0)).item() - found.item() < 1e-6
    True
    """
    dim = values.shape[1] if values.ndim == 2 else -1
    if rows is None:
        rows = torch.arange(len(values), device=values.device)
    if groups.shape != rows.shape or expected.mean.shape != (dim,):
        raise UsageError(
            f"expected rows (N, D), groups (N,) and a mean (D,), got {tuple(values.shape)}, {tuple(groups.shape)} and "
            f"{tuple(expected.mean.shape)}"
        )
    if not (expected.strength > 0 and expected.freedom > dim - 1 and expected.scatter > 0):
        raise UsageError(f"strength and scatter must be above 0 and freedom above {dim - 1}, got {expected[1:]}")
    kept = groups >= 0
    rows, groups = rows[kept], groups[kept]
    rows = rows[groups.argsort(stable=True)]
    sizes = torch.bincount(groups, minlength=count)
    starts = sizes.cumsum(0) - sizes
    logs = values.new_zeros(count, dtype=torch.float64)
    centre = expected.mean.to(values.device, torch.float64)
    order = sizes.argsort(descending=True)  # groups of one chunk are of like size, so little is padding
    order = order[: int((sizes > 0).sum())]
    at = 0
    while at < len(order):
        longest = int(sizes[order[at]])
        side = min(longest + 1, dim)
        part = order[at : at + chunk_rows(8 * (2 * (longest + 1) * dim + 2 * side * side), budget)]
        offset = None if means is None else means[part].double()
        logs[part] = _log_determinants(values, rows, starts[part], sizes[part], longest, expected, centre, offset)
        at += len(part)
    n = sizes.double()
    nu, kappa = expected.freedom, expected.strength
    found = (
        -0.5 * n * dim * math.log(math.pi)
        + torch.special.multigammaln((nu + n) / 2, dim)
        - torch.special.multigammaln(torch.as_tensor(nu / 2, dtype=torch.float64, device=n.device), dim)
        - 0.5 * n * dim * math.log(expected.scatter)
        - 0.5 * (nu + n) * logs
        + 0.5 * dim * (math.log(kappa) - (kappa + n).log())
    )
    return torch.where(sizes > 0, found, torch.zeros_like(found))


def _log_determinants(
    values: Tensor,
    rows: Tensor,
    starts: Tensor,
    sizes: Tensor,
    longest: int,
    expected: Expected,
    centre: Tensor,
    means: Tensor | None,
) -> Tensor:
    """Return ``log|Psi*| - log|Psi|`` of some groups, ``(c,)``."""
    places = torch.arange(longest, device=rows.device)
    real = (places < sizes.unsqueeze(1)).unsqueeze(2)
    picked = rows[(starts.unsqueeze(1) + places).clamp_max(len(rows) - 1)]
    table = values[picked].double()
    n = sizes.double().unsqueeze(1)
    if means is None:
        # about the prior's mean first, so that rows far from the origin cost no digits
        means = centre + ((table - centre) * real).sum(1) / n
    table = (table - means.unsqueeze(1)) * real
    pull = (expected.strength * n / (expected.strength + n)).sqrt() * (means - centre)
    table = torch.cat([table, pull.unsqueeze(1)], 1) / math.sqrt(expected.scatter)
    gram = table @ table.mT if table.shape[1] < table.shape[2] else table.mT @ table
    gram.diagonal(dim1=1, dim2=2).add_(1.0)
    factor: Tensor = torch.linalg.cholesky(gram)
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def log_split_ratio(whole: Tensor, sizes: Tensor, halves: Tensor, concentration: float = 1.0) -> Tensor:
    """Return ``log H`` of splitting each cluster in two; merging the two again has exactly the negative of it.

    ``log alpha + log G(n1) + log p(X1) + log G(n2) + log p(X2) - log G(n1 + n2) - log p(X)``; -inf where a half is
    empty.

    Source: Hastings ratios of a Dirichlet process mixture (Chang and Fisher, NeurIPS 2013), as GPC uses them.

    Parameters
    ----------
    whole : Tensor
        ``(G,)`` log evidence of all rows.
    sizes, halves : Tensor
        ``(G, 2)`` rows of each half, and their log evidence.
    concentration : float
        alpha.

    Examples
    --------
    >>> log_split_ratio(torch.tensor([-10.0]), torch.tensor([[2, 2]]), torch.tensor([[-3.0, -4.0]])).exp() > 1
    tensor([True])
    """
    n = sizes.double()
    ratio = math.log(concentration) + torch.lgamma(n).sum(1) - torch.lgamma(n.sum(1)) + halves.sum(1) - whole
    return ratio.masked_fill((sizes == 0).any(1), float("-inf"))
