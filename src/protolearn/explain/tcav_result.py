"""What a test with concept activation vectors found, for a person and for a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from protolearn.explain.cav import Layer
from protolearn.explain.passes import plain_json

RANDOM = "random"


@dataclass(frozen=True, eq=False)
class ConceptScore:
    """What was found about one concept.

    Attributes
    ----------
    concept, against : str
        What was told from what.
    scores, accuracy : ndarray
        ``(R,)`` TCAV score and held-out accuracy of each run.
    derivative, spread : ndarray
        ``(R,)`` mean and standard deviation over inputs of the derivative along the unit direction.
    alignment : float
        Mean cosine of gradient and direction, over inputs and runs.
    p, p_corrected : float
        Of the t-test; corrected for the number of concepts.
    p_placebo : float or None
        Share of placebos (this one among them) that align at least as strongly; None without placebos.
    doubts : tuple of str
        Why the score says nothing; empty where it holds.
    """

    concept: str
    against: str
    scores: np.ndarray
    accuracy: np.ndarray
    derivative: np.ndarray
    spread: np.ndarray
    alignment: float
    p: float
    p_corrected: float
    p_placebo: float | None
    doubts: tuple[str, ...]

    @property
    def score(self) -> float:
        """The mean TCAV score."""
        return float(self.scores.mean())

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the score."""
        return not self.doubts

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        names = ("scores", "accuracy", "derivative", "spread", "alignment", "p", "p_corrected", "p_placebo", "doubts")
        plain = plain_json({name: getattr(self, name) for name in names})
        return {"concept": self.concept, "against": self.against, "score": self.score, "holds": self.holds, **plain}


@dataclass(frozen=True, eq=False)
class Tcav:
    """What was found about several concepts.

    Attributes
    ----------
    asked : str
        The class or prototype, in words.
    layer : Layer
        Where concepts were looked for.
    concepts : tuple of ConceptScore
        In the order given.
    random_scores, random_accuracy : ndarray
        ``(R,)`` of random against random.
    inputs, size, placebos : int
        Inputs that derivatives were taken at; examples in every set; placebos.
    seed : int
        Of every draw.
    notes : tuple of str
        What a reader must know.
    """

    asked: str
    layer: Layer
    concepts: tuple[ConceptScore, ...]
    random_scores: np.ndarray
    random_accuracy: np.ndarray
    inputs: int
    size: int
    placebos: int
    seed: int
    notes: tuple[str, ...]

    def holding(self) -> tuple[ConceptScore, ...]:
        """Return the concepts whose scores hold."""
        return tuple(found for found in self.concepts if found.holds)

    def table(self) -> str:
        """Return the result as text; what does not hold is marked with the reason."""
        rows = [("concept", "TCAV", "derivative", "held-out", "p (t-test)", "p (placebo)", "")]
        for c in self.concepts:
            placebo = "" if c.p_placebo is None else _p(c.p_placebo)
            mark = "holds" if c.holds else "no: " + ", ".join(c.doubts)
            rows.append((c.concept, *_numbers(c.scores, c.derivative, c.accuracy), _p(c.p_corrected), placebo, mark))
        rows.append((RANDOM, *_numbers(self.random_scores, None, self.random_accuracy), "", "", ""))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
        where = f"at {self.layer.at} ({self.layer.pool})"
        return "\n".join([f"{self.asked}, {self.inputs} inputs, {where}", *lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "asked": self.asked,
            "at": self.layer.at,
            "pool": self.layer.pool,
            "concepts": [found.to_dict() for found in self.concepts],
            "random": plain_json({"scores": self.random_scores, "accuracy": self.random_accuracy}),
            "inputs": self.inputs,
            "size": self.size,
            "placebos": self.placebos,
            "seed": self.seed,
            "notes": list(self.notes),
        }


def _numbers(scores: np.ndarray, derivative: np.ndarray | None, accuracy: np.ndarray) -> tuple[str, str, str]:
    told = "" if derivative is None else f"{derivative.mean():+.3g}"
    return f"{scores.mean():.2f} ± {scores.std():.2f}", told, f"{accuracy.mean():.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
