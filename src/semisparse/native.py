"""`ctypes` binding of `semisparse.h`, for tools and kernel tests.

Networks run through `semisparse.runtime`; this is the same library one operator at a time. Tensors
are float32, NHWC, C-contiguous; weights are OIHW. The GIL is released while the library works.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisparse.errors import ConfigError, LibraryError, MaskError
from semisparse.runtime import library_path

ABI_VERSION = 3

ACTIVATIONS = {
    "identity": 0,
    "relu": 1,
    "clip": 2,
    "leaky_relu": 3,
    "silu": 4,
    "hard_swish": 5,
    "sigmoid": 6,
    "hard_sigmoid": 7,
    "gelu": 8,
}
FILLS = {"bias": 0, "nearest": 1}
LAYOUTS = {"nhwc": 0, "nchw": 1}
CHAINS = {
    "expand_depthwise_project": 0,
    "depthwise_project": 1,
    "expand_depthwise": 2,
    "stem_depthwise_project": 3,
    "stem_depthwise": 4,
}
POOLS = {"max": 0, "average": 1, "l2": 2}

Floats = NDArray[np.float32]


class ConvDesc(ctypes.Structure):
    """`semisparse_conv_desc`."""

    _fields_ = (
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 2),
        ("strides", ctypes.c_int64 * 2),
        ("pads", ctypes.c_int64 * 4),
        ("dilations", ctypes.c_int64 * 2),
        ("activation", ctypes.c_int),
        ("activation_a", ctypes.c_float),
        ("activation_b", ctypes.c_float),
        ("input_layout", ctypes.c_int),
    )


class ChainStage(ctypes.Structure):
    """`semisparse_chain_stage`."""

    _fields_ = (
        ("desc", ctypes.POINTER(ConvDesc)),
        ("weights", ctypes.POINTER(ctypes.c_float)),
        ("bias", ctypes.POINTER(ctypes.c_float)),
        ("source", ctypes.POINTER(ctypes.c_int32)),
        ("weight", ctypes.POINTER(ctypes.c_float)),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class PoolDesc(ctypes.Structure):
    """`semisparse_pool_desc`."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("kernel", ctypes.c_int64 * 2),
        ("strides", ctypes.c_int64 * 2),
        ("pads", ctypes.c_int64 * 4),
        ("dilations", ctypes.c_int64 * 2),
        ("ceil_mode", ctypes.c_int),
        ("count_include_pad", ctypes.c_int),
    )


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
_ParallelFor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, _Task, ctypes.c_void_p)

_floats = ctypes.POINTER(ctypes.c_float)
_int32s = ctypes.POINTER(ctypes.c_int32)
_int64s = ctypes.POINTER(ctypes.c_int64)
_bytes = ctypes.POINTER(ctypes.c_uint8)
_ints = ctypes.POINTER(ctypes.c_int)
_doubles = ctypes.POINTER(ctypes.c_double)
_handle = ctypes.c_void_p
_size = ctypes.c_size_t
_i64 = ctypes.c_int64
_text = ctypes.c_char_p
_desc = ctypes.POINTER(ConvDesc)
_stages = ctypes.POINTER(ChainStage)
_pool = ctypes.POINTER(PoolDesc)

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (_text, ()),
    "abi_version": (ctypes.c_int, ()),
    "last_error": (_text, ()),
    "isa_name": (_text, (_size, _ints)),
    "isa": (_text, ()),
    "kernel_name": (_text, (_size, _ints)),
    "source_map": (ctypes.c_int, (_bytes, _i64, _i64, ctypes.c_int, _int32s)),
    "mean_sources": (ctypes.c_int, (_bytes, _i64, _i64, _int32s, _floats)),
    "conv_create": (
        ctypes.c_int,
        (_desc, _floats, _floats, _int32s, _floats, _i64, _i64, _text, ctypes.POINTER(_handle)),
    ),
    "conv_destroy": (None, (_handle,)),
    "conv_kernel": (_text, (_handle,)),
    "conv_output_size": (ctypes.c_int, (_handle, _i64, _i64, _int64s, _int64s)),
    "conv_run": (
        ctypes.c_int,
        (
            _handle,
            _floats,
            *(_i64, _i64, _i64),
            *(_floats, _floats, _floats),
            *(_ParallelFor, ctypes.c_void_p),
        ),
    ),
    "chain_create": (
        ctypes.c_int,
        (ctypes.c_int, _stages, _text, ctypes.POINTER(_handle)),
    ),
    "chain_destroy": (None, (_handle,)),
    "chain_kernel": (_text, (_handle,)),
    "chain_output_size": (ctypes.c_int, (_handle, _i64, _i64, _int64s, _int64s)),
    "chain_run": (
        ctypes.c_int,
        (_handle, _floats, _i64, _i64, _i64, _floats, _floats, _ParallelFor, ctypes.c_void_p),
    ),
    "pool_output_size": (ctypes.c_int, (_pool, _i64, _i64, _int64s, _int64s)),
    "pool_run": (
        ctypes.c_int,
        (_pool, _floats, _i64, _i64, _i64, _i64, _floats, _text, _ParallelFor, ctypes.c_void_p),
    ),
    "measure_fma": (ctypes.c_int, (_text, ctypes.c_double, _doubles)),
    "measure_copy": (ctypes.c_int, (_size, ctypes.c_double, _doubles)),
}


@cache
def load() -> ctypes.CDLL:
    """The library, with the types of every function of `semisparse.h` declared.

    Raises:
        LibraryError: it is missing, cannot be loaded, or has another interface version.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = library[f"semisparse_{name}"]
            function.restype, function.argtypes = result, arguments
            setattr(library, f"semisparse_{name}", function)
    except (OSError, AttributeError) as error:
        raise LibraryError(
            f"{path} cannot be loaded ({error}); reinstall semisparse for this platform."
        ) from error
    found = library.semisparse_abi_version()
    if found != ABI_VERSION:
        raise LibraryError(
            f"{path} has interface version {found}, this package needs {ABI_VERSION}; "
            "reinstall semisparse, or unset SEMISPARSE_LIBRARY."
        )
    return library


def version() -> str:
    """Version of the library."""
    return str(load().semisparse_version().decode())


def isa() -> str:
    """The instruction set in force: `$SEMISPARSE_ISA` if set, else the best usable one.

    Raises:
        LibraryError: the one asked for was not built or cannot run on this CPU.
    """
    name = load().semisparse_isa()
    if name is None:
        raise LibraryError(_last_error())
    return str(name.decode())


def isa_names() -> dict[str, bool]:
    """Instruction sets that the library was built with, best first, and whether this CPU has them."""
    return _enumerate(load().semisparse_isa_name)


def kernels() -> dict[str, bool]:
    """Kernels by symbol name, preferred first within a family, and whether this CPU can run them."""
    return _enumerate(load().semisparse_kernel_name)


def source_map(mask: NDArray[np.bool_], fill: str) -> NDArray[np.int32]:
    """Source map `[H_out, W_out]` of a mask `[H_out, W_out]`; fill is "bias" or "nearest".

    Raises:
        MaskError: the mask is not a non-empty plane, or has no computed position to copy from.
    """
    plane = _plane(mask)
    source = np.empty(mask.shape, np.int32)
    status = load().semisparse_source_map(
        plane.ctypes.data_as(_bytes),
        *mask.shape,
        _choice("fill", fill, FILLS),
        source.ctypes.data_as(_int32s),
    )
    _check(status, MaskError)
    return source


def mean_sources(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], Floats]:
    """The two sources `[2, H_out, W_out]` of a mask `[H_out, W_out]` and the second one's weight
    `[H_out, W_out]`, for the fill "mean".

    Raises:
        MaskError: the mask is not a non-empty plane, or has no computed position to copy from.
    """
    plane = _plane(mask)
    sources = np.empty((2, *mask.shape), np.int32)
    weight = np.empty(mask.shape, np.float32)
    status = load().semisparse_mean_sources(
        plane.ctypes.data_as(_bytes),
        *mask.shape,
        sources.ctypes.data_as(_int32s),
        weight.ctypes.data_as(_floats),
    )
    _check(status, MaskError)
    return sources, weight


def _plane(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask as the library reads it."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise MaskError(
            f"The mask is {mask.dtype} of shape {mask.shape}; give a bool array [H_out, W_out]."
        )
    return np.ascontiguousarray(mask, np.uint8)


@dataclass(frozen=True)
class Stage:
    """One convolution: `y = activation(fill(W * x) + bias)`.

    Attributes:
        weights: `[C_out, C_in / group, kh, kw]`.
        bias: `[C_out]`, or None for zeros.
        source: source map `[H_out, W_out]`, or None for a dense convolution at any size; with
            `weight` the two sources `[2, H_out, W_out]` of a mean.
        weight: of a mean's second source, `[H_out, W_out]` within [0, 1].
        pads: top, left, bottom, right.
        activation: a key of `ACTIVATIONS`; `activation_a` and `activation_b` are the bounds of
            "clip", and `activation_a` the slope of "leaky_relu".
        input_layout: "nhwc", or of a convolution by itself "nchw".
    """

    weights: Floats
    bias: Floats | None = None
    source: NDArray[np.int32] | None = None
    weight: Floats | None = None
    group: int = 1
    strides: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)
    dilations: Sequence[int] = (1, 1)
    activation: str = "identity"
    activation_a: float = 0.0
    activation_b: float = 0.0
    input_layout: str = "nhwc"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weights.shape[1]) * self.group

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.weights.shape[0])

    def _argument(self) -> ChainStage:
        """For the library, which reads it while this object is alive."""
        _require("weights", self.weights, np.float32, (None,) * 4)
        if self.bias is not None:
            _require("bias", self.bias, np.float32, (self.out_channels,))
        height, width = 0, 0
        if self.source is not None:
            pair = () if self.weight is None else (2,)
            _require("source", self.source, np.int32, (*pair, None, None))
            height, width = self.source.shape[-2:]
        if self.weight is not None:
            if self.source is None:
                raise LibraryError(
                    f"weight is of shape {list(self.weight.shape)}, but there is no source; give "
                    "both, as from mean_sources, or neither."
                )
            _require("weight", self.weight, np.float32, (height, width))
        desc = ConvDesc(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            group=self.group,
            kernel=self.weights.shape[2:],
            strides=_sizes("strides", self.strides, 2),
            pads=_sizes("pads", self.pads, 4),
            dilations=_sizes("dilations", self.dilations, 2),
            activation=_choice("activation", self.activation, ACTIVATIONS),
            activation_a=self.activation_a,
            activation_b=self.activation_b,
            input_layout=_choice("input_layout", self.input_layout, LAYOUTS),
        )
        return ChainStage(
            ctypes.pointer(desc),
            self.weights.ctypes.data_as(_floats),
            None if self.bias is None else self.bias.ctypes.data_as(_floats),
            None if self.source is None else self.source.ctypes.data_as(_int32s),
            None if self.weight is None else self.weight.ctypes.data_as(_floats),
            height,
            width,
        )


class _Layer:
    """A handle of the library: a convolution or a chain, by its functions' prefix."""

    _functions: str

    def __init__(self, first: Stage, last: Stage) -> None:
        self._library = load()
        self._handle = _handle()
        self._nchw = first.input_layout == "nchw"
        self._in_channels = first.in_channels
        self._out_channels = last.out_channels

    def _call(self, name: str) -> Any:
        return getattr(self._library, f"semisparse_{self._functions}_{name}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._call("destroy")(self._handle)

    @property
    def kernel(self) -> str:
        """Symbol names of the kernels that may run, joined by " + "."""
        return str(self._call("kernel")(self._handle).decode())

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output plane of an input plane.

        Raises:
            LibraryError: it would be empty, or is not the one of a source map.
        """
        out_height, out_width = _i64(), _i64()
        status = self._call("output_size")(
            self._handle, height, width, ctypes.byref(out_height), ctypes.byref(out_width)
        )
        _check(status, LibraryError)
        return out_height.value, out_width.value

    def run(self, x: Floats, residual: Floats | None = None, *, threads: int = 1) -> Floats:
        """Output `[N, H_out, W_out, C_out]` of an input `[N, H, W, C_in]` or, by its layout, NCHW.

        Raises:
            LibraryError: an array has another shape or type than the layer wants.
        """
        return self._run(x, residual, threads)

    def _run(self, x: Floats, residual: Floats | None, threads: int, *gate: Any) -> Floats:
        if self._nchw:
            _require("x", x, np.float32, (None, self._in_channels, None, None))
        else:
            _require("x", x, np.float32, (None, None, None, self._in_channels))
        batch = x.shape[0]
        height, width = x.shape[2:] if self._nchw else x.shape[1:3]
        y = np.empty((batch, *self.output_size(height, width), self._out_channels), np.float32)
        if residual is not None:
            _require("residual", residual, np.float32, y.shape)
        with _Threads(threads) as parallel_for:
            status = self._call("run")(
                self._handle,
                x.ctypes.data_as(_floats),
                batch,
                height,
                width,
                *gate,
                None if residual is None else residual.ctypes.data_as(_floats),
                y.ctypes.data_as(_floats),
                parallel_for,
                None,
            )
        _check(status, LibraryError)
        return y


class Conv(_Layer):
    """A packed convolution: `y = activation(fill(W * (gate * x)) + bias + residual)`.

    Args:
        weights, bias, options: as the attributes of `Stage`.
        isa: a key of `isa_names()`, or None for `isa()`.

    Raises:
        ConfigError: a name is unknown, or a sequence has another length.
        LibraryError: the values do not fit together, or the instruction set cannot run here.
    """

    _functions = "conv"

    def __init__(
        self,
        weights: Floats,
        bias: Floats | None = None,
        *,
        isa: str | None = None,
        **options: Any,
    ) -> None:
        stage = Stage(weights, bias, **options)
        argument = stage._argument()
        super().__init__(stage, stage)
        status = self._library.semisparse_conv_create(
            argument.desc,
            argument.weights,
            argument.bias,
            argument.source,
            argument.weight,
            argument.height,
            argument.width,
            _encoded(isa),
            ctypes.byref(self._handle),
        )
        _check(status, LibraryError)

    def run(
        self,
        x: Floats,
        residual: Floats | None = None,
        *,
        gate: Floats | None = None,
        threads: int = 1,
    ) -> Floats:
        """As of every layer; `gate` is `[N, C_in]`, and only for pointwise convolutions.

        Raises:
            LibraryError: an array has another shape or type than the layer wants, or the layer
                takes no gate.
        """
        if gate is not None:
            _require("gate", gate, np.float32, (len(x), self._in_channels))
        return self._run(
            x, residual, threads, gate.ctypes.data_as(_floats) if gate is not None else None
        )


class Chain(_Layer):
    """Convolutions of an inverted residual (arXiv 1801.04381), packed to be run as one.

    Args:
        form: a key of `CHAINS`.
        stages: as many as the form names, in its order; a residual is added to the projection.
        isa: a key of `isa_names()`, or None for `isa()`.

    Raises:
        ConfigError: a name is unknown, or a sequence has another length.
        LibraryError: the values do not fit together, or the instruction set cannot run here.
    """

    _functions = "chain"

    def __init__(self, form: str, stages: Sequence[Stage], *, isa: str | None = None) -> None:
        number = _choice("form", form, CHAINS)
        if len(stages) != form.count("_") + 1:
            raise ConfigError(
                f"A chain {form!r} has {form.count('_') + 1} stages; {len(stages)} were given."
            )
        arguments = [stage._argument() for stage in stages]
        super().__init__(stages[0], stages[-1])
        status = self._library.semisparse_chain_create(
            number,
            (ChainStage * len(arguments))(*arguments),
            _encoded(isa),
            ctypes.byref(self._handle),
        )
        _check(status, LibraryError)


def pool(
    x: Floats,
    kind: str,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    isa: str | None = None,
    threads: int = 1,
) -> Floats:
    """Pool `[N, H, W, C]` to `[N, H_out, W_out, C]`; kind is "max", "average" or "l2".

    Raises:
        ConfigError: a name is unknown, or a sequence has another length.
        LibraryError: the values do not fit together, or the instruction set cannot run here.
    """
    _require("x", x, np.float32, (None,) * 4)
    batch, height, width, channels = x.shape
    desc = PoolDesc(
        kind=_choice("kind", kind, POOLS),
        kernel=_sizes("kernel", kernel, 2),
        strides=_sizes("strides", strides, 2),
        pads=_sizes("pads", pads, 4),
        dilations=_sizes("dilations", dilations, 2),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    library = load()
    out_height, out_width = _i64(), _i64()
    status = library.semisparse_pool_output_size(
        desc, height, width, ctypes.byref(out_height), ctypes.byref(out_width)
    )
    _check(status, LibraryError)
    y = np.empty((batch, out_height.value, out_width.value, channels), np.float32)
    with _Threads(threads) as parallel_for:
        status = library.semisparse_pool_run(
            desc,
            x.ctypes.data_as(_floats),
            batch,
            height,
            width,
            channels,
            y.ctypes.data_as(_floats),
            _encoded(isa),
            parallel_for,
            None,
        )
    _check(status, LibraryError)
    return y


def measure_fma(isa: str, seconds: float = 0.1) -> float:
    """FLOP/s of fused multiply-adds from registers on the calling thread (an FMA is 2).

    Raises:
        LibraryError: the time is out of range, or the instruction set cannot run here.
    """
    result = ctypes.c_double()
    _check(
        load().semisparse_measure_fma(_encoded(isa), seconds, ctypes.byref(result)), LibraryError
    )
    return result.value


def measure_copy(size: int, seconds: float = 0.1) -> float:
    """Bytes/s, read plus written, of copying a buffer of `size` bytes on the calling thread.

    Raises:
        LibraryError: the time is out of range, or the buffer cannot be allocated.
    """
    result = ctypes.c_double()
    _check(load().semisparse_measure_copy(size, seconds, ctypes.byref(result)), LibraryError)
    return result.value


class _Threads:
    """A `semisparse_parallel_for` over `threads` threads; one thread is the library's own loop."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ConfigError(f"threads is {threads}; give 1 or more.")
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Any:
        if self._pool is None:
            return _ParallelFor()
        pool = self._pool

        def parallel_for(ctx: Any, n: int, task: Any, arg: Any) -> None:
            list(pool.map(lambda index: task(arg, index), range(n)))

        return _ParallelFor(parallel_for)

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _enumerate(name_at: Any) -> dict[str, bool]:
    names: dict[str, bool] = {}
    usable = ctypes.c_int()
    while (name := name_at(len(names), ctypes.byref(usable))) is not None:
        names[name.decode()] = bool(usable.value)
    return names


def _last_error() -> str:
    return str(load().semisparse_last_error().decode())


def _check(status: int, error: type[LibraryError | MaskError]) -> None:
    if status != 0:
        raise error(_last_error())


def _choice(what: str, name: str, values: dict[str, int]) -> int:
    if name not in values:
        raise ConfigError(f"{what} is {name!r}; give one of {', '.join(values)}.")
    return values[name]


def _sizes(what: str, values: Sequence[int], count: int) -> tuple[int, ...]:
    if len(values) != count:
        raise ConfigError(f"{what} is {list(values)}; give {count} values.")
    return tuple(values)


def _encoded(name: str | None) -> bytes | None:
    return None if name is None else name.encode()


def _require(
    name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int | None, ...]
) -> None:
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype or not array.flags.c_contiguous:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        contiguous = "" if array.flags.c_contiguous else "non-contiguous "
        raise LibraryError(
            f"{name} is {contiguous}{array.dtype} of shape {list(array.shape)}; "
            f"give a C-contiguous {np.dtype(dtype)} array of shape [{wanted}]."
        )
