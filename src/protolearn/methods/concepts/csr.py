"""CSR (Huy et al., CVPR 2025, arXiv 2503.06873): prototypes of named concepts, and a person who corrects them.

    concept model   cam_k(s) = linear map of token f_s;   BCE of the mean of cam_k over s against concept label c_k
    vector          v_k = sum over s of softmax_s(cam_k(s)) f_s,  for concepts present;   v'_k = P(v_k) / |P(v_k)|
    similarity      q_m = softmax over the M prototypes of k of sharpness <p_km, v'>;   sim_k = sum_m q_m <p_km, v'>
    contrast        -log e_k / (e_k + sum over j != k of exp(scale sim_j)),  e_k = exp(scale (sim_k - margin))
    score           s_km = max over s of cos(p_km, P(f_s));   logits = W s + b, cross-entropy
    phases          concept model (encoder, cam; BCE); projector P and prototypes (contrast; concept model frozen);
                    the nearest training token of each prototype is noted; W and b (cross-entropy)

A person rejects concepts and draws boxes at test time: ``protolearn.explain.interact``, which masks with -inf where the
paper multiplies maps by 0 (a forbidden place would beat every negative cosine elsewhere).

Unverified, since the authors' code is not out: that the contrast is SoftTriple's, its three constants (SoftTriple's
own), that cam is pooled by its mean, the projector (one linear layer), widths, rates and epochs. 100 prototypes a
concept follow from the paper's counts.
Departs from the paper: no binary loss of the task for classes that may be present together (cross-entropy, one class a
case); a prototype's picture is the nearest training *token*, not the nearest concept vector.
Beyond the paper, off by default: ``concepts_from="classes"`` takes every class for a concept, where no labels of
concepts exist (recipe "frozen"); what is named then is no human concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.concepts import ConceptNeck
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine
from protolearn.core.method import Method, Phase, Project, Recipe, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import uniform_linear
from protolearn.core.pooling import mean_pool
from protolearn.core.settings import above, at_least, rates_of, require
from protolearn.errors import UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.concepts import concept_cross_entropy
from protolearn.objectives.soft_triple import soft_triple
from protolearn.structures import Output

HOW_TO_LABEL = (
    "give concept labels (--concepts FILE, or protolearn.data.with_concepts(cases, read_concepts(FILE)): one row a "
    'case, one column a concept), or take every class for a concept with concepts_from="classes"'
)

FROZEN = Recipe(
    about="a frozen pretrained encoder, few pictures and no concept labels: every class is its own concept",
    method={
        "concepts_from": "classes", "prototypes_per_concept": 10, "encoder_rate": None, "scale": 10.0, "margin": 0.4,
        "concept_epochs": 20, "contrast_epochs": 20, "task_epochs": 100, "task_rate": 0.05,
    },
    encoder={"layer": "final"},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "csr",
    area="concepts",
    paper="Huy et al., CVPR 2025, arXiv 2503.06873",
    verified="unverified: no released code; the contrast against numbers from SoftTriple's, whose form is assumed",
)
@dataclass(frozen=True)
class CSR(Method):
    """Settings of CSR; ``concepts`` are the names, in the order of the concept labels' columns.

    Examples
    --------
    >>> CSR(concepts=("loop", "stroke")).group_names(["0", "1"])
    ('loop', 'stroke')
    """

    recipes = {"frozen": FROZEN}

    concepts: tuple[str, ...] = ()
    concepts_from: Literal["labels", "classes"] = "labels"
    prototypes_per_concept: int = 100
    dim: int = 128
    temperature: float = 1.0
    sharpness: float = 10.0
    scale: float = 20.0
    margin: float = 0.01
    encoder_rate: float | None = 1e-4
    concept_rate: float = 1e-3
    contrast_rate: float = 1e-3
    task_rate: float = 1e-2
    weight_decay: float = 1e-4
    concept_epochs: int = 30
    contrast_epochs: int = 30
    task_epochs: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes_per_concept", "dim")
        above(self, 0, "temperature", "scale")
        at_least(self, 0, "sharpness", "margin")
        different = len(set(self.concepts)) == len(self.concepts) and all(self.concepts)
        require(self, different, "concepts", "be different names")

    def group_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the concepts."""
        return tuple(classes) if self.concepts_from == "classes" else self.concepts

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        count = classes if self.concepts_from == "classes" else len(self.concepts)
        if count == 0:
            raise UsageError(f"csr: concepts must name at least one concept, got none: {HOW_TO_LABEL}")
        draw = torch.Generator().manual_seed(seed)
        project = uniform_linear(encoder.dim, self.dim, generator=draw)
        neck = ConceptNeck(project, uniform_linear(encoder.dim, count, generator=draw), self.temperature)
        each = self.prototypes_per_concept
        bank = PrototypeBank(
            torch.randn(count * each, self.dim, generator=draw), torch.zeros(count * each, classes),
            groups=torch.arange(count).repeat_interleave(each), constraint=unit_norm,
        )  # fmt: skip
        task = uniform_linear(count * each, classes, generator=draw)
        return PrototypeModel(encoder, neck, bank, cosine, LinearEvidence(task.weight.detach(), task.bias.detach()))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the three terms; only the task's where no other counts (validation in the last phase)."""
        task = {"cross_entropy": cross_entropy(out.logits, labels)}
        if out.tokens is None or out.counted == frozenset(task):
            return task
        assert out.bank.groups is not None, "build made it so"
        maps, vectors = out.tokens.extras["concept_maps"], out.tokens.extras["concept_vectors"]
        known = self._concepts(out, labels, maps.shape[-1])
        case, concept = (known > 0.5).nonzero(as_tuple=True)
        return {
            "concepts": concept_cross_entropy(mean_pool(maps, out.tokens.mask), known),
            "contrast": soft_triple(
                vectors[case, concept], out.bank.vectors, out.bank.groups, concept, maps.shape[-1],
                sharpness=self.sharpness, scale=self.scale, margin=self.margin, usable=out.bank.usable,
            ),
            **task,
        }  # fmt: skip

    def weights(self) -> dict[str, float]:
        """Return the coefficients; each phase takes one of the terms."""
        return {"concepts": 1.0, "contrast": 1.0, "cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return the three stages, and the search for each prototype's picture."""
        first = rates_of(encoder=self.encoder_rate, neck=self.concept_rate)
        decay = dict.fromkeys(("encoder", "neck", "head"), self.weight_decay)
        second = {"neck": self.contrast_rate, "prototypes": self.contrast_rate}
        return [
            Train("concepts", self.concept_epochs, first, decay, weights={"concepts": 1.0}),
            Train("contrast", self.contrast_epochs, second, decay, weights={"contrast": 1.0}),
            Project(rule="any", move=False),
            Train("task", self.task_epochs, {"head": self.task_rate}, decay, weights={"cross_entropy": 1.0}),
        ]

    def _concepts(self, out: Output, labels: Tensor, count: int) -> Tensor:
        """Return ``(B, K)``: 1 present, 0 absent, -1 unknown."""
        if self.concepts_from == "classes":
            own = F.one_hot(labels.clamp_min(0), count).float()
            return own.where((labels >= 0).unsqueeze(1), -1.0)
        if "concepts" not in out.targets:
            raise UsageError(f"csr: the cases have no concept labels: {HOW_TO_LABEL}")
        known = out.targets["concepts"]
        if known.ndim != 2 or known.shape[1] != count:
            raise UsageError(
                f"csr: concepts must name the {tuple(known.shape)[1:]} columns of the concept labels, got {count} names"
            )
        return known
