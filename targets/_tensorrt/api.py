"""What is called of TensorRT's Python API, as its bindings of 10.3 to 11.4 have it.

A test holds names and parameters against what those bindings tell of themselves. TensorRT-RTX has
the same API under another module's name, and what stands in `RtxBuilderConfig` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Dims = tuple[int, ...]
Enumerator = object


class IHostMemory(Protocol):
    """Bytes, by the buffer protocol."""

    def __bytes__(self) -> bytes: ...


class ITimingCache(Protocol):
    """How long a builder's kernels took."""

    def serialize(self) -> IHostMemory: ...


class ITensor(Protocol):
    """A tensor of a network."""

    name: str
    shape: Dims


class INetworkDefinition(Protocol):
    """A network before it is built."""

    def get_input(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    """Shapes that an engine takes."""

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None: ...


class IBuilderConfig(Protocol):
    """How a network is built."""

    DLA_core: int
    default_device_type: Enumerator

    def clear_flag(self, flag: Enumerator) -> None: ...

    def set_flag(self, flag: Enumerator) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...


class RtxBuilderConfig(IBuilderConfig, Protocol):
    """What TensorRT-RTX has beside it."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Enumerator, index: int) -> bool: ...


class ILogger(Protocol):
    """Takes messages; those of ours derive from it."""

    Severity: Any

    def __init__(self) -> None: ...


class Builder(Protocol):
    """Builds engines."""

    num_DLA_cores: int

    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class ParserError(Protocol):
    """Why a graph was not parsed."""

    def node_name(self) -> str: ...

    def desc(self) -> str: ...


class OnnxParser(Protocol):
    """Reads ONNX into a network."""

    num_errors: int

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...

    def parse(self, model: bytes) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class Logger(Protocol):
    """Prints what is at least as severe."""

    ERROR: Enumerator

    def __init__(self, min_severity: Enumerator) -> None: ...


class IExecutionContext(Protocol):
    """An engine, its shapes and its memory."""

    def set_input_shape(self, name: str, shape: Dims) -> bool: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def update_device_memory_size_for_shapes(self) -> int: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """An engine that was loaded."""

    def create_execution_context(self, strategy: Enumerator) -> IExecutionContext: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Enumerator: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Dims]: ...


class Runtime(Protocol):
    """Loads engines."""

    DLA_core: int

    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class Flags(Protocol):
    """Of a builder."""

    TF32: Enumerator
    GPU_FALLBACK: Enumerator


class Devices(Protocol):
    """What computes a layer."""

    DLA: Enumerator


class Strategies(Protocol):
    """Who makes room for a context."""

    USER_MANAGED: Enumerator


class Modes(Protocol):
    """Which way a tensor goes."""

    INPUT: Enumerator


NewBuilder = Callable[[ILogger], Builder | None]
NewParser = Callable[[INetworkDefinition, ILogger], OnnxParser]
NewRuntime = Callable[[ILogger], Runtime]


class Api(Protocol):
    """The module."""

    __name__: str
    __version__: str

    Builder: NewBuilder
    OnnxParser: NewParser
    Runtime: NewRuntime
    ILogger: Any  # derived from
    Logger: Any  # called, and has the enumerators of its severities
    NetworkDefinitionCreationFlag: Any  # whose one enumerator here may go
    ComputeCapability: Any  # TensorRT-RTX's
    BuilderFlag: Flags
    DeviceType: Devices
    ExecutionContextAllocationStrategy: Strategies
    TensorIOMode: Modes
