"""Prompts inside a frozen teacher: what PAT puts in front of its stages, fed by the last step's gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.methods.projectors import MapAligner, as_grid
from tutelage.models.taps import Taps


class SEBlock(nn.Module):
    """Squeeze and excitation: a gate in (0, 1) for each channel, from the channels' means.

    Args:
        channels: C.
        rescale: Answer with the input times its gate; False answers with the gate alone, as published.
        ratio: The gate's hidden layer has C / ratio units, one at least.
    """

    def __init__(self, channels: int, rescale: bool, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.compress = nn.Conv2d(channels, hidden, 1)
        self.excitation = nn.Conv2d(hidden, channels, 1)
        self.rescale = rescale

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape, or to the gate `[B, C, 1, 1]`."""
        squeezed = features.mean(dim=(2, 3), keepdim=True)
        gate = self.excitation(F.relu(self.compress(squeezed))).sigmoid()
        return features * gate if self.rescale else gate


class Entrance(NamedTuple):
    """In what form a stage receives its input.

    Attributes:
        channels: C.
        sides: (H, W) of the map that the patches make.
        layout: "map" is `[B, C, H, W]`, "grid" `[B, H, W, C]`, "tokens" `[B, P + H * W, C]`.
        prefix: P, tokens in front of the patches.
    """

    channels: int
    sides: tuple[int, int]
    layout: Literal["map", "grid", "tokens"] = "map"
    prefix: int = 0

    @classmethod
    def of(cls, shape: Sequence[int], taps: Taps) -> Entrance:
        """What `models.network.Shapes.inputs` says of a stage of the network with these taps.

        Raises:
            UserError: Its tokens don't form a square.
        """
        if len(shape) == 3 and taps.channels_last:
            return cls(shape[2], (shape[0], shape[1]), "grid")
        if len(shape) == 3:
            return cls(shape[0], (shape[1], shape[2]))
        tokens, channels = shape
        for prefix in (taps.prefix_tokens, 0):
            side = math.isqrt(max(tokens - prefix, 0))
            if side * side == tokens - prefix:
                return cls(channels, (side, side), "tokens", prefix)
        raise UserError(
            f"{tokens} tokens in front of a stage don't form a square map; give the teacher square images"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[C, H, W]` of the patches as a map."""
        return (self.channels, *self.sides)


class PromptSwitches(NamedTuple):
    """Where a prompt may follow the published code instead of its intention, see `methods.pat`."""

    rescale: bool = True
    scrambled: bool = False
    class_token_last: bool = False


INTENDED = PromptSwitches()


class PromptBlock(nn.Module):
    """x + beta prompt(z): a small change to what a frozen stage receives, none at first (beta = 0).

    z is x, or with a gap the fusion of x and the aligned gap. Fusion and prompt are stacks of convolutions
    without activations but for their gates. Tokens before the patches pass unchanged.

    Args:
        entrance: The form of x.
        gap_shape: `[C', H', W']` of the gap.
        switches: See `PromptSwitches`.

    Source:
        PAT ``distillers/pat.py``. Deviations: tokens' gaps are aligned as maps; widths that four doesn't
        divide have fewer groups.
    """

    def __init__(
        self, entrance: Entrance, gap_shape: Sequence[int], switches: PromptSwitches = INTENDED
    ) -> None:
        super().__init__()
        self.entrance, self.switches = entrance, switches
        width, groups = entrance.channels, math.gcd(4, entrance.channels)
        same = tuple(gap_shape) == entrance.shape
        self.beta = nn.Parameter(torch.zeros(1))
        self.fb_aligner = nn.Identity() if same else MapAligner(gap_shape[0], entrance.shape)
        self.fusion_block = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 5, padding=2),
            nn.Conv2d(width, width, 1),
            SEBlock(width, switches.rescale),
            nn.Conv2d(width, width, 1),
        )
        self.prompt_block = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=groups),
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.Conv2d(width, width, 1),
            SEBlock(width, switches.rescale),
            nn.Conv2d(width, width, 1, groups=groups),
        )

    def forward(self, x: Tensor, gap: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Change what a stage receives.

        Args:
            x: In the entrance's form.
            gap: `[B, C', H', W']`; None for none.
            known: `[B]` bool, for which samples there is one; None for all.

        Returns:
            The same form and type as ``x``.
        """
        patches, rest = self._apart(x)
        changed = patches + self.beta * self._prompt(patches, gap, known)
        return self._together(changed, rest).to(x.dtype)

    def _prompt(self, patches: Tensor, gap: Tensor | None, known: Tensor | None) -> Tensor:
        if gap is None:
            return self.prompt_block(patches)
        fused = self.fusion_block(torch.cat([patches, self.fb_aligner(gap)], dim=1))
        if known is None:
            return self.prompt_block(fused)
        known = known[:, None, None, None]
        if fused.shape == patches.shape:
            return self.prompt_block(torch.where(known, fused, patches))
        # A gate alone has no sides, and padding would tell it from a constant map.
        return torch.where(known, self.prompt_block(fused), self.prompt_block(patches))

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The patches as a map, and the other tokens."""
        _, sides, layout, prefix = self.entrance
        if layout != "tokens":
            return (x.permute(0, 3, 1, 2) if layout == "grid" else x), None
        if self.switches.class_token_last:
            patches, rest = x[:, : x.shape[1] - prefix], x[:, x.shape[1] - prefix :]
        else:
            patches, rest = x[:, prefix:], x[:, :prefix]
        return as_grid(patches, sides), rest

    def _together(self, patches: Tensor, rest: Tensor | None) -> Tensor:
        if self.entrance.layout == "map":
            return patches
        last = patches.permute(0, 2, 3, 1)
        if self.switches.scrambled:
            last = patches.reshape(last.shape)
        if rest is None:
            return last
        parts = (last.flatten(1, 2), rest) if self.switches.class_token_last else (rest, last.flatten(1, 2))
        return torch.cat(parts, dim=1)


class FedPrompt(nn.Module):
    """A prompt block together with the gap that the last step left for it.

    Sample b of a batch gets the gap of sample b of the batch before: other images, as the paper wants it, so
    that the prompt can't copy the student. A smaller batch uses and leaves the first rows.

    Several devices: every rank keeps the gap of its own samples.

    Args:
        block: The prompt.
        gap_shape: `[C', H', W']` of one sample's gap.
    """

    gap: Tensor
    known: Tensor

    def __init__(self, block: PromptBlock, gap_shape: Sequence[int]) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("gap", torch.zeros(0, *gap_shape))
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool))

    def make_room(self, rows: int) -> None:
        """Remember so many samples from now on; what is known stays."""
        missing = rows - len(self.gap)
        if missing > 0:
            self.gap = torch.cat([self.gap, self.gap.new_zeros(missing, *self.gap.shape[1:])])
            self.known = torch.cat([self.known, self.known.new_zeros(missing)])

    def forward(self, x: Tensor) -> Tensor:
        """See `PromptBlock.forward`.

        Raises:
            UserError: There is no room for a batch of this size.
        """
        rows = len(x)
        if rows > len(self.gap):
            raise UserError(
                f"the prompts have room for {len(self.gap)} samples, but the batch has {rows}; hand every "
                "batch to the method's views first"
            )
        return self.block(x, self.gap[:rows], self.known[:rows])

    def write(self, gap: Tensor) -> None:
        """Remember the gap `[B, C', H', W']` of a batch."""
        self.gap[: len(gap)].copy_(gap)
        self.known[: len(gap)] = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over as many rows as were saved."""
        for name in ("gap", "known"):
            own, saved = self.get_buffer(name), state_dict.get(prefix + name)
            if saved is not None and len(saved) != len(own):
                setattr(self, name, own.new_zeros(len(saved), *own.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
