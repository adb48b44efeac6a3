"""Fuse a net's additions, activations and copies into fewer kernels by torch.compile.

Libraries run bias, activation and skip after a convolution as kernels of their own, which together
take longer than the convolutions of a small net. Blocks are compiled, not nets: equal ones once.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mipkd.distill.settings import DistillConfig

_PAYS_FROM = 5000  # steps: compiling takes 12 to 21 s, a step then saves 1 to 11 ms


def should_compile(config: DistillConfig, device: torch.device) -> bool:
    """Whether to compile: as `distill.compile` says, or by the number of steps."""
    able = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    wanted = config.compile if config.compile is not None else config.steps >= _PAYS_FROM
    return able and wanted


def compile_blocks(*nets: nn.Module) -> None:
    """Compile the largest modules in these nets that are called as a whole; drops what an earlier
    training compiled. A module that cannot be compiled runs eagerly, with a warning from torch."""
    torch.compiler.reset()
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # module types, all of which run through `_run`
    for net in nets:
        for part in net.children():
            _compile(part)


def run_eager(device: torch.device) -> AbstractContextManager[object]:
    """Run nothing compiled, for sizes that occur once; on a CPU nothing is compiled anyway."""
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
    """`forward` from this file: torch does not compile modules of its own as the outermost."""
    output: Tensor = type(part).forward(part, *inputs)
    return output
