"""What a network family offers: a net that can be tapped, and reading it from a checkpoint.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]


class SRNet(nn.Module):
    """A super-resolution net in three parts, so that any two nets can be tapped and mixed.

    `head` lifts the image to shallow features (range scaling and mean shift included),
    `blocks` keep their shape, `tail` adds the shallow features and upsamples to an image.
    """

    scale: int
    width: int  # channels of the features between blocks
    multiple: int = 1  # H and W that head, blocks and tail accept
    blocks: nn.ModuleList

    def head(self, lr_NCHW: Tensor) -> Tensor:
        """Shallow features (N, width, H, W)."""
        raise NotImplementedError

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor) -> Tensor:
        """The image (N, 3, S*H, S*W) from the last block's and the head's features."""
        raise NotImplementedError

    def tapped(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The image, and the features after each of `positions` (indices into `blocks`)."""
        shallow = self.head(lr_NCHW)
        features, taps = shallow, {}
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in positions:
                taps[index] = features
        return self.tail(features, shallow), [taps[p] for p in positions]

    def forward(self, lr_NCHW: Tensor) -> Tensor:
        """The upscaled image for any H and W: padded to `multiple`, cropped back."""
        height, width = lr_NCHW.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        if down or right:
            lr_NCHW = _pad_symmetric(lr_NCHW, down, right)
        sr_NCHW, _ = self.tapped(lr_NCHW)
        return sr_NCHW[..., : height * self.scale, : width * self.scale]


def _pad_symmetric(image: Tensor, down: int, right: int) -> Tensor:
    image = torch.cat([image, image.flip(-2)[..., :down, :]], dim=-2)
    return torch.cat([image, image.flip(-1)[..., :right]], dim=-1)


class Arch(Protocol):
    """A network family. Each module of `mipkd.archs` offers one as `ARCH`.

    `hyper` is a frozen dataclass of the family's own; all have the fields `scale` and
    `image_range`, and `dataclasses.asdict(hyper)` is plain JSON.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # keys, in any of the layouts' canonical names, that prove it

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        """The layout's name and the state dict under our key names; None if not this family."""

    def read(self, state: StateDict, layout: str) -> tuple[Any, dict[str, str]]:
        """The hyper-parameters from tensor shapes, and for each fact that shapes cannot
        tell how it was settled ("layout ...") or the word "unknown"."""

    def unsettled(self, hyper: Any) -> list[Any]:
        """The hyper-parameters a probe on images should try, the likeliest first."""

    def make(self, hyper: Any) -> SRNet:
        """A net with random weights."""

    def shrink(self, hyper: Any, budget: str) -> Any:
        """Smaller hyper-parameters: `budget` like "c64b32"; letters left out are kept.
        "" gives the paper's student for the paper's teacher, else half depth and width."""

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """Copy weights of a teacher of the same family: even blocks, strong channels."""

    def original(self, net: SRNet) -> dict[str, Tensor]:
        """The net's weights under the original repository's key names."""
