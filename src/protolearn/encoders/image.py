"""Any network of timm as an encoder of pictures: maps of convolutional networks, patch tokens of transformers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from protolearn.core.encoder import Encoder
from protolearn.core.smoothing import smooth
from protolearn.encoders.weights import classes_in, hub_file, load_strictly, read_weights
from protolearn.errors import ProtolearnError, UsageError, nearest_names
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.data.transforms import Preprocess

Layer = int | str
_OURS = ("features_only", "out_indices", "pretrained", "num_classes", "in_chans", "checkpoint_path", "cache_dir")


class ImageEncoder(Encoder):
    """A network of timm, cut where its tokens are taken.

    Vision transformers give patch tokens on their grid, with the final norm applied whatever the layer; class,
    distillation and register tokens are not among them, and the class token is the ``summary``. Every other network
    (convolutions, Swin, XCiT, mixers ...) gives the cells of a map as timm's ``features_only`` does, without a norm.

    Parameters
    ----------
    name : str
        As timm calls it, e.g. ``resnet18`` or ``vit_small_patch14_reg4_dinov2``.
    weights : None, "hub", or path
        Random; timm's pretrained ones; or a ``.safetensors`` file of the whole network, which must fit exactly (it may
        lack the classifier).
    layer : int, str or sequence of these
        Index or name of a layer in ``layers``; ``"last"``; ``"final"`` for what the classifier pools, which in some
        networks (MobileNet, EfficientNet) is one convolution further. Several are resized to the finest of their
        grids and joined along the width.
    shallow : int or str, optional
        An early layer, chosen as ``layer`` is; its map is given too, as ``extras["shallow"]`` ``(B, D', H', W')`` of
        the tokens, for terms that compare the two. Not smoothed, and not kept in a cache of frozen tokens.
    smooth : int
        Odd number of cells: each token is the mean over a square of so many cells a side, and stands for that square.
    size : int or (int, int), optional
        Height and width of the input; the network's own by default.
    mean, std : float or three floats, optional
        The network's own by default.
    resize : {"squash", "crop"}
        See :class:`~protolearn.data.transforms.Preprocess`.
    interpolation, crop_fraction : optional
        The network's own by default (the crop only where ``resize`` is ``"crop"``).
    train_from : str or int
        What may be trained: ``"all"``, ``"nothing"``, ``"embeddings"`` (of a vision transformer: class and register
        tokens and position embeddings alone), or everything from this block on (a name in ``block_names``, the
        beginning of one such as ``layer3``, or an index). Earlier blocks keep their weights, and stay in eval mode, so
        that batch-norm statistics stay too.
    freeze_norms : bool
        Keep batch-norm statistics as they are while weights are trained: for few pictures, whose batches say little
        about them.
    model_args : mapping, optional
        Passed to timm, e.g. ``{"pad_type": "same"}``.
    seed : int
        Of random weights.

    Attributes
    ----------
    dim : int
        Width of the tokens.
    grid : tuple of int
        Rows and columns at the configured size.
    layers : list of str
        Every layer that can be chosen: index, name, stride, width.
    block_names : list of str
        The blocks that ``train_from`` chooses among, in the order of the data.
    origin : str
        Where the weights came from, in words.

    Raises
    ------
    UsageError
        If a name, layer, block or size is wrong; the choices are named.
    ModelFileError
        If the weights do not fit.

    Examples
    --------
    >>> encoder = ImageEncoder("mobilenetv3_small_050", layer=3, size=64)
    >>> tokens = encoder(torch.zeros(2, 3, 64, 64))
    >>> tokens.values.shape, tokens.grid
    (torch.Size([2, 16, 24]), (4, 4))
    """

    preprocess: Preprocess
    net: Any  # a network of timm
    grid: tuple[int, ...]

    about_training = ("train_from", "freeze_norms", "shallow")

    def __init__(
        self,
        name: str,
        *,
        weights: str | Path | None = None,
        layer: Layer | Sequence[Layer] = "last",
        shallow: Layer | None = None,
        smooth: int = 1,
        size: int | Sequence[int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        resize: str = "squash",
        interpolation: str | None = None,
        crop_fraction: float | None = None,
        train_from: str | int = "all",
        freeze_norms: bool = False,
        model_args: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name = _checked_name(name)
        self.model_args = dict(model_args or {})
        for taken in set(self.model_args) & set(_OURS):
            raise UsageError(f"model_args must not hold {taken!r}: the encoder sets it itself")
        if smooth < 1 or smooth % 2 == 0:
            raise UsageError(f"smooth must be an odd number of cells, got {smooth}")
        self.smooth = smooth
        with _seeded(seed):
            whole, self.origin = self._whole(weights, seed)
            self.preprocess = _preprocess(whole, size, mean, std, resize, interpolation, crop_fraction, self.model_args)
            layers = _layers(whole)
            self.layers = [_describe(i, info) for i, info in enumerate(layers)]
            self.layer = layer if isinstance(layer, int | str) else tuple(layer)
            self._chosen = _chosen(layer, layers, self.name, self.layers)
            self.shallow = shallow
            self._early = None if shallow is None else _chosen([shallow], layers, self.name, self.layers)[0]
            self._kind, self.net = self._cut(whole)
        self._boundary = 0
        self._blocks = _blocks(self.net)
        self.block_names = list(self._blocks)
        self.train_from: str | int = "all"
        self.freeze_norms = freeze_norms
        self._allow(train_from)
        self.dim, self.grid = self._probe()
        self.train()  # frozen blocks are in eval mode from the start

    def _whole(self, weights: str | Path | None, seed: int) -> tuple[nn.Module, str]:
        """Return the uncut network with its weights, and in words where they came from."""
        if weights is None:
            return _create(self.name, self.model_args), f"random weights, seed {seed}"
        if weights == "hub":
            import timm

            cfg = timm.get_pretrained_cfg(self.name)
            found = {} if cfg is None else cfg.to_dict()
            path = hub_file(self.name, found)
            read_weights(path)  # a precise error for a damaged download; timm then adapts and loads it strictly
            overlay = {"file": str(path), "custom_load": False}
            whole = _create(self.name, self.model_args, pretrained=True, pretrained_cfg_overlay=overlay)
            return whole, f"Hugging Face Hub: {found['hf_hub_id']}"
        state = read_weights(weights)
        cfg = _create(self.name, self.model_args).pretrained_cfg
        whole = _create(self.name, self.model_args, num_classes=classes_in(state, cfg))
        load_strictly(whole, state, str(weights), self.name)
        return whole, f"file {Path(weights).name}"

    def _cut(self, whole: Any) -> tuple[Literal["maps", "final", "intermediate"], nn.Module]:
        """Return what kind of outputs the network has, and the part of it that makes the chosen ones."""
        if hasattr(whole, "set_input_size"):
            try:
                whole.set_input_size(img_size=self.preprocess.size)
            except (AssertionError, RuntimeError, ValueError, TypeError) as error:
                raise self._wrong_size(error) from error
        getter = getattr(whole, "forward_intermediates", None)
        patches = getter is not None and "return_prefix_tokens" in inspect.signature(getter).parameters
        if self.layer == "final" and not patches:
            if self._early is not None and getter is None:
                raise UsageError(f'{self.name} gives no early map beside "final": choose layer="last"')
            whole.reset_classifier(0)
            return "final", whole
        if patches or (getter is not None and hasattr(whole, "set_input_size")):
            # in one piece: building it again at another size may choose other attention windows
            if hasattr(whole, "prune_intermediate_layers"):
                whole.prune_intermediate_layers(self._taken(), prune_norm=not patches, prune_head=True)
            self._options = {"return_prefix_tokens": True, "norm": True} if patches else {}
            return "intermediate", whole
        cut = _create(self.name, self.model_args, features_only=True, out_indices=tuple(self._taken()))
        _copy(whole, _inside(cut), self.name)
        return "maps", cut

    def _taken(self) -> list[int]:
        """Return the indices of all layers that are read, rising."""
        return sorted({*self._chosen, *([] if self._early is None else [self._early])})

    def _probe(self) -> tuple[int, tuple[int, ...]]:
        """Return width and grid, by running the network once on nothing."""
        before = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad():
                tokens = self(torch.zeros(1, 3, *self.preprocess.size))
        except ProtolearnError:
            raise
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise self._wrong_size(error) from error
        for module in before:
            module.training = True
        assert tokens.grid is not None
        return tokens.values.shape[-1], tokens.grid

    def _wrong_size(self, error: Exception) -> UsageError:
        height, width = self.preprocess.size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UsageError(f"{self.name} cannot take pictures of {height} x {width}: {reason}; choose another size")

    def forward(self, inputs: Tensor) -> Tokens:
        """Return tokens ``(B, S, D)`` of pictures ``(B, 3, H, W)``."""
        return smooth(self._tokens(inputs), self.smooth)

    def _tokens(self, inputs: Tensor) -> Tokens:
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise UsageError(f"pictures must be (B, 3, H, W), got {tuple(inputs.shape)}")
        size = (inputs.shape[-2], inputs.shape[-1])
        if self._kind == "intermediate":
            return self._intermediate(inputs, size)
        if self._kind == "final":
            if self._early is None:
                return _joined([_channels_first(self.net.forward_features(inputs), self.net)], size)
            last, early = self.net.forward_intermediates(inputs, indices=[self._early], output_fmt="NCHW")
            return _joined([_channels_first(last, self.net)], size).replace(extras={"shallow": early[0]})
        found = self.net(inputs)
        maps = dict(zip(self._taken(), [_channels_first(m, self.net) for m in found], strict=True))
        return self._tokens_of(maps, size)

    def layer_maps(self, inputs: Tensor) -> list[Tensor]:
        """Return the map ``(B, D, h, w)`` of every chosen layer by itself, each on its own grid.

        Without prefix tokens, and without a vision transformer's final norm; ``smooth`` plays no part.
        """
        if self._kind == "final":
            raise UsageError(f'layer="final" is no layer of {self.name} to be taken by itself: choose from its layers')
        if self._kind == "maps":
            maps = [_channels_first(one, self.net) for one in self.net(inputs)]
        else:
            maps = self.net.forward_intermediates(
                inputs, indices=self._taken(), output_fmt="NCHW", intermediates_only=True
            )
        return [one for index, one in zip(self._taken(), maps, strict=True) if index in self._chosen]

    def _tokens_of(self, maps: Mapping[int, Tensor], size: tuple[int, int]) -> Tokens:
        """Return the chosen ones of the maps as tokens, the early one beside them."""
        tokens = _joined([maps[index] for index in self._chosen], size)
        return tokens if self._early is None else tokens.replace(extras={"shallow": maps[self._early]})

    def _intermediate(self, inputs: Tensor, size: tuple[int, int]) -> Tokens:
        # NCHW rather than NLC: the map says how the patches lie, also where a network takes several sizes
        found = self.net.forward_intermediates(
            inputs,
            indices=self._taken(),
            output_fmt="NCHW",
            intermediates_only=True,
            **self._options,
        )
        maps = [one[0] if isinstance(one, tuple) else one for one in found]
        tokens = self._tokens_of(dict(zip(self._taken(), maps, strict=True)), size)
        if isinstance(found[-1], tuple) and getattr(self.net, "cls_token", None) is not None:
            return tokens.replace(summary=found[-1][1][:, 0])
        return tokens

    def freeze(self, until: str | int | None = None) -> None:
        """Keep everything before a block as it is, or the whole network; the same as the setting ``train_from``."""
        self._allow("nothing" if until is None else until)
        self.train(self.training)

    def _allow(self, train_from: str | int) -> None:
        embeddings = _embeddings(self.net) if train_from == "embeddings" else []
        if train_from == "embeddings" and not embeddings:
            raise UsageError(f"{self.name} has no embeddings of its own to train: it is no vision transformer")
        self._boundary = _boundary("nothing" if embeddings else train_from, self.block_names, self.name)
        self.train_from = train_from
        allowed = set(self.tunable())
        for parameter in self.net.parameters():
            parameter.requires_grad_(parameter in allowed)

    def tunable(self) -> list[nn.Parameter]:
        """Return the parameters that ``train_from`` allows to change."""
        if self._boundary == 0:
            return list(self.net.parameters())
        if self.train_from == "embeddings":
            return _embeddings(self.net)
        later = list(self._blocks.values())[self._boundary :]
        return [parameter for block in later for parameter in block.parameters()]

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode of what may be trained; the rest stays in eval mode and without gradients."""
        super().train(mode)
        if self._boundary:
            self.net.eval()
            for block in list(self._blocks.values())[self._boundary :]:
                block.train(mode)
            allowed = set(self.tunable())
            for parameter in self.net.parameters():
                if parameter not in allowed:
                    parameter.requires_grad_(False)
        if self.freeze_norms:
            for layer in self.net.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    def spec(self) -> dict[str, Any]:
        """Return plain JSON settings that rebuild the encoder without its weights."""
        return {
            "encoder": "image",
            "name": self.name,
            "layer": list(self.layer) if isinstance(self.layer, tuple) else self.layer,
            "shallow": self.shallow,
            "smooth": self.smooth,
            **self.preprocess.to_dict(),
            "train_from": self.train_from,
            "freeze_norms": self.freeze_norms,
            "model_args": {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_args.items()},
        }


def _checked_name(name: str) -> str:
    import timm

    base, _, tag = str(name).partition(".")
    if not timm.is_model(base):
        raise UsageError(f"timm has no network called {name!r}: {nearest_names(base, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")] if tag else []
    if tag and tag not in tags:
        raise UsageError(f"timm's {base} has no weights called {tag!r}: {nearest_names(tag, tags)}")
    return str(name)


def _create(name: str, args: Mapping[str, Any], **ours: Any) -> Any:
    """Return timm's network; what timm refuses is an error of the settings."""
    import timm

    try:
        return timm.create_model(name, **args, **ours)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"timm cannot build {name} with model_args {dict(args)}: {reason}") from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed and leave the global generator as it was."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _preprocess(
    whole: nn.Module,
    size: int | Sequence[int] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    resize: str,
    interpolation: str | None,
    crop_fraction: float | None,
    model_args: Mapping[str, Any],
) -> Preprocess:
    """Return the network's own preparation of pictures, except where settings say otherwise."""
    import timm.data

    from protolearn.data.transforms import INTERPOLATIONS, Preprocess

    own = timm.data.resolve_model_data_config(whole)
    if size is None:
        size = model_args.get("img_size", own["input_size"][-2:])
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    means, stds = (
        (value,) * 3 if isinstance(value, int | float) else tuple(value)
        for value in (own["mean"] if mean is None else mean, own["std"] if std is None else std)
    )
    if interpolation is None:
        interpolation = own["interpolation"] if own["interpolation"] in INTERPOLATIONS else "bicubic"
    if crop_fraction is None:
        crop_fraction = own["crop_pct"] if resize == "crop" else 1.0
    return Preprocess(
        size=sides,  # type: ignore[arg-type]  # lengths are checked there
        mean=means,  # type: ignore[arg-type]
        std=stds,  # type: ignore[arg-type]
        resize=resize,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
    )


def _layers(whole: nn.Module) -> list[dict[str, Any]]:
    """Return timm's facts about each layer that can be taken: module, stride, width."""
    info = getattr(whole, "feature_info", None) or []
    return list(getattr(info, "info", info))


def _describe(index: int, info: Mapping[str, Any]) -> str:
    return f"{index} {info['module']} (stride {info['reduction']}, width {info['num_chs']})"


def _chosen(
    layer: Layer | Sequence[Layer], layers: Sequence[Mapping[str, Any]], name: str, described: Sequence[str]
) -> tuple[int, ...]:
    """Return the indices of the chosen layers, rising."""
    wanted = [layer] if isinstance(layer, int | str) else list(layer)
    if wanted == ["final"]:
        return (len(layers) - 1,)
    names = {str(info["module"]): i for i, info in enumerate(layers)}
    found = []
    for one in wanted:
        index = names.get(str(one), one)
        if index == "last":
            index = -1
        if isinstance(index, str) and index.lstrip("-").isdecimal():
            index = int(index)
        if isinstance(index, bool) or not isinstance(index, int) or not -len(layers) <= index < len(layers):
            also = (
                '"final" stands alone' if one == "final" else f'{name} has "last", "final" and: {", ".join(described)}'
            )
            raise UsageError(f"no layer {one!r}: {also}")
        found.append(index % len(layers))
    if not found:
        raise UsageError(f"choose at least one layer: {name} has {', '.join(described)}")
    return tuple(sorted(set(found)))


def _inside(cut: nn.Module) -> nn.Module:
    """Return the network inside timm's wrapper, where there is one."""
    children = dict(cut.named_children())
    return next(iter(children.values())) if list(children) in (["model"], ["body"]) else cut


def _copy(whole: nn.Module, part: nn.Module, name: str) -> None:
    """Give a part the weights of the whole; timm joins two levels of names with ``_`` where the whole has a dot."""
    given = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    wanted = part.state_dict()
    lost = [
        key
        for key, tensor in wanted.items()
        if getattr(given.get(key.replace(".", "_")), "shape", None) != tensor.shape
    ]
    if lost or len(given) != len(whole.state_dict()):
        raise ProtolearnError(
            f"timm's features of {name} cannot be matched with the whole network ({', '.join(lost[:3])}): take another "
            'network, or layer="final"'
        )
    part.load_state_dict({key: given[key.replace(".", "_")] for key in wanted}, strict=True)


def _joined(maps: Sequence[Tensor], size: tuple[int, int]) -> Tokens:
    """Return maps ``(B, D, H, W)`` as tokens on the finest of their grids, joined along the width."""
    finest = max((m.shape[-2:] for m in maps), key=lambda shape: shape[0] * shape[1])
    same = [m if m.shape[-2:] == finest else F.interpolate(m, size=finest, mode="bilinear") for m in maps]
    joined = same[0] if len(same) == 1 else torch.cat(same, 1)
    return Tokens(joined.flatten(2).transpose(1, 2), grid=tuple(finest), input_size=size)


def _channels_first(features: Tensor, net: nn.Module) -> Tensor:
    if features.ndim != 4:
        raise UsageError(
            f"the network gives {tuple(features.shape)} there, which is no map (B, D, H, W): choose another layer"
        )
    layout = getattr(net, "output_fmt", "NCHW")
    return features.permute(0, 3, 1, 2) if getattr(layout, "value", layout) == "NHWC" else features


def _blocks(net: nn.Module) -> dict[str, nn.Module]:
    """Return what can be frozen one after another: children, and the members of lists of blocks."""
    blocks: dict[str, nn.Module] = {}
    for name, child in _inside(net).named_children():
        parts = child.named_children() if isinstance(child, nn.Sequential | nn.ModuleList) else ()
        blocks.update({f"{name}.{part}": module for part, module in parts} or {name: child})
    return {name: block for name, block in blocks.items() if any(True for _ in block.parameters())}


def _embeddings(net: Any) -> list[nn.Parameter]:
    """Return the tokens and position embeddings that a transformer learns beside its blocks."""
    found = [getattr(net, name, None) for name in ("cls_token", "reg_token", "dist_token", "pos_embed")]
    return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]


def _boundary(train_from: str | int, names: Sequence[str], network: str) -> int:
    """Return how many blocks stay as they are."""
    if train_from == "all":
        return 0
    if train_from == "nothing":
        return len(names)
    index: int | None = None
    wanted = str(train_from)
    if wanted.lstrip("-").isdecimal():
        index = int(wanted)
        if -len(names) <= index < len(names):
            return index % len(names)
    else:
        plain = wanted.replace(".", "_")
        for i, name in enumerate(names):
            if f"{name.replace('.', '_')}_".startswith(f"{plain}_"):
                return i
    raise UsageError(
        f'{network} has no block {train_from!r} to train from: choose "all", "nothing", an index from 0 to '
        f"{len(names) - 1}, or one of {', '.join(names)}"
    )
