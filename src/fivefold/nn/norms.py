"""Root-mean-square normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4; T5's layer norm (no mean, no bias).
    Differs: statistics in float32 whatever the input. Under autocast the result is in the autocast dtype, so that the
    several linear layers that read it do not each cast it again.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        device_type = x.device.type
        out_dtype = x.dtype
        if torch.is_autocast_enabled(device_type):
            out_dtype = torch.get_autocast_dtype(device_type)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(device_type, enabled=False):
            return F.rms_norm(wide, (x.shape[-1],), self.weight.to(wide.dtype), self.eps).to(out_dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
