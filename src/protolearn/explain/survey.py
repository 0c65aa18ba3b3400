"""Everything a report states, computed in one pass over each part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.classification import ClassificationResult, score_logits
from protolearn.audit.redundancy import NearPair, Use, near_pairs, same_source
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.projection import Nearest, NearestTokens, impure
from protolearn.explain.explain import contrast, weight_table
from protolearn.explain.passes import CaseList, run_over, track
from protolearn.explain.regions import Cells
from protolearn.structures import Explanation, Output


@dataclass(frozen=True, eq=False)
class Survey:
    """What was measured.

    Attributes
    ----------
    train, test : ClassificationResult or None
        Scores; None where that part was not given.
    use : Use
        How prototypes are used, over the training cases where they were given, else over the test cases.
    nearest : Nearest or None
        Nearest training cases of each prototype, of any class, one token a case.
    cells : Cells or None
        From positions to boxes.
    pairs, shared : list
        Prototypes that say the same.
    dead : dict
        Prototype id to the reason why it brings nothing.
    impure : tuple of int
        Prototypes fewer than half of whose nearest training cases carry a class that owns them.
    """

    train: ClassificationResult | None
    test: ClassificationResult | None
    use: Use
    nearest: Nearest | None
    cells: Cells | None
    pairs: list[NearPair]
    shared: list[list[int]]
    dead: dict[int, str]
    impure: tuple[int, ...]

    @property
    def scored(self) -> ClassificationResult | None:
        """The scores to judge the model by: on the test cases where there are labelled ones."""
        return self.test if self.test is not None and self.test.n else self.train


def survey(
    model: PrototypeModel,
    train: CaseList | None,
    test: CaseList | None,
    *,
    neighbours: int = 6,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Survey:
    """Run a model over its data once and return what there is to tell."""
    bank = model.bank
    use = Use(len(bank))
    search = (
        None if bank.drawn else NearestTokens(bank, model.measure, neighbours, own_class=False, compare=model.compare)
    )
    results: list[ClassificationResult | None] = []
    cells: Cells | None = None
    for cases, words in ((train, "training cases"), (test, "test cases")):
        if cases is None:
            results.append(None)
            continue
        none = np.zeros((0, len(model.classes)))
        logits, chances, labels, ids = [none], [none], [np.zeros(0, np.int64)], []
        seen = run_over(model, cases, batch_size=batch_size, device=device, strict_labels=True)
        for batch in track(seen, len(cases), words, quiet=quiet):
            output = batch.output
            assert output.tokens is not None  # a whole pass keeps them
            logits.append(output.logits.double().cpu().numpy())
            chances.append(output.head.probabilities(output.logits.double()).detach().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            ids += [str(cases.ids[i]) for i in batch.indices]
            cells = cells or Cells(output.tokens, getattr(model.encoder, "preprocess", None))
            if cases is train or train is None:
                use.update(output.evidence, predicted_contribution(output), bank.usable)
            if cases is train and search is not None:
                if search.result.values.device != output.evidence.device:  # the model was moved by the first batch
                    search = NearestTokens(bank, model.measure, neighbours, own_class=False, compare=model.compare)
                where = torch.tensor(batch.indices, device=output.evidence.device)
                search.update(output.tokens, batch.labels, where)
        scored = np.concatenate(logits), np.concatenate(labels), model.classes, ids, np.concatenate(chances)
        results.append(score_logits(*scored))
    nearest = search.result if train is not None and search is not None else None
    unclean: tuple[int, ...] = ()
    if nearest is not None and train is not None and len(train) and (nearest.labels >= 0).any():
        found = nearest.found.sum(1).clamp_min(1)
        owned = bank.ownership.sum(1) > 0
        few = torch.stack([impure(_first(nearest, p), bank.ownership[p : p + 1], (int(n) + 1) // 2)[0]
                           for p, n in enumerate(found.tolist())])  # fmt: skip
        unclean = tuple(bank.ids[few & owned & bank.usable].tolist())
    return Survey(
        train=results[0],
        test=results[1],
        use=use,
        nearest=nearest,
        cells=cells,
        pairs=near_pairs(bank, model.measure),
        shared=same_source(bank),
        dead=use.dead(bank, weight_table(model)),
        impure=unclean,
    )


def _first(nearest: Nearest, row: int) -> Nearest:
    return Nearest(**{name: getattr(nearest, name)[row : row + 1] for name in Nearest.__annotations__})


def predicted_contribution(output: Output) -> Tensor:
    """Return ``(B, P)``: what each prototype adds to the logit of the predicted class."""
    predicted = output.logits.argmax(1)
    made = []
    rows = chunk_rows(4 * output.logits.shape[1] * output.evidence.shape[1])
    for start in range(0, len(predicted), rows):
        with evaluating(output.head):  # a head may weigh evidence in another way while it is trained
            table = output.head.ledger(output.part(slice(start, start + rows)))
        at = predicted[start : start + rows].view(-1, 1, 1).expand(-1, 1, table.shape[2])
        made.append(table.gather(1, at).squeeze(1))
    return torch.cat(made) if made else output.evidence.new_zeros(0, output.evidence.shape[1])


def telling(result: ClassificationResult, count: int) -> tuple[list[int], list[int]]:
    """Return the places of the surest right predictions, one a class where possible, and of the surest wrong ones.

    Where fewer are wrong than asked for, the least sure right ones follow.
    """
    if not result.n:
        return [], []
    sure = result.probabilities.max(1)
    right = result.predicted == result.labels
    order = np.argsort(-sure, kind="stable")
    good = [int(i) for i in order if right[i]]
    firsts: dict[int, int] = {}
    for i in good:
        firsts.setdefault(int(result.labels[i]), i)
    best = [*firsts.values(), *(i for i in good if i not in set(firsts.values()))][:count]
    bad = [int(i) for i in order if not right[i]][:count]
    shaky = [i for i in reversed(good) if i not in best]
    return best, [*bad, *shaky[: max(count - len(bad), 0)]]


def explained(
    model: PrototypeModel, cases: CaseList, ids: Sequence[str], *, batch_size: int = 64
) -> list[tuple[int, Explanation, Explanation | None]]:
    """Return position, explanation and runner-up of the cases with these ids."""
    place = {str(case): i for i, case in enumerate(cases.ids)}
    indices = [place[case] for case in ids]
    pairs = contrast(model, cases, indices, batch_size=batch_size)
    return [(i, *pair) for i, pair in zip(indices, pairs, strict=True)]
