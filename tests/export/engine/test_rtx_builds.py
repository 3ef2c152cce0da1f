"""TensorRT-RTX itself builds the exported graphs, without a GPU, and refuses as it should."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from destseg_deploy.errors import BackendError, ExportError
from destseg_deploy.runtime.trt.library import load_library
from destseg_deploy.spec import ModelSpec, spec_path
from destseg_export.engine.build import build_engine
from destseg_export.engine.header import read_header
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import known_targets, open_site
from destseg_export.studies.builds import measure_build, write_graph
from tests.export.engine.cases import tiny_graph, write_model
from tests.unchanged import unchanged

ROOT = Path(__file__).resolve().parents[3]
TARGETS = ("sm_86", "sm_89")


@pytest.fixture(scope="module", autouse=True)
def rtx():
    try:
        return load_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(f"{error} (make builders)")


@pytest.fixture
def engine(tmp_path):
    return tmp_path / "out/cable-fp16.engine"


# --- the real model, all ways it is shipped


@pytest.fixture(scope="module")
def large(full_size, model):
    """The graph and spec of ``full_size`` for a camera of 1024 x 1024 pixels, traced."""
    from destseg_export.to_onnx import trace

    spec = full_size[1]
    spec = replace(spec, input=replace(spec.input, height=1024, width=1024))
    return trace(model, spec, 18), spec


@pytest.fixture(params=["full_size", "large"])
def traced(request):
    """The real architecture at its real size, its pixels 256 x 256 or a camera's, traced."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("precision", "half"), [("fp32", 0), ("fp16", 63)])
def test_the_real_model_builds(precision, half, traced):
    with (
        open_site("tensorrt-rtx", TARGETS) as site,
        write_graph(*traced, precision) as (path, spec),
    ):
        row = measure_build(path, spec, site)
    assert (row["convolutions"], row["half_convolutions"]) == (66, half)
    # An engine holds its weights, hardly more, and in their precision.
    assert row["onnx_bytes"] < row["engine_bytes"] < 1.2 * row["onnx_bytes"]
    assert (row["engine_bytes"] < 100e6) == (precision == "fp16")
    # A refit finds every weight by the name that it has in the file.
    assert row["weights"] > 130
    assert row["unmatched_weights"] == []


# --- whole builds of small graphs


def test_an_engine_built_ahead_says_that_it_was_not_run(engine, tmp_path):
    model = write_model(tmp_path)
    spec = build_engine(model, engine, options=BuildOptions(targets=("sm89", "8.6")))
    assert sorted(engine.parent.iterdir()) == [engine, spec_path(engine)]
    record = ModelSpec.read(engine).engine
    assert (record.builder, record.gpu, record.targets) == ("tensorrt-rtx", None, TARGETS)
    assert (record.convolutions, record.half_convolutions) == (2, 2)
    assert record.precision_source == "network"
    assert spec.parity == ModelSpec.read(model).parity
    assert spec.parity.compared == model.name
    assert spec.tools["tensorrt-rtx"] == record.version


def test_a_model_that_was_never_compared_is_not_built_ahead(engine, tmp_path):
    model = write_model(tmp_path, parity=None)
    with unchanged(tmp_path), pytest.raises(ExportError, match="never compared with PyTorch"):
        build_engine(model, engine, options=BuildOptions(targets=TARGETS))


@pytest.mark.parametrize("targets", [("sm_75",), ("sm_80", "sm_120"), TARGETS])
def test_the_header_tells_the_targets(targets, engine, tmp_path):
    build_engine(write_model(tmp_path), engine, options=BuildOptions(targets=targets))
    header = read_header(engine)
    assert header.targets == targets
    assert header.version == ModelSpec.read(engine).engine.version


def test_every_target_builds_and_no_other(engine, tmp_path, rtx):
    known = known_targets(rtx)
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(known)
    model = write_model(tmp_path)
    build_engine(model, engine, options=BuildOptions(targets=known))
    for target in ("sm_90", "sm_100", "sm_87"):
        with unchanged(tmp_path), pytest.raises(ExportError, match=f"target {target}.*only"):
            build_engine(model, engine, options=BuildOptions(targets=(target,)))


def test_an_engine_built_ahead_is_kept(engine, tmp_path):
    model, said = write_model(tmp_path), []
    first = build_engine(model, engine, options=BuildOptions(targets=TARGETS))
    with unchanged(tmp_path):
        assert (
            build_engine(
                model, engine, options=BuildOptions(targets=TARGETS[::-1]), report=said.append
            )
            == first
        )
    assert "already built" in said[0]
    assert build_engine(model, engine, options=BuildOptions(targets=TARGETS[:1])) != first


def test_progress_is_told(engine, tmp_path):
    told = []
    build_engine(
        write_model(tmp_path), engine, options=BuildOptions(targets=TARGETS),
        progress=lambda stage, share: told.append((stage, share)),
    )  # fmt: skip
    shares = [share for _, share in told]
    assert len(told) > 5
    assert shares == sorted(shares)
    assert all(stage for stage, _ in told)


def test_an_error_in_the_progress_stops_the_build(engine, tmp_path):
    def fail(stage, share):
        raise RuntimeError("the terminal is gone")

    model = write_model(tmp_path)
    with unchanged(tmp_path), pytest.raises(RuntimeError, match="the terminal is gone"):
        build_engine(model, engine, options=BuildOptions(targets=TARGETS), progress=fail)


# --- refusals


def test_a_float_graph_that_says_half_is_refused(engine, tmp_path):
    """The control: the same graph in half is built by the tests above."""
    model = write_model(tmp_path, "fp16", graph=tiny_graph(half=False))
    with unchanged(tmp_path), pytest.raises(ExportError, match="says fp16, but only 0 of 2"):
        build_engine(model, engine, options=BuildOptions(targets=TARGETS))


def test_what_needs_a_gpu_is_refused_before_the_build(engine, tmp_path):
    model = write_model(tmp_path)
    with unchanged(tmp_path):
        with open_site("tensorrt-rtx", TARGETS) as site:
            if site.device is not None:
                pytest.skip("this machine has a GPU")
        with pytest.raises(ExportError, match=r"only on a machine with an NVIDIA GPU.*--refitta"):
            build_engine(model, engine, options=BuildOptions(targets=TARGETS, refit=True))
        with pytest.raises(BackendError, match=r"no GPU to build for.*--target sm86,sm89"):
            build_engine(model, engine, options=BuildOptions(builder="tensorrt-rtx"))
    with unchanged(tmp_path), pytest.raises(ExportError, match="keeps no cache at a build"):
        build_engine(
            model, engine, options=BuildOptions(targets=TARGETS, timing_cache=tmp_path / "x")
        )


def _with_resize(model: onnx.ModelProto) -> onnx.ModelProto:
    scales = numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales")
    nodes = [
        helper.make_node("Unsqueeze", ["anomaly_map", "one"], ["channels"], "channels"),
        helper.make_node(
            "Resize", ["channels", "", "scales"], ["small"], "shrink", mode="linear", antialias=1
        ),
    ]
    model.graph.initializer.extend([scales, numpy_helper.from_array(np.array([1]), "one")])
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (tiny_graph(half=True, extra="NonZero"),
         "node find (NonZero): Assertion failed: creator && getPluginCreatorVersion(creator) == "
         "CreatorVersion::kV3ONE: NonZero plugin creator version 1 was not found in plugin "
         "registry. This TensorRT has no such operator: compute that part on the host, behind the "
         "model."),
        (_with_resize(tiny_graph(half=True)),
         'node shrink (Resize): (antialias == 0) && "Antialiasing is not supported currently.". An '
         "antialiased resize must be two matrix products, which is how destseg-export writes it."),
    ],
    ids=["NonZero", "antialias"],
)  # fmt: skip
def test_an_unsupported_operator_gives_the_clear_error(graph, said, engine, tmp_path):
    model = write_model(tmp_path, graph=graph)
    with unchanged(tmp_path), pytest.raises(ExportError) as refusal:
        build_engine(model, engine, options=BuildOptions(targets=TARGETS))
    assert str(refusal.value) == f"cable-fp16.onnx: TensorRT-RTX cannot read it: {said}"


KEPT = """
import gc, sys
from pathlib import Path
from destseg_deploy.errors import ExportError
from destseg_deploy.runtime.trt.library import load_library
from destseg_export.engine.build import build_engine
from destseg_export.engine.options import BuildOptions

def refused():
    try:
        build_engine(Path(sys.argv[1]), Path(sys.argv[2]), options=BuildOptions(targets=("86",)))
    except ExportError as error:
        kept = error  # a cycle: the error, its traceback, this frame, the error

library = load_library("tensorrt-rtx")

class Collecting(library.ILogger):
    def __init__(self):
        library.ILogger.__init__(self)

    def log(self, severity, message):
        gc.collect()

refused()
library.Builder(Collecting())
print("made")
"""


def test_a_refused_build_does_not_stop_the_next_one(engine, tmp_path):
    """The collector freed the first builder while the second was made, which waited for ever."""
    model = write_model(tmp_path, graph=tiny_graph(half=True, extra="NonZero"))
    command = [sys.executable, "-c", KEPT, str(model), str(engine)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.split() == ["made"], done.stderr


def test_a_spec_of_another_input_is_refused(engine, tmp_path):
    model = write_model(tmp_path)
    spec = ModelSpec.read(model)
    replace(spec, input=replace(spec.input, height=96)).write(model)
    with unchanged(tmp_path), pytest.raises(ExportError, match=r"cable-fp16\.onnx: "):
        build_engine(model, engine, options=BuildOptions(targets=TARGETS))


def _with_top_k(model: onnx.ModelProto, k: int) -> onnx.ModelProto:
    constants = {"flat": np.array([-1, 64 * 64]), "k": np.array([k])}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    nodes = [
        helper.make_node("Reshape", ["anomaly_map", "flat"], ["row"], "row"),
        helper.make_node("TopK", ["row", "k"], ["best", "index"], "top"),
    ]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("best", 1, ["batch", k]))
    return model


def test_tensorrt_still_takes_3840_pixels_and_no_more(engine, tmp_path):
    """Why ``check_options`` refuses them: the parser does not, and the builder says it its way."""
    graphs = {k: _with_top_k(tiny_graph(half=True), k) for k in (3840, 3841)}
    build_engine(
        write_model(tmp_path, graph=graphs[3840]), engine, options=BuildOptions(targets=TARGETS)
    )
    model = write_model(tmp_path, graph=graphs[3841])
    with pytest.raises(ExportError, match=r"cannot build it for sm_86, sm_89: .*maximum.*3840"):
        build_engine(model, engine, options=BuildOptions(targets=TARGETS))
