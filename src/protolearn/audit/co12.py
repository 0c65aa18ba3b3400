"""Twelve things an explanation should be, what we measure for each, and what only people can judge.

The list is that of Nauta et al., *From Anecdotal Evidence to Quantitative Evaluation Methods* (ACM Computing Surveys,
2023); which of our metrics speak for which property is our reading of it, not checked against that paper.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """One property of an explanation.

    Attributes
    ----------
    name : str
        As in the list.
    asks : str
        The question behind it.
    metrics : tuple of str
        Names of ours that speak for it.
    people : str
        What no metric here can say.
    """

    name: str
    asks: str
    metrics: tuple[str, ...]
    people: str


CO12: tuple[Property, ...] = (
    Property(
        "Correctness",
        "Is the explanation true to what the model does?",
        ("additivity", "deletion", "insertion", "prototype_faithfulness"),
        "Whether the model's reason is a good one.",
    ),
    Property(
        "Completeness",
        "Does what is shown suffice to reach the same decision?",
        ("completeness", "simulatability", "additivity"),
        "Whether a person could reach the decision from what is shown.",
    ),
    Property(
        "Consistency",
        "Does the same training, run again, explain in the same way?",
        ("cross_run_stability",),
        "Whether two explanations that differ mean the same to an expert.",
    ),
    Property(
        "Continuity",
        "Does a small change of the input leave the explanation as it was?",
        ("continuity", "continuity_moves", "stability", "segment_stability", "pac", "shift_agreement"),
        "Which changes are small in the field.",
    ),
    Property(
        "Contrastivity",
        "Do different classes and prototypes have different explanations?",
        (
            "prototype_cosine",
            "orthogonality",
            "shared_sources",
            "map_overlap",
            "evidence_correlation",
            "pca",
            "pca_w",
            "pca_shared",
        ),
        "Whether the differences are those that an expert would name.",
    ),
    Property(
        "Covariate complexity",
        "Does a prototype stand for one thing that people have a name for?",
        (
            "consistency",
            "segment_consistency",
            "purity",
            "purity_all",
            "keypoint_nmi",
            "keypoint_ari",
            "neighbour_purity",
            "channel_purity",
        ),
        "Whether a part that nobody annotated is a sensible part.",
    ),
    Property(
        "Compactness",
        "How much has a person to read?",
        (
            "global_size",
            "local_size",
            "local_size_predicted",
            "active_prototypes",
            "sparsity_ratio",
            "concentration",
        ),
        "How much is too much.",
    ),
    Property(
        "Composition",
        "Is the explanation presented so that it can be understood?",
        (),
        "All of it: form, words and pictures need users.",
    ),
    Property(
        "Confidence",
        "Does it say how sure it is, and when it does not know?",
        ("ece", "brier", "nll", "risk_coverage", "abstention", "ood_abstention"),
        "How sure one must be to act.",
    ),
    Property(
        "Context",
        "Does it serve the person who asks, and the task?",
        (),
        "All of it: usefulness needs users and a task.",
    ),
    Property(
        "Coherence",
        "Does it agree with what is known of the object?",
        (
            "content_heat",
            "content_heat_share",
            "oirr",
            "iou",
            "pointing_game",
            "purity",
            "consistency",
        ),
        "Whether the marked region holds everything that matters.",
    ),
    Property(
        "Controllability",
        "Can a person correct it, and does the prediction follow?",
        ("prototype_faithfulness",),
        "Whether a correction helps: remove prototypes with whatif or repair and look.",
    ),
)
