"""The torch net behind a graph, for builders that do not start from ONNX.

Not for bare devices: everything here needs torch, which is imported inside the functions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mipkd.core import plugins
from mipkd.core.errors import StageError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mipkd.core.records import Graph


def net_of(graph: Graph, *, target: str) -> Any:
    """The net that a graph was made from, as it is deployed.

    Raises:
        UnsupportedError: the graph came as ONNX, or its net is of no family of ours.
        StageError: the checkpoint is not what its record says.
    """
    from safetensors.torch import load_file

    model = graph.model
    if model is None:
        raise UnsupportedError(
            f"{target}: {graph.file.name} has no torch net, and ONNX cannot be converted",
            hint="give the checkpoint that the graph was exported from, not the graph",
        )
    if model.arch not in plugins.names("mipkd.archs"):
        raise UnsupportedError(
            f"{target}: {model.arch} is none of the families that can be converted",
            hint="known: " + ", ".join(plugins.names("mipkd.archs")),
        )
    arch = plugins.load("mipkd.archs", model.arch, "ARCH")
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in model.hyper.items()}
    net = arch.make(arch.Hyper(**sizes))
    known = arch.canonical(load_file(model.file))
    if known is None:
        raise StageError(
            f"{target}: {model.file} is no {model.arch} checkpoint",
            hint="run the same command again after removing this run's folder",
        )
    net.load_state_dict({key: known[1][key] for key in net.state_dict()})
    return net.eval().to_deployed()


def program(
    net: Any, upscale: Callable[[Any], Any], *, least: int | None, side: int, most: int
) -> Any:
    """`upscale`, which runs `net`, as an exported program of LR images `least` to `most` a side.

    Nothing is padded: runtimes pad outside the graph. `least` None fixes both sides at `side`.
    """
    import torch

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net  # so that its weights are the program's

        def forward(self, lr: Any) -> Any:
            return upscale(lr)

    step = net.multiple

    def free(name: str) -> Any:
        assert least is not None
        dim = torch.export.Dim(name, min=-(-least // step), max=most // step)
        return dim if step == 1 else step * dim

    # Height and width differ: equal ones would be taken for one size.
    example = torch.rand(1, 3, side, side if least is None else side + 2 * step)
    example = example.to(next(net.parameters()).device)
    sizes = None if least is None else {"lr": {2: free("h"), 3: free("w")}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses what torch deprecates
        exported = torch.export.export(Deployed().eval(), (example,), dynamic_shapes=sizes)
        return exported.run_decompositions({})
