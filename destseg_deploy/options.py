"""Where an artifact runs, and what may be chosen about it: one dataclass for each back end.

``destseg_deploy.load`` takes them, and the options of the commands are made from them: every field
carries its help, its choices and its bounds (``option``). The defaults are right for a PC
that does nothing else. A value out of range is refused when the object is made; what depends on
the machine or the artifact is refused when the artifact is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, DestsegError

T = TypeVar("T")

BACKENDS = ("onnxruntime", "openvino", "tensorrt", "pytorch", "server")

MOST_THREADS = 1024
"""The most threads, and calls at a time: a back end that is asked for millions ends the process."""


def option(
    default: T,
    text: str,
    *,
    choices: Sequence[str] = (),
    between: tuple[int, int] | None = None,
    device: str | None = None,
    metavar: str | None = None,
    unset: str | None = None,
    name: str | tuple[str, ...] | None = None,
) -> T:
    """Return a dataclass field that also says what the command line needs to know.

    Args:
        default: Its value unless given.
        text: What it does; the help of the command's option.
        choices: The only values it takes; or its type is a ``Literal`` of them.
        between: Smallest and largest number it takes; None for any.
        device: Kind of device it is for; None for all that the back end has.
        metavar: What the help writes for its value.
        unset: What the default stands for, where the value itself does not say it.
        name: Name of the command's option, or several names; the field's unless given.
    """
    said: dict[str, Any] = {
        "text": text,
        "choices": tuple(choices),
        "between": between,
        "device": device,
    }
    said |= {"metavar": metavar, "unset": unset}
    said["name"] = (name,) if isinstance(name, str) else name
    found: T = field(default=default, metadata=said)
    return found


@dataclass(frozen=True)
class Checked:
    """Options whose fields are checked by their types, and by what ``option`` says of them."""

    error: ClassVar[type[DestsegError]] = BackendError
    """What is raised where a value is refused."""

    def __post_init__(self) -> None:
        """Refuse values of another type, not among the choices, or out of range.

        Paths and devices may be given as text.

        Raises:
            DestsegError: Of the class ``error``, with the field, its value, and what was expected.
        """
        hints = get_type_hints(type(self))
        for one in fields(self):
            hint = hints[one.name]
            value = _read(getattr(self, one.name), hint)
            object.__setattr__(self, one.name, value)
            if not _is_of(value, hint):
                kind = " or ".join(_type_names(hint))
                raise self.error(
                    f"{one.name} {value!r}: got {type(value).__name__}, expected {kind}."
                )
            choices, between = choices_of(one, hint), one.metadata.get("between")
            if choices and value is not None and value not in choices:
                raise self.error(f"{one.name} {value!r}: expected {' or '.join(choices)}.")
            # NaN is within no range.
            if between and value is not None and not between[0] <= value <= between[1]:
                raise self.error(f"{one.name}: {value}, expected {between[0]} to {between[1]}.")


def choices_of(one: Field[Any], hint: Any) -> tuple[str, ...]:
    """Return the only values that a field of a type takes; empty if it takes others."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    found: tuple[str, ...] = one.metadata.get("choices", ())
    return found


def _read(value: object, hint: Any) -> object:
    """Return a value, text as the path or the device that the field holds."""
    if not isinstance(value, str) or not value.strip():
        return value
    if hint is Device:
        return Device.parse(value)
    return Path(value) if Path in get_args(hint) else value


def _is_of(value: object, hint: Any) -> bool:
    """Tell whether a value has a field's type: a class, a union, or a tuple of one type."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(v, get_args(hint)[0]) for v in value)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if isinstance(hint, UnionType):
        return any(_is_of(value, one) for one in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    # A bool is an int in Python, and no number of threads.
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_names(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return ["str"]
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return ["None" if p is type(None) else str(p) if get_args(p) else p.__name__ for p in parts]


def check_device(options: Options, device: Device) -> None:
    """Refuse options that mean nothing on a device, because nobody would read them.

    Raises:
        BackendError: If an option differs from its default and is for another kind of device.
    """
    for one in fields(options):
        kind = one.metadata["device"]
        if kind not in (None, device.kind) and getattr(options, one.name) != one.default:
            raise BackendError(
                f"{one.name}: an option for device '{kind}', and the device is '{device}'. Drop "
                f"{one.name}, or pass device '{kind}'."
            )


@dataclass(frozen=True)
class OrtOptions(Checked):
    """How ONNX Runtime runs a graph."""

    threads: int = option(
        0,
        "Threads within an operator on the CPU.",
        between=(0, MOST_THREADS),
        unset="ONNX Runtime's choice",
    )
    arena: bool = option(
        True,
        "Keep the memory of a call for the next one. Without it, little more than the weights is "
        "held between calls, and each call takes longer.",
        device="cpu",
    )
    spinning: bool = option(
        True,
        "Let threads look for work for a while before they sleep. It is fastest where the cores "
        "are free; on a PC shared with other programs it takes their time.",
        device="cpu",
    )
    worker_cores: tuple[int, ...] = option(
        (),
        "Logical processors, counted from 0, that the threads beside the calling one are pinned "
        "to, one each. The calling thread stays where the host puts it.",
        device="cpu",
        metavar="N[,N...]",
        unset="not pinned",
    )
    cuda_graph: bool = option(
        False,
        "Record a CUDA graph for each batch size at its first use, and replay it. Calls then run "
        "one after the other.",
        device="cuda",
    )
    tf32: bool = option(
        False,
        "Let the GPU round float32 factors to TF32 (10 bits of mantissa): faster, and the scores "
        "change a little.",
        device="cuda",
    )
    prefer_nhwc: bool = option(
        False,
        "Let the CUDA provider run convolutions with channels last (NHWC), which can be faster "
        "in half precision.",
        device="cuda",
    )
    tensorrt: bool = option(
        False,
        "Run the graph with ONNX Runtime's TensorRT provider. The first start builds an engine, "
        "which takes minutes; later ones read it from the cache.",
        device="cuda",
    )
    cache: Path | None = option(
        None,
        "With the TensorRT provider: folder for its engines.",
        device="cuda",
        unset=".trt-cache beside the artifact",
    )

    def __post_init__(self) -> None:
        """Refuse values that are out of range or contradict each other.

        Raises:
            BackendError: With what to change.
        """
        super().__post_init__()
        cores = self.worker_cores
        if len(set(cores)) < len(cores):
            raise BackendError(
                f"worker_cores {cores}: one is named twice, expected each at most once. Two "
                "threads on one core wait for each other."
            )
        if cores and self.threads not in (0, len(cores) + 1):
            raise BackendError(
                f"threads: {self.threads}, expected {len(cores) + 1} with {len(cores)} "
                "worker_cores: the calling thread is one more. Drop threads, or name other cores."
            )
        if self.cache is not None and not self.tensorrt:
            raise BackendError(
                f"cache {self.cache}: it is for the engines of the TensorRT provider. Pass "
                "tensorrt=True, too, or drop it."
            )
        if self.prefer_nhwc and self.tensorrt:
            raise BackendError(
                "prefer_nhwc: it is for convolutions of the CUDA provider, and with tensorrt "
                "TensorRT runs them all. Drop one of the two."
            )


@dataclass(frozen=True)
class OpenVinoOptions(Checked):
    """How OpenVINO runs a graph."""

    threads: int = option(
        0,
        "CPU threads of all streams together.",
        between=(0, MOST_THREADS),
        device="cpu",
        unset="OpenVINO's choice",
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32",
        "bf16 is about twice as fast where the CPU computes in it, and scores differ by up to a "
        "tenth; set the threshold in the precision that runs. Layers that the artifact "
        "holds in INT8 run in INT8 either way.",
    )
    hint: Literal["latency", "throughput"] = option(
        "latency",
        "latency gives all cores to one call, throughput runs several calls at the same time.",
    )
    streams: int = option(
        0,
        "Calls that run at the same time, each on its share of the cores.",
        between=(0, MOST_THREADS),
        unset="what the hint brings",
    )
    pinning: bool | None = option(
        None,
        "Keep each thread on its core.",
        device="cpu",
        unset="OpenVINO's choice",
    )
    cache: Path | None = option(
        None,
        "Folder for compiled models, made if missing; the next start is faster. Each is as large "
        "as the artifact; its hash and a known answer are checked before it is used.",
        unset="no cache",
    )


@dataclass(frozen=True)
class TensorRtOptions(Checked):
    """How TensorRT runs an engine."""

    binding: Literal["auto", "torch", "cuda.core", "pycuda", "driver"] = option(
        "auto",
        "How CUDA is reached. driver needs no package; auto takes torch where the process has "
        "loaded it, else the first of cuda.core, pycuda and driver that is installed.",
    )
    contexts: int = option(
        2,
        "Calls that run at the same time, each with memory of its own; 2 let copies overlap with "
        "computing.",
        between=(1, MOST_THREADS),
    )
    cuda_graph: bool = option(True, "Record a CUDA graph for each batch size and replay it.")


@dataclass(frozen=True)
class TorchOptions(Checked):
    """How PyTorch runs a checkpoint."""

    threads: int = option(
        0,
        "Threads within an operator on the CPU. PyTorch has one number for the whole process.",
        between=(0, MOST_THREADS),
        device="cpu",
        unset="PyTorch's choice",
    )
    tf32: bool = option(
        False,
        "Let the GPU's convolutions round float32 factors to TF32 (10 bits of mantissa): faster, "
        "and the scores change a little.",
        device="cuda",
    )
    precision: Literal["fp32", "fp16", "bf16"] = option(
        "fp32",
        "fp32 runs the checkpoint as it was trained. fp16 and bf16 fold BatchNorm and round the "
        "weights once; what half cannot hold stays float32. Answers are compared with float32's "
        "before the model is used, and refused if they differ too much.",
    )
    cuda_graph: bool = option(
        True,
        "In fp16 or bf16, record a CUDA graph for each batch size and replay it.",
        device="cuda",
    )
    verify_images: Path | None = option(
        None,
        "Folder with images of the part on which fp16 or bf16 is compared with float32.",
        unset="the training data's test images, or drawn ones",
    )

    def __post_init__(self) -> None:
        """Refuse values that are out of range or that nobody would read.

        Raises:
            BackendError: With what to change.
        """
        super().__post_init__()
        for name in ("cuda_graph", "verify_images"):
            default = getattr(TorchOptions, name)
            if self.precision == "fp32" and getattr(self, name) != default:
                raise BackendError(
                    f"{name} {getattr(self, name)}: it is for precision fp16 or bf16, and the "
                    f"precision is fp32. Drop {name}, or pass another precision."
                )


@dataclass(frozen=True)
class ServerOptions(Checked):
    """Which server runs an artifact in place of this machine (KServe's protocol V2)."""

    url: str = option(
        "",
        "Address of a server that speaks KServe V2, such as Triton, OpenVINO Model Server or "
        "destseg page. The server computes; the local spec sets OK or NG. http, https, grpc or "
        "grpcs.",
        metavar="http://HOST:PORT",
        unset="none; this machine computes",
    )
    model: str = option(
        "", "Name of the model there.", metavar="NAME", unset="the artifact's, without its suffix"
    )
    timeout: float = option(30.0, "Seconds that an answer may take.", between=(0, 24 * 3600))

    def __post_init__(self) -> None:
        """Refuse an address that cannot be asked.

        Raises:
            BackendError: With what was expected.
        """
        super().__post_init__()
        if "@" in self.url:  # not shown: it may hold a password, and errors end up in logs
            raise BackendError(
                "url: holds a user or a password (@), which is not supported. Expected "
                "http://HOST:PORT; put a proxy that knows the password before the server."
            )
        if not _is_server(self.url):
            raise BackendError(
                f"url {self.url!r}: expected http://HOST:PORT or grpc://HOST:PORT of a server that "
                "speaks KServe's protocol V2. Triton answers HTTP on port 8000, gRPC on 8001."
            )
        if self.timeout == 0:
            raise BackendError("timeout: 0, expected seconds above 0.")


def _is_server(url: str) -> bool:
    """Tell whether an address can be asked. gRPC has no usual port, and no paths."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none
        return False
    if not parts.hostname or port == 0 or parts.query:
        return False
    if parts.scheme in ("grpc", "grpcs"):
        return port is not None and parts.path in ("", "/")
    return parts.scheme in ("http", "https")


Options = OrtOptions | OpenVinoOptions | TensorRtOptions | TorchOptions | ServerOptions
