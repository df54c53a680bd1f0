"""The causal autoencoder: streaming equals whole, causality, normalisation, learning; LTX-2 on a small
random config.
"""

import pytest
import torch

from worldline.model.autoencoder import AutoencoderConfig, CausalAutoencoder, reconstruction_loss

torch.set_num_threads(1)


def make(patch=1, seed=0):
    torch.manual_seed(seed)
    config = AutoencoderConfig(latent_channels=4, channels=(6, 8, 10), patch=patch)
    model = CausalAutoencoder(config).double()
    model.latent_mean += torch.randn(4)
    model.latent_std *= 2.0
    return model


def clip(num_frames, height=16, width=24, seed=0):
    return torch.randn(
        1, 3, num_frames, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("patch", [1, 2])
def test_pieces_equal_the_whole_clip(patch):
    model, video = make(patch), clip(33, 16 * patch, 24)
    with torch.no_grad():
        latents = model.encode(video) if patch == 1 else model.encode(video[..., :16])
        video = video if patch == 1 else video[..., :16]
        assert latents.shape == (1, 4, 5, 2, video.shape[-1] // (8 * patch))
        pieces, tails = [], None
        for part in video.split([9, 16, 8], dim=2):
            piece, tails = model.encode_piece(part, tails)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=2), latents, rtol=0, atol=1e-12)

        decoded = model.decode(latents)
        assert decoded.shape == video.shape
        pieces, tails = [], None
        for part in latents.split([2, 1, 2], dim=2):
            piece, tails = model.decode_piece(part, tails)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=2), decoded, rtol=0, atol=1e-12)


def test_later_frames_do_not_reach_earlier_latents():
    model, video = make(), clip(17)
    changed = video.clone()
    changed[:, :, 9:] += 1
    with torch.no_grad():
        a, b = model.encode(video), model.encode(changed)
        assert torch.equal(a[:, :, :2], b[:, :, :2])
        assert not torch.allclose(a[:, :, 2], b[:, :, 2])
        still = model.encode(video[:, :, :1])  # an image is a clip of one frame
        torch.testing.assert_close(still, a[:, :, :1], rtol=0, atol=1e-12)


def test_normalisation_makes_latents_standard_and_changes_no_frame():
    model, video = make(), clip(17)
    with torch.no_grad():
        before = model.decode(model.encode(video))
        model.fit_normalisation(model.encode(video))
        latents = model.encode(video)
        torch.testing.assert_close(model.decode(latents), before, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4, dtype=torch.float64), atol=1e-10, rtol=0
        )
        torch.testing.assert_close(
            latents.std(dim=(0, 2, 3, 4)), torch.ones(4, dtype=torch.float64), atol=1e-10, rtol=0
        )


def test_it_learns_one_clip():
    torch.manual_seed(0)
    model = CausalAutoencoder(AutoencoderConfig(latent_channels=8, channels=(8, 8, 8)))
    x = torch.linspace(-1, 1, 16)
    video = torch.stack([torch.sin(3 * x + 0.2 * t).expand(16, 16) for t in range(9)]).expand(3, 9, 16, 16)[
        None
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = reconstruction_loss(model, video)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bad_sizes():
    model = make()
    with pytest.raises(ValueError, match="8 frames: a clip starts with 8 k"):
        model.encode(clip(8))
    with pytest.raises(ValueError, match="do not divide by 8"):
        model.encode(clip(9, 12, 16))
    with pytest.raises(ValueError, match="positive"):
        AutoencoderConfig(patch=0)


def test_ltx2_backend_loads_and_round_trips_its_normalisation(tmp_path, ltx2_vae):
    from worldline.model.ltx2_autoencoder import Ltx2Autoencoder

    torch.manual_seed(0)
    vae = ltx2_vae()
    vae.latents_mean += torch.randn(8)
    vae.latents_std *= 3.0
    vae.save_pretrained(tmp_path / "vae")
    backend = Ltx2Autoencoder(str(tmp_path))
    assert (backend.latent_channels, backend.time_stride, backend.space_stride) == (8, 8, 32)
    video = clip(9, 64, 64).float()
    latents = backend.encode(video)
    assert latents.shape == (1, 8, 2, 2, 2)
    with torch.no_grad():
        raw = vae.encode(video).latent_dist.mode()
        expected = vae.decode(raw, return_dict=False)[0]
    shape = (1, 8, 1, 1, 1)
    torch.testing.assert_close(latents, (raw - vae.latents_mean.view(shape)) / 3.0, rtol=0, atol=1e-5)
    torch.testing.assert_close(backend.decode(latents), expected, rtol=0, atol=1e-4)
