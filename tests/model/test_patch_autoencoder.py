"""Principal components of patches: exact with all of them, the known loss with some."""

from __future__ import annotations

import pytest
import torch

from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig


def _video(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_all_components_give_the_video_back() -> None:
    video = _video(3, 3, 2, 8, 12)
    autoencoder = PatchAutoencoder(PatchAutoencoderConfig(patch=4, latent_channels=48))
    autoencoder.fit(video)
    latents = autoencoder.encode(video)
    assert latents.shape == (3, 48, 2, 2, 3)
    assert latents.std().item() == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(autoencoder.decode(latents), video, atol=1e-4, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_the_loss_is_the_variance_left_out(whitening: float) -> None:
    """The sum of the smallest eigenvalues of the patches' covariance, whatever the weighting of the rest."""
    video = _video(8, 3, 5, 8, 8)
    config = PatchAutoencoderConfig(patch=2, latent_channels=5, whitening=whitening)
    autoencoder = PatchAutoencoder(config)
    autoencoder.fit(video)
    lost = (autoencoder.decode(autoencoder.encode(video)) - video).square().mean()
    patches = torch.nn.functional.unfold(video.transpose(1, 2).flatten(0, 1), 2, stride=2)  # [B F, 12, S]
    covariance = torch.cov(patches.permute(1, 0, 2).flatten(1), correction=0)
    assert lost.item() == pytest.approx(torch.linalg.eigvalsh(covariance)[:7].sum().item() / 12, rel=1e-3)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="divide"):
        PatchAutoencoder().encode(_video(1, 3, 1, 20, 16))
    with pytest.raises(ValueError, match="components"):
        PatchAutoencoderConfig(patch=1, latent_channels=4)
