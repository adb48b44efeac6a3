"""What every network family promises, whichever files stand in the folder."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mipkd.archs.base import Arch, SRNet, gmacs, pair_positions, params
from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError, UsageError

SMALL = {
    "compact": "c12b3",
    "edge": "c12b3",
    "edsr": "c12b3",
    "imdn": "c12b3",
    "lkdn": "c12b3a10",
    "rcan": "c12g2b2",
    "rlfn": "c12b3m14",
    "span": "c12b4",
    "swinir": "c12r2",
}
ARCHS = [name for name in plugins.names("mipkd.archs") if name in SMALL]


def arch_of(name: str) -> Arch:
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    return arch


def small(name: str, scale: int = 2, **other: Any) -> Any:
    arch = arch_of(name)
    return replace(arch.shrink(arch.paper(scale), SMALL[name]), **other)


def made(name: str, scale: int = 2, seed: int = 0, **other: Any) -> SRNet:
    torch.manual_seed(seed)
    return arch_of(name).make(small(name, scale, **other)).eval()


def image(height: int = 13, width: int = 18) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    (name, {field: value})
    for name in ARCHS
    for field, value in (("scale", 2), ("direct", True), ("folded", True))
    if hasattr(small(name), field)
]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_checkpoint_tells_its_sizes_and_gives_the_same_net(
    name: str, scale: int, variant: dict[str, Any]
) -> None:
    variant = variant | {"scale": scale}
    arch, net = arch_of(name), made(name, **variant)
    state = arch.original(net)
    found = arch.canonical(state)
    assert found is not None
    layout, weights = found
    hyper, settled = arch.read(weights, layout)
    assert hyper == small(name, **variant)
    assert set(settled) >= {"image_range", "mean"} & {f.name for f in fields(hyper)}
    again = arch.make(hyper).eval()
    again.load_state_dict({k: weights[k] for k in again.state_dict()})
    assert torch.equal(again(image()), net(image()))


@pytest.mark.parametrize("name", ARCHS)
def test_any_size_is_upscaled_and_taps_have_the_width(name: str) -> None:
    net = made(name, 3)
    assert net(image(13, 18)).shape == (1, 3, 39, 54)
    positions, _ = pair_positions(net, net)
    padded = image(16, 24)
    sr, taps = net.forward_with_taps(padded, positions)
    assert torch.equal(sr, net(padded))
    assert {tap.shape for tap in taps} == {(1, net.width, 16, 24)}
    assert positions[-1] == len(net.blocks) - 1


@pytest.mark.parametrize("name", ARCHS)
def test_a_student_of_full_size_inherits_the_whole_teacher(name: str) -> None:
    teacher, student = made(name, seed=0), made(name, seed=1)
    arch_of(name).inherit(student, teacher)
    assert torch.allclose(student(image()), teacher(image()), atol=1e-6)


@pytest.mark.parametrize("name", ARCHS)
def test_a_smaller_student_inherits_in_every_dimension(name: str) -> None:
    arch, teacher = arch_of(name), made(name, 4)
    hyper = arch.shrink(small(name, 4), "")
    student = arch.make(hyper).eval()
    arch.inherit(student, teacher)
    assert params(student) < params(teacher)
    with torch.inference_mode():
        assert bool(student(image()).isfinite().all())


@pytest.mark.parametrize(
    ("name", "theirs"), [*((name, {}) for name in ARCHS), ("edsr", {"res_scale": 0.1})]
)
def test_inheriting_leaves_the_teacher_as_it_is(name: str, theirs: dict[str, Any]) -> None:
    arch, teacher = arch_of(name), made(name, **theirs)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = arch.make(arch.shrink(small(name), ""))
    arch.inherit(student, teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_student_inherits_residual_scales_in_its_weights() -> None:
    teacher = made("edsr", res_scale=0.1)
    student = arch_of("edsr").make(small("edsr", res_scale=1.0)).eval()
    arch_of("edsr").inherit(student, teacher)
    assert torch.allclose(student(image()), teacher(image()), atol=1e-6)


@pytest.mark.parametrize("name", ARCHS)
def test_a_budget_that_cannot_be_read_shows_the_grammar(name: str) -> None:
    arch = arch_of(name)
    with pytest.raises(UsageError, match="cannot read 'wide'") as caught:
        arch.shrink(arch.paper(2), "wide")
    assert f"{name}:c32" in caught.value.hint


# channels / blocks, parameters in millions and GMACs at LR 256x256, for x2, x3, x4
TABLE = {
    ("compact", "c64b16"): ((0.600, 0.609, 0.621), (39.2, 39.7, 40.5)),
    ("edge", "c32b6"): ((0.0599, 0.0642, 0.0703), (3.93, 4.25, 4.69)),
    ("edsr", "c256b32"): ((40.73, 43.68, 43.09), (2669, 2865, 3293)),
    ("edsr", "c64b32"): ((2.55, 2.74, 2.70), (167, 180, 207)),
    ("imdn", "c64b6"): ((0.694, 0.703, 0.715), (45.2, 45.8, 46.5)),
    ("lkdn", "c56b8"): ((0.304, 0.311, 0.322), (19.7, 20.1, 20.8)),
    ("rcan", "c64g10b20"): ((15.44, 15.63, 15.59), (1003, 1016, 1043)),
    ("rcan", "c64g10b6"): ((5.02, 5.21, 5.17), (327, 339, 367)),
    ("rlfn", "c52b6"): ((0.527, 0.534, 0.544), (32.8, 33.3, 33.9)),
    ("rlfn", "c46b4m48"): ((0.300, 0.307, 0.317), (18.6, 19.0, 19.7)),
    ("span", "c48b6"): ((0.411, 0.417, 0.426), (26.8, 27.2, 27.8)),
    ("swinir", "c180r6"): ((11.75, 11.94, 11.90), (817, 830, 857)),
    ("swinir", "c60r4"): ((1.09, 1.27, 1.24), (81, 93, 121)),
}


@pytest.mark.parametrize(("name", "budget"), TABLE)
def test_published_nets_have_their_published_sizes(name: str, budget: str) -> None:
    arch = arch_of(name)
    for scale, millions, billions in zip((2, 3, 4), *TABLE[name, budget], strict=True):
        with torch.device("meta"):
            net = arch.make(arch.shrink(arch.paper(scale), budget)).to_deployed()
        assert params(net) / 1e6 == pytest.approx(millions, rel=0.01)
        assert gmacs(net) == pytest.approx(billions, rel=0.01)


def test_default_students_are_the_papers() -> None:
    for name, teacher, student in (
        ("edsr", "c256b32", "c64b32"),
        ("rcan", "c64g10b20", "c64g10b6"),
        ("swinir", "c180r6", "c60r4"),
    ):
        arch = arch_of(name)
        heavy = arch.shrink(arch.paper(4), teacher)
        expected = arch.shrink(arch.paper(4), student)
        assert arch.shrink(heavy, "") == expected


def basicsr(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Original key names as BasicSR and traiNNer-redux write them."""
    import re

    last = max(int(m[1]) for k in state if (m := re.match(r"body\.(\d+)\.", k)))
    rules = [
        (r"head\.0\.", "conv_first."),
        (rf"body\.{last}\.(weight|bias)", r"conv_after_body.\1"),
        (r"tail\.0\.", "upsample."),
        (r"tail\.1\.", "conv_last."),
    ]
    if name == "edsr":
        rules += [
            (r"body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
            (r"body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
        ]
    else:
        block = r"body\.(\d+)\.body\.(\d+)\.body"
        to = r"body.\1.residual_group.\2.rcab"
        rules += [
            (rf"{block}\.3\.conv_du\.0\.", rf"{to}.3.attention.1."),
            (rf"{block}\.3\.conv_du\.2\.", rf"{to}.3.attention.3."),
            (rf"{block}\.(\d)\.", rf"{to}.\3."),
            (r"body\.(\d+)\.body\.\d+\.(weight|bias)", r"body.\1.conv.\2"),
        ]
    found = {}
    for key, value in state.items():
        if not key.startswith(("sub_mean", "add_mean")):
            rule = next((r for r in rules if re.match(r[0], key)), None)
            assert rule, key
            found[re.sub(f"^{rule[0]}", rule[1], key)] = value
    return found


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["edsr", "rcan"])
def test_basicsrs_key_names_give_the_same_net(name: str, scale: int) -> None:
    arch, net = arch_of(name), made(name, scale)
    state = basicsr(name, arch.original(net))
    assert all(key in state for key in arch.signs["basicsr"])
    found = arch.canonical(state)
    assert found is not None
    layout, weights = found
    hyper, settled = arch.read(weights, layout)
    assert (layout, hyper) == ("basicsr", small(name, scale))
    assert "basicsr" in settled["image_range"]
    again = arch.make(hyper).eval()
    again.load_state_dict(weights)
    assert torch.equal(again(image()), net(image()))


def test_swinirs_buffers_are_left_out() -> None:
    arch, net = arch_of("swinir"), made("swinir")
    attention = "layers.0.residual_group.blocks.1.attn"
    extra = {
        f"{attention}.relative_position_index": torch.zeros(64, 64, dtype=torch.long),
        "layers.0.residual_group.blocks.1.attn_mask": torch.zeros(4, 64, 64),
    }
    found = arch.canonical({**arch.original(net), **extra})
    assert found is not None
    assert found[1].keys() == net.state_dict().keys()


def test_no_family_takes_anothers_checkpoint() -> None:
    for name in ARCHS:
        state = arch_of(name).original(made(name))
        taken = [other for other in ARCHS if arch_of(other).canonical(state)]
        assert taken == [name]


@pytest.mark.parametrize("name", ARCHS)
def test_an_image_smaller_than_a_window_is_upscaled(name: str) -> None:
    assert made(name, 2)(image(1, 3)).shape == (1, 3, 2, 6)


@pytest.mark.parametrize(
    ("name", "budget", "positions"),
    [
        ("edsr", "c4b32", (10, 21, 32)),
        ("edsr", "c4b16", (4, 10, 16)),
        ("rcan", "c4g10b1", (2, 6, 10)),
        ("edge", "c8b6", (1, 3, 5)),
        ("imdn", "c8b6", (1, 3, 5)),
        ("lkdn", "c8b8", (2, 5, 7)),
        ("rlfn", "c8b6", (1, 3, 6)),
        ("compact", "c8b6", (1, 3, 5)),
        ("span", "c8b6", (1, 3, 5)),
        ("swinir", "c6r6", (1, 3, 5)),
        ("swinir", "c6r4", (0, 2, 3)),
    ],
)
def test_positions_are_the_papers_and_even_elsewhere(
    name: str, budget: str, positions: tuple[int, ...]
) -> None:
    arch = arch_of(name)
    with torch.device("meta"):
        net = arch.make(arch.shrink(arch.paper(2), budget))
    assert pair_positions(net, net) == (positions, positions)


def test_a_shallow_student_is_compared_at_fewer_positions() -> None:
    with torch.device("meta"):
        shallow = arch_of("swinir").make(small("swinir"))
        single = arch_of("edsr").make(arch_of("edsr").shrink(small("edsr"), "b1"))
        deep = arch_of("edsr").make(arch_of("edsr").shrink(small("edsr"), "b32"))
    assert pair_positions(shallow, deep) == ((0, 1), (10, 32))
    assert pair_positions(single, deep) == ((0, 1), (21, 32))


@pytest.mark.parametrize("name", ARCHS)
def test_a_student_wider_than_its_teacher_cannot_inherit(name: str) -> None:
    arch = arch_of(name)
    wide = arch.make(arch.shrink(small(name), "c24"))
    with pytest.raises(UsageError, match="cannot be cut from it"):
        arch.inherit(wide, made(name))


def test_channels_that_heads_cannot_share_are_refused() -> None:
    arch = arch_of("swinir")
    with pytest.raises(UsageError, match="50 channels cannot be shared by 6 heads"):
        arch.shrink(arch.paper(2), "c50r4")


def test_a_net_with_squeeze_stays_whole_below_16_channels() -> None:
    arch = arch_of("rcan")
    hyper = arch.shrink(arch.paper(2), "c8g1b1")
    assert hyper.squeeze == 1
    assert arch.make(hyper)(image()).shape == (1, 3, 26, 36)


@pytest.mark.parametrize("tail", ["conv_up1.weight", "layers.0.conv.0.weight"])
def test_swinirs_other_tails_are_named_unsupported(tail: str) -> None:
    arch = arch_of("swinir")
    state = arch.original(made("swinir")) | {tail: torch.zeros(1)}
    with pytest.raises(UnsupportedError, match="not supported"):
        arch.canonical(state)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("name", ["edsr", "rcan"])
def test_shift_layers_that_were_trained_are_folded_in(name: str, direct: bool) -> None:
    """RCAN's authors meant to freeze `sub_mean` and `add_mean` and did not."""
    arch, net = arch_of(name), made(name, 2, direct=direct)
    state = arch.original(net)
    noise = torch.Generator().manual_seed(2)
    for key in [k for k in state if "_mean." in k]:
        state[key] = state[key] + 0.05 * torch.randn(state[key].shape, generator=noise)
    found = arch.canonical(state)
    assert found is not None
    hyper, _ = arch.read(found[1], found[0])
    again = arch.make(hyper).eval()
    again.load_state_dict({k: found[1][k] for k in again.state_dict()})

    def shifted(which: str, pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, state[f"{which}_mean.weight"], state[f"{which}_mean.bias"])

    plain = made(name, 2, direct=direct, mean=None, image_range=1.0)
    with torch.no_grad():
        wanted = shifted("add", plain(shifted("sub", image() * 255))) / 255
        assert torch.allclose(again(image()), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ARCHS)
def test_an_image_of_any_size_has_features_of_that_size(name: str) -> None:
    net, lr = made(name), image()
    with torch.no_grad():
        sr, (features,) = net.forward_padded(lr, (0,))
        assert torch.equal(sr, net(lr))
    assert features.shape == (1, net.width, *lr.shape[-2:])
