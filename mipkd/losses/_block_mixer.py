"""The Block Prior Mixer: the student's and the teacher's blocks assembled into one net at random.

Paper: MiPKD. None of this runs under no_grad: where the frozen teacher carries the stream,
gradients still go through its blocks back into the student.
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
    """Who carries the stream on after each position; one toss for the whole batch."""
    return tuple("student" if coins.random() < student_share else "teacher" for _ in range(count))


def chain(
    seen: Pass,
    mixers: Sequence[Mixer],
    mixtures: Sequence[Mixture],
    carriers: Sequence[Carrier],
) -> Tensor:
    """The image of one stream that may change nets at each position.

    At the first position the stream is the mixture itself. At each later one it takes the
    place of its carrier's own features in that position's mixture.
    """
    ends = [*_starts(seen)[1:], _ends(seen)]
    stream = mixers[0].decode(mixtures[0].mixed, carriers[0])
    for k, (carrier, start) in enumerate(zip(carriers, _starts(seen), strict=True)):
        if k > 0:
            mixture = _replaced(mixers[k], mixtures[k], stream, carriers[k - 1])
            stream = mixers[k].decode(mixture.mixed, carrier)
        stream = _through(_net(seen, carrier), stream, start[carrier], ends[k][carrier])
    return _tail(seen, carriers[-1], stream)


def _replaced(mixer: Mixer, mixture: Mixture, stream_NCHW: Tensor, source: Carrier) -> Mixture:
    """The mixture with a stream that net `source` computed in place of its own features."""
    if source == "student":
        latents_NLHW = mixer.encode_student(stream_NCHW)
        return Mixture(latents_NLHW, mixture.teacher_NLHW, mixture.mask_NLHW)
    latents_NLHW = mixer.encode_teacher(stream_NCHW).to(mixture.student_NLHW.dtype)
    return Mixture(mixture.student_NLHW, latents_NLHW, mixture.mask_NLHW)


def branches(
    seen: Pass,
    mixers: Sequence[Mixer],
    mixtures: Sequence[Mixture],
    carriers: Sequence[Carrier],
) -> list[Tensor]:
    """An image for each position: its mixture through the whole rest of one net."""
    triples = zip(mixers, mixtures, carriers, strict=True)
    return [
        rest(seen, k, mixer.decode(mixture.mixed, carrier), carrier)
        for k, (mixer, mixture, carrier) in enumerate(triples)
    ]


def rest(seen: Pass, position: int, stream_NCHW: Tensor, carrier: Carrier) -> Tensor:
    """The image of a stream that `carrier` takes on from a position to its end."""
    start, stop = _starts(seen)[position][carrier], _ends(seen)[carrier]
    return _tail(seen, carrier, _through(_net(seen, carrier), stream_NCHW, start, stop))


def _net(seen: Pass, carrier: Carrier) -> SRNet:
    assert seen.teacher is not None
    return seen.student if carrier == "student" else seen.teacher


def _starts(seen: Pass) -> list[dict[Carrier, int]]:
    """The first block after each position, in either net."""
    pairs = zip(seen.positions.student, seen.positions.teacher, strict=True)
    return [{"student": s + 1, "teacher": t + 1} for s, t in pairs]


def _ends(seen: Pass) -> dict[Carrier, int]:
    return {
        "student": len(seen.student.blocks),
        "teacher": len(_net(seen, "teacher").blocks),
    }


def _through(net: SRNet, stream: Tensor, start: int, stop: int) -> Tensor:
    for index in range(start, stop):
        stream = net.blocks[index](stream)
    return stream


def _tail(seen: Pass, carrier: Carrier, stream: Tensor) -> Tensor:
    """The image, with the shallow features of the net that carried the stream last."""
    net = _net(seen, carrier)
    return net.tail(stream, net.head(seen.lr_NCHW))
