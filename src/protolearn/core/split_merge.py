"""Clusters and how many of them there are: k-means for the places, Gaussian evidence for splitting and merging.

A cluster of unlabelled rows is split in two, or united with the one nearest to it, where the evidence of Gaussians
speaks for it; known classes stay. N rows of width D, P clusters, labels -1 = unlabelled.

Source: GPC (Zhao et al., ICCV 2023), the paper's intention. The released code keeps both parents of a merged pair, so
that its merges raise the number of clusters, and may merge a pair twice; here a pair becomes one cluster, once. It also
takes 10 % of the refused proposals whatever their ratio, where the paper has the ratio as the probability; both are
settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.core.assignment import nearest
from protolearn.core.discovery import SeededClusters, seeded_k_means
from protolearn.core.gaussian_evidence import Expected, gaussian_evidence, log_split_ratio
from protolearn.core.measures import squared_l2
from protolearn.core.neighbours import nearest_rows
from protolearn.core.updates import Assign, group_moments, group_sums, k_means
from protolearn.errors import UsageError


@dataclass(frozen=True)
class CountedClusters(SeededClusters):
    """Clusters whose number was found.

    Attributes
    ----------
    evidence : float
        Log probability of rows and clustering together, up to a number that all clusterings of these rows share: the
        sum over clusters of ``log alpha + log G(n) + log p(X)``.
    course : tuple of (int, int, int)
        Of each round: clusters at its start, splits and merges that were accepted.
    """

    evidence: float
    course: tuple[tuple[int, int, int], ...]


@torch.no_grad()
def two_halves(values: Tensor, rows: Tensor, count: int, *, iterations: int = 20) -> Tensor:
    """Return ``(N,)`` 0 or 1: which half of its cluster a row is in, by 2-means of every cluster at once.

    The halves start on both sides of the cluster's longest axis, found by a few power steps from its farthest row; no
    draw is made. A cluster of equal rows has all of them in half 0, and so has a row without a cluster (-1).

    Examples
    --------
    >>> line = torch.tensor([[0.0], [0.1], [5.0], [7.0], [9.0], [9.2]])
    >>> two_halves(line, torch.tensor([0, 0, 0, 1, 1, 1]), 2).tolist() in ([0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0])
    True
    """
    moments = group_moments(values, rows, count)
    own = rows.clamp_min(0)
    gaps = (values - moments.means[own]) * (rows >= 0).unsqueeze(1)
    reach = gaps.square().sum(1)
    most = reach.new_zeros(count).scatter_reduce(0, own, reach, "amax")
    farthest = torch.full((count,), len(values), device=rows.device).scatter_reduce(
        0, own, torch.where((reach >= most[own]) & (rows >= 0), torch.arange(len(rows), device=rows.device), len(rows)),
        "amin",
    )  # fmt: skip
    axis = torch.where((farthest < len(rows)).unsqueeze(1), gaps[farthest.clamp_max(len(rows) - 1)], 0.0)
    for _ in range(8):
        axis, _ = group_sums(gaps * (gaps * axis[own]).sum(1, keepdim=True), rows, count)
        axis = torch.nn.functional.normalize(axis, dim=1)
    half = ((gaps * axis[own]).sum(1) > 0).long()
    for _ in range(iterations):
        sums, sizes = group_sums(values, torch.where(rows >= 0, 2 * own + half, -1), 2 * count)
        centres = (sums / sizes.clamp_min(1).unsqueeze(1)).view(count, 2, -1)
        apart = squared_l2.paired(values, centres[own, 0]) - squared_l2.paired(values, centres[own, 1])
        both = (sizes.view(count, 2) > 0).all(1)[own] & (rows >= 0)
        after = ((apart > 0) & both).long()
        if torch.equal(after, half):
            break
        half = after
    return half


@torch.no_grad()
def split_and_merge(
    values: Tensor,
    labels: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    expected: Expected | None = None,
    concentration: float = 1.0,
    chance: float | None = None,
    smallest: int = 5,
    release: bool = True,
    rounds: int = 30,
    restarts: int = 3,
    assign: Assign = nearest,
) -> CountedClusters:
    """Return clusters of labelled and unlabelled rows and how many there are, from a first guess of the number.

    Semi-supervised k-means gives the first clusters. In each round every cluster without labelled rows is proposed to
    be split into its 2-means halves; those that are not split are proposed to be united with the nearest of them; then
    k-means runs again from the centres that result. Of all rounds, the clustering of most evidence is returned.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``, finite.
    labels : Tensor
        ``(N,)``; labelled rows stay in the cluster of their class, which is not united with another.
    count : int
        The first guess of P, known classes included.
    generator : torch.Generator
        On the CPU; of starts and of acceptances.
    expected : Expected, optional
        :meth:`Expected.of` the rows by default, whose ``scatter`` is meant for rows of unit length: the number of
        clusters depends on it, as it says how large a cluster is.
    concentration : float
        alpha of the Dirichlet process.
    chance : float, optional
        Of a proposal whose ratio is below 1: its ratio by default (the paper's), or this flat probability (0.1 in the
        released code; 0 accepts nothing that is worse).
    smallest : int
        A cluster of so few rows, or one of whose halves is so small, is not split.
    release : bool
        A half of a known class's cluster that holds none of its labelled rows may become a new cluster. This is ours:
        with too small a first guess, new classes lie in the clusters of known ones, which the paper leaves as they are.
    rounds : int
        At most; it ends before where nothing was accepted.
    restarts : int
        Of the first k-means.
    assign : callable
        How the nearest centre of each row is found.

    Notes
    -----
    Keeping the best of all rounds is ours. Within a round two pairs that share a cluster compete: the one with the
    larger ratio is united, the other may be in the next round. Where a cluster has fewer rows than there are columns,
    its evidence rests on what was expected: put wide features on principal axes first, or read the number with care.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> blobs = torch.cat([c + 0.1 * torch.randn(20, 2, generator=draw) for c in (-3.0, 0.0, 3.0)])
    >>> found = split_and_merge(blobs, torch.full((60,), -1), 1, generator=draw)
    >>> len(found.centres)
    3
    """
    if chance is not None and not 0 <= chance <= 1:
        raise UsageError(f"chance must lie between 0 and 1, got {chance}")
    if not concentration > 0:
        raise UsageError(f"concentration must be above 0, got {concentration}")
    classes = len(torch.unique(labels[labels >= 0]))
    if not release and count <= classes and bool((labels < 0).any()):
        raise UsageError(f"{classes} classes are known: start from at least {classes + 1} clusters, one can be split")
    found: SeededClusters = seeded_k_means(values, labels, count, generator=generator, restarts=restarts, assign=assign)
    known = int((found.classes >= 0).sum())
    given = torch.where(labels >= 0, found.rows, -1)
    rules = (concentration, chance, smallest, release)
    moves = _Moves(values, given, known, expected or Expected.of(values), *rules, generator)
    best, evidence = found, moves.evidence(found)
    course: list[tuple[int, int, int]] = []
    for _ in range(rounds):
        centres, splits, merges = moves.propose(found)
        course.append((len(found.centres), splits, merges))
        if not splits and not merges and len(centres) == len(found.centres):
            break
        again = k_means(values, len(centres), start=centres, given=given, generator=generator, assign=assign)
        named = torch.cat([found.classes[:known], found.classes.new_full((len(centres) - known,), -1)])
        found = SeededClusters(**vars(again), classes=named)
        now = moves.evidence(found)
        if now >= evidence:
            best, evidence = found, now
    return CountedClusters(**vars(best), evidence=evidence, course=tuple(course))


SCALES = tuple(2.0**power for power in range(-8, 5))
"""Shares of the variance of all rows that :func:`count_by_evidence` tries."""


@torch.no_grad()
def count_by_evidence(
    values: Tensor,
    labels: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    scales: Sequence[float] = SCALES,
    **settings: Any,
) -> CountedClusters:
    """Return :func:`split_and_merge` under the size of clusters for which the evidence of all rows is greatest.

    How large a cluster is before any row is seen (``Expected.scatter``) decides how many are found, and no fixed value
    serves features of every width and scale. Here a few are tried, as shares of the mean variance of the columns, and
    the greatest evidence wins (empirical Bayes). This is ours; labels of new classes are not needed for it.

    Parameters
    ----------
    values, labels, count, generator
        As for :func:`split_and_merge`.
    scales : sequence of float
        Shares of the variance.
    **settings
        Further settings of :func:`split_and_merge`; not ``expected``.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> blobs = torch.cat([c + torch.randn(20, 2, generator=draw) for c in (-30.0, 0.0, 30.0)])
    >>> len(count_by_evidence(blobs, torch.full((60,), -1), 6, generator=draw).centres)
    3
    """
    variance = float(values.double().var(0, correction=0).mean())
    if not variance > 0:
        raise UsageError("all rows are equal: there is nothing to count clusters by")
    best: CountedClusters | None = None
    for scale in scales:
        expected = Expected.of(values, scatter=scale * variance)
        found = split_and_merge(values, labels, count, generator=generator, expected=expected, **settings)
        best = found if best is None or found.evidence > best.evidence else best
    if best is None:
        raise UsageError("scales must hold at least one share")
    return best


@dataclass(frozen=True)
class _Moves:
    values: Tensor
    given: Tensor
    known: int
    expected: Expected
    concentration: float
    chance: float | None
    smallest: int
    release: bool
    generator: torch.Generator

    def evidence(self, found: SeededClusters) -> float:
        """Return the log probability of all clusters, those of known classes too: a row that moves there must count."""
        logs = gaussian_evidence(self.values, found.rows, len(found.centres), self.expected)
        sizes = found.counts.double()
        alpha = torch.as_tensor(self.concentration, dtype=torch.float64).log()
        return float((logs + torch.lgamma(sizes.clamp_min(1)) + alpha).where(sizes > 0, 0.0).sum())

    def propose(self, found: SeededClusters) -> tuple[Tensor, int, int]:
        """Return the centres after a round of proposals, and how many splits and merges were accepted."""
        count, known = len(found.centres), self.known
        free = torch.arange(count, device=found.rows.device) >= known
        whole = gaussian_evidence(self.values, found.rows, count, self.expected)
        split, halves, held = self._splits(found, whole)
        pairs = self._merges(found, whole, (free & ~split & (found.counts > 0)).nonzero().squeeze(1))
        kept = ~split & (found.counts > 0)
        kept[pairs.flatten()] = False
        weights = found.counts[pairs].to(found.centres).unsqueeze(2)
        united = (found.centres[pairs] * weights).sum(1) / weights.sum(1)
        # a known class goes on from the half of its labelled rows
        first = found.centres[:known].clone()
        loses = split[:known].nonzero().squeeze(1)
        first[loses] = halves[loses, held[loses].long().argmax(1)]
        released = halves[loses, held[loses].long().argmin(1)]
        centres = [first, found.centres[known:][kept[known:]], halves[known:][split[known:]].flatten(0, 1)]
        return torch.cat([*centres, released, united]), int(split.sum()), len(pairs)

    def _splits(self, found: SeededClusters, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which clusters are split ``(P,)``, the means of halves ``(P, 2, D)``, which halves are labelled."""
        count = len(found.centres)
        rows = 2 * found.rows + two_halves(self.values, found.rows, count)
        moments = group_moments(self.values, rows, 2 * count)
        sizes = moments.counts.view(count, 2).round().long()
        held = torch.bincount(rows[self.given >= 0], minlength=2 * count).view(count, 2) > 0
        logs = gaussian_evidence(self.values, rows, 2 * count, self.expected).view(count, 2)
        ratio = log_split_ratio(whole, sizes, logs, self.concentration)
        may = (sizes > self.smallest).all(1)
        may[: self.known] &= ~held[: self.known].all(1) & self.release
        return self._accepted(ratio) & may, moments.means.view(count, 2, -1).to(found.centres), held

    def _merges(self, found: SeededClusters, whole: Tensor, free: Tensor) -> Tensor:
        """Return pairs ``(k, 2)`` of clusters to unite, no cluster in two of them."""
        if len(free) < 2:
            return free.new_zeros(0, 2)
        centres = found.centres[free]
        itself = torch.arange(len(free), device=free.device)
        other = nearest_rows(centres, centres, squared_l2, 1, left_out=itself)[1][:, 0]
        pairs = free[torch.unique(torch.stack([itself, other], 1).sort(1).values, dim=0)]
        order = found.rows.argsort(stable=True)
        starts = found.counts.cumsum(0) - found.counts
        lengths = found.counts[pairs].flatten()
        # the rows of both clusters of each pair, one after the other
        inside = torch.arange(int(lengths.sum()), device=free.device) - (lengths.cumsum(0) - lengths).repeat_interleave(
            lengths
        )
        rows = order[starts[pairs].flatten().repeat_interleave(lengths) + inside]
        groups = torch.arange(len(pairs), device=free.device).repeat_interleave(2).repeat_interleave(lengths)
        union = gaussian_evidence(self.values, groups, len(pairs), self.expected, rows=rows)
        ratio = -log_split_ratio(union, found.counts[pairs], whole[pairs], self.concentration)
        wanted = self._accepted(ratio)
        pairs, ratio = pairs[wanted], ratio[wanted]
        best = ratio.new_full((len(found.centres),), float("-inf"))
        best = best.scatter_reduce(0, pairs.flatten(), ratio.repeat_interleave(2), "amax")
        first = (ratio.unsqueeze(1) >= best[pairs]).all(1)
        return _apart(pairs[first], len(found.centres))

    def _accepted(self, ratio: Tensor) -> Tensor:
        drawn = torch.rand(len(ratio), generator=self.generator, dtype=torch.float64).to(ratio.device)
        limit = ratio.exp() if self.chance is None else torch.full_like(ratio, self.chance)
        return (ratio > 0) | ((drawn < limit) & ~ratio.isinf())


def _apart(pairs: Tensor, count: int) -> Tensor:
    """Return the pairs that come first for both of their clusters: equal ratios must not unite one cluster twice."""
    numbers = torch.arange(len(pairs), device=pairs.device)
    first = torch.full((count,), len(pairs), device=pairs.device)
    first = first.scatter_reduce(0, pairs.flatten(), numbers.repeat_interleave(2), "amin")
    return pairs[(first[pairs] == numbers.unsqueeze(1)).all(1)]
