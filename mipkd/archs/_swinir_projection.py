"""SwinIR's closed forms: a small net that starts as a larger one's projection.

Layer norms subtract each token's mean. So the directions that the student keeps are orthonormal
and map the teacher's mean direction to the student's: then a norm of the student gives the
teacher's values up to one factor a token. The norms' own weights go into the layers after them.

Shapes: N patches, C teacher channels, K student channels, H W low-res size, D E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import (
    fit_conv,
    metric_directions,
    project_onto,
    set_weights,
    split_spans,
    zero_weights,
)
from mipkd.archs._regression import Regression, second_moments

if TYPE_CHECKING:
    from mipkd.archs.swinir import Group, Layer, SwinIR

_FEW = 16  # patches in memory at a time
_TINY = 1e-6  # of the mean second moment: the floor for directions that a head does not use


@torch.no_grad()
def project(student: SwinIR, teacher: SwinIR, lr_NCHW: Tensor) -> None:
    """Fit all of a SwinIR to a larger one's, on these patches."""
    height, width = (side - side % teacher.multiple for side in lr_NCHW.shape[-2:])
    lr_NCHW = lr_NCHW[..., :height, :width]
    shallow_NCHW = teacher.head(lr_NCHW)
    basis_KC = _stream_basis(student, teacher, shallow_NCHW)
    outer_KC = _fit_start(student, teacher, basis_KC, shallow_NCHW)
    shallow_NKHW = student.head(lr_NCHW)
    theirs = _first_group(teacher).patch_norm(_nhwc(shallow_NCHW))
    mine = _first_group(student).patch_norm(_nhwc(shallow_NKHW))
    groups, wide_groups = (cast("list[Group]", [*net.blocks]) for net in (student, teacher))
    for group, (first, last) in zip(
        groups, split_spans(len(groups), len(wide_groups)), strict=True
    ):
        if first == last:
            zero_weights(group.conv)
        else:
            added = _fit_layers(group, wide_groups[first], basis_KC, theirs, mine)
            for wide in wide_groups[first:last]:
                theirs = _run_group(wide, theirs)
            fit_conv(group.conv, _nchw(added), _nchw(theirs @ basis_KC.T - mine))
        mine = _run_group(group, mine)
    _fit_tail(student, teacher, outer_KC, (theirs, shallow_NCHW), (mine, shallow_NKHW))


def _stream_basis(student: SwinIR, teacher: SwinIR, shallow_NCHW: Tensor) -> Tensor:
    """Orthonormal directions (K, C) that map a constant over C to a constant over K.

    They are those of most variance in the stream and in the tail's input, scaled by the first
    norm; the identity if the student is as wide.
    """
    if student.width == teacher.width:
        return torch.eye(teacher.width)
    norm = cast("nn.LayerNorm", _first_group(teacher).patch_norm)
    stream = norm(_nhwc(shallow_NCHW))
    covariances = [second_moments(_nchw(stream))]
    for block in teacher.blocks:
        stream = _run_group(cast("Group", block), stream)
        covariances.append(second_moments(_nchw(stream)))
    deep = teacher.after(_nchw(teacher.norm(stream))) + shallow_NCHW
    covariances.append(second_moments(deep * norm.weight[:, None, None]))
    total = torch.stack([c / c.trace().clamp(min=1e-30) for c in covariances]).sum(0)
    return _directions_with_mean(total, student.width)


def _directions_with_mean(covariance_CC: Tensor, width: int) -> Tensor:
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

    The first norm's output is the stream itself, so its weights go into the layer before it.
    """
    norm = cast("nn.LayerNorm", _first_group(teacher).patch_norm)
    own = cast("nn.LayerNorm", _first_group(student).patch_norm)
    if student.width == teacher.width:
        own.load_state_dict(norm.state_dict())
        outer_KC = basis_KC
    else:
        outer_KC = basis_KC * norm.weight
        normed = F.layer_norm(_nhwc(project_onto(outer_KC, shallow_NCHW)), (student.width,))
        wanted = norm(_nhwc(shallow_NCHW)) @ basis_KC.T
        _fit_diagonal(own, normed, wanted)
    weight = torch.einsum("kc,cihw->kihw", outer_KC, teacher.lift.weight)
    set_weights(student.lift, weight, outer_KC @ cast("Tensor", teacher.lift.bias))
    return outer_KC


def _fit_diagonal(norm: nn.LayerNorm, normed_NHWK: Tensor, wanted_NHWK: Tensor) -> None:
    """Fit weight and bias of a norm by regression, channel by channel."""
    x, y = normed_NHWK.flatten(0, 2), wanted_NHWK.flatten(0, 2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    spread = (x - x_mean).square().mean(0).clamp(min=1e-12)
    weight = ((x - x_mean) * (y - y_mean)).mean(0) / spread
    set_weights(norm, weight, y_mean - weight * x_mean)


def _fit_layers(
    group: Group, wide: Group, basis_KC: Tensor, theirs_NHWC: Tensor, mine_NHWK: Tensor
) -> Tensor:
    """Fit a group's layers to those of one of the teacher's; the student's stream behind them."""
    stream, mine = theirs_NHWC, mine_NHWK
    for layer, wide_layer in zip(group.layers, wide.layers, strict=True):
        narrow, source = cast("Layer", layer), cast("Layer", wide_layer)
        attended = stream + _run_chunks(source.attend, stream)
        _fit_attention(narrow, source, stream, mine, attended @ basis_KC.T)
        mine = mine + _run_chunks(narrow.attend, mine)
        stream = _run_chunks(source, stream)
        _fit_mlp(narrow, source, attended, mine, stream @ basis_KC.T)
        mine = mine + narrow.mlp["fc2"](F.gelu(narrow.mlp["fc1"](narrow.norm2(mine))))
    return mine


def _fit_attention(
    layer: Layer, wide: Layer, stream_NHWC: Tensor, mine_NHWK: Tensor, wanted_NHWK: Tensor
) -> None:
    """Fit queries, keys and values of each head to fewer directions, and the projection to what
    the stream lacks."""
    _reset_norm(layer.norm1)
    narrow = layer.attn.qkv.in_features // layer.attn.heads
    wanted = _head_directions(wide, narrow, stream_NHWC)
    _fit_linear(layer.attn.qkv, layer.norm1(mine_NHWK), wanted)
    layer.attn.relative_position_bias_table.copy_(wide.attn.relative_position_bias_table)
    _fit_linear(layer.attn.proj, _attend_heads(layer, mine_NHWK), wanted_NHWK - mine_NHWK)


def _head_directions(wide: Layer, narrow: int, stream_NHWC: Tensor) -> Tensor:
    """The teacher's queries, keys and values in `narrow` directions per head, (N, H, W, 3K)."""
    attention = wide.attn
    qkv = attention.qkv(wide.norm1(stream_NHWC))
    if narrow == qkv.shape[-1] // 3 // attention.heads:
        return cast("Tensor", qkv)
    parts = [part.chunk(attention.heads, -1) for part in qkv.chunk(3, -1)]
    mixed = _attend_heads(wide, stream_NHWC).chunk(attention.heads, -1)
    reads = attention.proj.weight.double().chunk(attention.heads, 1)
    found: tuple[list[Tensor], ...] = ([], [], [])
    for head in range(attention.heads):
        query, key, value = (part[head] for part in parts)
        to_query, to_key = _score_directions(query, key, narrow)
        moments = second_moments(_nchw(mixed[head]))
        to_value = metric_directions([moments], reads[head].T @ reads[head], narrow)
        for kept, to, of in zip(
            found, (to_query, to_key, to_value), (query, key, value), strict=True
        ):
            kept.append(of @ to.T)
    return torch.cat([head for kept in found for head in kept], -1)


def _score_directions(query_NHWD: Tensor, key_NHWD: Tensor, narrow: int) -> tuple[Tensor, Tensor]:
    """Maps (E, D) of queries and keys whose inner products are nearest to the teacher's.

    They are the best of that rank for independent queries and keys. Keys are centred: the softmax
    does not see what all of them share.
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
    """The square root of a matrix of second moments, and its inverse."""
    values, vectors = torch.linalg.eigh(moments_DD)
    values = values.clamp(min=float(_TINY * values.mean().clamp(min=1e-30)))
    root = vectors * values.sqrt() @ vectors.T
    return root, vectors * values.rsqrt() @ vectors.T


def _attend_heads(layer: Layer, stream_NHWC: Tensor) -> Tensor:
    """The attention's values of all heads, before the projection."""
    unprojected = layer.attn.proj.register_forward_hook(lambda _, inputs, __: inputs[0])
    try:
        return _run_chunks(layer.attend, stream_NHWC)
    finally:
        unprojected.remove()


def _fit_mlp(
    layer: Layer, wide: Layer, stream_NHWC: Tensor, mine_NHWK: Tensor, wanted_NHWK: Tensor
) -> None:
    """Select the hidden channels that the target stream needs most, and fit the layer after."""
    _reset_norm(layer.norm2)
    normed = _nchw(layer.norm2(mine_NHWK))
    given = _nchw(wide.mlp["fc1"](wide.norm2(stream_NHWC)))
    weight, bias = Regression.of(normed, given, 1).solve()
    del given  # `hidden` is as large
    hidden = F.gelu(F.conv2d(normed, weight, bias))
    lacking = _nchw(wanted_NHWK - mine_NHWK)
    inside = cast("nn.Linear", layer.mlp["fc1"]).out_features
    kept = Regression.of(hidden, lacking, 1).strongest_inputs(inside)
    set_weights(layer.mlp["fc1"], weight[kept, :, 0, 0], bias[kept])
    _fit_linear(cast("nn.Linear", layer.mlp["fc2"]), _nhwc(hidden[:, kept]), _nhwc(lacking))


def _fit_tail(
    student: SwinIR,
    teacher: SwinIR,
    outer_KC: Tensor,
    theirs: tuple[Tensor, Tensor],
    mine: tuple[Tensor, Tensor],
) -> None:
    """Fit the tail; `theirs` and `mine` are a net's stream behind the body and shallow features."""
    _reset_norm(student.norm)
    normed = _nchw(student.norm(mine[0]))
    added = teacher.after(_nchw(teacher.norm(theirs[0])))
    fit_conv(student.after, normed, project_onto(outer_KC, added))
    deep, wide_deep = student.after(normed) + mine[1], added + theirs[1]
    if isinstance(student.before, nn.Identity) or isinstance(teacher.before, nn.Identity):
        fit_conv(cast("nn.Conv2d", student.up[0]), deep, teacher.up[0](wide_deep))
        return
    fit_conv(cast("nn.Conv2d", student.before[0]), deep, teacher.before[0](wide_deep))
    student.up.load_state_dict(teacher.up.state_dict())  # of one width in all nets
    student.last.load_state_dict(teacher.last.state_dict())


def _first_group(net: SwinIR) -> Group:
    return cast("Group", net.blocks[0])


def _run_group(group: Group, x_NHWC: Tensor) -> Tensor:
    """The group's features, without its first norm."""
    added: Tensor = group.conv(_nchw(_run_chunks(group.layers, x_NHWC)))
    return x_NHWC + _nhwc(added)


def _run_chunks(run: Callable[[Tensor], Tensor], x_NHWC: Tensor) -> Tensor:
    """`run` over a few patches at a time: attention scores of all tokens would fill memory."""
    return torch.cat([run(x_nHWC) for x_nHWC in x_NHWC.tensor_split(-(-len(x_NHWC) // _FEW))])


def _fit_linear(layer: nn.Linear, inputs_NHWK: Tensor, targets_NHWO: Tensor) -> None:
    weight, bias = Regression.of(_nchw(inputs_NHWK), _nchw(targets_NHWO), 1).solve()
    set_weights(layer, weight[:, :, 0, 0], bias)


def _reset_norm(norm: nn.LayerNorm) -> None:
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _nchw(x_NHWC: Tensor) -> Tensor:
    return x_NHWC.permute(0, 3, 1, 2)


def _nhwc(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.permute(0, 2, 3, 1)
