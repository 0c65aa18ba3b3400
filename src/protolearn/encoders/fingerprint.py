"""What an encoder is, in 64 characters: two encoders with one fingerprint make the same tokens."""

from __future__ import annotations

import hashlib
import json

import torch

from protolearn.core.encoder import Encoder

_NO_PART_OF_TOKENS = ("train_from",)  # says what may be learned, not what comes out


def fingerprint(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's settings and weights.

    What decides only how it is trained does not count, nor does the number of steps a batch norm has seen.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> fingerprint(SmallEncoder(seed=0)) == fingerprint(SmallEncoder(seed=1))
    False
    """
    spec = {name: value for name, value in encoder.spec().items() if name not in _NO_PART_OF_TOKENS}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        kept = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {kept.dtype} {tuple(kept.shape)}\n".encode())
        digest.update(kept.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
