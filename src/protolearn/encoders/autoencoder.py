"""A convolutional autoencoder: a small picture becomes one vector, and its decoder turns a vector into a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from protolearn.core.decoders import Decoder
from protolearn.core.encoder import Encoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.data.transforms import Preprocess


class ConvAutoencoder(Encoder):
    """3x3 convolutions of stride 2 with ReLU, flattened: one token an input, whose place is all of it.

    The defaults are those of Li et al. (2018) for MNIST: 28 x 28 pixels become 14, 7, 4 and 2, and 10 maps of 2 x 2
    make a code of 40 numbers, none below 0. Padding is one pixel on every side. The paper's (TensorFlow's "SAME") gives
    the same sizes and puts the pixel on one side alone where a size is even.

    Parameters
    ----------
    channels : {1, 3}
        1: pictures are turned grey (the mean of their channels). 3: colour.
    size : int or (int, int)
        Height and width that pictures are resized to; any size.
    maps : sequence of int
        Of the layers.
    spread : float or None
        Standard deviation of the initial weights, 0.01 in the paper (biases start at 0); None: sized by each layer's
        fan-in, which starts to learn at once where 0.01 takes long.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> encoder = ConvAutoencoder()
    >>> tokens = encoder(torch.zeros(5, 3, 28, 28))
    >>> tokens.values.shape, encoder.make_decoder()(tokens.values).shape
    (torch.Size([5, 1, 40]), torch.Size([5, 1, 1, 28, 28]))
    """

    preprocess: Preprocess

    def __init__(
        self,
        *,
        channels: int = 1,
        size: int | Sequence[int] = (28, 28),
        maps: Sequence[int] = (32, 32, 32, 10),
        spread: float | None = 0.01,
        seed: int = 0,
    ) -> None:
        from protolearn.data.transforms import Preprocess

        super().__init__()
        if channels not in (1, 3):
            raise UsageError(f"autoencoder: channels must be 1 (grey) or 3 (colour), got {channels}")
        if not maps or min(maps) < 1:
            raise UsageError(f"autoencoder: maps must be numbers of at least 1, got {tuple(maps)}")
        if spread is not None and not spread > 0:
            raise UsageError(f"autoencoder: spread must be above 0 or None, got {spread}")
        height, width = (size, size) if isinstance(size, int) else size
        # pixels from 0 to 1, as the decoder's sigmoid gives them
        self.preprocess = Preprocess(size=(height, width), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
        self.channels, self.maps, self.spread = channels, tuple(maps), spread
        self.sizes = [(height, width)]
        for _ in self.maps:
            self.sizes.append((_half(self.sizes[-1][0]), _half(self.sizes[-1][1])))
        self.dim = self.maps[-1] * self.sizes[-1][0] * self.sizes[-1][1]
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for source, target in zip((channels, *self.maps), self.maps, strict=False):
            layer = nn.Conv2d(source, target, 3, stride=2, padding=1)
            _start(layer, spread, 9 * source, generator)
            layers += [layer, nn.ReLU()]
        self.net = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tokens:
        """Return one token an input."""
        height, width = self.sizes[0]
        if inputs.ndim != 4 or inputs.shape[1] not in (1, 3) or inputs.shape[2:] != (height, width):
            raise UsageError(f"pictures must be (B, 1 or 3, {height}, {width}), got {tuple(inputs.shape)}")
        code = self.net(in_channels(inputs, self.channels)).flatten(1).unsqueeze(1)
        return Tokens(code, grid=(1, 1), input_size=(height, width))

    def make_decoder(self, seed: int = 0) -> PictureDecoder:
        """Return the mirror image of the encoder, untrained."""
        return PictureDecoder(self.channels, self.sizes, self.maps, self.spread, seed)

    def spec(self) -> dict[str, Any]:
        """Return the settings that rebuild it without weights."""
        return {
            "encoder": "autoencoder",
            "channels": self.channels,
            "size": list(self.preprocess.size),
            "maps": list(self.maps),
            "spread": self.spread,
        }


class PictureDecoder(Decoder):
    """Transposed convolutions that undo an encoder's, ReLU between them and a sigmoid at the end.

    Attributes
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of what comes out.
    """

    pictures = True

    def __init__(
        self, channels: int, sizes: Sequence[tuple[int, int]], maps: Sequence[int], spread: float | None, seed: int
    ) -> None:
        super().__init__()
        self.shape = (channels, *sizes[0])
        self.start = (maps[-1], *sizes[-1])
        generator = torch.Generator().manual_seed(seed)
        widths = (channels, *maps)
        layers: list[nn.Module] = []
        for step in range(len(maps), 0, -1):
            (h, w), (height, width) = sizes[step], sizes[step - 1]
            more = (height - (2 * h - 1), width - (2 * w - 1))  # 0 or 1: which of two sizes was halved to this one
            layer = nn.ConvTranspose2d(widths[step], widths[step - 1], 3, stride=2, padding=1, output_padding=more)
            _start(layer, spread, 9 * widths[step] // 4, generator)
            layers += [layer, nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, values: Tensor) -> Tensor:
        """Return pictures ``(..., channels, height, width)`` with values from 0 to 1."""
        decoded: Tensor = self.net(values.reshape(-1, *self.start))
        return decoded.view(*values.shape[:-1], *self.shape)

    def original(self, inputs: Tensor | None, encoded: Tokens) -> Tensor | None:
        """Return the pictures that were encoded, grey where the encoder sees them so."""
        return None if inputs is None else in_channels(inputs, self.shape[0]).unsqueeze(1)


def in_channels(pictures: Tensor, channels: int) -> Tensor:
    """Return pictures ``(B, 1 or 3, H, W)`` grey (the mean over channels) or in colour."""
    if pictures.shape[1] == channels:
        return pictures
    return pictures.mean(1, keepdim=True) if channels == 1 else pictures.expand(-1, channels, -1, -1)


def _half(size: int) -> int:
    return (size + 1) // 2


def _start(
    layer: nn.Conv2d | nn.ConvTranspose2d, spread: float | None, fan_in: int, generator: torch.Generator
) -> None:
    deviation = (2.0 / max(1, fan_in)) ** 0.5 if spread is None else spread
    nn.init.normal_(layer.weight, std=deviation, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
