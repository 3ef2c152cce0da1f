"""Which names and methods of TensorRT's our sources use, read from the sources.

A table says, for each file, which of its expressions hold which of TensorRT's classes. Everything
that is taken from such an expression is a use. ``check_complete`` sees to it that the table cannot
go stale: an object that TensorRT returns and nobody listed is an error, and so is a file.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODULE = "module"
LIBRARY = {
    name: MODULE
    for name in ("library", "self._library", "trt", "site.library", "graph.site.library")
}
ENGINE = {"self._engine": "ICudaEngine", "engine": "ICudaEngine"}
BUILDER = {"self.builder": "Builder", "graph.builder": "Builder"}
NETWORK = {"network": "INetworkDefinition", "self.network": "INetworkDefinition"}

RUNTIME, EXPORT = "destseg_deploy/runtime", "export/destseg_export"
HOLDERS = {
    f"{RUNTIME}/trt/library.py": {},
    f"{RUNTIME}/trt/engine.py": {
        **ENGINE,
        "self._runtime": "Runtime",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig?",
    },
    f"{RUNTIME}/trt/refit.py": {
        "opened": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
        "parser.get_error(index)": "ParserError",
    },
    f"{EXPORT}/engine/site.py": {},
    f"{EXPORT}/engine/builder.py": {
        **BUILDER,
        **NETWORK,
        "self._parser": "OnnxParser",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "error": "ParserError",
    },
    f"{EXPORT}/engine/progress.py": {},
    f"{EXPORT}/engine/layers.py": {
        **NETWORK,
        "layer": "ILayer",
        "layer.get_input(0)": "ITensor",
    },
    f"{EXPORT}/graph/architecture.py": NETWORK,
    f"{EXPORT}/engine/build.py": {
        **ENGINE,
        "runtime": "Runtime",
        "inspector": "EngineInspector",
    },
    f"{EXPORT}/engine/refit.py": {
        "runtime": "Runtime",
        "opened": "ICudaEngine",
        "config": "ISerializationConfig",
    },
}
"""File -> expression -> the class it holds. ``?``: only where that class exists."""

PLAIN = {"accepted", "missing", "built", "written", "low", "_", "high"}
"""What calls return that is no object of TensorRT's, or is one that the table lists."""

BY_NAME = {
    ("DataType", "HALF"), ("DataType", "BF16"), ("ComputeCapability", "SM86"),
    ("ComputeCapability", "SM89"), ("LayerType", "CONVOLUTION"),
}  # fmt: skip
"""Uses whose name is put together when the program runs."""

RTX_ONLY = {
    ("ComputeCapability", "SM86"), ("ComputeCapability", "SM89"),
    ("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"), ("IRuntimeConfig?", "cuda_graph_strategy"),
}  # fmt: skip
"""Uses that stand behind a probe, or behind the name of the builder."""

OVERRIDDEN = {
    "ILogger": ("log",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
}
"""Methods that our subclasses define and TensorRT calls."""


@dataclass
class Uses:
    """``needed``: (class, name) that every release must have. ``probed``: asked for first."""

    needed: set[tuple[str, str]] = field(default_factory=set)
    probed: set[tuple[str, str]] = field(default_factory=set)
    defined: set[tuple[str, str]] = field(default_factory=set)


def read_uses(text: str, holders: dict[str, str]) -> Uses:
    """Return what a source uses; see ``HOLDERS``."""
    tree, uses, held = ast.parse(text), Uses(), {**LIBRARY, **holders}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (kind := _kind(node.value, held)):
            uses.needed.add((kind, node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            if (kind := _kind(node.args[0], held)) and isinstance(node.args[1], ast.Constant):
                uses.probed.add((kind, node.args[1].value))
        elif isinstance(node, ast.ClassDef):
            uses.defined |= set(_defined(node, held))
    uses.needed -= uses.probed
    return uses


def unlisted(text: str, holders: dict[str, str]) -> list[str]:
    """Return names that hold what TensorRT returned and that the table does not know."""
    held, found = {**LIBRARY, **holders}, []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign) or not _comes_from(node.value, held):
            continue
        for target in node.targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            texts = [ast.unparse(name) for name in names]
            found += [name for name in texts if name not in held and name not in PLAIN]
    return found


def speaks_to_tensorrt(text: str) -> bool:
    """Whether a source takes anything from a TensorRT module, and not from another library."""
    ours = any(word in text for word in ("ModuleType", "trt_library", "engine_site"))
    return ours and any(kind == MODULE for kind, _ in read_uses(text, {}).needed)


def sources() -> list[Path]:
    """Return all files of the two packages that may speak to TensorRT."""
    return sorted((*(ROOT / RUNTIME).rglob("*.py"), *(ROOT / EXPORT).rglob("*.py")))


def all_uses() -> Uses:
    """Return what all files of the table use together."""
    total = Uses(needed=set(BY_NAME))
    for name, holders in HOLDERS.items():
        uses = read_uses((ROOT / name).read_text(), holders)
        total.needed |= uses.needed
        total.probed |= uses.probed
        total.defined |= uses.defined
    total.needed -= total.probed
    return total


def _kind(value: ast.expr, held: dict[str, str]) -> str | None:
    """Return the class that an expression holds: from the table, or ``library.Class`` itself."""
    if kind := held.get(ast.unparse(value)):
        return kind
    if isinstance(value, ast.Attribute) and held.get(ast.unparse(value.value)) == MODULE:
        return value.attr
    return None


def _defined(node: ast.ClassDef, held: dict[str, str]) -> Iterator[tuple[str, str]]:
    for base in node.bases:
        if kind := _kind(base, held) or (isinstance(base, ast.Attribute) and base.attr):
            methods = (each.name for each in node.body if isinstance(each, ast.FunctionDef))
            yield from ((str(kind), name) for name in methods)


def _comes_from(value: ast.expr, held: dict[str, str]) -> bool:
    """Whether a value is what a call of an object of TensorRT's returned, bare or in a call."""
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Attribute) and _kind(value.func.value, held):
        return True
    wrapped = ast.unparse(value.func) == "self._must"
    return wrapped and any(_comes_from(each, held) for each in value.args)
