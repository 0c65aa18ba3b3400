"""Shallow prototype methods as scikit-learn estimators over arrays, each with the formulas of its page."""

from __future__ import annotations

from protolearn.interop.shallow.cbc import CBCClassifier
from protolearn.interop.shallow.nearest_mean import NearestMeanClassifier
from protolearn.interop.shallow.prob_psenn import ProbPSENNClassifier
from protolearn.interop.shallow.quantisation import GLVQClassifier, GMLVQClassifier, GRLVQClassifier
from protolearn.interop.shallow.rbf_network import RBFNetworkClassifier

__all__ = [
    "CBCClassifier",
    "GLVQClassifier",
    "GMLVQClassifier",
    "GRLVQClassifier",
    "NearestMeanClassifier",
    "ProbPSENNClassifier",
    "RBFNetworkClassifier",
]
