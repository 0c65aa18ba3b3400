"""The Lightning loop: epochs over the pictures themselves, for phases that train the encoder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from protolearn.core.method import Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.together import shared_batch
from protolearn.data.augment import Augmented
from protolearn.data.cases import Cases
from protolearn.errors import UsageError
from protolearn.structures import Batch, Output
from protolearn.training import distributed
from protolearn.training.steps import (
    Run,
    Tally,
    after_step,
    balance,
    epoch_order,
    epoch_seed,
    minimised,
    refuse_nonfinite,
    set_modes,
    set_rates,
)

EpochEnd = Callable[[dict[str, float]], bool]
"""Called after every epoch with its means; returns whether the phase goes on."""


class Shards:
    """The part of every batch of an epoch that is for the running process; all processes see the same batches.

    A batch smaller than the number of processes leaves some without a case: they take one that does not count.
    """

    def __init__(self, count: int, batch_size: int, seed: int, odds: Tensor | None = None) -> None:
        self.whole = epoch_order(count, batch_size, seed, odds)
        rank, size = distributed.rank(), distributed.size()
        self.mine = [batch[rank::size].tolist() for batch in self.whole]

    def __iter__(self) -> Iterator[list[int]]:
        return (mine or whole[:1].tolist() for mine, whole in zip(self.mine, self.whole, strict=True))

    def __len__(self) -> int:
        return len(self.whole)

    def weight(self, step: int) -> tuple[int, float]:
        """Return how many of the cases count, and what the mean over them is worth in the mean over processes."""
        own = len(self.mine[step])
        return own, own * distributed.size() / len(self.whole[step])


class Pairs(Dataset[Batch]):
    """Every case in two views, ``(2, ...)``: drawn independently, the same places in other colours, or the same."""

    def __init__(self, cases: Cases, *, same_places: bool = False, same_view: bool = False) -> None:
        self.first, self.second = cases, cases if same_view else cases.with_seed(cases.seed + 1)
        if same_places:
            if not isinstance(cases.transform, Augmented):
                raise UsageError("two views of a case differ by augmentation: give augment")
            self.second = cases.with_transform(replace(cases.transform, colours=1))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, i: int) -> Batch:
        one, other = self.first[i], self.second[i]
        return one._replace(inputs=torch.stack([one.inputs, other.inputs]))

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws."""
        self.first.set_epoch(epoch)
        self.second.set_epoch(epoch)


class PhaseModule(L.LightningModule):
    """One training phase of a method, as Lightning wants it."""

    def __init__(
        self, model: PrototypeModel, method: Method, phase: Train, run: Run, cases: Cases, how: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model, self.method, self.phase, self.run, self.cases, self.how = model, method, phase, run, cases, how
        self.tally = Tally()
        self.odds = balance(torch.from_numpy(np.array(cases.labels))) if phase.balanced else None
        self.shards = Shards(len(cases), how["batch_size"], 0, self.odds)
        self.shown: Cases | Pairs = cases
        if phase.pairs:
            self.shown = Pairs(cases, same_places=phase.pairs == "same_places", same_view=phase.pairs == "same_view")
        self.targets = {name: torch.from_numpy(np.array(rows)) for name, rows in cases.targets.items()}
        self.last: tuple[Output, Tensor, bool] | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the run's optimiser, which outlives the phase."""
        return self.run.optimizer

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the coming epoch."""
        seed = epoch_seed(self.how["seed"], self.phase.name, self.run.epochs)
        torch.manual_seed(seed)
        self.shown.set_epoch(1_000_000 + self.run.epochs)  # other draws than the cached views
        self.shards = Shards(len(self.cases), self.how["batch_size"], seed, self.odds)
        pin = self.device.type == "cuda"
        return DataLoader(self.shown, batch_sampler=self.shards, num_workers=self.how["workers"], pin_memory=pin)  # type: ignore[arg-type]

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """Return the loss of a batch."""
        own, weight = self.shards.weight(step)
        labels = batch.labels if own else torch.full_like(batch.labels, -1)
        inputs, rows = batch.inputs, torch.tensor(self.shards.mine[step] or self.shards.whole[step][:1].tolist())
        if self.phase.pairs:
            inputs, labels, rows = inputs.transpose(0, 1).flatten(0, 1), labels.repeat(2), rows.repeat(2)
        if self.phase.per == "step":
            set_rates(self.run, self.phase, self.model, step, len(self.shards))
        targets = {name: values[rows].to(labels.device) for name, values in self.targets.items()}
        draw = torch.Generator().manual_seed(epoch_seed(self.how["seed"], self.phase.name, self.run.epochs) + step)
        inputs, labels, more = self.method.prepare(inputs, labels, targets, draw)
        named = tuple(self.cases.ids[i] for i in rows.tolist()) if len(inputs) == len(rows) else ()
        numbers = self.phase.numbers(self.run.epochs)
        out = self.model(inputs).replace(targets=more, paired=bool(self.phase.pairs), cases=named, scheduled=numbers)
        weights = self.phase.coefficients(self.method.weights(), self.run.epochs, step)
        with shared_batch(own > 0):
            loss, values = minimised(self.method, out, labels, weights)
        self.last = out, labels, own > 0
        refuse_nonfinite(values, self.phase.name, self.run.epochs)
        self.tally.add(values, own)
        self.log("loss", loss, prog_bar=True, logger=False)
        return loss * weight


class PhaseCallback(L.Callback):
    """Sets what is trained, frozen and in eval mode, and ends each epoch: schedule, history, checkpoint, stop."""

    def __init__(self, end: EpochEnd) -> None:
        self.end = end

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the phase in force (Lightning switches everything to train mode)."""
        assert isinstance(pl_module, PhaseModule)
        set_modes(pl_module.model, pl_module.phase)
        set_rates(pl_module.run, pl_module.phase, pl_module.model)
        pl_module.tally = Tally()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move by rule what no gradient moves, and hold the constraints."""
        assert isinstance(pl_module, PhaseModule) and pl_module.last is not None
        (out, labels, counts), pl_module.last = pl_module.last, None
        if type(pl_module.method).after_step is not Method.after_step:  # a rule, and the same one everywhere
            out, labels = distributed.whole_batch(out, labels, counts)
        after_step(pl_module.model, pl_module.method, out, labels, len(pl_module.shards))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand the means over."""
        assert isinstance(pl_module, PhaseModule)
        tally = pl_module.tally
        names = sorted(tally.sums)
        packed = torch.stack([tally.sums[name] for name in names] + [tally.sums[names[0]] * 0 + tally.cases])
        summed = distributed.sum_over_processes(packed)
        means = {name: float(value / summed[-1]) for name, value in zip(names, summed, strict=False)}
        trainer.should_stop = not self.end(means)


def lightning_phase(
    model: PrototypeModel,
    method: Method,
    phase: Train,
    run: Run,
    cases: Cases,
    epochs: int,
    end: EpochEnd,
    *,
    device: torch.device,
    precision: str,
    clip: float | None,
    quiet: bool,
    **how: Any,
) -> None:
    """Train some epochs of a phase; ``end`` is called after each."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    several = distributed.size() > 1
    set_modes(model, phase)
    backend = "nccl" if device.type == "cuda" else "gloo"
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=distributed.size() if several else [device.index or 0] if device.type == "cuda" else 1,
        strategy=DDPStrategy(process_group_backend=backend, find_unused_parameters=True) if several else "auto",
        sync_batchnorm=several and device.type == "cuda",
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=clip,
        callbacks=[PhaseCallback(end), *([] if quiet else [RichProgressBar()])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not quiet,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what phases are for
        warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*pin_memory.*")
        trainer.fit(PhaseModule(model, method, phase, run, cases, how))
