"""A hand-made model over scikit-learn's digits: untrained, but with prototypes that are real tokens of real cases."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.structures import Box, Source, Tokens


@dataclass
class Pictures:
    """The least a data set must offer to be explained."""

    pictures: list[Image.Image]
    ids: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str = "digits"

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, i: int) -> Image.Image:
        return self.pictures[i]

    def content(self, i: int) -> str:
        return hashlib.sha256(self.pictures[i].tobytes()).hexdigest()

    def index(self, case: str) -> int:
        return self.ids.index(case)

    def subset(self, chosen: Any) -> Pictures:
        chosen = [int(i) for i in chosen]
        return Pictures(
            [self.pictures[i] for i in chosen],
            [self.ids[i] for i in chosen],
            self.labels[chosen],
            self.classes,
            self.name,
        )


@dataclass(frozen=True)
class Shrink:
    """Squash to a square."""

    size: tuple[int, int] = (16, 16)

    def __call__(self, picture: Image.Image) -> Tensor:
        small = picture.convert("RGB").resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small, np.float32) / 255.0).permute(2, 0, 1).contiguous()

    def to_picture(self, box: Box, picture_size: tuple[int, int]) -> Box:
        across, down = picture_size[0] / self.size[1], picture_size[1] / self.size[0]
        return Box(box.x0 * across, box.y0 * down, box.x1 * across, box.y1 * down)

    def to_dict(self) -> dict[str, Any]:
        return {"size": list(self.size)}


class Strides(Encoder):
    """Fixed random convolutions onto a 4 x 4 grid; its dropout would show a model left in train mode."""

    def __init__(self, dim: int = 24, size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.dim, self.preprocess = dim, Shrink(size)
        draw = torch.Generator().manual_seed(7)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.Tanh(), nn.Conv2d(16, dim, 3, 2, 1), nn.Tanh(), nn.Dropout(0.5)
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * (0.35 if parameter.ndim > 1 else 0.05)

    def forward(self, inputs: Tensor) -> Tokens:
        found = self.layers(inputs)
        grid = (int(found.shape[2]), int(found.shape[3]))
        return Tokens(found.flatten(2).transpose(1, 2), grid=grid, input_size=tuple(inputs.shape[2:]))

    def spec(self) -> dict[str, Any]:
        return {"encoder": "strides", "dim": self.dim}


def make_digits() -> Pictures:
    from sklearn.datasets import load_digits

    raw = load_digits()
    pictures = [Image.fromarray((x * 255 / 16).astype(np.uint8)).convert("RGB") for x in raw.images]
    return Pictures(
        pictures, [f"digits/{i:04d}" for i in range(len(pictures))], raw.target.astype(np.int64), tuple("0123456789")
    )


def make_model(cases: Pictures, per_class: int = 3, encoder: Encoder | None = None, seed: int = 0) -> PrototypeModel:
    """Return a model whose prototypes are the tokens of drawn cases of their class, as after a projection."""
    encoder = (Strides() if encoder is None else encoder).eval()
    draw = np.random.default_rng(seed)
    vectors, sources, owners = [], [], []
    for c in range(len(cases.classes)):
        members = np.flatnonzero(cases.labels == c)
        for i in draw.choice(members, per_class, replace=len(members) < per_class).tolist():
            with torch.no_grad():
                tokens = encoder(encoder.preprocess(cases.picture(i)).unsqueeze(0))
            position = int(draw.integers(tokens.values.shape[1]))
            inside = tokens.region(position)
            assert inside is not None
            box = encoder.preprocess.to_picture(inside, cases.picture(i).size)
            vectors.append(tokens.values[0, position])
            sources.append(Source(cases.ids[i], cases.content(i), position, box, 0.1, "encoder", c))
            owners.append(c)
    ownership = torch.eye(len(cases.classes))[owners]
    bank = PrototypeBank(torch.stack(vectors), ownership)
    bank.sources = list(sources)
    head = LinearEvidence.from_ownership(ownership)
    model = PrototypeModel(encoder, nn.Identity(), bank, squared_l2, head, similarity=LogRatio())
    model.classes = cases.classes
    model.eval()
    model.metadata = {
        "seed": 0,
        "date": "2025-01-01",
        "versions": {"protolearn": "0.1.0"},
        "data": {"name": "digits", "cases": len(cases), "digest": "0" * 64, "split": "every third case is tested"},
        "history": [
            {
                "phase": phase,
                "epoch": epoch,
                "cross_entropy": 2.0 / (1 + k),
                "cluster": 1.0 / (1 + k),
                "loss": 3.0 / (1 + k),
                "train_accuracy": 1 - 0.6 / (1 + k),
                "val_accuracy": 1 - 0.7 / (1 + k),
            }
            for k, (phase, epoch) in enumerate(
                [("warm", e) for e in range(5)]
                + [("joint", e) for e in range(10)]
                + [("last_layer", e) for e in range(6)]
            )
        ],
        "projections": [
            {
                "phase": "projection",
                "moved": 30,
                "mean_distance": 0.41,
                "duplicates": [[3, 7]],
                "accuracy_before": 0.81,
                "accuracy_after": 0.78,
                "kept": [],
            }
        ],
        "warnings": ["prototypes 3 and 7 lie on the same training token"],
    }
    return model


@pytest.fixture(scope="session")
def digits() -> Pictures:
    return make_digits()


@pytest.fixture(scope="session")
def parts(digits: Pictures) -> tuple[Pictures, Pictures]:
    every = np.arange(len(digits))
    return digits.subset(every[every % 3 != 0][:400]), digits.subset(every[every % 3 == 0][:150])


@pytest.fixture
def model(parts: tuple[Pictures, Pictures]) -> PrototypeModel:
    made = make_model(parts[0])
    fit_head(made, parts[0])
    return made


def fit_head(model: PrototypeModel, cases: Pictures) -> None:
    """Fit the last layer by logistic regression, so that predictions are worth explaining."""
    from sklearn.linear_model import LogisticRegression

    inputs = torch.stack([model.encoder.preprocess(cases.picture(i)) for i in range(len(cases))])
    with torch.no_grad():
        evidence = model(inputs).evidence
    fitted = LogisticRegression(C=0.05, max_iter=300).fit(evidence.numpy(), cases.labels)
    if len(fitted.coef_) == len(model.classes):
        model.head = LinearEvidence(torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float())


@pytest.fixture(scope="session")
def make() -> Any:
    """Return the function that makes a model over cases."""
    return make_model
