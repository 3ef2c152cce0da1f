"""The exporter's tests need its libraries; where one is not installed, none is collected."""

from importlib.util import find_spec

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
collect_ignore_glob = ["*"] if MISSING else []


def pytest_report_header():
    """Say why nothing was collected here."""
    return [f"tests/export is left out: no {', '.join(MISSING)}"] if MISSING else []
