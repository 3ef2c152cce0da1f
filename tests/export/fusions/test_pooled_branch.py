"""The pooled branch outside of the fusion convolution: nine border variants."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.macs import count_macs
from destseg_export.fusions.pooled_branch import take_out_pooled_branch
from tests.export.fusions.cases import (
    ROUNDING,
    change_constant,
    difference,
    operators,
    rewritten,
    run,
    upsampled_convolution,
    upsampled_feed,
)

POINT = {"small": (1, 1), "large": (8, 20)}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_answers_stay(count, bias):
    graph = upsampled_convolution(3, bias=bias, **POINT)
    taken_out, outcome = rewritten(graph, take_out_pooled_branch)
    assert "Resize" not in operators(taken_out)
    assert outcome.changed == ("node_y",)
    assert count_macs(taken_out) < count_macs(graph)
    assert difference(graph, taken_out, **upsampled_feed(count, **POINT)) < ROUNDING


def test_there_are_nine_variants():
    """What the branch adds differs at four corners, along four edges and inside, nowhere else."""
    graph = upsampled_convolution(3, **POINT)
    feed = upsampled_feed(1, **POINT)
    feed["a"] = np.zeros_like(feed["a"])
    (answer,) = run(rewritten(graph, take_out_pooled_branch)[0], **feed)
    patterns = {tuple(np.round(answer[0, :, i, j], 5)) for i in range(8) for j in range(20)}
    assert len(patterns) == 9


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_wrong_border_variant_is_seen(axis):
    graph = upsampled_convolution(3, **POINT)
    taken_out, _ = rewritten(graph, take_out_pooled_branch)
    (name,) = [t.name for t in taken_out.graph.initializer if t.name.endswith(f"_{axis}")]

    def as_inside(matrix):
        matrix[:] = 1
        return matrix

    wrong = change_constant(taken_out, name, as_inside)
    assert difference(graph, wrong, **upsampled_feed(1, **POINT)) > 0.1


def test_larger_planes_are_not_its_affair():
    graph = upsampled_convolution(3)
    left, outcome = rewritten(graph, take_out_pooled_branch)
    assert operators(left) == operators(graph)
    assert outcome.changed == ()
