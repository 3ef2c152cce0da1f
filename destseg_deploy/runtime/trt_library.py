"""The TensorRT that is installed: ``tensorrt`` 10 and 11, or ``tensorrt_rtx``, one API here.

Both modules offer the same names for all that this project calls (``tests/export/test_trt_api.py``
holds it against several releases), so whoever needs TensorRT takes the module from here.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from destseg_deploy.errors import BackendError

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""What a user and a spec call a builder -> its module, under either name.

NVIDIA's wheels with the libraries and the bindings give the second name; a package that is made at
installation adds the first, and is not there where only wheels may be installed.
"""

INSTALL = {
    "tensorrt": "pip install tensorrt (10 or 11, with NVIDIA's libraries)",
    "tensorrt-rtx": "pip install 'destseg-deploy[rtx]'",
}


def load_library(builder: str) -> ModuleType:
    """Import a builder's module.

    Args:
        builder: One of ``MODULES``.

    Raises:
        BackendError: If it is unknown, not installed, or its libraries do not load.
    """
    if builder not in MODULES:
        raise BackendError(f"builder {builder!r}: expected one of {', '.join(MODULES)}.")
    failure: Exception | None = None
    for name in MODULES[builder]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: NVIDIA's placeholders
            failure = _telling(failure, error)
    reason = " ".join(str(failure).split())[:160]
    raise BackendError(
        f"{builder} is not usable here ({reason}). Install it: {INSTALL[builder]}"
    ) from failure


def library_version(library: ModuleType) -> str:
    """Return the version of a builder's module, such as ``11.4.0.106``."""
    return str(library.__version__)


def _telling(first: Exception | None, second: Exception) -> Exception:
    """Return which of two failures to tell: a library that does not load, not a missing name."""
    keep = first is not None and isinstance(second, ModuleNotFoundError)
    return first if keep and first is not None else second
