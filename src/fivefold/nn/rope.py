"""Rotary position embedding: queries and keys are turned by angles that grow with their positions.

Shapes: T tokens (Q queries, K keys), D head_dim, R the channels that turn, P = R / 2 pairs of them.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError

Scaling = Literal["none", "linear", "ntk", "yarn"]


def rope_frequencies(rotary_dim: int, base: float = 10000.0, *, device: torch.device | None = None) -> Tensor:
    """Angle by which each pair of channels turns from one position to the next: base^(-2i / rotary_dim), [P].

    Source: Su et al. 2021 (arXiv 2104.09864), equation 15.
    Differs: float64 wherever there is one. At position 100,000 a float32 angle is off by 0.005, twice what bfloat16
    rounds, and by different amounts for neighbours.
    """
    wide = torch.float32 if device is not None and device.type == "mps" else torch.float64
    return base ** (torch.arange(0, rotary_dim, 2, dtype=wide, device=device) / -rotary_dim)


def ntk_base(base: float, *, rotary_dim: int, seq_len: int, max_seq_length: int, factor: float = 1.0) -> float:
    """Base that slows low frequencies for `seq_len` tokens and keeps the highest; unchanged up to the trained length.

    Source: dynamic NTK-aware scaling, Peng et al. 2023 (arXiv 2309.00071), sections 3.1 and 3.3; `factor` above 1
    stretches faster than the length grows, as in transformers ("dynamic").
    """
    stretch = factor * max(seq_len / max_seq_length, 1.0) - (factor - 1.0)
    return base * stretch ** (rotary_dim / max(rotary_dim - 2, 1))


def yarn_frequencies(
    frequencies: Tensor,
    *,
    base: float,
    max_seq_length: int,
    factor: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Tensor:
    """Frequencies [P] kept where a pair turns fast, divided by `factor` where it turns slowly, and a ramp in between.

    Source: "NTK-by-parts", Peng et al. 2023 (arXiv 2309.00071), section 3.2.
    Differs: the ramp is linear in the pair's index, between whole indices, as in the authors' program and in
    transformers, whose checkpoints were trained so; the paper's text has it linear in the number of turns,
    up to 2.4 times lower frequencies in the middle (64 channels, 2,048 tokens, factor 8).

    Args:
        beta_fast: pairs with at least this many turns within `max_seq_length` keep their frequency.
        beta_slow: pairs with at most this many are interpolated.
    """
    num_pairs = frequencies.shape[-1]

    def index_of(turns: float) -> float:
        return num_pairs * math.log(max_seq_length / (2 * math.pi * turns)) / math.log(base)

    first = max(math.floor(index_of(beta_fast)), 0)
    last = min(math.ceil(index_of(beta_slow)), 2 * num_pairs - 1)
    index = torch.arange(num_pairs, dtype=frequencies.dtype, device=frequencies.device)
    interpolated = ((index - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (1 - interpolated + interpolated / factor)


def rope_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Positions [..., T] (integers) times frequencies [P]: angles [..., T, P] in the frequencies' dtype."""
    return positions.unsqueeze(-1).to(frequencies.dtype) * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + P) of x by the angles with these cosines and sines; channels from 2P on stay.

    Source: Su et al. 2021 (arXiv 2104.09864), equation 34.
    Differs: pairs are (i, i + P), "half split", as in LLaMA checkpoints of Hugging Face; the paper pairs (2i, 2i + 1).

    Args:
        x: [..., T, D].
        cos: [T, P], or [B, ..., T, P] with x's first dimensions; missing ones (heads) are put before T.
        sin: as `cos`; float32 or wider, so that products are.

    Returns:
        [..., T, D] in x's dtype.
    """
    while cos.dim() < x.dim():
        cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    num_pairs = cos.shape[-1]
    left, right, rest = x.split([num_pairs, num_pairs, x.shape[-1] - 2 * num_pairs], dim=-1)
    turned = [(left * cos - right * sin).to(x.dtype), (right * cos + left * sin).to(x.dtype)]
    return torch.cat([*turned, rest], dim=-1)


class RoPE(nn.Module):
    """Turns queries and keys so that their product depends on the distance between them, not on where they stand.

    Source: Su et al. 2021 (arXiv 2104.09864); longer than trained: "linear" Chen et al. 2023 (arXiv 2306.15595), "ntk"
    and "yarn" Peng et al. 2023 (arXiv 2309.00071).
    Differs: see `rotate` (half-split pairs) and `yarn_frequencies`. Without `learnable` the module holds no tensor at
    all: nothing that `.bfloat16()` could round, `.to_empty()` lose or a longer text outgrow.

    "ntk" has another base for every length beyond the trained one. Keys that were turned for one length do not fit
    queries turned for another: a cache keeps keys unturned, or gives one `seq_len` for the whole generation.

    Args:
        dim: channels of a head, D.
        max_seq_length: the trained length, where extension starts.
        base: the slowest pair turns once in about 2 pi `base` positions.
        scaling: "none" raises beyond `max_seq_length`; "linear" divides all positions by `factor`; "ntk" lets the base
            grow with the actual length; "yarn" interpolates slow pairs only and sharpens the scores. "linear" and
            "yarn" hold at every length, short ones too: they want some training with them.
        factor: wanted length / trained length for "linear" and "yarn"; for "ntk" see `ntk_base`, 1 is the usual choice.
        rotary_frac: share of the channels that turn, the first ones ("partial rotary").
        learnable: frequencies are multiplied by exp(log_stretch), trained from 0: they start at the paper's and stay
            positive, and weight decay pulls them back there. They do not reach beyond the trained length either.
        beta_fast: of "yarn".
        beta_slow: of "yarn".
        attention_factor: multiplies turned queries and keys; default 1, for "yarn" 0.1 ln(factor) + 1. As in
            transformers it does not reach channels that do not turn.

    Raises:
        ModelError: an odd number of turning channels, or another value out of its range.
    """

    def __init__(
        self,
        dim: int,
        max_seq_length: int = 2048,
        base: float = 10000.0,
        *,
        scaling: Scaling = "none",
        factor: float = 1.0,
        rotary_frac: float = 1.0,
        learnable: bool = False,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
    ) -> None:
        super().__init__()
        if scaling not in get_args(Scaling):
            raise ModelError(f"RoPE got scaling={scaling!r}; give one of {', '.join(get_args(Scaling))}.")
        if not 0 < rotary_frac <= 1:
            raise ModelError(f"RoPE got rotary_frac={rotary_frac}; give a share of the channels above 0 and up to 1.")
        rotary_dim = int(dim * rotary_frac)
        if rotary_dim < 2 or rotary_dim % 2:
            raise ModelError(
                f"RoPE turns channels in pairs, but dim={dim} and rotary_frac={rotary_frac} give {rotary_dim} of them; "
                "choose an even number."
            )
        if max_seq_length < 1 or base <= 1:
            raise ModelError(
                f"RoPE got max_seq_length={max_seq_length} and base={base}; give a length of at least 1 and a base "
                "above 1."
            )
        if not {"none": factor == 1, "ntk": factor >= 1}.get(scaling, factor > 1):
            raise ModelError(
                f"RoPE got factor={factor} with scaling={scaling!r}; 'linear' and 'yarn' need a factor above 1 (wanted "
                "length / trained length), 'ntk' takes 1 or more, 'none' takes no factor."
            )
        if not 0 < beta_slow < beta_fast:
            raise ModelError(
                f"RoPE got beta_slow={beta_slow} and beta_fast={beta_fast}; give 0 < beta_slow < beta_fast."
            )
        if attention_factor is None:
            attention_factor = 0.1 * math.log(factor) + 1.0 if scaling == "yarn" else 1.0
        self.dim, self.rotary_dim, self.max_seq_length, self.base = dim, rotary_dim, max_seq_length, base
        self.scaling, self.factor, self.attention_factor = scaling, factor, attention_factor
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        self.log_stretch = nn.Parameter(torch.zeros(rotary_dim // 2)) if learnable else None

    def reset_parameters(self) -> None:
        """Put learnable frequencies back to the paper's, also after `.to_empty()`."""
        if self.log_stretch is not None:
            nn.init.zeros_(self.log_stretch)

    def frequencies(self, seq_len: int, device: torch.device | None = None) -> Tensor:
        """Radians a position of each pair, [P], in a sequence of `seq_len` tokens.

        Raises:
            ModelError: `seq_len` is beyond the trained length and nothing extends it.
        """
        if self.scaling == "none" and seq_len > self.max_seq_length:
            raise ModelError(
                f"RoPE was asked for {seq_len} positions, but is trained for {self.max_seq_length} and does not "
                "extrapolate; choose scaling 'ntk' (no training needed), 'linear' or 'yarn', or raise max_seq_length."
            )
        base = self.base
        if self.scaling == "ntk":
            base = ntk_base(
                base,
                rotary_dim=self.rotary_dim,
                seq_len=seq_len,
                max_seq_length=self.max_seq_length,
                factor=self.factor,
            )
        frequencies = rope_frequencies(self.rotary_dim, base, device=device)
        if self.scaling == "linear":
            frequencies = frequencies / self.factor
        elif self.scaling == "yarn":
            frequencies = yarn_frequencies(
                frequencies,
                base=base,
                max_seq_length=self.max_seq_length,
                factor=self.factor,
                beta_fast=self.beta_fast,
                beta_slow=self.beta_slow,
            )
        if self.log_stretch is not None:
            frequencies = frequencies * self.log_stretch.to(frequencies.dtype).exp()
        return frequencies

    def cos_sin(self, positions: Tensor, seq_len: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """What `rotate` takes; the layers of a stack can share one pair of tables.

        Args:
            positions: [..., T], integers.
            seq_len: length of the longest sequence, see `forward`.
            dtype: of the tables; float32 for inputs up to float32.

        Returns:
            cosines and sines, each [..., T, P] and multiplied by `attention_factor`.
        """
        angles = rope_angles(positions, self.frequencies(seq_len, positions.device))
        cos, sin = angles.cos(), angles.sin()
        return (cos * self.attention_factor).to(dtype), (sin * self.attention_factor).to(dtype)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        *,
        seq_len: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn queries and keys; their heads and lengths may differ.

        Args:
            query: [..., Q, D].
            key: [..., K, D].
            query_positions: integers [Q] or [B, Q]; default 0..Q-1. A decoder with a cache passes the positions of its
                new tokens, a packed batch positions that start again with every example.
            key_positions: integers [K] or [B, K]; default 0..K-1.
            seq_len: one more than the largest position, for "none" (the check) and "ntk" (the base). Default: read off
                the arguments. Pass it along with positions on a GPU: reading them there stops the host, so "ntk" does
                it and the check of "none" is left out.

        Returns:
            turned query and key, in the shapes and dtypes given.

        Raises:
            ModelError: a head of another size, positions that do not fit, or a sequence that is too long.
        """
        self._check_input("query", query, query_positions)
        self._check_input("key", key, key_positions)
        seq_len = max(self._seq_len(query, query_positions, seq_len), self._seq_len(key, key_positions, seq_len))
        query_tables = self._tables(query, query_positions, seq_len)
        if query_positions is key_positions and query.shape[-2] == key.shape[-2] and query.dtype == key.dtype:
            key_tables = query_tables
        else:
            key_tables = self._tables(key, key_positions, seq_len)
        return rotate(query, *query_tables), rotate(key, *key_tables)

    def _tables(self, x: Tensor, positions: Tensor | None, seq_len: int) -> tuple[Tensor, Tensor]:
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        return self.cos_sin(positions, seq_len, torch.promote_types(x.dtype, torch.float32))

    def _seq_len(self, x: Tensor, positions: Tensor | None, given: int | None) -> int:
        if positions is None:
            return max(x.shape[-2], given or 0)
        is_read = self.scaling == "ntk" or (self.scaling == "none" and positions.device.type == "cpu")
        if given is None and is_read and positions.numel():
            return int(positions.max()) + 1
        return given or 0

    def _check_input(self, name: str, x: Tensor, positions: Tensor | None) -> None:
        if x.dim() < 2 or x.shape[-1] != self.dim:
            raise ModelError(f"RoPE(dim={self.dim}) got a {name} of shape {tuple(x.shape)}; its last size must be dim.")
        if positions is None:
            return
        fits = 0 < positions.dim() < x.dim() and positions.shape[-1] == x.shape[-2]
        fits = fits and all(size in (1, given) for size, given in zip(positions.shape[:-1], x.shape, strict=False))
        if not fits or positions.is_floating_point():
            raise ModelError(
                f"RoPE got {name}_positions {tuple(positions.shape)} of {positions.dtype} for a {name} of shape "
                f"{tuple(x.shape)}; give integers, one for each token: [T] or [batch, T]."
            )

    def extra_repr(self) -> str:
        scaling = "" if self.scaling == "none" else f", scaling={self.scaling!r}, factor={self.factor}"
        partial = "" if self.rotary_dim == self.dim else f", rotary_dim={self.rotary_dim}"
        learned = "" if self.log_stretch is None else ", learnable=True"
        return f"{self.dim}, max_seq_length={self.max_seq_length}, base={self.base}{scaling}{partial}{learned}"
