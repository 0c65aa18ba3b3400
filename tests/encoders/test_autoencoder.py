"""The convolutional autoencoder: sizes, start, what its decoder is to give back; and codes of other encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protolearn.core.decoders import FeatureDecoder, make_coding
from protolearn.core.necks import PrincipalAxes
from protolearn.core.starts import fit_axes
from protolearn.encoders import ConvAutoencoder, FeatureEncoder, make_encoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (7, 12), (33, 20), 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_decoded_has_the_size_of_the_picture(size: int | tuple[int, int], channels: int) -> None:
    encoder = ConvAutoencoder(size=size, channels=channels, maps=(4, 4, 4, 2))
    height, width = encoder.sizes[0]
    pictures = torch.rand(3, 3, height, width)
    tokens = encoder(pictures)
    assert tokens.values.shape == (3, 1, encoder.dim)
    assert tokens.region(0) == (0, 0, width, height)
    decoder = encoder.make_decoder()
    made, original = decoder(tokens.values), decoder.original(pictures, tokens)
    assert original is not None
    assert made.shape == original.shape == (3, 1, channels, height, width)
    assert 0 <= float(made.detach().min()) <= float(made.detach().max()) <= 1
    torch.testing.assert_close(original[:, 0], pictures if channels == 3 else pictures.mean(1, keepdim=True))
    assert decoder.original(None, tokens) is None


def test_the_papers_network() -> None:
    encoder = ConvAutoencoder()
    assert encoder.dim == 40
    assert encoder.sizes == [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    weights = torch.cat([p.flatten() for n, p in encoder.named_parameters() if n.endswith("weight")])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert all(p.eq(0).all() for n, p in encoder.named_parameters() if n.endswith("bias"))
    kinds = [type(layer).__name__ for layer in encoder.make_decoder().net]
    assert kinds == ["ConvTranspose2d", "ReLU"] * 3 + ["ConvTranspose2d", "Sigmoid"]
    assert (encoder(torch.rand(2, 1, 28, 28)).values >= 0).all()


def test_it_is_rebuilt_from_its_settings_and_refuses_wrong_ones() -> None:
    encoder = ConvAutoencoder(channels=3, size=(9, 5), maps=(4, 2), spread=None)
    again = make_encoder(encoder.spec())
    again.load_state_dict(encoder.state_dict())
    assert again.spec() == encoder.spec()
    assert again.fingerprint() == encoder.fingerprint()
    for wrong in ({"channels": 2}, {"maps": ()}, {"spread": 0.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ConvAutoencoder(**wrong)
    with pytest.raises(UsageError, match="pictures must be"):
        encoder(torch.zeros(2, 3, 9, 6))


def test_features_are_averaged_coded_and_decoded() -> None:
    encoder = FeatureEncoder(20)
    values, mask = torch.rand(6, 5, 20), torch.ones(6, 5, dtype=torch.bool)
    mask[:, 3:] = False
    tokens = Tokens(values, mask=mask)
    coding = make_coding(encoder, 4, axes=7)
    fit_axes(coding.neck, [(tokens, torch.zeros(6))])
    axes = next(m for m in coding.neck.modules() if isinstance(m, PrincipalAxes))
    before = axes.axes.clone()
    fit_axes(coding.neck, [(Tokens(torch.rand(6, 1, 20)), torch.zeros(6))])
    assert torch.equal(axes.axes, before), "fitted once: a decoder has learned on them"
    coded = coding.neck.on_tokens(tokens)  # type: ignore[operator]
    assert coded.values.shape == (6, 1, 4)
    assert isinstance(coding.decoder, FeatureDecoder)
    original = coding.decoder.original(None, tokens)
    torch.testing.assert_close(original, axes(values[:, :3].mean(1, keepdim=True)))
    torch.testing.assert_close(
        axes.undo(original).mean(0), values[:, :3].mean((0, 1)).unsqueeze(0), rtol=1e-4, atol=1e-4
    )
    assert coding.decoder(coded.values).shape == original.shape
    assert coding.decoder.features(coded.values).shape == (6, 1, 20)


def test_a_decoder_does_not_pull_at_the_encoder_through_its_target() -> None:
    features = torch.rand(3, 1, 5, requires_grad=True)
    assert not FeatureDecoder(2, 5).original(None, Tokens(features)).requires_grad


@pytest.mark.parametrize("encoder", [FeatureEncoder(20), ConvAutoencoder(size=8, maps=(4, 2))])
def test_drawn_codes_vary_in_training_and_are_their_mean_otherwise(encoder: nn.Module) -> None:
    coding = make_coding(encoder, 4, drawn=True)  # type: ignore[arg-type]
    tokens = encoder(torch.rand(3, 20) if isinstance(encoder, FeatureEncoder) else torch.rand(3, 1, 8, 8))
    coding.neck.train()
    one, other = (coding.neck.on_tokens(tokens) for _ in range(2))  # type: ignore[operator]
    assert one.values.shape == (3, 1, coding.dim)
    assert not torch.equal(one.values, other.values)
    coding.neck.eval()
    still = coding.neck.on_tokens(tokens)  # type: ignore[operator]
    assert torch.equal(still.values, still.extras["mean"])
    torch.testing.assert_close(still.extras["log_variance"], one.extras["log_variance"])
