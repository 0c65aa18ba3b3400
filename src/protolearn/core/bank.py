"""The prototypes of a model, and all that is known about each: owner, spread, counts, source, bans.

One object for prototypes that are learned (parameters), moved by rule (buffers), or drawn from the input itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.distributions import PrototypeLaw
from protolearn.core.heads import resize_to
from protolearn.core.updates import Mixture, merge_components
from protolearn.structures import Source

_ROWS = ("vectors", "ownership", "spread", "counts", "active", "banned", "ids", "groups")

Constraint = Callable[[Tensor], Tensor]
"""Where prototypes may lie: ``(P, D) -> (P, D)``, and its own image stays as it is."""


def unit_norm(vectors: Tensor) -> Tensor:
    """Return rows of length 1: the constraint of prototypes that are directions.

    Examples
    --------
    >>> unit_norm(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    # a row that has it up to rounding stays as it is to the last bit, or prototypes that are frozen would drift
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    done = (length - 1).abs() <= 8 * torch.finfo(vectors.dtype).eps
    return torch.where(done, vectors, nn.functional.normalize(vectors, dim=-1))


class PrototypeBank(nn.Module):
    """A set of prototypes.

    Parameters
    ----------
    vectors : Tensor
        ``(P, D)``; or ``(B, P, D)`` for prototypes drawn for each input, which are not saved.
    ownership : Tensor
        ``(P, C)`` weights >= 0: one-hot for a prototype of one class, several entries for a shared one, zeros for a
        prototype of no class.
    learned : bool
        True: ``vectors`` is a parameter. False: a buffer that a rule moves.
    spread : Tensor, optional
        ``(P, D)`` variances, of the same kind as ``vectors``.
    groups : Tensor, optional
        ``(P,)`` int64: a membership beside the classes, such as a concept, a scale or a branch.
    constraint : callable, optional
        Where the vectors may lie, see :meth:`constrain`; part of the code, not saved.
    law : PrototypeLaw, optional
        How each prototype scatters about its vector, where prototypes are distributions.

    Attributes
    ----------
    ids : Tensor
        ``(P,)`` int64, one per prototype, never reused: they survive pruning and merging.
    counts : Tensor
        ``(P,)`` how many tokens each one stands for, for updates by rule.
    active : Tensor
        ``(P,)`` bool; an inactive prototype is kept but brings no evidence.
    banned : Tensor
        ``(P,)`` bool; forbidden by a person, and never used until the ban is lifted.
    sources : list of Source or None
        The real case behind each prototype; None where there is none, and an explanation must then say so. To change
        some, use :meth:`record`, or set the whole list.

    Raises
    ------
    ValueError
        If shapes do not fit or ownership is negative.

    Examples
    --------
    >>> bank = PrototypeBank.per_class(classes=2, count=3, dim=4)
    >>> bank.vectors.shape, bank.owner().tolist()
    (torch.Size([6, 4]), [0, 0, 0, 1, 1, 1])
    >>> bank.prune([0, 5]); bank.ids.tolist()
    [1, 2, 3, 4]
    """

    vectors: Tensor
    ownership: Tensor
    spread: Tensor | None
    counts: Tensor
    active: Tensor
    banned: Tensor
    ids: Tensor
    next_id: Tensor
    groups: Tensor | None

    def __init__(
        self,
        vectors: Tensor,
        ownership: Tensor,
        *,
        learned: bool = True,
        spread: Tensor | None = None,
        groups: Tensor | None = None,
        constraint: Constraint | None = None,
        law: PrototypeLaw | None = None,
    ) -> None:
        super().__init__()
        if vectors.ndim not in (2, 3):
            raise ValueError(f"prototypes must be (P, D) or (B, P, D), got {tuple(vectors.shape)}")
        count = vectors.shape[-2]
        if ownership.ndim != 2 or ownership.shape[0] != count:
            raise ValueError(f"ownership must be (P, C) with P = {count}, got {tuple(ownership.shape)}")
        if (ownership < 0).any():
            raise ValueError("ownership weights must not be negative")
        if spread is not None and spread.shape != vectors.shape:
            raise ValueError(f"spread must be {tuple(vectors.shape)} like the vectors, got {tuple(spread.shape)}")
        if groups is not None and groups.shape != (count,):
            raise ValueError(f"groups must be (P,) = ({count},), got {tuple(groups.shape)}")
        self.learned = learned and vectors.ndim == 2
        self.constraint = constraint
        self.law: PrototypeLaw | None = law
        self.drawn = vectors.ndim == 3
        for name, tensor in (("vectors", vectors), ("spread", spread)):
            if tensor is not None and self.learned:
                self.register_parameter(name, nn.Parameter(tensor.clone()))
            else:
                # prototypes drawn from an input carry its graph and belong to that input alone
                kept = tensor if tensor is None or self.drawn else tensor.detach().clone()
                self.register_buffer(name, kept, persistent=not self.drawn)
        device = vectors.device
        self.register_buffer("ownership", ownership.to(torch.float32).clone())
        self.register_buffer("counts", torch.zeros(count, device=device))
        self.register_buffer("active", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("banned", torch.zeros(count, dtype=torch.bool, device=device))
        self.register_buffer("ids", torch.arange(count, device=device))
        self.register_buffer("next_id", torch.tensor(count, device=device))
        self.register_buffer("groups", None if groups is None else groups.long().clone())
        self._first_rows: dict[str, int] | None = None
        self.sources = [None] * count
        self.constrain()

    @classmethod
    def per_class(
        cls, classes: int, count: int, dim: int, *, generator: torch.Generator | None = None, learned: bool = True
    ) -> PrototypeBank:
        """Make ``count`` prototypes for each class, uniform in [0, 1)."""
        if classes < 1 or count < 1 or dim < 1:
            raise ValueError(f"classes, count and dim must be at least 1, got {classes}, {count}, {dim}")
        vectors = torch.rand(classes * count, dim, generator=generator)
        return cls(vectors, torch.eye(classes).repeat_interleave(count, dim=0), learned=learned)

    def __len__(self) -> int:
        """Return the number of prototypes, inactive ones included."""
        return self.ownership.shape[0]

    @property
    def classes(self) -> int:
        """Number of classes that can own a prototype."""
        return self.ownership.shape[1]

    @property
    def usable(self) -> Tensor:
        """``(P,)`` bool: active and not banned."""
        return self.active & ~self.banned

    def owner(self) -> Tensor:
        """Return ``(P,)`` the class that owns each prototype, -1 where none or several do."""
        single = (self.ownership > 0).sum(1) == 1
        return torch.where(single, self.ownership.argmax(1), -1)

    def owned_by(self, labels: Tensor) -> Tensor:
        """Return ``(B, P)`` bool: usable prototypes that the class of each label owns; nothing for label -1."""
        owned = (self.ownership.T > 0)[labels.clamp_min(0)]
        return owned & self.usable & (labels >= 0).unsqueeze(1)

    def others(self, labels: Tensor) -> Tensor:
        """Return ``(B, P)`` bool: usable prototypes that the class of each label does not own; nothing for -1."""
        return ~self.owned_by(labels) & self.usable & (labels >= 0).unsqueeze(1)

    def rows(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Return the row of each id.

        Raises
        ------
        KeyError
            If there is no such prototype (any more).
        """
        table = {int(key): row for row, key in enumerate(self.ids.tolist())}
        wanted = [int(key) for key in ids]
        missing = [key for key in wanted if key not in table]
        if missing:
            raise KeyError(f"no prototype has the id {', '.join(map(str, missing))}")
        return torch.tensor([table[key] for key in wanted], dtype=torch.long, device=self.ids.device)

    def rows_of(self, cases: Sequence[str]) -> Tensor:
        """Return ``(B,)`` the first row that comes from each case, by the case's id; -1 where none does."""
        if self._first_rows is None:  # kept, as an objective may ask in every step
            self._first_rows = {}
            for row, source in enumerate(self._sources):
                if source is not None:
                    self._first_rows.setdefault(source.case, row)
        table = self._first_rows
        return torch.tensor([table.get(case, -1) for case in cases], dtype=torch.long, device=self.ids.device)

    @property
    def sources(self) -> list[Source | None]:
        """The real case behind each prototype; to change some, :meth:`record` them or set the whole list."""
        return self._sources

    @sources.setter
    def sources(self, sources: list[Source | None]) -> None:
        self._sources, self._first_rows = sources, None

    def record(self, rows: Tensor, sources: Sequence[Source | None]) -> None:
        """Set where some prototypes come from; they stay where they are."""
        known = list(self._sources)
        for row, source in zip(rows.tolist(), sources, strict=True):
            known[row] = source
        self.sources = known

    @torch.no_grad()
    def move(self, rows: Tensor, vectors: Tensor, sources: Sequence[Source | None]) -> None:
        """Set the vectors of some rows and the cases they now come from."""
        if len(rows) != len(sources) or vectors.shape != (len(rows), self.vectors.shape[-1]):
            raise ValueError(f"{len(rows)} rows, {tuple(vectors.shape)} vectors and {len(sources)} sources do not fit")
        self.vectors[rows] = vectors.to(self.vectors.dtype)
        self.record(rows, sources)
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the vectors where the constraint allows: done after every step, after a projection, and at the start."""
        if self.constraint is not None and not self.drawn:
            self.vectors.copy_(self.constraint(self.vectors))

    @torch.no_grad()
    def settled(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """Return what vectors become when they are put into some rows: themselves, or as the constraint has them."""
        if self.constraint is None:
            return vectors
        whole = self.vectors.detach().clone()
        whole[rows] = vectors.to(whole)
        return self.constraint(whole)[rows]

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; heads must be told too (``PrototypeModel.prune`` does)."""
        for name in _ROWS:
            old = getattr(self, name)
            self._replace(name, None if old is None else old[:, rows] if old.ndim == 3 else old[rows])
        self.sources = [self.sources[row] for row in rows.tolist()]
        if self.law is not None:
            self.law.keep(rows)

    def prune(self, ids: Sequence[int] | Tensor) -> None:
        """Remove prototypes by id; the others keep theirs."""
        gone = set(self.rows(ids).tolist())
        self.keep(
            torch.tensor([r for r in range(len(self)) if r not in gone], dtype=torch.long, device=self.ids.device)
        )

    @torch.no_grad()
    def grow(
        self,
        vectors: Tensor,
        ownership: Tensor,
        sources: Sequence[Source | None] | None = None,
        spread: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Add prototypes, and classes when ``ownership`` has more columns; return the new ids."""
        count, more = len(vectors), ownership.shape[1] - self.classes
        if self.drawn or vectors.ndim != 2 or ownership.shape[0] != count or more < 0:
            raise ValueError(f"cannot add vectors {tuple(vectors.shape)} with ownership {tuple(ownership.shape)}")
        if sources is not None and len(sources) != count:
            raise ValueError(f"{len(sources)} sources for {count} prototypes")
        if (spread is None) != (self.spread is None):
            raise ValueError("a bank with spread grows with spread, one without grows without")
        if (groups is None) != (self.groups is None):
            raise ValueError("a bank with groups grows with groups, one without grows without")
        fresh = self.next_id + torch.arange(count, device=self.ids.device)
        flags = torch.ones(count, dtype=torch.bool, device=self.ids.device)
        added = {
            "vectors": vectors,
            "spread": spread,
            "counts": flags.float() * 0,
            "active": flags,
            "banned": ~flags,
            "ids": fresh,
            "ownership": ownership.to(torch.float32),
            "groups": groups,
        }
        self.ownership = nn.functional.pad(self.ownership, (0, more))
        for name, rows in added.items():
            old = getattr(self, name)
            self._replace(name, None if old is None or rows is None else torch.cat([old.detach(), rows.to(old)]))
        self.sources = [*self.sources, *([None] * count if sources is None else sources)]
        if self.law is not None:
            self.law.grow(count)
        self.next_id += count
        return fresh

    @torch.no_grad()
    def merge(self, ids: Sequence[int] | Tensor) -> int:
        """Merge prototypes into the first: mean vector (weighted by counts where there are any), joint ownership.

        The merged prototype is no training case any more, so its source becomes None. The first id survives, and so
        does its law.
        """
        rows = self.rows(ids)
        if len(rows) < 2 or len(set(rows.tolist())) != len(rows):
            raise ValueError("merging takes at least two different prototypes")
        counts, vectors = self.counts[rows], self.vectors[rows]
        spread = torch.zeros_like(vectors) if self.spread is None else self.spread[rows]
        one = merge_components(Mixture(vectors, spread, counts.log().to(vectors.dtype)), torch.zeros_like(rows))
        self.vectors[rows[0]] = one.means[0]
        if self.spread is not None:
            self.spread[rows[0]] = one.variances[0]
        self.ownership[rows[0]] = self.ownership[rows].amax(0)
        self.counts[rows[0]] = counts.sum()
        self.record(rows[:1], [None])
        self.constrain()
        survivor = int(self.ids[rows[0]])
        self.prune(self.ids[rows[1:]])
        return survivor

    def ban(self, ids: Sequence[int] | Tensor) -> None:
        """Forbid prototypes: they bring no evidence until :meth:`unban`."""
        self.banned[self.rows(ids)] = True

    def unban(self, ids: Sequence[int] | Tensor) -> None:
        """Lift a ban."""
        self.banned[self.rows(ids)] = False

    def _replace(self, name: str, tensor: Tensor | None) -> None:
        current = getattr(self, name)
        if isinstance(current, nn.Parameter) and tensor is not None:
            setattr(self, name, nn.Parameter(tensor.detach().clone(), requires_grad=current.requires_grad))
        else:
            setattr(self, name, tensor)

    def get_extra_state(self) -> Tensor:
        """Return the sources as JSON in a byte tensor, so that a state dict holds all and safetensors can keep it."""
        text = json.dumps([None if s is None else s.to_dict() for s in self.sources])
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Read what :meth:`get_extra_state` wrote.

        Raises
        ------
        ValueError
            If it is no list of sources, one for each prototype.
        """
        plain = json.loads(bytes(state.to(torch.uint8).tolist()).decode())
        if not isinstance(plain, list) or len(plain) != len(self):
            raise ValueError(f"expected the sources of {len(self)} prototypes")
        self.sources = [None if entry is None else Source.from_dict(entry) for entry in plain]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, _ROWS)
        super()._load_from_state_dict(state_dict, prefix, *args)
