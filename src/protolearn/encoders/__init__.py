"""What turns inputs into tokens: networks of timm, a small network, an autoencoder, ready features; a cache of tokens.

Importing this costs nothing beyond PyTorch: timm and Pillow are imported when an image encoder is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from protolearn.core.encoder import Encoder
from protolearn.encoders.autoencoder import ConvAutoencoder
from protolearn.encoders.cache import TokenCache, token_cache
from protolearn.encoders.features import FeatureEncoder
from protolearn.encoders.image import ImageEncoder
from protolearn.encoders.network import NamedNetwork, TrainedNetwork
from protolearn.encoders.small import SmallEncoder
from protolearn.errors import UsageError, nearest_names

__all__ = [
    "KINDS",
    "ConvAutoencoder",
    "FeatureEncoder",
    "ImageEncoder",
    "NamedNetwork",
    "SmallEncoder",
    "TokenCache",
    "TrainedNetwork",
    "make_encoder",
    "token_cache",
]

KINDS: dict[str, type[Encoder]] = {
    "image": ImageEncoder,
    "small": SmallEncoder,
    "autoencoder": ConvAutoencoder,
    "features": FeatureEncoder,
    "network": NamedNetwork,
}


def make_encoder(spec: Mapping[str, Any]) -> Encoder:
    """Return an encoder from settings as :meth:`Encoder.spec` gives them: ``encoder`` names the kind.

    A spec holds no weights, so a rebuilt encoder is random until a state dict is loaded; settings written by hand may
    add ``weights``.

    Raises
    ------
    UsageError
        If the kind or a setting is unknown; the nearest names are suggested.

    Examples
    --------
    >>> make_encoder({"encoder": "features", "dim": 4}).dim
    4
    """
    settings = dict(spec)
    kind = settings.pop("encoder", None)
    if kind not in KINDS:
        raise UsageError(
            f"no encoder is called {kind!r}: {nearest_names(str(kind), KINDS)} (a network of timm is "
            "encoder: image with name: NETWORK)"
        )
    parameters = inspect.signature(KINDS[kind]).parameters
    for setting in settings:
        if setting not in parameters:
            raise UsageError(f"encoder {kind!r} has no setting {setting!r}: {nearest_names(str(setting), parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            raise UsageError(f"encoder {kind!r} needs the setting {name!r}")
    return KINDS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
