"""Models on the Hugging Face Hub: the same folder that ``save`` writes, as a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases
from protolearn.errors import ModelFileError
from protolearn.structures import Output
from protolearn.training.folder import load, save

PATTERNS = ["model.safetensors", "config.yaml", "prototypes.csv", "metrics.json", "README.md", "cases/*.png"]


class HubModel(ModelHubMixin, library_name="protolearn", tags=["prototype-learning", "interpretability"]):
    """A model with Hugging Face's habits: ``save_pretrained``, ``from_pretrained``, ``push_to_hub``.

    Parameters
    ----------
    model : PrototypeModel
        What is saved and sent, under :attr:`model`.
    cases : Cases, optional
        The training data, for the pictures in ``cases/``. They are sent too: leave them out when they are private.

    Examples
    --------
    >>> HubModel(model, train).push_to_hub("me/birds")          # doctest: +SKIP
    >>> model = HubModel.from_pretrained("me/birds").model      # doctest: +SKIP
    """

    def __init__(self, model: PrototypeModel, cases: Cases | None = None) -> None:
        self.model, self.cases = model, cases

    def __call__(self, inputs: torch.Tensor) -> Output:
        """Return the model's output."""
        output: Output = self.model(inputs)
        return output

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self.model, save_directory, self.cases, overwrite=True)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        **_: Any,
    ) -> Self:
        """Return the model of a folder or repository, in eval mode.

        Only the files of our format are fetched, and they are read as :func:`~protolearn.training.folder.load` reads
        any stranger's folder: nothing in them is executed.

        Raises
        ------
        ModelFileError
            If there is none, or a file in it is wrong.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            return cls(load(name, device))
        try:
            folder = snapshot_download(
                name, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token, allow_patterns=PATTERNS,
            )  # fmt: skip
        except (EntryNotFoundError, HFValidationError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{name} is no folder here and cannot be had from the Hub ({reason})") from error
        return cls(load(folder, device, links=True))  # a download cache consists of links
