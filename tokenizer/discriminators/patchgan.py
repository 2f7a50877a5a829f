"""The PatchGAN discriminator of VQGAN (Isola et al., arXiv:1611.07004): one logit per overlapping patch."""

from __future__ import annotations

from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Images (B,3,H,W) -> logits (B,1,h,w); three strided layers, so 256 pixels give 30 x 30 logits.

    `norm`: `batch` as released (statistics of this rank's batch), or `none`, which makes training independent of how
    the batch is divided. `forward` takes real and generated images together, one pass each, for data-parallel training.
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        use_norm = norm == "batch"
        layers: list[nn.Module] = [nn.Conv2d(3, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for n in range(1, num_layers + 1):
            wider = base_channels * min(2**n, 8)
            stride = 2 if n < num_layers else 1
            layers.append(nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=not use_norm))
            layers += [nn.BatchNorm2d(wider)] if use_norm else []
            layers.append(nn.LeakyReLU(0.2))
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

    def logits(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def forward(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(real), self.logits(generated)
