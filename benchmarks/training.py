"""Does a training epoch cost more than the bare encoder with a linear head on the same batches?

Ours is ``fit`` in its joint phase: encoder, neck, prototypes trained, four terms, logs and checks. Its epochs are timed
from one ``set_epoch`` to the next; the first epoch is left out, for all candidates.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.measure import Plan, Row, Seconds, in_turn
from benchmarks.pictures import BATCH, DIM, PER_CLASS, LinearHead, cases, encoder, shuffled
from protolearn.core.method import Phase, Train
from protolearn.data.arrays import ArrayCases
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.structures import Batch
from protolearn.training.fit import fit

TITLE = "Training epoch, encoder trained"
RATE, DECAY = 1e-4, 1e-3


@dataclass(frozen=True)
class Joint(ProtoPNet):
    """Nothing but joint epochs."""

    epochs: int = 1

    def phases(self) -> list[Phase]:
        """Return one phase."""
        rates = {"encoder": self.encoder_rate or RATE, "neck": self.neck_rate, "prototypes": self.prototype_rate}
        return [Train("joint", self.epochs, rates, {"encoder": self.weight_decay, "neck": self.weight_decay})]


class Stamped(ArrayCases):
    """Pictures that note when an epoch begins."""

    def set_epoch(self, epoch: int) -> None:
        """Note the time."""
        super().set_epoch(epoch)
        stamps.append(time.perf_counter())


stamps: list[float] = []


def run(plan: Plan) -> Iterator[Row]:
    """Time the epochs."""
    size, count, timed = (64, 2 * BATCH, 1) if plan.quick else (64, 400, 2)
    data = cases(count, size)
    seen = data.with_transform(encoder(size).preprocess)
    data.__class__ = Stamped
    joint = Joint(prototypes_per_class=PER_CLASS, dim=DIM, epochs=timed + 2)

    def ours() -> Seconds:
        stamps.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(joint, data, encoder=encoder(size), batch_size=BATCH, quiet=True, device="cpu")
        starts = stamps[-(timed + 2) :]
        return Seconds((starts[-1] - starts[1]) / timed)

    def plain() -> Seconds:
        bare = LinearHead(size).train()
        optimizer = torch.optim.Adam(bare.parameters(), lr=RATE, weight_decay=DECAY)
        taken = []
        for _ in range(timed + 1):
            start = time.perf_counter()
            for batch in loader():
                loss = cross_entropy(bare(batch.inputs), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            taken.append(time.perf_counter() - start)
        return Seconds(mean(taken[1:]))

    def loader() -> DataLoader[Batch]:
        return DataLoader(seen, batch_sampler=shuffled(count))  # type: ignore[arg-type]

    def lightning() -> Seconds:
        starts: list[float] = []
        trainer = L.Trainer(
            max_epochs=timed + 2,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            reload_dataloaders_every_n_epochs=1,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Linear(LinearHead(size), loader, starts))
        return Seconds((starts[-1] - starts[1]) / timed)

    candidates = {"ours": ours, "plain": plain, "lightning": lightning}
    times = in_turn(candidates, plan.rounds(5), warm=0)
    note = f"resnet18, {count} pictures {size}x{size}, 10 classes x 10 prototypes, batch {BATCH}"
    yield times.ratio(
        "ours",
        "plain",
        what="fit, joint phase",
        against="bare encoder and linear head, plain loop",
        at_most=1.05,
        note=note,
    )
    yield times.ratio(
        "ours",
        "lightning",
        what="fit, joint phase",
        against="bare encoder and linear head, Lightning",
        at_most=1.05,
        note="the same",
    )
    if plan.peer is not None:
        peer = plan.peer.train(size=size, count=count, batch=BATCH, epochs=1)
        yield Row(
            "CaBRNet training epoch",
            "bare encoder and linear head, plain loop",
            peer["epoch"] / times.best("plain"),
            note="one epoch of the peer, not in turn; for orientation",
        )


class Linear(L.LightningModule):
    """The linear head under Lightning, as one would write it."""

    def __init__(self, bare: LinearHead, loader: object, starts: list[float]) -> None:
        super().__init__()
        self.bare, self.loader, self.starts = bare, loader, starts

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.bare.parameters(), lr=RATE, weight_decay=DECAY)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the coming epoch."""
        self.starts.append(time.perf_counter())
        return self.loader()  # type: ignore[operator,no-any-return]

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """Return the loss."""
        loss = cross_entropy(self.bare(batch.inputs), batch.labels)
        self.log("loss", loss)
        return loss
