"""Comparing in full single precision, whatever precision the rest of a network runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast and reduced-precision matrix products (TF32, bfloat16) in a block.

    A squared distance is a small difference of large numbers; with ten bits of each nothing of it is left.

    Examples
    --------
    >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    with torch.autocast(device.type, enabled=False):
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            # the old switch of older releases sets these too, but cannot be read once these were set
            switches = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
            before = [switch.fp32_precision for switch in switches]
            try:
                for switch in switches:
                    switch.fp32_precision = "ieee"
                yield
            finally:
                for switch, value in zip(switches, before, strict=True):
                    switch.fp32_precision = value
        else:
            kept = torch.get_float32_matmul_precision()
            try:
                torch.set_float32_matmul_precision("highest")
                yield
            finally:
                torch.set_float32_matmul_precision(kept)
