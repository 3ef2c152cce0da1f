"""Many inferences, flat memory. DESTSEG_CPP_ROUNDS sets how many; 100,000 were run by hand.

Every other one is a ticket's, on a thread of the library. With 2026.4, OpenVINO's own memory grew
by 130 bytes with each inference on threads that take turns, in a loop around its C API alone, too;
so inferences run on OpenVINO's thread, where 400,000 add 4 KiB. On the host's, these 20,000 rounds
add 1,456 KiB.
"""

import os

import pytest

from tests.cpp.library import run

MOST_KIB = 256
ROUNDS = int(os.environ.get("DESTSEG_CPP_ROUNDS", "20000"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_memory_stays_flat(stress, library, packing, engine, backend):
    """After a tenth of the rounds, the resident memory hardly grows."""
    library.need(backend)
    artifact = engine if backend == "tensorrt" else packing[0]
    environment = {**os.environ, "DESTSEG_STRESS_BACKEND": backend}
    early, late = map(int, run(stress, "memory", artifact, ROUNDS, env=environment).stdout.split())
    print(f"{backend}: {early} KiB after {ROUNDS // 10}, {late} KiB after {ROUNDS}")
    assert early > 1000
    assert late - early < MOST_KIB
