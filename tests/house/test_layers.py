"""Who may import whom: the table that keeps the house in rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "destseg_deploy": ROOT / "destseg_deploy",
    "destseg_export": ROOT / "export/destseg_export",
    "destseg_bench": ROOT / "benchmarks/destseg_bench",
}
BASE = {"environment", "errors", "files", "locks", "memory", "spec", "text"}
ROOMS = {
    "at_start": set(),
    "errors": set(),
    "environment": set(),
    "device": {"errors"},
    "options": {"device", "errors"},
    "text": set(),
    "locks": {"errors"},
    "memory": {"errors"},
    "files": {"errors", "locks"},
    "spec": {"errors", "files", "locks", "text"},
    "pictures": {"errors", "files", "locks", "spec", "text"},
    "web": {"errors"},
    "data": BASE,
    "models": BASE | {"data"},
    "runtime": BASE | {"device", "options", "data", "models"},
    "predictor": BASE | {"data", "runtime"},
    "tuning": BASE | {"environment", "options", "runtime"},
    "loading": BASE | {"device", "options", "runtime", "predictor", "tuning"},
    "predict_files": BASE | {"data", "runtime", "predictor", "pictures"},
    "cluster": BASE | {"data", "device", "options"},
    "archive": BASE
    | {"cluster", "data", "device", "options", "runtime", "predictor", "loading", "environment"},
    "evaluation": BASE | {"data", "runtime", "predictor", "pictures", "web"},
    "testing": {"spec", "data", "runtime", "evaluation"},
    "thresholds": BASE | {"data", "predictor", "evaluation"},
    "serving": BASE | {"data", "runtime", "predictor", "thresholds", "web"},
    "training": BASE
    | {
        "cluster",
        "data",
        "device",
        "models",
        "options",
        "runtime",
        "predictor",
        "evaluation",
        "thresholds",
    },
}
"""Room -> rooms of destseg_deploy that it may import; ``cli`` may import all."""

HEAVY = {
    "torch",
    "safetensors",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "click",
    "tensorrt",
    "tensorrt_rtx",
    "openvino",
    "nncf",
    "pycuda",
    "cuda",
    "matplotlib",
    "tensorboard",
    "starlette",
    "uvicorn",
    "pyarrow",
    "ray",
    "grpc",
    "google",
}
MAY_NEED = {
    "models": {"torch", "safetensors"},
    "runtime/torch_runtime": {"torch"},
    "runtime/offline": {"onnxruntime", "openvino", "nncf"},
    "runtime/torch_gpu": {"torch"},
    "runtime/server/over_grpc": {"grpc", "google"},
    "runtime/cuda/torch_device": {"torch"},
    "runtime/cuda/cuda_core_device": {"cuda"},
    "runtime/cuda/pycuda_device": {"pycuda"},
    "training": {"torch", "safetensors"},
    "evaluation/curves": {"matplotlib"},
    "archive": {"pyarrow"},
    "cluster/connection": {"ray"},
    "serving/app": {"starlette"},
    "serving/server": {"uvicorn"},
    "cli": {"click"},
}
"""Room or file -> heavy packages it may import."""


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(package: str) -> list[Path]:
    return sorted(SOURCES[package].rglob("*.py"))


@pytest.mark.parametrize("path", _files("destseg_deploy"), ids=lambda p: p.stem)
def test_rooms_import_only_what_the_table_allows(path):
    parts = path.relative_to(SOURCES["destseg_deploy"]).with_suffix("").parts
    room = parts[0]
    imported = _imports(path)
    others = {
        name for name in imported if name.split(".")[0] in ("destseg_export", "destseg_bench")
    }
    assert not others, f"{path} imports {others}"
    heavy = {name.split(".")[0] for name in imported} & HEAVY
    places = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    assert heavy <= set().union(*(MAY_NEED.get(place, set()) for place in places))
    if room in ("__init__", "cli"):
        return
    rooms = {n.split(".")[1] for n in imported if n.startswith("destseg_deploy.")} - {room}
    assert rooms <= ROOMS[room], f"{path}: {rooms - ROOMS[room]} is not below {room}"


def test_what_reports_to_its_maker_is_imported_in_one_place():
    """It switches the reports off, so an import elsewhere may come first and leave them on."""
    found = {
        path.name
        for package in SOURCES
        for path in _files(package)
        if {name.split(".")[0] for name in _imports(path)} & {"onnxruntime", "openvino", "nncf"}
    }
    assert found == {"offline.py"}


def test_the_exporter_and_the_benchmark_do_not_know_each_other():
    for package, other in (
        ("destseg_export", "destseg_bench"),
        ("destseg_bench", "destseg_export"),
    ):
        for path in _files(package):
            assert not any(name.startswith(other) for name in _imports(path)), path


def test_the_table_has_no_cycle():
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {room for room, below in ROOMS.items() if below <= done} - done
        assert ready, f"a cycle among {set(ROOMS) - done}"
        done |= ready


def test_no_module_is_named_like_a_package_it_imports():
    for package in SOURCES:
        for path in _files(package):
            assert path.stem not in {name.split(".")[0] for name in _imports(path)}, path
