"""A generator of images for strategies that replay generated images: Kingma & Welling 2014, arXiv:1312.6114."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VAE(nn.Module):
    """A variational autoencoder of fully connected layers; its decoder mirrors its encoder."""

    def __init__(self, image_shape: tuple[int, ...], hidden: int, latent: int) -> None:
        super().__init__()
        self.image_shape, n = image_shape, math.prod(image_shape)
        self.encoder = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.moments = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n)
        )

    def loss(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return (BCE summed over pixels + KL(q(z | x) || N(0, 1))) / number of pixels for each sample, float [B].

        pixels: float [B, C, H, W] in [0, 1]; noise: draws from N(0, 1), float [B, latent].
        """
        pixels = pixels.flatten(1)
        mean, log_variance = self.moments(self.encoder(pixels)).float().chunk(2, dim=1)
        decoded = self.decoder(mean + noise * torch.exp(log_variance / 2)).float()
        reconstruction = F.binary_cross_entropy_with_logits(decoded, pixels, reduction="none").sum(1)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        loss: Tensor = (reconstruction + divergence) / pixels.shape[1]
        return loss

    @torch.no_grad()
    def generate(self, noise: Tensor) -> Tensor:
        """Decode draws from N(0, 1), float [B, latent], to pixels in [0, 1], float [B, C, H, W]."""
        pixels: Tensor = torch.sigmoid(self.decoder(noise).float()).unflatten(1, self.image_shape)
        return pixels
