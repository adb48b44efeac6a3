"""State dicts of small nets, and what people's files put around them."""

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from mipkd.archs import edsr
from mipkd.distill.teacher import TeacherOptions

State = dict[str, Tensor]

ASIS = TeacherOptions()
TRAINED = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"


def tiny(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return edsr.ARCH.original(edsr.EDSR(edsr.Hyper(scale=2, channels=8, blocks=2)))


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}
