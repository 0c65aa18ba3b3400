"""A whole trained classifier as an encoder: its own map, and the linear layer that reads the mean of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from protolearn.core.encoder import Encoder
from protolearn.core.modes import evaluating
from protolearn.encoders.cut import TOLERANCE, Cut, find_cut, gap, logits_of, run_to, sides, take_out
from protolearn.encoders.image import _checked_name, _create, _preprocess, _seeded
from protolearn.encoders.weights import hub_file, load_strictly, read_weights
from protolearn.errors import UsageError, nearest_names
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.data.transforms import Preprocess

Library = Literal["timm", "torchvision"]
Weights = str | Path | nn.Module | None


class TrainedNetwork(Encoder):
    """Any trained classifier that was built elsewhere, frozen and cut before its last linear layer.

    ``W mean(tokens) + b`` are the network's logits; where the network is not made so, it is refused. Models with this
    encoder cannot be saved as a folder, since nothing can build the network again: see :class:`NamedNetwork`.

    Parameters
    ----------
    network : Module
        From pictures ``(B, 3, H, W)`` to logits ``(B, C)``. It is copied, and stays as it is.
    preprocess : Preprocess
        How a picture becomes its input, as in its training.
    cut : Cut, optional
        Where to cut it, where that is known; found by running it on noise otherwise.

    Attributes
    ----------
    dim : int
        Width of the tokens.
    classifier : tuple of Tensor
        W ``(C, D)`` and b ``(C,)``.
    gap : float
        Largest difference between ``W mean(tokens) + b`` and the network's logits, on noise, relative to the largest.

    Raises
    ------
    UsageError
        If the logits are no linear function of the mean of a map.

    Examples
    --------
    >>> from protolearn.data.transforms import Preprocess
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> encoder = TrainedNetwork(net, Preprocess(size=(8, 8)))
    >>> encoder(torch.zeros(1, 3, 8, 8)).values.shape, encoder.classifier[0].shape
    (torch.Size([1, 36, 4]), torch.Size([2, 4]))
    """

    rebuilds = False
    preprocess: Preprocess

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, cut: Cut | None = None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.net: nn.Module = copy.deepcopy(network).eval().requires_grad_(False)
        height, width = preprocess.size
        noise = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        device = next(iter(self.net.parameters()), noise).device
        noise = noise.to(device)
        with torch.no_grad():
            wanted = self._logits(noise)
            self.cut = find_cut(self.net, noise) if cut is None else cut
            layer = take_out(self.net, self.cut.linear)
            tokens = self(noise).values
            self.gap = gap(layer(tokens.mean(1)), wanted)
        if not self.gap <= TOLERANCE:
            raise UsageError(
                f"{type(network).__name__}: the mean of the map at {self.cut.at!r} gives other logits than the network "
                f"(by {self.gap:.2g} of the largest): prototypes cannot keep them"
            )
        weight = layer.weight.detach().float()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        self.classifier = weight.clone(), bias.clone()
        self.dim = layer.in_features

    def _logits(self, inputs: Tensor) -> Tensor:
        try:
            return logits_of(self.net(inputs))
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            height, width = inputs.shape[-2:]
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"{type(self.net).__name__} cannot take pictures of {height} x {width}: {reason}; choose another size"
            ) from error

    def forward(self, inputs: Tensor) -> Tokens:
        """Return tokens ``(B, S, D)`` of pictures ``(B, 3, H, W)``."""
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise UsageError(f"pictures must be (B, 3, H, W), got {tuple(inputs.shape)}")
        found = run_to(self.net, self.cut.at, inputs)
        grid = sides(found, self.cut, inputs)
        size = (inputs.shape[-2], inputs.shape[-1])
        return Tokens(self.cut.tokens(found, self.net), grid=grid, input_size=size)

    def tunable(self) -> list[nn.Parameter]:
        """Return nothing: the network is to stay what it is."""
        return []

    def train(self, mode: bool = True) -> TrainedNetwork:
        """Keep the network in eval mode, so that its statistics and its logits stay."""
        super().train(mode)
        self.net.eval()
        return self

    def spec(self) -> dict[str, Any]:
        """Return what there is to say of the network; it cannot be built again from that."""
        network = {"encoder": "network handed over", "type": type(self.net).__name__}
        return {**network, **self.preprocess.to_dict(), "cut": self.cut.to_dict()}


class NamedNetwork(TrainedNetwork):
    """A trained classifier of timm or torchvision, by name; models with it can be saved as a folder.

    Parameters
    ----------
    name : str
        As the library calls it, e.g. ``resnet34``.
    library : {"timm", "torchvision"}
        Whose network.
    weights : None, "hub", path or Module
        timm's pretrained ones; a ``.safetensors`` file of the whole network with its classifier; or the network itself,
        as it was trained in Python. None builds random weights, to be loaded later, and no classifier.
    classes : int, optional
        How many the network tells apart; read from the weights by default.
    size, mean, std, resize, interpolation, crop_fraction : optional
        How pictures are prepared, see :class:`~protolearn.data.transforms.Preprocess`; the network's own by default,
        and with ``resize="crop"`` its middle square, as in most evaluations.
    model_args : mapping, optional
        What else the network was built with, e.g. ``{"pad_type": "same"}``.
    cut : mapping, optional
        Where it is cut, as :meth:`spec` has it; found by default.
    seed : int
        Of random weights.

    Raises
    ------
    UsageError
        If a name is wrong; if the logits are no linear function of the mean of a map; or if a network that was handed
        over gives other logits than the one that the name and ``model_args`` build.
    ModelFileError
        If weights do not fit.

    Examples
    --------
    >>> encoder = NamedNetwork("test_resnet", size=64, classes=5)
    >>> encoder.spec()["cut"]["linear"], encoder.classifier
    ('fc', None)
    """

    rebuilds = True

    def __init__(
        self,
        name: str,
        *,
        library: Library = "timm",
        weights: Weights = None,
        classes: int | None = None,
        size: int | Sequence[int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        resize: str = "crop",
        interpolation: str | None = None,
        crop_fraction: float | None = None,
        model_args: Mapping[str, Any] | None = None,
        cut: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if library not in ("timm", "torchvision"):
            raise UsageError(f"library must be timm or torchvision, got {library!r}")
        args = dict(model_args or {})
        with _seeded(seed):
            whole = _whole(name, library, weights, classes, args)
        if library == "torchvision":
            interpolation = interpolation or "bilinear"
        prepared = _preprocess(whole, size, mean, std, resize, interpolation, crop_fraction, args)
        super().__init__(whole, prepared, cut=None if cut is None else Cut(**cut))
        assert self.classifier is not None
        self.name, self.library, self.model_args, self.classes = name, library, args, len(self.classifier[0])
        if isinstance(weights, nn.Module):
            self._compare(weights)
        if weights is None:
            self.classifier = None

    @torch.no_grad()
    def _compare(self, given: nn.Module) -> None:
        """Refuse a network whose logits are not those of what its name builds."""
        assert self.classifier is not None
        weight, bias = self.classifier
        noise = torch.randn(2, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(1))
        device = next(iter(given.parameters())).device
        with evaluating(given):
            wanted = logits_of(given(noise.to(device))).cpu()
        found = nn.functional.linear(self(noise).values.mean(1), weight, bias)
        if found.shape != wanted.shape or not gap(found, wanted) <= TOLERANCE:
            raise UsageError(
                f"the network handed over gives other logits than {self.library}'s {self.name} with model_args "
                f"{self.model_args}: name the network and arguments it was built with, or take TrainedNetwork"
            )

    def spec(self) -> dict[str, Any]:
        """Return plain JSON settings that rebuild the encoder without its weights."""
        return {
            "encoder": "network",
            "name": self.name,
            "library": self.library,
            "classes": self.classes,
            **self.preprocess.to_dict(),
            "model_args": {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_args.items()},
            "cut": self.cut.to_dict(),
        }


def _whole(name: str, library: Library, weights: Weights, classes: int | None, args: dict[str, Any]) -> nn.Module:
    """Return the uncut network with its weights."""
    number = {} if classes is None else {"num_classes": classes}
    if weights == "hub":
        if library != "timm":
            raise UsageError(
                "torchvision keeps its weights as pickles, which are never opened here: load them yourself, and give "
                "the network as weights"
            )
        import timm

        checked = _checked_name(name)
        cfg = timm.get_pretrained_cfg(checked)
        path = hub_file(checked, {} if cfg is None else cfg.to_dict())
        read_weights(path)
        overlay = {"file": str(path), "custom_load": False}
        return _named(checked, library, {**args, **number, "pretrained": True, "pretrained_cfg_overlay": overlay})
    if weights is None:
        return _named(name, library, {**args, **number})
    if isinstance(weights, nn.Module):
        state, where = weights.state_dict(), "the network handed over"
    else:
        state, where = read_weights(weights), str(weights)
    if classes is None:
        last = _classes(state, _named(name, library, args))
        number = {} if last is None else {"num_classes": last}
    whole = _named(name, library, {**args, **number})
    load_strictly(whole, state, where, name, library)
    return whole


def _named(name: str, library: Library, args: Mapping[str, Any]) -> nn.Module:
    if library == "timm":
        made: nn.Module = _create(_checked_name(name), args)
        return made
    import torchvision

    if name not in torchvision.models.list_models():
        known = torchvision.models.list_models()
        raise UsageError(f"torchvision has no network called {name!r}: {nearest_names(name, known)}")
    try:
        built: nn.Module = torchvision.models.get_model(name, weights=None, **args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"torchvision cannot build {name} with {dict(args)}: {error}") from error
    return built


def _classes(state: Mapping[str, Tensor], plain: nn.Module) -> int | None:
    """Return how many classes weights tell apart: where they are longer or shorter than those of a plain network."""
    built = plain.state_dict()
    both = [(tensor.shape, built[name].shape) for name, tensor in state.items() if name in built]
    other = {given[0] for given, wanted in both if given != wanted and given[1:] == wanted[1:]}
    return int(other.pop()) if len(other) == 1 else None
