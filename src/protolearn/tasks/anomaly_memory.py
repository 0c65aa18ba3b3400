"""A memory of normal patches, thinned to a coreset: what is far from all of them is foreign (PatchCore)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.anomaly_maps import blurred, enlarged
from protolearn.core.coreset import greedy_coreset
from protolearn.core.encoder import Encoder
from protolearn.core.modes import evaluating
from protolearn.core.patch_memory import nearest_patches, patch_features, worst_patch
from protolearn.encoders import ImageEncoder
from protolearn.errors import UsageError
from protolearn.explain.passes import CaseList, track
from protolearn.structures import Box, Tokens
from protolearn.tasks.anomaly_model import (
    AnomalyModel,
    Examined,
    positive,
    refuse_constant,
    refuse_nan,
    refuse_none,
)


@dataclass(frozen=True)
class MemorySettings:
    """Settings of ``method="memory"``.

    Attributes
    ----------
    size : int or float
        How many patches are remembered, or which share of those seen (1.0 = all). An int above what there are is
        finite.
    pool : int
        Of how many patches the memory is chosen at most, and so how many are held while it learns: from each case as
        many are drawn at random (one at least), before any is chosen.
    window : int
        Cells a patch is averaged over along each axis; not where tokens have no grid.
    width : int, optional
        Width to which each layer is brought by averaging over runs of channels; 1,024 in the paper.
    project : int, optional
        Width of the random projection in which patches are chosen (not compared); None = as they are.
    neighbours : int
        Remembered patches that weigh the score; 1 = the plain distance.
    sigma : float
        Of the map's blur, in input pixels.
    """

    size: int | float = 0.1
    pool: int = 50_000
    window: int = 3
    width: int | None = None
    project: int | None = 128
    neighbours: int = 9
    sigma: float = 4.0

    def __post_init__(self) -> None:
        positive("pool", self.pool)
        positive("neighbours", self.neighbours)
        if isinstance(self.size, int):
            positive("size", self.size)
        elif not 0 < self.size <= 1:
            raise UsageError(f"size is a number of patches, or a share above 0 and at most 1.0, got {self.size}")
        if self.window < 1 or self.window % 2 == 0:
            raise UsageError(f"window must be an odd number of cells, got {self.window}")
        for what, value in (("width", self.width), ("project", self.project)):
            if value is not None:
                positive(what, value)
        if not self.sigma > 0:
            raise UsageError(f"sigma must be above 0, got {self.sigma}")

    def count(self, seen: int) -> int:
        """Return how many of the patches seen are remembered."""
        if isinstance(self.size, float):
            return max(1, math.ceil(self.size * seen))
        if self.size > seen:
            raise UsageError(
                f"a memory of {self.size} patches cannot be chosen from the {seen} there are: ask for fewer, for a "
                "share such as size=0.1, or give more normal cases"
            )
        return self.size


class MemoryModel(AnomalyModel):
    """A prototype memory of normal patches.

    Attributes
    ----------
    vectors : Tensor
        ``(M, D)``: the remembered patches, in the order in which they were chosen.
    case, place : Tensor
        ``(M,)`` int64: row of ``ids`` and position in that case.
    ids : tuple of str
        The normal cases.
    radius : float
        How far the farthest patch of the pool is from the memory, in the space in which it was chosen.
    """

    method = "memory"
    Settings = MemorySettings
    vectors: Tensor
    case: Tensor
    place: Tensor

    def __init__(self, encoder: Encoder, settings: MemorySettings) -> None:
        super().__init__(encoder, settings)
        self.register_buffer("vectors", torch.zeros(0, encoder.dim))
        self.register_buffer("case", torch.zeros(0, dtype=torch.long))
        self.register_buffer("place", torch.zeros(0, dtype=torch.long))
        self.ids: tuple[str, ...] = ()
        self.sizes: list[tuple[int, int] | None] = []
        self.layout: Tokens | None = None
        self.radius = math.nan

    def patches(self, inputs: Tensor) -> Tokens:
        """Return the patches of inputs, each with its neighbourhood."""
        size: tuple[int, ...] | None
        if isinstance(self.encoder, ImageEncoder) and self.encoder.layer != "final":
            maps, size = self.encoder.layer_maps(inputs), (int(inputs.shape[-2]), int(inputs.shape[-1]))
        else:
            tokens: Tokens = self.encoder(inputs)
            if tokens.grid is None or len(tokens.grid) != 2 or tokens.mask is not None:
                return tokens
            maps = [tokens.values.transpose(1, 2).view(len(tokens.values), -1, *tokens.grid)]
            size = tokens.input_size
        return patch_features(maps, self.settings.window, self.settings.width).replace(input_size=size)

    def learn(self, cases: CaseList, *, seed: int, batch_size: int, quiet: bool) -> None:
        """Collect patches and choose those that are remembered."""
        refuse_none(cases)
        generator = torch.Generator().manual_seed(seed)
        values, owner, place = [], [], []
        for shown in track(self.shown(cases, None, batch_size), len(cases), "learning what is normal", quiet=quiet):
            with evaluating(self), torch.no_grad():
                tokens = self.patches(shown.inputs.to(self.threshold.device))
            mask = torch.ones_like(tokens.values[..., 0], dtype=torch.bool) if tokens.mask is None else tokens.mask
            refuse_nan(tokens.values.masked_fill(~mask.unsqueeze(-1), 0.0), cases, shown.indices)
            chosen = self._drawn(mask, len(cases), generator)
            b, s = chosen.nonzero(as_tuple=True)
            values.append(tokens.values[b, s])
            owner.append(torch.tensor(shown.indices, device=b.device)[b])
            place.append(s)
            self.sizes += shown.sizes
            self.layout = tokens.part(slice(0, 1)).replace(summary=None, extras={})
        seen = torch.cat(values)
        refuse_constant(seen, getattr(cases, "name", "the data"))
        core = greedy_coreset(
            seen, self.settings.count(len(seen)), generator=generator, width=self.settings.project
        )  # fmt: skip
        self.vectors, self.case, self.place = seen[core.rows], torch.cat(owner)[core.rows], torch.cat(place)[core.rows]
        self.ids, self.radius = tuple(map(str, cases.ids)), core.radius

    def _drawn(self, real: Tensor, cases: int, generator: torch.Generator) -> Tensor:
        """Return which patches ``(B, S)`` enter the pool: all, or as many of each case as it has room for."""
        room = max(1, self.settings.pool // cases)
        if real.shape[1] <= room:
            return real
        lots = torch.rand(real.shape, generator=generator).to(real.device).masked_fill(~real, -1.0)
        last = lots.topk(room, dim=1).values[:, -1:]
        return (lots >= last) & real

    def examine(self, inputs: Tensor) -> Examined:
        """Return distances to the memory."""
        tokens = self.patches(inputs)
        finite = tokens.values.isfinite().all(-1)
        near = nearest_patches(tokens.values.nan_to_num(), self.vectors)
        worst = worst_patch(tokens.values.nan_to_num(), self.vectors, near, self.settings.neighbours, tokens.mask)
        whole = finite.all(1) if tokens.mask is None else (finite | ~tokens.mask).all(1)
        anomaly = worst.score.masked_fill(~whole, float("nan"))  # a patch that is not finite is never near
        maps = None
        if tokens.grid is not None and len(tokens.grid) == 2 and tokens.input_size is not None:
            sides = (int(tokens.input_size[0]), int(tokens.input_size[1]))
            maps = blurred(enlarged(near.distances.view(-1, *tokens.grid), sides), self.settings.sigma)
        distance = near.distances.gather(1, worst.position.unsqueeze(1)).squeeze(1)
        return Examined(anomaly, maps, tokens, worst.position, distance, worst.row)

    def nearest_place(
        self, row: int, case: str, layout: Tokens, size: tuple[int, int] | None
    ) -> tuple[str, Box | None]:
        """Return the normal case of a remembered patch, and where in it the patch was."""
        assert self.layout is not None, "set when it learned"
        owner = int(self.case[row])
        return self.ids[owner], self.in_picture(self.layout.region(int(self.place[row])), self.sizes[owner])

    def extra_repr(self) -> str:
        """Say how much is remembered."""
        return f"{len(self.vectors)} patches of {len(self.ids)} normal cases"


__all__ = ["MemoryModel", "MemorySettings"]
