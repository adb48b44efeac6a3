"""A net's additions, activations and copies in the kernels beside them, by torch.compile.

Libraries' convolutions leave the bias, the activation and the skip after them to kernels of their
own, which together take longer than the convolutions of a small net. Blocks are compiled, not
nets: equal ones are compiled once.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mipkd.distill.settings import DistillConfig

_PAYS_FROM = 5000  # steps: compiling takes 12 to 21 s, of which each saves 1 to 11 ms


def pays(config: DistillConfig, device: torch.device) -> bool:
    """Whether to compile, as `distill.compile` says or by the number of steps."""
    able = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    wanted = config.compile if config.compile is not None else config.steps >= _PAYS_FROM
    return able and wanted


def fuse(*nets: nn.Module) -> None:
    """Compile the largest modules in these that are called as a whole; drops what an earlier
    training had compiled. What cannot be compiled runs as it is, with a warning of torch's."""
    torch.compiler.reset()
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # kinds of modules: all go through `_run`
    for net in nets:
        for part in net.children():
            _compile(part)


def eagerly(device: torch.device) -> AbstractContextManager[object]:
    """Run nothing compiled: for sizes that are met once. On a CPU nothing is compiled."""
    cuda = device.type == "cuda"
    return torch.compiler.set_stance("force_eager") if cuda else nullcontext()


def _compile(part: nn.Module) -> None:
    if type(part).forward is nn.Module.forward:  # a container
        for inner in part.children():
            _compile(inner)
    else:
        run = torch.compile(_run, dynamic=False)
        part.forward = functools.partial(run, part)


def _run(part: nn.Module, *inputs: Tensor) -> Tensor:
    """`forward` from here: torch does not compile its own modules when they are the outermost."""
    output: Tensor = type(part).forward(part, *inputs)
    return output
