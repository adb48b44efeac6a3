"""The torch net behind a graph, for builders that do not start from ONNX.

Not for bare devices: everything here needs torch, which is imported inside the functions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from targets.base import BuildRequest


def load_net(request: BuildRequest, *, target: str) -> Any:
    """The net that the request's graph was made from, as it is deployed.

    Raises:
        UnsupportedError: the graph came as ONNX, or its net is of no family of ours.
    """
    graph = request.graph
    if graph.model is None:
        raise UnsupportedError(
            f"{target}: {graph.file.name} has no torch net, and ONNX cannot be converted",
            hint="give the checkpoint that the graph was exported from, not the graph",
        )
    assert request.load_net is not None, "who asks for the build knows the architectures"
    return request.load_net(graph.model)


def export_program(
    net: Any,
    upscale: Callable[[Any], Any],
    *,
    least: int,
    usual: int,
    most: int,
    fixed: tuple[int, int] | None = None,
) -> Any:
    """`upscale`, which runs `net`, as an exported program of LR images `least` to `most` a side,
    or of a `fixed` height and width.

    Nothing is padded: runtimes pad outside the graph.
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
        dim = torch.export.Dim(name, min=-(-least // step), max=most // step)
        return dim if step == 1 else step * dim

    # Height and width differ: equal ones would be taken for one size.
    example = torch.rand(1, 3, *(fixed or (usual, usual + 2 * step)))
    example = example.to(next(net.parameters()).device)
    sizes = None if fixed else {"lr": {2: free("h"), 3: free("w")}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses what torch deprecates
        exported = torch.export.export(Deployed().eval(), (example,), dynamic_shapes=sizes)
        return exported.run_decompositions({})
