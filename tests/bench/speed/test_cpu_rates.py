"""The machine's rate: what the chains compute, and which rate counts."""

import numpy as np
import onnx
import pytest

from destseg_bench.speed import cpu_rates
from destseg_bench.speed.cpu_rates import LAYERS, Rate, chain, machine_rate, measure_cpu_rates
from destseg_deploy.runtime.offline import import_onnxruntime


@pytest.mark.parametrize("quantised", [False, True])
def test_a_chain_is_the_convolutions_that_are_counted(quantised):
    graph = chain(8, 6, quantised=quantised)
    onnx.checker.check_model(graph, full_check=True)
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == LAYERS
    kinds = {node.op_type for node in graph.graph.node}
    assert ("QuantizeLinear" in kinds) == quantised
    session = import_onnxruntime().InferenceSession(graph.SerializeToString())
    (found,) = session.run(None, {"x": np.ones((1, 8, 6, 6), np.float32)})
    assert found.shape == (1, 8, 6, 6)
    assert found.any(), "a chain of zeros could be skipped"


def test_the_fastest_call_of_each_library_counts(monkeypatch):
    monkeypatch.setattr(cpu_rates, "SHAPES", ((8, 8), (16, 8)))
    monkeypatch.setattr(cpu_rates, "SIDE", 16)

    def interleave(calls, **_):
        for call in calls.values():
            call()
        return {name: [9.0, 2.0 if "16 channels" in name else 1.0, 5.0] for name in calls}

    monkeypatch.setattr(cpu_rates, "interleave", interleave)
    found = {(one.precision, one.library): one for one in measure_cpu_rates()}
    assert {("fp32", "onnxruntime"), ("int8", "onnxruntime"), ("fp32", "torch")} <= set(found)
    best = found["fp32", "onnxruntime"]
    # Twice the channels are four times the work, here in twice the time.
    assert best.work == "3x3, 16 channels, 8x8"
    assert best.gmac_per_second == pytest.approx(LAYERS * 16**2 * 9 * 8**2 / 2 / 1e9)
    assert found["fp32", "torch"].gmac_per_second == pytest.approx(16**3 / 1e9)


def test_the_machines_rate_is_the_best_library_s():
    rates = [Rate("fp32", "a", "x", 3.0), Rate("fp32", "b", "y", 5.0), Rate("int8", "a", "z", 9.0)]
    assert machine_rate(rates, "fp32") == 5.0
    assert machine_rate(rates, "bf16") is None
