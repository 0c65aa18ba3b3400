"""Explaining predictions: ledgers, regions, pictures and the report; and what an explanation rests on.

- ``explain``, ``survey``, ``draw``, ``report``, ``sections``: the ledger of a prediction, as data, picture and page.
- ``attribution``, ``receptive``, ``tcav`` (over ``gradients`` and ``cav``): which pixels, and which concepts, a match
  depends on; ``faithfulness`` says which attribution to believe.
- ``alter``, ``what_if``, ``counterfactual``: the same cases asked of a copy that lacks prototypes or weighs them
  otherwise, and what would have to be otherwise for another answer.
- ``bag_edits``, ``bag_search``, ``bag_effects``, ``bag_scorers``, ``bag_tokens``: the same for instances of a bag and
  tokens of an input.
- ``channels``, ``characteristics``, ``interact``, ``edits``: prototypes in galleries, in words, and corrected by hand.
- ``audit_page``, ``audit_charts``: the findings of an audit for people to read.
"""

from __future__ import annotations

from protolearn.explain.alter import Alteration, altered
from protolearn.explain.attribution import attribute
from protolearn.explain.audit_page import save_audit, save_audit_folder
from protolearn.explain.channels import channel_gallery, purity_before_after
from protolearn.explain.characteristics import global_characteristics, local_characteristics
from protolearn.explain.counterfactual import counterfactuals
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
from protolearn.explain.what_if import what_if

__all__ = [
    "Alteration",
    "Interaction",
    "Painter",
    "PictureList",
    "altered",
    "attribute",
    "by_group",
    "channel_gallery",
    "compare_attributions",
    "contrast",
    "counterfactuals",
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
    "purity_before_after",
    "region_honesty",
    "report",
    "save_audit",
    "save_audit_folder",
    "save_explanation",
    "tcav",
    "typical_evidence",
    "what_if",
    "write_explanations",
]
