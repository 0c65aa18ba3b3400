"""Explaining predictions: ledgers, regions, pictures, the report, a person's corrections, prototypes in words."""

from __future__ import annotations

from protolearn.explain.characteristics import global_characteristics, local_characteristics
from protolearn.explain.draw import Painter, explanation_picture
from protolearn.explain.edits import Interaction
from protolearn.explain.explain import contrast, explain, explain_each, explanation_dict, write_explanations
from protolearn.explain.groups import by_group, group_names
from protolearn.explain.interact import interact, typical_evidence
from protolearn.explain.passes import PictureList
from protolearn.explain.perturb import perturbation
from protolearn.explain.report import report
from protolearn.explain.single import explanation_html, explanation_json, save_explanation

__all__ = [
    "Interaction",
    "Painter",
    "PictureList",
    "by_group",
    "contrast",
    "explain",
    "explain_each",
    "explanation_dict",
    "explanation_html",
    "explanation_json",
    "explanation_picture",
    "global_characteristics",
    "group_names",
    "interact",
    "local_characteristics",
    "perturbation",
    "report",
    "save_explanation",
    "typical_evidence",
    "write_explanations",
]
