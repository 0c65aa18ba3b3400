"""A network of three layers, trained from scratch, for small pictures and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from protolearn.core.encoder import Encoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.data.transforms import Preprocess


_LAYER = 3  # modules of a layer: convolution, batch norm, ReLU


class SmallEncoder(Encoder):
    """Three convolutions with batch norm and ReLU; random weights, any input size.

    A token's place is its receptive field in whole cells, so an outline shows (nearly) all that the token can see.

    Parameters
    ----------
    dim : int
        Width of the tokens; the two layers before are half as wide.
    strides : three ints
        Of the layers; their product is the side of a cell in input pixels.
    kernels : three odd ints
        Of the layers; smaller ones make tokens that see less.
    size : int or (int, int)
        Height and width that pictures are resized to.
    shallow : {0, 1}, optional
        Also give the map after this layer, as ``extras["shallow"]`` ``(B, D', H', W')`` of the tokens.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> SmallEncoder(dim=16)(torch.zeros(2, 3, 32, 32)).grid
    (8, 8)
    """

    preprocess: Preprocess

    about_training = ("shallow",)  # tokens are the same with and without

    def __init__(
        self,
        dim: int = 64,
        *,
        strides: Sequence[int] = (2, 2, 1),
        kernels: Sequence[int] = (3, 3, 3),
        size: int | Sequence[int] = (32, 32),
        shallow: int | None = None,
        seed: int = 0,
    ) -> None:
        from protolearn.data.transforms import Preprocess

        super().__init__()
        if dim < 2:
            raise UsageError(f"dim must be at least 2, got {dim}")
        if len(strides) != 3 or min(strides) < 1:
            raise UsageError(f"strides must be three whole numbers of at least 1, got {tuple(strides)}")
        if len(kernels) != 3 or min(kernels) < 1 or any(kernel % 2 == 0 for kernel in kernels):
            raise UsageError(f"kernels must be three odd numbers, got {tuple(kernels)}")
        if shallow not in (None, 0, 1):
            raise UsageError(f"shallow must be layer 0 or 1 of the three, got {shallow!r}")
        self.shallow = shallow
        self.dim, self.strides, self.kernels = dim, tuple(strides), tuple(kernels)
        height, width = (size, size) if isinstance(size, int) else size
        self.preprocess = Preprocess(
            size=(height, width), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
        )
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        widths = (3, dim // 2, dim // 2, dim)
        seen, cell = 1, 1
        for i, (stride, kernel) in enumerate(zip(self.strides, self.kernels, strict=True)):
            seen, cell = seen + (kernel - 1) * cell, cell * stride
            layer = nn.Conv2d(widths[i], widths[i + 1], kernel, stride=stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            layers += [layer, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.window = max(1, (seen // cell + 1) // 2 * 2 - 1)

    def forward(self, inputs: Tensor) -> Tokens:
        """Return one token for each cell of the last map."""
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise UsageError(f"pictures must be (B, 3, H, W), got {tuple(inputs.shape)}")
        features, extras = inputs, {}
        for i in range(0, len(self.net), _LAYER):
            features = self.net[i : i + _LAYER](features)
            if self.shallow == i // _LAYER:
                extras["shallow"] = features
        height, width = inputs.shape[-2:]
        grid = (features.shape[-2], features.shape[-1])
        values = features.flatten(2).transpose(1, 2)
        return Tokens(values, grid=grid, input_size=(height, width), window=self.window, extras=extras)

    def spec(self) -> dict[str, Any]:
        """Return the settings that rebuild it without weights."""
        return {
            "encoder": "small",
            "dim": self.dim,
            "strides": list(self.strides),
            "kernels": list(self.kernels),
            "size": list(self.preprocess.size),
            "shallow": self.shallow,
        }
