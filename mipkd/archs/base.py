"""What a network family offers: a net whose features can be read, and its checkpoint reader.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mipkd.core import plugins
from mipkd.core.images import ByteArray

StateDict = Mapping[str, Tensor]


class SRNet(nn.Module):
    """A super-resolution net in three parts, so that features of any two can be compared and mixed.

    `head` lifts the image to shallow features (range scaling and mean shift included),
    `blocks` keep their shape, `tail` adds the shallow features or, in nets with a global residual
    (Compact, ECBSR, ABPN), the upscaled LR image, and upsamples to an image.
    """

    scale: int
    width: int  # channels of the features between blocks
    multiple: int = 1  # H and W must be multiples of it in head, blocks and tail
    least: int = 1  # smallest H and W that these accept; `forward` pads to it
    smallest: int = 2  # smallest H and W that an exported graph accepts
    in_parts: bool = True  # head, blocks and tail can be run one by one
    channels_last: bool = True  # it can compute in that layout of memory
    blocks: nn.ModuleList

    def head(self, lr_NCHW: Tensor) -> Tensor:
        """Shallow features (N, width, H, W)."""
        raise NotImplementedError

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        """The image (N, 3, S*H, S*W) from the last block's and the head's features and the LR."""
        raise NotImplementedError

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The image, and the features after each of `positions` (indices into `blocks`)."""
        shallow = self.head(lr_NCHW)
        features, taps = shallow, {}
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in positions:
                taps[index] = features
        return self.tail(features, shallow, lr_NCHW), [taps[p] for p in positions]

    def forward(self, lr_NCHW: Tensor) -> Tensor:
        """The upscaled image for any H and W."""
        return self.forward_padded(lr_NCHW)[0]

    def forward_padded(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward_with_taps` for any H and W: padded to `multiple`, cropped back."""
        height, width = lr_NCHW.shape[-2:]
        down, right = (max(-s % self.multiple, self.least - s) for s in (height, width))
        if down or right:
            lr_NCHW = _pad_symmetric(lr_NCHW, down, right)
        sr_NCHW, taps = self.forward_with_taps(lr_NCHW, positions)
        cropped = [tap[..., :height, :width] for tap in taps]
        return sr_NCHW[..., : height * self.scale, : width * self.scale], cropped

    def to_deployed(self) -> SRNet:
        """The net that runs on a device: itself, unless it has branches for training only."""
        return self

    def to_exportable(self) -> SRNet:
        """`to_deployed` with pixel range and mean folded into its first and last convolution."""
        return self.to_deployed()


def _pad_symmetric(image: Tensor, down: int, right: int) -> Tensor:
    height, width = image.shape[-2:]
    rows, columns = _mirror_indices(height, height + down), _mirror_indices(width, width + right)
    return image[..., rows.to(image.device), :][..., columns.to(image.device)]


def _mirror_indices(length: int, count: int) -> Tensor:
    """Indices 0 to `length` - 1, back and forth, until there are `count`."""
    folded = torch.arange(count) % (2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


class Arch(ABC):
    """A network family: reads its checkpoints, makes its nets and starts students from teachers.

    Each module of `mipkd.archs` offers one as `ARCH`. `hyper` is a frozen dataclass of the family's
    own, of plain JSON values; all have the field `scale`, and `image_range` if it can be other
    than 1.
    """

    name: ClassVar[str]
    Hyper: ClassVar[type]
    signs: ClassVar[Mapping[str, tuple[str, ...]]]  # layout -> keys that must be there
    can_project: ClassVar[bool] = False  # True if it has `project`; else students inherit

    @abstractmethod
    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        """The layout's name and the state dict under our key names; None if not this family."""

    @abstractmethod
    def read(self, state: StateDict, layout: str) -> tuple[Any, dict[str, str]]:
        """The hyper-parameters from tensor shapes, and for each fact that shapes cannot
        tell how it was settled ("layout ..."), "assumed ..." if only the layout's convention says
        so and images should confirm it, or "unknown"."""

    def unsettled(self, hyper: Any) -> list[Any]:
        """The hyper-parameters that a probe on images should try, the likeliest first."""
        return [hyper]

    @abstractmethod
    def paper(self, scale: int) -> Any:
        """The MiPKD paper's student of this family; the authors' own net where it has none."""

    @abstractmethod
    def make(self, hyper: Any) -> SRNet:
        """A net with random weights."""

    @abstractmethod
    def shrink(self, hyper: Any, budget: str) -> Any:
        """Smaller hyper-parameters: `budget` like "c64b32"; letters left out are kept.
        "" gives the paper's student for the paper's teacher, else half depth and width."""

    @abstractmethod
    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """Copy weights of a teacher of the same family: evenly spaced blocks, the strongest
        channels. The teacher stays as it is."""

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        """Fit the weights of a student that has inherited, layer by layer by regression, so that it
        gives what the teacher gives on these patches."""
        raise NotImplementedError

    @abstractmethod
    def original(self, net: SRNet) -> dict[str, Tensor]:
        """The net's weights under the original repository's key names."""


def load_arch(name: str) -> Arch:
    """The family `name`.

    Raises:
        UsageError: no such family.
    """
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH", Arch)
    return arch


def load_archs() -> list[Arch]:
    """All families that load; others give a warning."""
    return list(plugins.load_all("mipkd.archs", "ARCH", Arch).values())


def arch_names() -> tuple[str, ...]:
    """The families, sorted by name."""
    return plugins.names("mipkd.archs")


def params(net: nn.Module) -> int:
    """The number of learned values."""
    return sum(p.numel() for p in net.parameters())


def gmacs(net: SRNet, size: int = 256) -> float:
    """Billions of multiply-accumulates at LR `size` x `size`; fast on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    return float(counter.get_total_flops()) / 2e9


def as_input(net: SRNet, image_HWC: ByteArray) -> Tensor:
    """An image as a float batch (1, 3, H, W) in [0, 1] on the net's device."""
    bytes_NHWC = torch.from_numpy(image_HWC.copy())[None].to(next(net.parameters()).device)
    return bytes_NHWC.permute(0, 3, 1, 2) / 255


@torch.inference_mode()
def upscale_image(net: SRNet, lr_HWC: ByteArray) -> ByteArray:
    """The net's image for one LR image, clipped and rounded to uint8."""
    sr_CHW = net(as_input(net, lr_HWC))[0].clamp(0, 1).mul(255).round().byte()
    sr_HWC: ByteArray = sr_CHW.permute(1, 2, 0).cpu().numpy()
    return sr_HWC


def pair_positions(
    student: SRNet, teacher: SRNet, count: int = 3
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices into both nets' `blocks` after which features are compared, the last at the end.

    Indices start at 0 and include the convolution after the body where it is the last block:
    EDSR-32 (10, 21, 32), RCAN-10 (2, 6, 10), SwinIR-6 (1, 3, 5), SwinIR-4 (0, 2, 3). Fewer than
    `count` if a net is too shallow; both tuples rise strictly and have one length.
    """
    pairs = list(zip(_fractions(student, count), _fractions(teacher, count), strict=True))
    kept = [pairs.pop()]
    while pairs:  # from the end, which is always compared
        pair = pairs.pop()
        if pair[0] < kept[0][0] and pair[1] < kept[0][1]:
            kept.insert(0, pair)
    return tuple(s for s, _ in kept), tuple(t for _, t in kept)


def _fractions(net: SRNet, count: int) -> list[int]:
    end = len(net.blocks) - 1
    residual = end if isinstance(net.blocks[end], nn.Conv2d) else end + 1
    # Fractions of the number of blocks plus one: they fall on the paper's positions, after
    # blocks 11 and 22 of 32, groups 3 and 7 of 10, RSTBs 1 and 3 of 4.
    after = [max(1, (residual + 1) * (i + 1) // count) for i in range(count - 1)]
    return [*(a - 1 for a in after), end]
