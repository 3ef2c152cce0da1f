"""Which extra of this project brings a package that is missing."""

from __future__ import annotations

EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "onnxruntime",
    "matplotlib": "plots",
    "tensorboard": "tensorboard",
    "openvino": "openvino",
    "nncf": "nncf",
    "cuda": "cuda",
    "tensorrt_rtx": "rtx",
    "starlette": "page",
    "uvicorn": "page",
    "pyarrow": "archive",
    "ray": "ray",
}
"""Package -> the extra that holds it."""

OURS = ("destseg_deploy", "destseg_export", "destseg_bench")


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Say in a line what to install; None where a module of ours is missing, which is a fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", *OURS):
        return None
    wanted = "pip install 'destseg-deploy[{}]'"
    if package in EXTRAS:
        return (
            f"this command needs {package}, which is not installed. "
            f"{wanted.format(EXTRAS[package])}, or use a Python that has it."
        )
    return (
        f"this command needs {package}, which is not installed. {wanted.format('all')}, or use a "
        "Python that has it."
    )
