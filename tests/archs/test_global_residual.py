"""A net whose tail adds the upscaled LR image (Compact, ECBSR, ABPN) is a net like any other."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.compact import Compact, Hyper
from mipkd.core.records import QuantScheme
from mipkd.export.fake_quant import FakeQuantNet
from mipkd.export.onnx import export
from mipkd.export.parity import check_parity
from mipkd.losses._block_mixer import run_branches
from mipkd.losses._feature_mixer import FeatureMixer, mix
from mipkd.losses.base import Pass, Positions


def net(seed: int = 0) -> Compact:
    torch.manual_seed(seed)
    return Compact(Hyper(scale=2, channels=8, blocks=2)).eval()


def image(height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_without_its_last_layer_it_repeats_the_image() -> None:
    compact, lr = net(), image()
    nn.init.zeros_(compact.up[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(compact.up[0].bias)  # type: ignore[arg-type]
    assert torch.equal(compact(lr), lr.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_the_teachers_blocks_alone_in_the_mixed_path_give_the_teachers_image() -> None:
    student, teacher, lr = net(0), net(1), image()
    positions = Positions((0, 1), (0, 1))
    _, mine = student.forward_with_taps(lr, positions.student)
    truth, theirs = teacher.forward_with_taps(lr, positions.teacher)
    seen = Pass(
        lr,
        truth,
        student,
        truth,
        mine,
        teacher,
        truth,
        teacher_features=theirs,
        positions=positions,
    )
    mixers = [FeatureMixer(8, 8, 8) for _ in theirs]
    for mixer in mixers:
        mixer.trunk = mixer.to_teacher = nn.Identity()
    mixtures = [
        mix(a, b, student_share=0.0, generator=None) for a, b in zip(mine, theirs, strict=True)
    ]
    for mixed in run_branches(seen, mixers, mixtures, ("teacher", "teacher")):
        assert torch.equal(mixed, truth)


def test_its_graph_and_its_trace_give_its_images(tmp_path: Path) -> None:
    compact, lr = net(), image(48, 48)
    graph = export(compact, out=tmp_path, metadata={}, role="student", family="compact")
    photo = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    assert check_parity(compact, graph, [photo], bound=1e-5) < 1e-5
    with torch.no_grad():
        assert torch.allclose(
            FakeQuantNet(compact, QuantScheme((), ()))(lr), compact(lr), atol=1e-6
        )
