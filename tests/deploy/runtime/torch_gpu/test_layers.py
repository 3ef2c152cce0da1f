"""Kernels between convolutions: their own source run on the host, beside PyTorch's functions."""

import shutil

import pytest
import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.models.fused import FusedDeSTSeg, PlainLayers
from destseg_deploy.models.half import HALVES, to_half
from destseg_deploy.runtime.cuda.nvrtc import Nvrtc
from destseg_deploy.runtime.torch_gpu.layers import KERNELS, GpuLayers
from destseg_deploy.runtime.torch_gpu.runtime import CudaPlace
from tests.fakes.device import FakeDevice
from tests.fakes.host_kernels import HostCompiler

ULP = {"fp16": 2**-10, "bf16": 2**-7}
"""The distance of two neighbours at 1: what two orders of the same float32 sum may differ by."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Now:
    """A stream that does at once what it is given, as PyTorch's functions here do."""

    def __init__(self, gpu):
        self._stream = gpu.stream()

    def launch(self, *what):
        self._stream.launch(*what)
        self._stream.synchronize()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(params=list(HALVES))
def pair(request, folder):
    """The kernels as host code, and PyTorch's functions."""
    kind, gpu = HALVES[request.param], FakeDevice(compiler=HostCompiler(folder))
    stream = Now(gpu)
    layers = GpuLayers(gpu, kind, lambda: stream)
    yield layers, PlainLayers(kind), ULP[request.param]
    layers.close()


def values(*shape, kind=torch.float32, seed=0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(kind, memory_format=torch.channels_last) if made.ndim == 4 else made.to(kind)


def features(kind, sizes, count=2):
    channels = (64, 128, 256)
    levels = zip(channels, sizes, strict=True)
    found = [values(count, c, *size, kind=kind, seed=c).relu() for c, size in levels]
    found[0][0, :, 1, 1] = 0  # a ReLU may leave nothing: its length is 0
    return found


CASES = {
    "split": lambda at: at.split(values(2, 3, 10, 14)),
    "split, not channels last": lambda at: at.split(values(2, 3, 10, 14).contiguous()),
    "pool": lambda at: at.pool(values(2, 16, 10, 14, kind=at.kind)),
    "pool, odd": lambda at: at.pool(values(2, 16, 9, 5, kind=at.kind)),
    "upsample": lambda at: at.upsample(values(2, 24, 3, 5, kind=at.kind), torch.Size((6, 10))),
    "upsample, odd": lambda at: at.upsample(values(1, 8, 4, 5, kind=at.kind), torch.Size((9, 11))),
    "products": lambda at: at.products(
        features(at.kind, ((8, 12), (4, 6), (2, 3))),
        [x + 0.5 for x in features(at.kind, ((8, 12), (4, 6), (2, 3)))],
    ),
    "products, odd": lambda at: at.products(
        features(at.kind, ((9, 7), (5, 4), (3, 2))),
        [x.flip(1) for x in features(at.kind, ((9, 7), (5, 4), (3, 2)))],
    ),
    "concatenate": lambda at: at.concatenate(
        values(2, 16, 1, 1, kind=at.kind),
        [values(2, 16, 3, 5, kind=at.kind, seed=i) for i in range(3)],
    ),
    "probability": lambda at: at.probability(
        values(2, 32, 3, 5, kind=at.kind), values(1, 32, 1, 1), values(1)
    ),
}
EXACT = ("split", "split, not channels last", "pool", "pool, odd", "concatenate")


def compare(found, wanted, ulp, name):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if found.dtype != torch.float32:
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert wanted.float().std() > 0.005
    if name in EXACT:
        assert torch.equal(found, wanted)
    else:
        far = (found.float() - wanted.float()).abs() > 1e-6 + ulp * wanted.float().abs()
        assert not far.any()


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_gives_what_pytorch_gives(pair, name):
    layers, plain, ulp = pair
    compare(CASES[name](layers), CASES[name](plain), ulp, name)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("first[3 + i] = value - high", "first[3 + i] = 0.0f"), "split"),
        (("values[i] > largest[i]", "values[i] < largest[i]"), "pool"),
        (("row <= 2 * at.y + 1", "row <= 2 * at.y"), "pool, odd"),
        (("+ 0.5f) - 0.5f", ")"), "upsample"),
        (("source_size - 1 ? 1 : 0", "source_size - 1 ? 0 : 0"), "upsample, odd"),
        (("-(t[i] / t_length)", "(t[i] / t_length)"), "products"),
        (("s_squares += s[j]", "s_squares += t[j]"), "products, odd"),
        (("branch == 2 ? b : c", "branch == 2 ? c : b"), "concatenate"),
        (("weight[8 * i + j] * values", "weight[8 * i] * values"), "probability"),
    ],
)
def test_a_mistake_in_a_kernel_shows(folder, change, name):
    """The controls: with each of these changes the comparison fails."""
    gpu = FakeDevice(compiler=HostCompiler(folder, change=change))
    stream = Now(gpu)
    layers = GpuLayers(gpu, torch.float16, lambda: stream)
    with pytest.raises(AssertionError):
        compare(CASES[name](layers), CASES[name](PlainLayers(torch.float16)), ULP["fp16"], name)


@needs_compiler
def test_a_network_of_kernels_answers_as_one_of_pytorchs_functions(pair, model):
    layers, plain, _ = pair
    precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}[plain.kind]
    image = values(2, 3, 64, 64)
    with torch.inference_mode():
        answers = []
        for chosen in (layers, plain):
            fused = FusedDeSTSeg(to_half(model, precision), chosen)
            answers.append(fused.segment(*fused.features(image)))
        exact = model(image)[0]
    rounding = (answers[1] - exact).abs().mean()
    assert (answers[0] - answers[1]).abs().mean() < 1.5 * rounding


@pytest.mark.parametrize("sm", ["sm_75", "sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("bfloat", [0, 1])
def test_the_source_compiles_for_gpus(sm, bfloat):
    """By NVRTC, which needs no GPU; a cubin holds each kernel."""
    from destseg_deploy.runtime.torch_gpu import layers

    try:
        compiler = Nvrtc.open()
    except BackendError as error:
        pytest.skip(str(error))
    source = layers.files("destseg_deploy.runtime.torch_gpu").joinpath("layers.cu").read_text()
    cubin = compiler.compile(source, sm, (f"-DBFLOAT={bfloat}",))
    assert all(name.encode() in cubin for name in KERNELS)


# ---------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module", params=list(HALVES))
def real(request):
    from destseg_deploy.runtime.cuda.device import open_device

    gpu = open_device("cuda:0", binding="torch")
    layers = CudaPlace(0).layers(gpu, HALVES[request.param])
    yield layers, request.param
    layers.close()
    gpu.close()


class There:
    """Moves what it is given to the GPU before a layer, and back behind it."""

    def __init__(self, layers):
        self.kind, self._layers = layers.kind, layers

    def __getattr__(self, name):
        def call(*given):
            moved = [_move(one) for one in given]
            return getattr(self._layers, name)(*moved).cpu()

        return call


def _move(given):
    if isinstance(given, torch.Tensor):
        return given.cuda()
    return [_move(one) for one in given] if isinstance(given, list) else given


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_what_pytorch_gives(real, name):
    layers, precision = real
    assert isinstance(layers, GpuLayers), "NVRTC is there"
    found, wanted = CASES[name](There(layers)), CASES[name](PlainLayers(layers.kind))
    compare(found, wanted, ULP[precision], name)


@pytest.mark.gpu
def test_a_gpu_runs_the_network_with_either_layers(real, model):
    layers, precision = real
    image = values(2, 3, 64, 64).cuda()
    with torch.inference_mode():
        answers = []
        for chosen in (layers, PlainLayers(layers.kind)):
            fused = FusedDeSTSeg(to_half(model, precision), chosen).cuda()
            fused.to(memory_format=torch.channels_last)
            answers.append(fused.segment(*fused.features(image)).cpu())
        exact = model(image.cpu())[0]
    rounding = (answers[1] - exact).abs().mean()
    assert rounding < 0.05
    assert (answers[0] - answers[1]).abs().mean() < 1.5 * rounding
