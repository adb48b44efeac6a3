"""The Block Prior Mixer: the student's and the teacher's blocks, assembled into one net at random.

Paper: MiPKD. Nothing here runs under no_grad: where the frozen teacher carries the stream, its
blocks pass gradients back to the student.
"""

import random
from collections.abc import Sequence

from torch import Tensor

from mipkd.archs.base import SRNet
from mipkd.losses._feature_mixer import FeatureMixer, Mixture
from mipkd.losses._principal_mixer import PrincipalMixer
from mipkd.losses.base import Carrier, Pass, Toss

Mixer = FeatureMixer | PrincipalMixer


def toss(count: int, *, student_share: float, coins: random.Random) -> Toss:
    """Which net carries the stream on after each position; one toss for the whole batch."""
    return tuple("student" if coins.random() < student_share else "teacher" for _ in range(count))


def run_chain(
    seen: Pass, mixers: Sequence[Mixer], mixtures: Sequence[Mixture], carriers: Sequence[Carrier]
) -> Tensor:
    """The image of one stream that may change nets at each position.

    It starts as the first position's mixture. At each later position it replaces its carrier's own
    features in the mixture there.
    """
    ends = [*_starts(seen)[1:], _ends(seen)]
    stream = mixers[0].decode(mixtures[0].mixed, carriers[0])
    for k, (carrier, start) in enumerate(zip(carriers, _starts(seen), strict=True)):
        if k > 0:
            mixture = _replace_latents(mixers[k], mixtures[k], stream, carriers[k - 1])
            stream = mixers[k].decode(mixture.mixed, carrier)
        stream = _run_blocks(_net(seen, carrier), stream, start[carrier], ends[k][carrier])
    return _run_tail(seen, carriers[-1], stream)


def _replace_latents(
    mixer: Mixer, mixture: Mixture, stream_NCHW: Tensor, source: Carrier
) -> Mixture:
    """The mixture with the stream that net `source` computed in place of its own features."""
    if source == "student":
        latents_NLHW = mixer.encode_student(stream_NCHW)
        return Mixture(latents_NLHW, mixture.teacher_NLHW, mixture.mask_NLHW)
    latents_NLHW = mixer.encode_teacher(stream_NCHW).to(mixture.student_NLHW.dtype)
    return Mixture(mixture.student_NLHW, latents_NLHW, mixture.mask_NLHW)


def run_branches(
    seen: Pass, mixers: Sequence[Mixer], mixtures: Sequence[Mixture], carriers: Sequence[Carrier]
) -> list[Tensor]:
    """For each position the image of its mixture through the rest of one net."""
    triples = zip(mixers, mixtures, carriers, strict=True)
    return [
        run_rest(seen, k, mixer.decode(mixture.mixed, carrier), carrier)
        for k, (mixer, mixture, carrier) in enumerate(triples)
    ]


def run_rest(seen: Pass, position: int, stream_NCHW: Tensor, carrier: Carrier) -> Tensor:
    """The image of a stream through the rest of `carrier` after a position."""
    start, stop = _starts(seen)[position][carrier], _ends(seen)[carrier]
    return _run_tail(seen, carrier, _run_blocks(_net(seen, carrier), stream_NCHW, start, stop))


def _net(seen: Pass, carrier: Carrier) -> SRNet:
    assert seen.teacher is not None
    return seen.student if carrier == "student" else seen.teacher


def _starts(seen: Pass) -> list[dict[Carrier, int]]:
    """The first block after each position, in either net."""
    pairs = zip(seen.positions.student, seen.positions.teacher, strict=True)
    return [{"student": s + 1, "teacher": t + 1} for s, t in pairs]


def _ends(seen: Pass) -> dict[Carrier, int]:
    return {"student": len(seen.student.blocks), "teacher": len(_net(seen, "teacher").blocks)}


def _run_blocks(net: SRNet, stream: Tensor, start: int, stop: int) -> Tensor:
    for index in range(start, stop):
        stream = net.blocks[index](stream)
    return stream


def _run_tail(seen: Pass, carrier: Carrier, stream: Tensor) -> Tensor:
    """The image from the tail of the net that carried the stream last."""
    net = _net(seen, carrier)
    return net.tail(stream, net.head(seen.lr_NCHW), seen.lr_NCHW)
