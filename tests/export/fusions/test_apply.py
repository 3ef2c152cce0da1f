"""The whole served graph, fused: answers, contract, savings, and what a broken fusion does."""

import json

import numpy as np
import onnx
import pytest

from destseg_deploy.errors import ExportError
from destseg_export.fusions.apply import DEFAULT, FUSIONS, fuse
from tests.export.fusions.cases import change_constant, difference, operators, run

ROUNDING = 5e-5
"""The random network amplifies float32 rounding; plain graphs differ from PyTorch by as much."""


@pytest.fixture(scope="module")
def plain(onnx_artifact):
    return onnx.load(onnx_artifact)


@pytest.fixture(scope="module")
def fused(plain):
    return fuse(plain)


@pytest.mark.parametrize("count", [1, 3])
def test_the_answers_stay(plain, fused, frames, count):
    assert difference(plain, fused[0], image=frames[:count]) < ROUNDING
    assert np.ptp(run(plain, image=frames[:count])[0]) > 0.1


def test_the_same_graph_gives_the_same_bytes(plain, fused):
    again, _ = fuse(plain)
    same = fused[0].SerializeToString(deterministic=True)
    assert again.SerializeToString(deterministic=True) == same


def test_the_contract_stays(plain, fused):
    graph, _ = fused
    assert list(graph.graph.input) == list(plain.graph.input)
    assert list(graph.graph.output) == list(plain.graph.output)
    assert json.loads(graph.metadata_props[0].value) == json.loads(plain.metadata_props[0].value)
    assert graph.opset_import == plain.opset_import


def test_every_fusion_finds_its_pattern(fused):
    """A fusion that silently no longer applies is the commonest failure of export tools."""
    changed = {fusion.name: len(fusion.changed) for fusion in fused[1]}
    assert changed["resizes"] == 8
    assert changed["normalization"] == 3
    assert changed["stems"] == 6
    assert changed["products"] >= 12
    assert changed["pooled-branch"] == 1
    assert changed["shortcuts"] == 4
    assert changed["kernels"] == 1
    assert changed["kernels-twofold"] == 4
    assert [f.name for f in fused[1]] == [name for name in FUSIONS if name in DEFAULT]


def test_one_teacher_pass_and_no_batch_norm(plain, fused):
    """So by construction: the export twin runs it once, of folded norms."""
    for graph in (plain, fused[0]):
        assert "BatchNormalization" not in operators(graph)
    names = [t.name for t in plain.graph.initializer if "teacher_net" in t.name]
    readers = [sum(name in n.input for n in plain.graph.node) for name in names]
    assert set(readers) == {1}


def test_savings_are_those_of_the_report(fused):
    """At 64 px the planes are small; shares are those of any size up to the borders' matrices."""
    before = fused[1][0].macs_before
    after = fused[1][-1].macs_after
    assert after < 0.86 * before
    for fusion in fused[1]:
        if fusion.name in ("pooled-branch", "shortcuts", "kernels", "kernels-twofold"):
            assert fusion.macs_after < fusion.macs_before
    pooled = next(f for f in fused[1] if f.name == "pooled-branch")
    assert pooled.macs_before - pooled.macs_after > 0.055 * before


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("div_1_mean", np.zeros_like),
        ("_sign", np.negative),
        ("_small0_rows", np.ones_like),
        ("_columns", lambda m: np.roll(m, 1, axis=0)),
    ],
)
def test_a_broken_fusion_is_seen(plain, fused, frames, ending, change):
    names = [t.name for t in fused[0].graph.initializer if t.name.endswith(ending)]
    wrong = change_constant(fused[0], names[-1], change)
    assert difference(plain, wrong, image=frames) > 10 * ROUNDING


def test_a_camera_graph_with_a_fixed_batch_and_another_opset(camera):
    """Resize in the graph, batch of exactly 2, opset 23, maps of another size."""
    plain = onnx.load(camera)
    graph, report = fuse(plain)
    assert {f.name for f in report if not f.changed} <= {"duplicates", "optimizer"}
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    assert difference(plain, graph, image=images) < ROUNDING


def test_single_fusions_can_be_chosen(plain):
    graph, report = fuse(plain, ["products"])
    assert [f.name for f in report] == ["products"]
    assert operators(graph).count("Conv") == operators(plain).count("Conv")
    with pytest.raises(ExportError, match="fusion 'prodcts': expected one of resizes"):
        fuse(plain, ["prodcts"])


def test_fusing_twice_changes_nothing_more(fused, frames):
    again, report = fuse(fused[0])
    heavy = ("pooled-branch", "shortcuts", "products", "stems", "normalization")
    assert [f.changed for f in report if f.name in heavy] == [()] * 5
    assert difference(fused[0], again, image=frames) < ROUNDING


def test_the_plain_graph_is_not_touched(plain):
    before = operators(plain), [t.name for t in plain.graph.initializer]
    fuse(plain, ["products", "resizes"])
    assert (operators(plain), [t.name for t in plain.graph.initializer]) == before


def test_epsilons_stay(plain, fused):
    """Without them a pixel of zeros is NaN; the optimizer would drop them."""

    def guarded(model):
        return sum("norm_epsilon" in n.input for n in model.graph.node)

    assert guarded(fused[0]) == guarded(plain)
