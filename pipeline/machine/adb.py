"""An Android phone on adb: LiteRT's own `benchmark_model` times models there and runs images.

`adb://` is the only phone that is connected, `adb://SERIAL` one of several. Needs adb, numpy and
ai-edge-litert here, nothing but the program on the phone. It never drove a phone of ours.
Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import hashlib
import math
import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from mipkd.core.errors import MipkdError, MissingError, StageError, UsageError
from mipkd.core.measurement import Host, Latency, Measurement
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.latency import BenchSettings, find_doubt
from pipeline.bench.models import Sink, gives_pixels, name_of
from pipeline.machine.base import DeviceConfig, Job, MachineLostError, ignore_pixels
from pipeline.machine.remote import benchmark_model
from pipeline.machine.remote.adb_shell import AdbShell
from pipeline.machine.remote.phone import Thermal, describe_phone, read_thermal
from targets._images import upscale
from targets._litert.session import LiteRtSession, as_int8, as_uint8, at_size
from targets.base import FloatArray, Session, find
from targets.litert import LiteRt

TARGET = "litert"
THREADS = 4  # as benchmarks of phones have it: few have more fast cores
_FOLDER = "/data/local/tmp/mipkd-pipeline"  # where a program may be started without root
_OURS = "mipkd-"  # how files begin that are removed at the end
_PROGRAM = "benchmark_model"
_GET = (
    "get it for Android from LiteRT and name it: --set device.benchmark_model=FILE, "
    "or --benchmark-model FILE to a kit"
)


class Phone:
    """A machine whose jobs are starts of one program over adb."""

    def __init__(self, config: DeviceConfig) -> None:
        self.address = config.address or "adb://"
        self._config, self._shell = config, AdbShell(self.address)
        self._folder = _folder_of(config)
        self._program = ""  # there, once known

    def offers(self, targets: Sequence[str]) -> dict[str, TargetInfo]:
        """LiteRT's models run there if the program does; nothing else does."""
        phone = describe_phone(self._shell)
        return {name: self._offer(name, phone.host, phone.versions) for name in targets}

    def run(self, job: Job, take: Sink = ignore_pixels) -> tuple[Measurement, ...]:
        """Time the models in turns, size by size, then run the images.

        Raises:
            MachineLostError: the phone is gone.
            StageError: the program failed.
        """
        self._prepare()
        with TemporaryDirectory() as scratch:
            models = [
                _Model(built, str(self._folder / f"{_OURS}{number}.tflite"), Path(scratch))
                for number, built in enumerate(job.builts)
            ]
            heat = [read_thermal(self._shell)]
            latencies: list[dict[str, Latency]] = []
            for size in job.settings.sizes:
                latencies.append(self._time(models, size, job.settings))
                heat.append(read_thermal(self._shell))
            self._make_pixels(models, job, take)
        return self._to_measurements(job, latencies, heat)

    def _make_pixels(self, models: Sequence[_Model], job: Job, take: Sink) -> None:
        sessions = [_PhoneSession(self, model) for model in models if gives_pixels(model.built)]
        for name, lr_HWC in job.images:
            for session in sessions:
                built = session.model.built
                sr = upscale(session, lr_HWC, scale=built.scale, multiple=built.multiple)
                take(built, name, sr)

    def _to_measurements(
        self, job: Job, latencies: Sequence[dict[str, Latency]], heat: Sequence[Thermal]
    ) -> tuple[Measurement, ...]:
        """One a model; `heat` is from before the first size and after each."""
        host = describe_phone(self._shell).host
        conditions = {
            "board": host.cpu,
            "threads": str(THREADS),
            "samples": f"{benchmark_model.RUNS} of each start of {_PROGRAM}, after its warm-up",
            **heat[0].conditions("before"),
            **heat[-1].conditions("after"),
        }
        unknown = () if heat[0].is_known else ("whether the phone was throttled is not known",)
        return tuple(
            Measurement(
                role=built.role,
                target=built.target,
                precision=built.precision,
                size_bytes=built.size_bytes,
                latencies=tuple(found[name_of(built)] for found in latencies),
                versions=job.info.versions,
                notes=unknown,
                invalid_because=next((one.throttled for one in heat if one.throttled), ""),
                conditions=conditions,
                host=host,
            )
            for built in job.builts
        )

    def close(self) -> None:
        """Remove what jobs left there."""
        if self._program:
            try:
                folder = shlex.quote(str(self._folder))
                self._shell.run(f"rm -f {folder}/{_OURS}*")
            except MipkdError:
                return  # gone

    def run_image(self, model: _Model, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        lr_NHWC = np.ascontiguousarray(lr_NCHW.transpose(0, 2, 3, 1))
        lr_NHWC = as_int8(lr_NHWC) if model.takes_int8 else lr_NHWC
        self._push(model, (lr_NHWC.shape[1], lr_NHWC.shape[2]))
        lr, sr = (str(self._folder / f"{_OURS}{name}.bin") for name in ("lr", "sr"))
        here = model.scratch / "image.bin"
        here.write_bytes(lr_NHWC.tobytes())
        self._shell.push(here, lr)
        command = benchmark_model.pixels_command(
            self._program, model.there, lr, sr, shape=lr_NHWC.shape, threads=THREADS
        )
        file = shlex.quote(sr)
        printed = self._shell.run(f"rm -f {file}; {command}; test -s {file}", failing=True)
        try:
            self._shell.pull(sr, here)
        except MachineLostError:
            raise
        except StageError as error:
            what = f"{self.address}: {_PROGRAM}: {benchmark_model.why_failed(printed)}"
            raise StageError(
                what, hint="it must know --output_filepath: take a newer one"
            ) from error
        sr_NCHW = _as_image(here.read_bytes(), lr_NHWC, model.built.scale)
        return as_uint8(sr_NCHW) if model.takes_int8 else sr_NCHW

    def _offer(self, name: str, host: Host, versions: dict[str, str]) -> TargetInfo:
        if name.partition(":")[0] != TARGET:
            why = f"a phone on adb runs {TARGET} alone"
            return TargetInfo(name, why, False, (), {}, host)
        try:
            versions = {**versions, _PROGRAM: self._prepare()}
            target = find(name)
            why = target.why_not()  # models are brought to their sizes here
        except MissingError as error:
            why = "; ".join(filter(None, (error.what, error.hint)))
        precisions = () if why else target.precisions()
        return TargetInfo(name, why, False, precisions, versions, host)

    def _prepare(self) -> str:
        """See that the program lies there and can be started; what tells it from others.

        Raises:
            MissingError: it does not, and none was given.
        """
        there = str(self._folder / _PROGRAM)
        file = shlex.quote(there)
        self._shell.run(f"mkdir -p {shlex.quote(str(self._folder))}")
        if given := self._config.benchmark_model:
            if not given.is_file():
                raise MissingError(f"device.benchmark_model: {given}: no such file", hint=_GET)
            self._shell.push(given, there)
            self._shell.run(f"chmod 755 {file}")
        found = self._shell.run(f"test -x {file} && sha256sum {file}", failing=True)
        sha256 = found.split()[0] if found.split() else ""
        if len(sha256) != hashlib.sha256().digest_size * 2:
            raise MissingError(f"{self.address}: no {_PROGRAM} in {self._folder} there", hint=_GET)
        self._program = there
        return sha256[:12]

    def _push(self, model: _Model, size: tuple[int, int]) -> None:
        """Lay the model for images of that size onto the phone, unless it lies there."""
        if model.size != size:
            self._shell.push(model.write(size), model.there)
            model.size = size

    def _time(
        self, models: Sequence[_Model], size: tuple[int, int], settings: BenchSettings
    ) -> dict[str, Latency]:
        """The latency of each model at LR `size`, of starts in turns in random order."""
        order, series = random.Random(settings.seed), [_Series(model) for model in models]
        for one in series:
            self._push(one.model, _padded(size, one.model.built.multiple))
        while left := [one for one in series if not one.is_done(settings)]:
            for one in order.sample(left, len(left)):
                command = benchmark_model.timing_command(
                    self._program,
                    one.model.there,
                    threads=THREADS,
                    warmup_s=settings.warmup_s,
                    warmups=settings.min_warmups,
                )
                start = time.monotonic()
                printed = self._shell.run(command, limit_s=self._config.time_limit_s, failing=True)
                one.starts.append(benchmark_model.parse_timing(printed))
                one.spent_s += time.monotonic() - start
        return {name_of(one.model.built): one.latency(size, settings) for one in series}


class _PhoneSession(Session):
    """A model on the phone, behind the interface of a session: an image is a start there."""

    def __init__(self, phone: Phone, model: _Model) -> None:
        self._phone, self.model, self.takes_uint8 = phone, model, model.takes_uint8

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        return self._phone.run_image(self.model, lr_NCHW)


@dataclass
class _Model:
    """A model, and the size that its file on the phone is for."""

    built: Built
    there: str
    scratch: Path
    size: tuple[int, int] = (0, 0)

    @property
    def takes_uint8(self) -> bool:
        """Whether it takes and gives bytes."""
        return self._open().takes_uint8

    @property
    def takes_int8(self) -> bool:
        """Whether those bytes are levels less 128."""
        return self._open().takes_int8

    def _open(self) -> LiteRtSession:
        return LiteRt().open(self.built)

    def write(self, size: tuple[int, int]) -> Path:
        """Its file for images of that size: LiteRT's models state theirs."""
        file = self.scratch / "model.tflite"
        file.write_bytes(at_size(self.built.file.read_bytes(), (1, *size, 3)))
        return file


@dataclass
class _Series:
    """Starts of one model at one size."""

    model: _Model
    starts: list[benchmark_model.Started] = field(default_factory=list)
    spent_s: float = 0.0

    def is_done(self, settings: BenchSettings) -> bool:
        """Whether there are samples enough, or no time is left for more."""
        enough = len(self.starts) * benchmark_model.RUNS >= settings.min_samples
        return enough or self.spent_s >= max(1, settings.max_time_s) * _SLACK

    def latency(self, size: tuple[int, int], settings: BenchSettings) -> Latency:
        """All samples; loading and the first run are those of the first start."""
        samples_s = tuple(sample for one in self.starts for sample in one.samples_s)
        first = self.starts[0]
        return Latency(
            size=size,
            samples_s=samples_s,
            warmup=first.warmup,
            cold_start_s=first.cold_start_s,
            invalid_because=find_doubt(samples_s, settings),
            load_s=first.load_s,
            memory_bytes=first.memory_bytes,
        )


_SLACK = 4  # a start loads the model and warms up before it counts


def _folder_of(config: DeviceConfig) -> PurePosixPath:
    """Where files lie on the phone.

    Raises:
        UsageError: a folder was named that begins nowhere.
    """
    if config.folder == DeviceConfig.folder:  # of machines with a home
        return PurePosixPath(_FOLDER)
    if not config.folder.startswith("/"):
        what = f"device.folder: {config.folder!r} is no folder of a phone"
        raise UsageError(what, hint=f"give one that begins with /; default {_FOLDER}")
    return PurePosixPath(config.folder)


def _padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    height, width = (side + -side % multiple for side in size)
    return height, width


def _as_image(data: bytes, lr_NHWC: FloatArray, scale: int) -> FloatArray:
    """The bytes of a result of `scale` times the image's size, in the image's type.

    Raises:
        StageError: they are more or fewer.
    """
    count, height, width, channels = lr_NHWC.shape
    shape = (count, height * scale, width * scale, channels)
    if len(data) != math.prod(shape) * lr_NHWC.itemsize:
        raise StageError(f"{_PROGRAM}: a result of {len(data)} bytes for an image of {shape}")
    return np.frombuffer(data, lr_NHWC.dtype).reshape(shape).transpose(0, 3, 1, 2)


def _machine(config: DeviceConfig) -> Phone:
    return Phone(config)


MACHINE = _machine
