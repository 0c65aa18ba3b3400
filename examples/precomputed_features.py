"""Prototypes over features that another network computed: no picture, no encoder of ours, the same explanations.

    python examples/precomputed_features.py

Here a case is an 8 x 8 digit cut into its four quarters: four tokens of sixteen numbers.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from protolearn import ProtoPNet, fit
from protolearn.data import features, train_test
from protolearn.encoders import FeatureEncoder
from protolearn.explain import explain
from protolearn.tasks.classify import evaluate

QUARTERS = ("top left", "top right", "bottom left", "bottom right")


def main() -> None:
    digits = load_digits()
    quarters = digits.images.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16) / 16.0
    train, test = train_test(features(quarters.astype(np.float32), digits.target, name="quarters"), test=0.2, seed=0)

    method = ProtoPNet(**{**ProtoPNet.recipes["frozen"].method, "dim": 16, "project_at": (20, 40)})
    model = fit(method, train, encoder=FeatureEncoder(16), batch_size=40, quiet=True).model
    print(f"right on {evaluate(model, test).accuracy:.1%} of {len(test)} digits")

    (why,) = explain(model, test, [0])
    print(f"{why.case}: predicted {model.classes[why.predicted]}, labelled {test.classes[test.labels[0]]}")
    for row in why.top(3):
        here, there = QUARTERS[row.position], QUARTERS[row.source.position]
        print(f"{row.contribution:+.2f}  its {here} looks like the {there} of {row.source.case}")


if __name__ == "__main__":
    main()
