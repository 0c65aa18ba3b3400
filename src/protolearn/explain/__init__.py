"""Explaining predictions: ledgers, regions, pictures and the report."""

from __future__ import annotations

from protolearn.explain.draw import Painter, explanation_picture
from protolearn.explain.explain import contrast, explain, explain_each, explanation_dict, write_explanations
from protolearn.explain.passes import PictureList
from protolearn.explain.report import report
from protolearn.explain.single import explanation_html, explanation_json, save_explanation

__all__ = [
    "Painter",
    "PictureList",
    "contrast",
    "explain",
    "explain_each",
    "explanation_dict",
    "explanation_html",
    "explanation_json",
    "explanation_picture",
    "report",
    "save_explanation",
    "write_explanations",
]
