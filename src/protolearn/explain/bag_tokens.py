"""What a prototype model would say of an input without each of its tokens.

For maximum, mean and sum the pooled similarities without each token have a closed form: the maximum stays what it is
but at the place where it was found, where the second best takes over. It serves where the head reads evidence alone and
each token goes through the neck by itself. Everything else is computed by hiding one token after the other.

A token is taken out of what the encoder made of the input. Where the encoder has mixed them (a network whose receptive
fields overlap, attention), the others still hold traces of it; so does a summary of the whole input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.leave_one_out import average_without_each, maximum_without_each
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.pooling import max_pool, mean_pool, sum_pool
from protolearn.errors import UsageError
from protolearn.structures import Output, Tokens


@dataclass(frozen=True, eq=False)
class WithoutTokens:
    """Scores without each token.

    Attributes
    ----------
    logits : Tensor
        ``(B, S, C)``: entry s is the input without token s. A position that is padding changes nothing.
    before : Tensor
        ``(B, C)`` with all of them.
    mask : Tensor
        ``(B, S)`` bool: real tokens.
    closed : bool
        Whether the closed form served.
    """

    logits: Tensor
    before: Tensor
    mask: Tensor
    closed: bool

    def necessity(self, classes: Tensor) -> Tensor:
        """Return ``(B, S)``: how far the score of one class a case ``(B,)`` falls without each token.

        Raises
        ------
        UsageError
            If a class does not exist.
        """
        if classes.shape != (len(self.before),) or bool(((classes < 0) | (classes >= self.before.shape[1])).any()):
            raise UsageError(f"name one class a case, 0 to {self.before.shape[1] - 1}: {len(self.before)} of them")
        at = classes.view(-1, 1, 1).expand(-1, self.logits.shape[1], 1)
        return self.before.gather(1, classes.unsqueeze(1)) - self.logits.gather(2, at).squeeze(2)


@torch.no_grad()
def without_each_token(model: PrototypeModel, output: Output, *, closed: bool | None = None) -> WithoutTokens:
    """Return what a model would say of inputs without each of their tokens; the model is left as it is.

    Parameters
    ----------
    model : PrototypeModel
        In any mode; asked in eval mode.
    output : Output
        What it said of the inputs: ``model(inputs)``, in eval mode.
    closed : bool, optional
        Insist on the closed form, or on hiding tokens one by one; by default the closed form where there is one.

    Raises
    ------
    UsageError
        If the closed form is asked for and there is none, or the output lacks its tokens.

    Examples
    --------
    >>> from protolearn.encoders import FeatureEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2, dim=4).build(FeatureEncoder(3), 2).eval()
    >>> found = without_each_token(model, model(torch.rand(5, 7, 3)))
    >>> found.closed, found.necessity(torch.zeros(5, dtype=torch.long)).shape
    (True, torch.Size([5, 7]))
    """
    if output.tokens is None:
        raise UsageError("this output was made of cached scores: run the model on inputs to ask about tokens")
    possible = has_closed_form(model)
    if closed and not possible:
        raise UsageError(
            "no closed form: it needs maximum, mean or sum pooling, a head that reads evidence alone, and a neck that "
            "takes each token by itself; leave closed out"
        )
    before = output.tokens if not _mixes(model) else output.encoded
    if before is None:
        raise UsageError("this output lacks the encoder's tokens, which this model's neck mixes: run it on inputs")
    mask = before.values.new_ones(before.values.shape[:2], dtype=torch.bool) if before.mask is None else before.mask
    use_closed = possible if closed is None else closed
    with evaluating(model):
        logits = _in_closed_form(model, output) if use_closed else _one_by_one(model, before, mask)
    scored = output.logits.detach()
    return WithoutTokens(torch.where(mask.unsqueeze(-1), logits, scored.unsqueeze(1)), scored, mask, use_closed)


def has_closed_form(model: PrototypeModel) -> bool:
    """Say whether the scores without each token can be had without scoring again."""
    return model.pooling in (max_pool, mean_pool, sum_pool) and model.head.reads == ("evidence",) and not _mixes(model)


def _mixes(model: PrototypeModel) -> bool:
    return hasattr(model.neck, "on_tokens")


def _in_closed_form(model: PrototypeModel, out: Output) -> Tensor:
    assert out.tokens is not None, "checked before"
    batch, steps = out.tokens.values.shape[:2]
    count = out.evidence.shape[1]
    made = [out.logits.new_zeros(0, steps, out.logits.shape[1])]
    rows = chunk_rows(4 * steps * max(1, count))
    for start in range(0, batch, rows):
        part = out.part(slice(start, start + rows))
        assert part.tokens is not None, "as above"
        mask = part.tokens.mask
        table = model.maps(part.tokens).transpose(1, 2) if part.table is None else part.table
        if model.pooling is max_pool:
            pooled = maximum_without_each(part.similarities, part.positions, table, mask)
        else:
            pooled = average_without_each(table, mask, total=model.pooling is sum_pool)
        evidence = pooled.masked_fill(~model.bank.usable | torch.isinf(pooled), 0.0)
        flat, none = evidence.flatten(0, 1), torch.zeros_like(pooled.flatten(0, 1), dtype=torch.long)
        read = Output(None, None, pooled.flatten(0, 1), none, flat, flat[:, :0], out.bank, out.head)
        # the same evidence gives the same score, whatever a product over another number of rows rounds to
        same = (evidence == part.evidence.unsqueeze(1)).all(2, keepdim=True)
        made.append(torch.where(same, part.logits.unsqueeze(1), model.head.read(read).unflatten(0, (-1, steps))))
    return torch.cat(made)


def _one_by_one(model: PrototypeModel, tokens: Tokens, mask: Tensor) -> Tensor:
    batch, steps, dim = tokens.values.shape
    made = [tokens.values.new_zeros(0, steps, len(model.head.offset()))]
    copies = chunk_rows(tokens.values.element_size() * steps * (dim + len(model.bank)))
    for case in range(batch):
        parts = []
        for start in range(0, steps, copies):
            gone = torch.arange(start, min(start + copies, steps), device=mask.device)
            cases = torch.full_like(gone, case)
            hidden = mask[cases].clone()
            hidden[torch.arange(len(gone), device=mask.device), gone] = False
            chosen = tokens.part(cases).replace(mask=hidden)
            parts.append((model.run(chosen) if _mixes(model) else model.score(chosen)).logits)
        made.append(torch.cat(parts).unsqueeze(0))
    return torch.cat(made)
