"""A net that is not ours: its blocks are found by running it, and heard without changing it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mipkd.archs._hooked import (
    BlockSequence,
    HookedNet,
    find_blocks,
    format_block_names,
    trial_image,
)
from mipkd.core.errors import UsageError


def conv(inputs: int = 6, outputs: int = 6) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Residual(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(*(conv() for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Grouped(nn.Module):
    """As RCAN: groups of more blocks than there are groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3)
        self.body = nn.Sequential(*(Residual(4) for _ in range(3)))
        self.up = nn.Sequential(conv(6, 12), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.body(self.first(x)))


class Siblings(nn.Module):
    """Blocks that are plain attributes, all joined at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3)
        self.b1, self.b2, self.b3 = Residual(), Residual(), Residual()
        self.joined = nn.Conv2d(18, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.b1(self.first(x))
        two = self.b2(one)
        joined = self.joined(torch.cat([one, two, self.b3(two)], 1))
        return nn.functional.pixel_shuffle(joined, 2)


class Tokens(nn.Module):
    """Blocks on tokens (N, L, C) that also take the size."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)

        def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
            return tokens + self.mix(tokens)

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3)
        self.layers = nn.ModuleList(self.Block() for _ in range(4))
        self.last = nn.Conv2d(6, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.first(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, (height, width))
        features = tokens.transpose(1, 2).unflatten(2, (height, width))
        return nn.functional.pixel_shuffle(self.last(features), 2)


class Shapeless(nn.Module):
    """No two modules give the same."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = conv(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.whole(x), 2)


SMALL: dict[str, Any] = {"multiple": 1, "least": 1}


def found(net: nn.Module, named: str | None = None) -> BlockSequence:
    return find_blocks(net, trial_image(**SMALL), named)


@pytest.mark.parametrize(
    ("kind", "names", "short"),
    [
        (Grouped, ("body.0", "body.1", "body.2"), "body"),
        (Siblings, ("b1", "b2", "b3"), "b1,b2,b3"),
        (Tokens, ("layers.0", "layers.1", "layers.2", "layers.3"), "layers"),
        (Shapeless, (), ""),
    ],
)
def test_the_body_is_found_and_named(
    kind: type[nn.Module], names: tuple[str, ...], short: str
) -> None:
    net = kind()
    blocks = found(net)
    assert blocks == BlockSequence(names, 6 if names else 0)
    assert format_block_names(net, names) == short
    if names:
        assert found(net, short) == blocks


@pytest.mark.parametrize("kind", [Grouped, Siblings, Tokens])
def test_taps_are_what_the_blocks_give_and_change_nothing(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    hooked = HookedNet(net, found(net), scale=2).eval()
    lr = torch.rand(2, 3, 8, 10)
    image, taps = hooked.forward_with_taps(lr, (0, 2))
    assert torch.equal(image, net(lr))
    assert [tap.shape for tap in taps] == [(2, 6, 8, 10)] * 2
    assert not torch.equal(*taps)
    assert set(hooked.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    assert not any(module._forward_hooks for module in net.modules())


def test_tokens_are_laid_out_row_by_row() -> None:
    torch.manual_seed(0)
    net = Tokens().eval()
    lr = torch.rand(1, 3, 8, 10)
    tokens = net.first(lr).flatten(2).transpose(1, 2)
    _, (features,) = HookedNet(net, found(net), scale=2).forward_with_taps(lr, (0,))
    for row, column in ((0, 0), (3, 7), (7, 9)):
        place = net.layers[0](tokens, (8, 10))[0, row * 10 + column]
        assert torch.allclose(features[0, :, row, column], place)


def test_a_body_can_be_named() -> None:
    assert found(Grouped(), "body.1.inner").names == tuple(f"body.1.inner.{i}" for i in range(4))
    assert found(Siblings(), "b1, b3").names == ("b1", "b3")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("boby", "the net has no 'boby'"),
        ("up", r"not features of one size.*\(1, 12, 32, 48\), \(1, 3, 64, 96\)"),
        ("body.1,body.0", "in order"),
    ],
)
def test_a_name_that_is_no_body_is_refused(named: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        found(Grouped(), named)
    assert caught.value.hint


def test_images_are_padded_to_what_the_net_needs() -> None:
    class Picky(Grouped):
        def forward(self, x: Tensor) -> Tensor:
            assert all(side % 4 == 0 and side >= 16 for side in x.shape[-2:])
            return super().forward(x)

    net = HookedNet(Picky().eval(), BlockSequence(), scale=2, multiple=4, least=16)
    for height, width in ((3, 5), (16, 16), (17, 40)):
        assert net(torch.rand(1, 3, height, width)).shape == (1, 3, 2 * height, 2 * width)


class Padding(Grouped):
    """As CRAFT and GRL: pads at the bottom and at the right, and cuts its image back."""

    def __init__(self, multiple: int, always: bool) -> None:
        super().__init__()
        self.multiple, self.always = multiple, always

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (-side % self.multiple for side in (height, width))
        whole = self.multiple if self.always and not down + right else 0
        padded = nn.functional.pad(x, (0, right + whole, 0, down + whole))
        return super().forward(padded)[..., : 2 * height, : 2 * width]


@pytest.mark.parametrize(("multiple", "always"), [(64, False), (16, True), (32, True)])
def test_features_of_a_net_that_pads_inside_are_cut_to_the_image(
    multiple: int, always: bool
) -> None:
    net = Padding(multiple, always).eval()
    body = found(net)
    assert body.names == ("body.0", "body.1", "body.2")
    assert found(net, "body") == body  # as a record of the net names them
    lr = torch.rand(2, 3, 48, 64 if always else 80)
    image, taps = HookedNet(net, body, scale=2).forward_with_taps(lr, (0, 2))
    assert image.shape[-2:] == (96, 2 * lr.shape[-1])
    assert all(tap.shape == (2, 6, *lr.shape[-2:]) for tap in taps)
    whole: list[Tensor] = []
    net.body[0].register_forward_hook(lambda _module, _inputs, output: whole.append(output))
    net(lr)
    assert torch.equal(taps[0], whole[0][..., :48, : lr.shape[-1]])


def test_images_that_would_change_each_other_are_shown_one_by_one() -> None:
    class Averaging(Grouped):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean())

    net, lr = Averaging().eval(), torch.rand(3, 3, 16, 16)
    hooked = HookedNet(net, found(net), scale=2, one_by_one=True).eval()
    image, (features,) = hooked.forward_with_taps(lr, (1,))
    alone = [hooked.forward_with_taps(one, (1,)) for one in lr.split(1)]
    assert torch.equal(image, torch.cat([one for one, _ in alone]))
    assert torch.equal(features, torch.cat([taps[0] for _, taps in alone]))
    assert not torch.allclose(image, net(lr))


def test_a_net_may_be_asked_for_its_image_in_a_way_of_its_own() -> None:
    class Pair(Grouped):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x), x  # type: ignore[return-value]

    def first(net: nn.Module, x: Tensor) -> Tensor:
        image: Tensor = net(x)[0]
        return image

    net, lr = Pair().eval(), torch.rand(1, 3, 16, 16)
    body = find_blocks(net, trial_image(**SMALL), None, first)
    image, (features,) = HookedNet(net, body, scale=2, call=first).forward_with_taps(lr, (0,))
    assert torch.equal(image, net(lr)[0])
    assert features.shape == (1, 6, 16, 16)
