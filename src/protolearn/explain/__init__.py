"""Explaining predictions: ledgers, regions, attributions, pictures, the report, corrections, prototypes in words."""

from __future__ import annotations

from protolearn.explain.attribution import attribute
from protolearn.explain.characteristics import global_characteristics, local_characteristics
from protolearn.explain.draw import Painter, explanation_picture
from protolearn.explain.edits import Interaction
from protolearn.explain.explain import contrast, explain, explain_each, explanation_dict, write_explanations
from protolearn.explain.faithfulness import compare_attributions
from protolearn.explain.groups import by_group, group_names
from protolearn.explain.interact import interact, typical_evidence
from protolearn.explain.passes import PictureList
from protolearn.explain.perturb import perturbation
from protolearn.explain.receptive import region_honesty
from protolearn.explain.report import report
from protolearn.explain.single import explanation_html, explanation_json, save_explanation
from protolearn.explain.tcav import tcav

__all__ = [
    "Interaction",
    "Painter",
    "PictureList",
    "attribute",
    "by_group",
    "compare_attributions",
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
    "region_honesty",
    "report",
    "save_explanation",
    "tcav",
    "typical_evidence",
    "write_explanations",
]
