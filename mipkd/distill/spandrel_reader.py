"""Teachers of foreign families, read by spandrel (an optional extra).

spandrel (https://github.com/chaiNNer-org/spandrel) builds a net from the keys and shapes of its
checkpoint, for images in [0, 1]. It does not know the weights' licence.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mipkd.archs._hooked import Call, HookedNet, find_blocks, format_block_names, trial_image
from mipkd.archs.base import StateDict, arch_names
from mipkd.core.errors import MissingError, UnsupportedError

# How spandrel fails where it takes one family for another.
_MISTAKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


# Without the dependencies that spandrel names: they are here but for einops, and torchvision, which
# it does not need here, makes pip replace torch by the build that the newest torchvision wants.
_INSTALL = "pip install --no-deps einops spandrel"


class NotKnownError(UnsupportedError):
    """spandrel does not know it, or takes it for what it is not."""


@dataclass(frozen=True)
class ForeignNet:
    """A net and how it was recognised."""

    net: HookedNet
    arch: str  # spandrel's name
    blocks: str  # as `find_blocks` takes them; "" when there are none
    version: str  # of spandrel


def read_foreign(state: StateDict, path: Path, *, blocks: str | None, unknown: str) -> ForeignNet:
    """The net in a state dict; `blocks` names its body, or None to find it.

    Args:
        unknown: why it is no family of ours, for messages.

    Raises:
        MissingError: spandrel is not installed, or cannot be imported.
        UnsupportedError: not known to spandrel either, or no super-resolution of RGB images.
        UsageError: `blocks` is no sequence of the net.
    """
    spandrel = _import_for(path, unknown)
    found = _load(spandrel, state, path, unknown)
    _check(found, spandrel, path)
    _check_kinds(found.model.state_dict(), state, path)
    name = str(found.architecture.name)
    try:
        net = _hook(found, blocks, path)
    except _MISTAKEN as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsupportedError(
            f"{path}: {name} of spandrel cannot be run: {first}",
            hint="known: nets that take images of any size",
        ) from error
    return ForeignNet(net, name, format_block_names(net.net, net.names), str(spandrel.__version__))


def _load(spandrel: Any, state: StateDict, path: Path, unknown: str) -> Any:
    try:
        return spandrel.ModelLoader().load_from_state_dict(
            spandrel.canonicalize_state_dict(dict(state))
        )
    except spandrel.UnsupportedModelError as error:
        raise NotKnownError(
            f"{path}: {unknown}", hint=f"{_list_ours()}; spandrel does not know it either"
        ) from error
    except _MISTAKEN as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise NotKnownError(
            f"{path}: {unknown}", hint=f"{_list_ours()}; spandrel cannot load it either: {first}"
        ) from error


def _hook(found: Any, blocks: str | None, path: Path) -> HookedNet:
    """The net, and what trial runs tell of it."""
    sizes, net = found.size_requirements, found.model.eval().float()
    known = {"multiple": int(sizes.multiple_of), "least": max(1, int(sizes.minimum))}
    trial = trial_image(**known)
    call = _find_call(found, trial, path)
    hooked = HookedNet(
        net,
        find_blocks(net, trial, blocks, call),
        scale=int(found.scale),
        call=call,
        one_by_one=not _keeps_images_apart(net, call, trial),
        channels_last=_bears_channels_last(net, call, trial),
        **known,
    )
    return hooked.eval()


def _list_ours() -> str:
    return "known: " + ", ".join(arch_names())


def import_spandrel() -> Any:
    """spandrel itself; torchvision, which it needs for two nets that are no SR, may be missing."""
    with _without_torchvision():
        return importlib.import_module("spandrel")


def _import_for(path: Path, unknown: str) -> Any:
    try:
        return import_spandrel()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == "spandrel":
            raise MissingError(
                f"{path}: {unknown}; spandrel, which may know it, is not installed",
                hint=_INSTALL,
            ) from error
        raise _broken(path, unknown, error) from error
    except Exception as error:  # of what it imports
        raise _broken(path, unknown, error) from error


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Import spandrel where torchvision is not installed, or is of another build than torch.

    It imports three functions of it for LaMa and RestoreFormer, which are no super-resolution.
    """
    if _can_import("torchvision.transforms.functional"):
        yield
        return
    functions = ModuleType("torchvision.transforms.functional")
    functions.__getattr__ = lambda name: None  # type: ignore[method-assign]
    names = ("torchvision", "torchvision.transforms")
    placeholders = {name: ModuleType(name) for name in names} | {functions.__name__: functions}
    before = {name: sys.modules.pop(name) for name in placeholders if name in sys.modules}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchvision of another build fails as it likes
        return False
    return True


def _broken(path: Path, unknown: str, error: Exception) -> MissingError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return MissingError(
        f"{path}: {unknown}; spandrel, which may know it, cannot be imported: {first}",
        hint=f"install it anew: {_INSTALL} --force-reinstall",
    )


def _check(found: Any, spandrel: Any, path: Path) -> None:
    is_image = isinstance(found, spandrel.ImageModelDescriptor)
    channels = (found.input_channels, found.output_channels)
    fixed = found.size_requirements.square
    if is_image and found.scale >= 2 and channels == (3, 3) and not fixed:
        return
    raise UnsupportedError(
        f"{path}: {found.architecture.name} for {found.purpose}, x{found.scale}, {channels[0]} "
        f"channels to {channels[1]}{', square images only' if fixed else ''}",
        hint="known: super-resolution of RGB images, x2 or more",
    )


def _check_kinds(wanted: StateDict, state: StateDict, path: Path) -> None:
    """Refuse whole numbers where the net has weights: torch would take them as they are."""
    for key, value in state.items():
        if key in wanted and wanted[key].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UnsupportedError(
                f"{path}: {key} has {kind} values", hint="known: floating-point weights"
            )


def _find_call(found: Any, trial: torch.Tensor, path: Path) -> Call:
    """How the net gives its image: called plainly, or in the way of its own that spandrel has.

    Raises:
        UnsupportedError: neither gives the image that spandrel gives, or that is never the same.
    """
    with torch.no_grad():
        promised, again = found(trial.clone()), found(trial.clone())
        if not torch.equal(promised, again):
            raise UnsupportedError(
                f"{path}: {found.architecture.name} gives another image each time: it draws noise",
                hint="known: nets that give one image for one LR image",
            )
        for call in _list_calls(found):
            try:
                if _gives(call(found.model, trial.clone()), promised):
                    return call
            except _MISTAKEN:
                continue
    raise UnsupportedError(
        f"{path}: {found.architecture.name} does not give its image when it is called",
        hint="known: nets that take and give an image in [0, 1]",
    )


def _list_calls(found: Any) -> Iterator[Call]:
    """Called plainly; then as spandrel does where a net gives a tuple, or takes pixels of another
    range: its public way has no gradients, and cuts values off."""
    yield torch.nn.Module.__call__
    yield found._call_fn


def _gives(output: Any, promised: torch.Tensor) -> bool:
    same = isinstance(output, torch.Tensor) and output.shape == promised.shape
    return same and torch.allclose(output.clamp(0, 1), promised, atol=1e-4)


def _keeps_images_apart(net: torch.nn.Module, call: Call, trial: torch.Tensor) -> bool:
    """Whether the images of a batch are those of each alone."""
    other = trial.flip(-1)
    with torch.no_grad():
        alone = torch.cat([call(net, one.clone()) for one in (trial, other)])
        try:
            together = call(net, torch.cat([trial, other]))
        except _MISTAKEN:
            return False
    return together.shape == alone.shape and torch.allclose(together, alone, atol=1e-3, rtol=1e-3)


def _bears_channels_last(net: torch.nn.Module, call: Call, trial: torch.Tensor) -> bool:
    """Whether it computes in that layout of memory too; some take tensors for contiguous ones."""
    last = torch.channels_last
    with torch.no_grad():
        wanted = call(net, trial.clone())
        try:
            net.to(memory_format=last)  # type: ignore[call-overload]
            found = call(net, trial.clone(memory_format=last))
        except _MISTAKEN:
            return False
        finally:
            net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return torch.allclose(found, wanted, atol=1e-3, rtol=1e-3)
