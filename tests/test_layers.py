"""Who may import whom: the table that keeps the house in rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "destseg_deploy": ROOT / "destseg_deploy",
    "destseg_export": ROOT / "export/destseg_export",
    "destseg_bench": ROOT / "benchmarks/destseg_bench",
}
BASE = {"errors"}
FORMS = BASE | {"atomic", "spec"}
MEASURES = {"ranking", "metrics", "thresholds"}
ROOMS = {
    "errors": set(),
    "atomic": set(),
    "environment": set(),
    "spec": {"errors", "atomic"},
    "ranking": BASE,
    "metrics": BASE | {"ranking"},
    "thresholds": FORMS | {"ranking", "metrics"},
    "data": FORMS,
    "models": FORMS | {"data"},
    "runtime": FORMS | {"data", "ranking", "metrics", "models"},
    "predictor": FORMS | {"data", "runtime"},
    "evaluation": FORMS | MEASURES | {"data", "runtime"},
    "captions": BASE,
    "visualize": BASE | {"atomic", "captions"},
    "prediction": FORMS | {"data", "runtime", "predictor", "visualize"},
    "judging": FORMS | MEASURES | {"data", "runtime", "predictor", "evaluation"},
    "recipe": BASE | {"data"},
    "curve_plot": FORMS | MEASURES | {"data", "runtime", "evaluation"},
    "worst_errors": FORMS | MEASURES | {"captions", "data", "runtime", "evaluation", "visualize"},
    "evaluation_report": FORMS
    | MEASURES
    | {"data", "runtime", "predictor", "evaluation", "visualize", "curve_plot", "worst_errors"},
    "training": FORMS
    | MEASURES
    | {"data", "models", "runtime", "predictor", "evaluation", "recipe"},
    "console": BASE,
}
"""Room -> rooms of destseg_deploy that it may import; ``cli`` may import all."""

HEAVY = {
    "torch",
    "safetensors",
    "onnx",
    "onnxruntime",
    "click",
    "tensorrt",
    "tensorrt_rtx",
    "openvino",
    "pycuda",
    "cuda",
    "matplotlib",
    "tensorboard",
}
MAY_NEED = {
    "data/loader": {"torch"},
    "data/feed": {"torch"},
    "data/synthesis_torch": {"torch"},
    "data/texture_bank": {"torch"},
    "models": {"torch", "safetensors"},
    "runtime/pytorch": {"torch"},
    "runtime/ort": {"onnxruntime"},
    "runtime/openvino_runtime": {"openvino"},
    "runtime/device_torch": {"torch"},
    "runtime/device_cuda_core": {"cuda"},
    "runtime/device_pycuda": {"pycuda"},
    "predictor": {"torch"},
    "training": {"torch", "safetensors"},
    "curve_plot": {"matplotlib"},
    "console": {"click"},
    "cli": {"click"},
}
"""Room or file -> heavy packages it may import; ``predictor`` only asks whether torch is there."""


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
    assert heavy <= MAY_NEED.get("/".join(parts), set()) | MAY_NEED.get(room, set())
    if room in ("__init__", "cli"):
        return
    rooms = {n.split(".")[1] for n in imported if n.startswith("destseg_deploy.")} - {room}
    assert rooms <= ROOMS[room], f"{path}: {rooms - ROOMS[room]} is not below {room}"


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
