"""SwinIR's closed forms: narrow, few groups that start as a larger net's projection.

The stream lives under layer norms, which take out each token's mean. So the directions that the
student keeps are orthonormal and take the direction of the mean to that of the student's: then a
norm of the student gives what the teacher's gives, but for one factor a token. The norms' own
weights go into what is fitted after them.

Shapes: N patches, C teacher channels, K student channels, H W low-res size, D E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import add_nothing, along, assign, fit, metric_directions, spans
from mipkd.archs._regression import Regression, second_moments

if TYPE_CHECKING:
    from mipkd.archs.swinir import Group, Layer, SwinIR

_FEW = 16  # patches in memory at a time
_TINY = 1e-6  # of the mean second moment: directions that a head does not use


@torch.no_grad()
def project(student: SwinIR, teacher: SwinIR, lr_NCHW: Tensor) -> None:
    """Fit all of a SwinIR to a larger one's, on these patches."""
    height, width = (side - side % teacher.multiple for side in lr_NCHW.shape[-2:])
    lr_NCHW = lr_NCHW[..., :height, :width]
    shallow_NCHW = teacher.head(lr_NCHW)
    basis_KC = _stream_basis(student, teacher, shallow_NCHW)
    outer_KC = _fit_start(student, teacher, basis_KC, shallow_NCHW)
    shallow_NKHW = student.head(lr_NCHW)
    theirs = _first(teacher).patch_norm(_last(shallow_NCHW))
    mine = _first(student).patch_norm(_last(shallow_NKHW))
    groups, wide_groups = (cast("list[Group]", [*net.blocks]) for net in (student, teacher))
    for group, (first, last) in zip(groups, spans(len(groups), len(wide_groups)), strict=True):
        if first == last:
            add_nothing(group.conv)
        else:
            added = _fit_layers(group, wide_groups[first], basis_KC, theirs, mine)
            for wide in wide_groups[first:last]:
                theirs = _through(wide, theirs)
            fit(group.conv, _second(added), _second(theirs @ basis_KC.T - mine))
        mine = _through(group, mine)
    _fit_tail(student, teacher, outer_KC, (theirs, shallow_NCHW), (mine, shallow_NKHW))


def _stream_basis(student: SwinIR, teacher: SwinIR, shallow_NCHW: Tensor) -> Tensor:
    """Orthonormal directions (K, C) that take a constant over C to a constant over K.

    Those of the greatest variance of the stream, and of what the tail reads as the first norm
    scales it; the identity where the student is as wide.
    """
    if student.width == teacher.width:
        return torch.eye(teacher.width)
    norm = cast("nn.LayerNorm", _first(teacher).patch_norm)
    stream = norm(_last(shallow_NCHW))
    covariances = [second_moments(_second(stream))]
    for block in teacher.blocks:
        stream = _through(cast("Group", block), stream)
        covariances.append(second_moments(_second(stream)))
    deep = teacher.after(_second(teacher.norm(stream))) + shallow_NCHW
    covariances.append(second_moments(deep * norm.weight[:, None, None]))
    total = torch.stack([c / c.trace().clamp(min=1e-30) for c in covariances]).sum(0)
    return _keeping_means(total, student.width)


def _keeping_means(covariance_CC: Tensor, width: int) -> Tensor:
    channels = len(covariance_CC)
    ones = torch.full((channels,), channels**-0.5, dtype=torch.float64)
    without = torch.eye(channels, dtype=torch.float64) - torch.outer(ones, ones)
    _, found = torch.linalg.eigh(without @ covariance_CC @ without)
    found_KC = torch.cat([ones[None], found[:, channels - width + 1 :].flip(1).T])
    mirror = torch.full((width,), -(width**-0.5), dtype=torch.float64)
    mirror[0] += 1
    scale = 2 / mirror.square().sum().clamp(min=1e-30)
    turned = found_KC - scale * torch.outer(mirror, mirror @ found_KC)  # Householder
    return turned.float()


def _fit_start(student: SwinIR, teacher: SwinIR, basis_KC: Tensor, shallow_NCHW: Tensor) -> Tensor:
    """Fit head and first norm; the directions (K, C) of the shallow features.

    The first norm's output is the stream, so its weights cannot go into what is fitted after it:
    they go into what is before it.
    """
    norm = cast("nn.LayerNorm", _first(teacher).patch_norm)
    own = cast("nn.LayerNorm", _first(student).patch_norm)
    if student.width == teacher.width:
        own.load_state_dict(norm.state_dict())
        outer_KC = basis_KC
    else:
        outer_KC = basis_KC * norm.weight
        normed = F.layer_norm(_last(along(outer_KC, shallow_NCHW)), (student.width,))
        wanted = norm(_last(shallow_NCHW)) @ basis_KC.T
        _fit_diagonal(own, normed, wanted)
    weight = torch.einsum("kc,cihw->kihw", outer_KC, teacher.lift.weight)
    assign(student.lift, weight, outer_KC @ cast("Tensor", teacher.lift.bias))
    return outer_KC


def _fit_diagonal(norm: nn.LayerNorm, normed_NHWK: Tensor, wanted_NHWK: Tensor) -> None:
    """Weight and bias of a norm, by regression channel by channel."""
    x, y = normed_NHWK.flatten(0, 2), wanted_NHWK.flatten(0, 2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    spread = (x - x_mean).square().mean(0).clamp(min=1e-12)
    weight = ((x - x_mean) * (y - y_mean)).mean(0) / spread
    assign(norm, weight, y_mean - weight * x_mean)


def _fit_layers(
    group: Group, wide: Group, basis_KC: Tensor, theirs_NHWC: Tensor, mine_NHWK: Tensor
) -> Tensor:
    """Fit a group's layers to those of one of the teacher's; what the student's give."""
    stream, mine = theirs_NHWC, mine_NHWK
    for layer, wide_layer in zip(group.layers, wide.layers, strict=True):
        narrow, source = cast("Layer", layer), cast("Layer", wide_layer)
        attended = stream + _in_parts(source.attend, stream)
        _fit_attention(narrow, source, stream, mine, attended @ basis_KC.T)
        mine = mine + _in_parts(narrow.attend, mine)
        stream = _in_parts(source, stream)
        _fit_mlp(narrow, source, attended, mine, stream @ basis_KC.T)
        mine = mine + narrow.mlp["fc2"](F.gelu(narrow.mlp["fc1"](narrow.norm2(mine))))
    return mine


def _fit_attention(
    layer: Layer, wide: Layer, stream_NHWC: Tensor, mine_NHWK: Tensor, wanted_NHWK: Tensor
) -> None:
    """Queries, keys and values of each head in fewer directions, and the projection to what the
    stream lacks."""
    _plain(layer.norm1)
    narrow = layer.attn.qkv.in_features // layer.attn.heads
    wanted = _head_directions(wide, narrow, stream_NHWC)
    _fit_linear(layer.attn.qkv, layer.norm1(mine_NHWK), wanted)
    layer.attn.relative_position_bias_table.copy_(wide.attn.relative_position_bias_table)
    _fit_linear(layer.attn.proj, _mixed(layer, mine_NHWK), wanted_NHWK - mine_NHWK)


def _head_directions(wide: Layer, narrow: int, stream_NHWC: Tensor) -> Tensor:
    """The teacher's queries, keys and values in `narrow` directions a head, (N, H, W, 3K)."""
    attention = wide.attn
    qkv = attention.qkv(wide.norm1(stream_NHWC))
    if narrow == qkv.shape[-1] // 3 // attention.heads:
        return cast("Tensor", qkv)
    parts = [part.chunk(attention.heads, -1) for part in qkv.chunk(3, -1)]
    mixed = _mixed(wide, stream_NHWC).chunk(attention.heads, -1)
    reads = attention.proj.weight.double().chunk(attention.heads, 1)
    found: tuple[list[Tensor], ...] = ([], [], [])
    for head in range(attention.heads):
        query, key, value = (part[head] for part in parts)
        to_query, to_key = _score_directions(query, key, narrow)
        moments = second_moments(_second(mixed[head]))
        to_value = metric_directions([moments], reads[head].T @ reads[head], narrow)
        for kept, to, of in zip(
            found, (to_query, to_key, to_value), (query, key, value), strict=True
        ):
            kept.append(of @ to.T)
    return torch.cat([head for kept in found for head in kept], -1)


def _score_directions(query_NHWD: Tensor, key_NHWD: Tensor, narrow: int) -> tuple[Tensor, Tensor]:
    """Maps (E, D) of queries and keys whose inner products come nearest to the teacher's.

    The best products of that rank for independent queries and keys; the softmax does not see what
    all keys share.
    """
    query, key = query_NHWD.flatten(0, 2).double(), key_NHWD.flatten(0, 2).double()
    root_q, back_q = _roots(query.T @ query / len(query))
    root_k, back_k = _roots(torch.cov(key.T, correction=0).reshape(key.shape[1], -1))
    left, values, right = torch.linalg.svd(root_q @ root_k)
    share = values[:narrow].sqrt()[:, None]
    rescale = (narrow / query.shape[1]) ** 0.5  # scores are divided by the root of a head's width
    to_query = rescale * share * (left[:, :narrow].T @ back_q)
    return to_query.float(), (share * (right[:narrow] @ back_k)).float()


def _roots(moments_DD: Tensor) -> tuple[Tensor, Tensor]:
    """The square root and its inverse."""
    values, vectors = torch.linalg.eigh(moments_DD)
    values = values.clamp(min=float(_TINY * values.mean().clamp(min=1e-30)))
    root = vectors * values.sqrt() @ vectors.T
    return root, vectors * values.rsqrt() @ vectors.T


def _mixed(layer: Layer, stream_NHWC: Tensor) -> Tensor:
    """The attended values of all heads before they are projected."""
    unprojected = layer.attn.proj.register_forward_hook(lambda _, inputs, __: inputs[0])
    try:
        return _in_parts(layer.attend, stream_NHWC)
    finally:
        unprojected.remove()


def _fit_mlp(
    layer: Layer, wide: Layer, stream_NHWC: Tensor, mine_NHWK: Tensor, wanted_NHWK: Tensor
) -> None:
    """The hidden channels that the way to the wanted stream needs most, and what they lack."""
    _plain(layer.norm2)
    normed = _second(layer.norm2(mine_NHWK))
    given = _second(wide.mlp["fc1"](wide.norm2(stream_NHWC)))
    weight, bias = Regression.of(normed, given, 1).solve()
    del given  # as wide as what follows
    hidden = F.gelu(F.conv2d(normed, weight, bias))
    lacking = _second(wanted_NHWK - mine_NHWK)
    inside = cast("nn.Linear", layer.mlp["fc1"]).out_features
    kept = Regression.of(hidden, lacking, 1).strongest_inputs(inside)
    assign(layer.mlp["fc1"], weight[kept, :, 0, 0], bias[kept])
    _fit_linear(cast("nn.Linear", layer.mlp["fc2"]), _last(hidden[:, kept]), _last(lacking))


def _fit_tail(
    student: SwinIR,
    teacher: SwinIR,
    outer_KC: Tensor,
    theirs: tuple[Tensor, Tensor],
    mine: tuple[Tensor, Tensor],
) -> None:
    """From the body's end and the shallow features of both nets."""
    _plain(student.norm)
    normed = _second(student.norm(mine[0]))
    added = teacher.after(_second(teacher.norm(theirs[0])))
    fit(student.after, normed, along(outer_KC, added))
    deep, wide_deep = student.after(normed) + mine[1], added + theirs[1]
    if isinstance(student.before, nn.Identity) or isinstance(teacher.before, nn.Identity):
        fit(cast("nn.Conv2d", student.up[0]), deep, teacher.up[0](wide_deep))
        return
    fit(cast("nn.Conv2d", student.before[0]), deep, teacher.before[0](wide_deep))
    student.up.load_state_dict(teacher.up.state_dict())  # as wide in all sizes
    student.last.load_state_dict(teacher.last.state_dict())


def _first(net: SwinIR) -> Group:
    return cast("Group", net.blocks[0])


def _through(group: Group, x_NHWC: Tensor) -> Tensor:
    """What the group gives, its first norm left out."""
    added: Tensor = group.conv(_second(_in_parts(group.layers, x_NHWC)))
    return x_NHWC + _last(added)


def _in_parts(run: Callable[[Tensor], Tensor], x_NHWC: Tensor) -> Tensor:
    """Few patches at a time: the scores of all tokens would fill memory."""
    return torch.cat([run(x_nHWC) for x_nHWC in x_NHWC.tensor_split(-(-len(x_NHWC) // _FEW))])


def _fit_linear(layer: nn.Linear, inputs_NHWK: Tensor, targets_NHWO: Tensor) -> None:
    weight, bias = Regression.of(_second(inputs_NHWK), _second(targets_NHWO), 1).solve()
    assign(layer, weight[:, :, 0, 0], bias)


def _plain(norm: nn.LayerNorm) -> None:
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _second(x_NHWC: Tensor) -> Tensor:
    return x_NHWC.permute(0, 3, 1, 2)


def _last(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.permute(0, 2, 3, 1)
