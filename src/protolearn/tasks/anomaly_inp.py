"""INP-Former on a frozen vision transformer: what a picture's own normal prototypes cannot rebuild is foreign."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protolearn.core.anomaly_maps import blurred, cosine_gap, enlarged, top_mean
from protolearn.core.encoder import Encoder
from protolearn.core.inp_former import InpFormer, coherence, layer_groups
from protolearn.core.modes import evaluating
from protolearn.encoders import ImageEncoder
from protolearn.errors import UsageError
from protolearn.explain.passes import CaseList, track
from protolearn.structures import Box, Tokens
from protolearn.tasks.anomaly_model import AnomalyModel, Examined, positive, refuse_constant, refuse_nan, refuse_none
from protolearn.training.stable_adamw import StableAdamW
from protolearn.training.steps import epoch_order, epoch_seed, refuse_nonfinite


@dataclass(frozen=True)
class InpSettings:
    """Settings of ``method="inp_former"``; by default the paper's.

    Attributes
    ----------
    prototypes : int
        Learned tokens, and so intrinsic prototypes of each picture.
    epochs, batch : int
        Passes over the normal cases, and cases at a step; a last batch that is smaller is left out, unless it is the
        only one.
    lr, last_lr : float
        The rate rises over ``warm_up`` steps and then falls along a cosine to the last one.
    warm_up : int
        Steps.
    weight_decay, clip : float
        Of StableAdamW (amsgrad, eps 1e-10); largest norm of the gradient.
    gamma, coherence_weight : float
        Of the loss.
    heads : int, optional
        By default those of the transformer.
    map_size : int
        Side to which a map is brought before it is smoothed and pooled.
    top : float
        Share of the map's pixels whose mean is the score.
    zero_shot : bool
        Judge by the distance of each patch to its nearest prototype alone, without the decoder: for pictures of a kind
        that was not learned from.
    """

    prototypes: int = 6
    epochs: int = 200
    batch: int = 16
    lr: float = 1e-3
    last_lr: float = 1e-4
    warm_up: int = 100
    weight_decay: float = 1e-4
    clip: float = 0.1
    gamma: float = 3.0
    coherence_weight: float = 0.2
    heads: int | None = None
    map_size: int = 256
    top: float = 0.01
    zero_shot: bool = False

    def __post_init__(self) -> None:
        for what in ("prototypes", "epochs", "batch", "map_size"):
            positive(what, getattr(self, what))
        for what in ("lr", "last_lr", "warm_up", "weight_decay", "clip", "gamma", "coherence_weight"):
            positive(what, getattr(self, what), 0)
        if not 0 < self.top <= 1:
            raise UsageError(f"top is a share above 0 and at most 1, got {self.top}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, of so many."""
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, steps - self.warm_up)
        return self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * done)) / 2


class InpModel(AnomalyModel):
    """INP-Former's trained parts beside the frozen encoder.

    Attributes
    ----------
    net : InpFormer
        What was trained.
    losses : list of float
        Mean training loss of each epoch.
    """

    method = "inp_former"
    Settings = InpSettings

    def __init__(self, encoder: Encoder, settings: InpSettings) -> None:
        super().__init__(encoder, settings)
        if not isinstance(encoder, ImageEncoder) or getattr(encoder.net, "blocks", None) is None:
            raise UsageError(
                "inp_former reads several layers of a vision transformer: give ImageEncoder('vit_...', layer=range(2, "
                "10)), or take method='memory'"
            )
        layers = 1 if isinstance(encoder.layer, int | str) else len(encoder.layer)
        if layers < 2 or layers % 2:
            raise UsageError(f"inp_former needs an even number of layers, such as layer=range(2, 10), got {layers}")
        self.layers = layers
        self.width = encoder.dim // layers
        heads = settings.heads or getattr(getattr(encoder.net.blocks[0], "attn", None), "num_heads", None)
        if heads is None or self.width % heads:
            raise UsageError(f"say into how many heads a width of {self.width} is split: heads={heads} is not possible")
        self.heads = int(heads)
        self.net = self._untrained(0)
        self.losses: list[float] = []

    def _untrained(self, seed: int) -> InpFormer:
        generator = torch.Generator().manual_seed(seed)
        return InpFormer(
            self.width, self.heads, layers=self.layers, prototypes=self.settings.prototypes, generator=generator
        )

    @torch.no_grad()
    def groups(self, inputs: Tensor) -> tuple[Tensor, Tokens]:
        """Return the means of both groups of layers ``(2, B, N, D)``, and how the patches lie."""
        assert isinstance(self.encoder, ImageEncoder), "checked above"
        maps = self.encoder.layer_maps(inputs)
        found = layer_groups(maps)
        size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        return found, Tokens(found[0], grid=tuple(maps[0].shape[-2:]), input_size=size)

    def learn(self, cases: CaseList, *, seed: int, batch_size: int, quiet: bool) -> None:
        """Train the extractor and the decoder; tokens of the frozen encoder are made once and held in memory."""
        refuse_none(cases)
        kept = []
        for shown in track(self.shown(cases, None, batch_size), len(cases), "reading normal cases", quiet=quiet):
            with evaluating(self):
                groups = self.groups(shown.inputs.to(self.threshold.device))[0]
            refuse_nan(groups.transpose(0, 1), cases, shown.indices)
            kept.append(groups)
        seen = torch.cat(kept, 1)
        refuse_constant(seen[0].flatten(0, 1), getattr(cases, "name", "the data"))
        self.net = self._untrained(seed).to(seen.device)
        self.net.train()
        optimizer = StableAdamW(
            self.net.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, eps=1e-10, amsgrad=True
        )
        plan = [list(self._batches(len(cases), seed, epoch)) for epoch in range(self.settings.epochs)]
        steps, step = sum(map(len, plan)), 0
        for epoch, batches in enumerate(track(plan, len(plan), "training INP-Former", quiet=quiet)):
            total = 0.0
            for chosen in batches:
                optimizer.param_groups[0]["lr"] = self.settings.rate(step, steps)
                optimizer.zero_grad()
                loss = self.net.loss(
                    seen[:, chosen.to(seen.device)],
                    gamma=self.settings.gamma,
                    coherence_weight=self.settings.coherence_weight,
                )
                refuse_nonfinite({"loss": loss.detach()}, self.method, epoch)
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
                optimizer.step()
                total, step = total + float(loss.detach()), step + 1
            self.losses.append(total / len(batches))
        self.net.eval()

    def _batches(self, count: int, seed: int, epoch: int) -> Iterator[Tensor]:
        batches = epoch_order(count, self.settings.batch, epoch_seed(seed, self.method, epoch))
        yield from batches if len(batches) == 1 or len(batches[-1]) == self.settings.batch else batches[:-1]

    @torch.no_grad()
    def examine(self, inputs: Tensor) -> Examined:
        """Return how badly each place is rebuilt."""
        groups, layout = self.groups(inputs)
        rebuilt = self.net(groups)
        near, which = coherence(rebuilt.tokens, rebuilt.prototypes)
        gaps = near if self.settings.zero_shot else cosine_gap(groups, rebuilt.groups).mean(0)
        assert layout.grid is not None
        sides = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        maps = enlarged(gaps.view(-1, *layout.grid), sides, corners=True)
        side = self.settings.map_size
        maps = blurred(enlarged(maps, (side, side)), 4.0, size=5, zeros_outside=True)
        distance, position = gaps.max(1)
        prototype = rebuilt.prototypes[torch.arange(len(gaps)), which.gather(1, position.unsqueeze(1)).squeeze(1)]
        nearest = cosine_gap(rebuilt.tokens, prototype.unsqueeze(1)).argmin(1)
        return Examined(top_mean(maps, self.settings.top), maps, layout, position, distance, nearest)

    def nearest_place(
        self, row: int, case: str, layout: Tokens, size: tuple[int, int] | None
    ) -> tuple[str, Box | None]:
        """Return the place of the same picture that is most like the prototype nearest to the worst place."""
        return case, self.in_picture(layout.region(row), size)


__all__ = ["InpModel", "InpSettings"]
