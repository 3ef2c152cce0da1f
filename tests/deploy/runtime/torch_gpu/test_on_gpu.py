"""What only a GPU can show, each body run on the host first: cuDNN, frames, tiles, recordings."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from destseg_deploy.errors import BackendError
from destseg_deploy.loading import load
from destseg_deploy.models.fused import ConvRelu, FusedDeSTSeg, PlainLayers
from destseg_deploy.models.half import HALVES, to_half
from destseg_deploy.models.weights import checkpoint_spec, save_checkpoint
from destseg_deploy.options import TorchOptions
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.parity import measure_difference
from destseg_deploy.runtime.torch_gpu.runtime import CudaPlace
from destseg_deploy.runtime.torch_runtime import switched
from destseg_deploy.spec import FileRecord, RegionSpec, TilingSpec
from destseg_deploy.training.views import View
from tests.fakes.host_kernels import HostCompiler

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# ---------------------------------------------------------------------------- convolutions

ROUNDING = 2**-8
"""Of fp16, times the largest value: four times the distance of two neighbours there."""
CPU = torch.device("cpu")


def shapes_of(model, size, device=CPU):
    """Return each different convolution of the half network, with what it reads for one image."""
    half = FusedDeSTSeg(to_half(model, "fp16"), PlainLayers(HALVES["fp16"])).to(device)
    half.to(memory_format=torch.channels_last)
    found = {}

    def note(conv, given):
        shapes = [tuple(one.shape[1:]) for one in given]
        found.setdefault((*shapes, tuple(conv.weight.shape), *conv.shape), (conv, shapes))

    for module in half.modules():
        if isinstance(module, ConvRelu):
            module.register_forward_pre_hook(note)
    with torch.inference_mode():
        half.segment(*half.features(torch.zeros(1, 3, *size, device=device)))
    return list(found.values())


def spoil(shape, device):
    """Leave NaN in the memory that the next tensor of a shape gets, which a GPU's keeps."""
    kind = {"dtype": torch.half, "device": device}
    for last in (False, True):  # once to see that it is there
        several = [torch.full(shape, torch.nan, **kind) for _ in range(4)]
        del several
        if device.type == "cuda" and not last:
            left = torch.empty(shape, **kind)
            assert left.isnan().all(), "the allocator gives other memory: nothing is tested"
            del left


def check_convolution(conv, shapes, batch, device):
    """Compare with relu(conv2d) in float32, after filling the memory of the output with NaN."""
    generator = torch.Generator(device).manual_seed(0)
    given = [
        torch.rand((batch, *shape), generator=generator, device=device)
        .half()
        .to(memory_format=torch.channels_last)
        for shape in shapes
    ]
    exact = [one.float() for one in (*given, conv.weight)]
    bias = None if conv.bias is None else conv.bias.float()
    # No search for the reference.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        wanted = functional.conv2d(exact[0], exact[-1], bias, *conv.shape)
    wanted = torch.relu(wanted + exact[1] if len(given) > 1 else wanted)
    conv(*given)  # cuDNN chooses its kernel
    for _ in range(3):
        spoil(wanted.shape, device)
        found = conv(*given).float()
        assert found.isfinite().all(), f"NaN of {shapes}, {tuple(conv.weight.shape)}"
        far = (found - wanted).abs().max() / wanted.abs().max()
        assert far < ROUNDING, f"{far:.1e} of {shapes}, {tuple(conv.weight.shape)}, {batch} images"


@pytest.mark.parametrize("batch", [1, 2])
def test_each_convolution_of_the_half_network_is_known(model, batch):
    """On a CPU: 2 stems of one shape, blocks with and without shortcut, ASPP."""
    shapes = shapes_of(model, (64, 64))
    assert len(shapes) > 20
    assert {len(given) for _, given in shapes} == {1, 2}
    with torch.inference_mode():
        for conv, given in shapes:
            check_convolution(conv, given, batch, CPU)


@pytest.mark.parametrize("relu_of_nan", [torch.nan, 0.0])
def test_a_convolution_that_reads_its_output_shows(model, monkeypatch, relu_of_nan):
    """The controls: 0 times NaN is NaN, and a ReLU makes NaN or 0 of it."""
    real = ConvRelu.forward

    def reading(self, x, shortcut=None):
        made = real(self, x, shortcut) + 0 * torch.full_like(x[:1, :1, :1, :1], torch.nan)
        return made.nan_to_num(relu_of_nan)

    conv, given = shapes_of(model, (64, 64))[0]
    monkeypatch.setattr(ConvRelu, "forward", reading)
    words = "NaN of" if np.isnan(relu_of_nan) else r"1\.0e\+00 of .* 1 images"
    with torch.inference_mode(), pytest.raises(AssertionError, match=words):
        check_convolution(conv, given, 1, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_what_lies_in_the_memory_of_an_output_does_not_matter(model, batch):
    """torch passes an output that nothing was written to as a summand, with a factor of 0.

    0 times NaN is NaN, and a ReLU of it may be 0. cuDNN does not say whether it reads it.
    """
    device = torch.device("cuda", 0)
    with torch.inference_mode(), switched(device, tf32=False, benchmark=True):
        for conv, given in shapes_of(model, (256, 256), device):
            check_convolution(conv, given, batch, device)


# ---------------------------------------------------------------------------- frames


class OnHost:
    """A runtime without its pipeline: a ``Predictor`` resizes frames and maps on the host."""

    def __init__(self, runtime):
        self.spec, self.infer = runtime.spec, runtime.infer


def picture(height, width, seed):
    """Return 8 x 8 fields of noise, which a resize to any size leaves different."""
    fields = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return fields[np.arange(height) * 8 // height][:, np.arange(width) * 8 // width]


NEAR = 1e-4
"""A network gives the same bits for the same pixels, if cuDNN adds in the same order."""
SMALL = [(100, 90), (200, 160), (64, 64), (200, 160)]
LARGE = [(100, 90), (1024, 1024), (64, 64), (1024, 1024), (90, 100)]


def check_frames(predictor, sizes):
    """Compare scores and maps of the frames' sizes with those that the host resizes."""
    assert predictor._pipeline is not None, "frames are resized on the host"
    host = Predictor(OnHost(predictor.runtime))
    frames = [picture(*size, seed) for seed, size in enumerate(sizes)]
    frames.append(frames[0][..., 0])  # grey
    for batch in (1, 3):
        for _ in range(2):  # recorded, replayed
            found = list(predictor.stream(frames, source_maps=True, batch_size=batch))
            wanted = list(host.stream(frames, source_maps=True, batch_size=batch))
            for one, right, frame in zip(found, wanted, frames, strict=True):
                assert one.anomaly_map.shape == (1, *frame.shape[:2])
                np.testing.assert_allclose(one.anomaly_map, right.anomaly_map, atol=NEAR)
                np.testing.assert_allclose(one.score, right.score, atol=NEAR)
    assert np.ptp([one.score for one in found]) > 20 * NEAR, "frames must be told apart"
    maps = [one.anomaly_map[0] for one in found if one.anomaly_map[0].shape == sizes[1]]
    assert np.ptp(maps, axis=0).max() > 20 * NEAR, "and so must maps of one size"


@needs_compiler
def test_frames_and_maps_of_any_size_are_those_of_the_host(bench, benign, tmp_path):
    bench.gpu.compiler = HostCompiler(tmp_path)
    with Predictor(bench.open(benign)) as predictor:
        check_frames(predictor, SMALL)
    assert not bench.gpu.live


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [True, False])
def test_a_gpu_resizes_frames_and_maps_as_the_host_does(benign, category, graph):
    options = TorchOptions(precision="fp16", cuda_graph=graph, verify_images=category / "test")
    with load(benign, device="cuda", options=options) as predictor:
        check_frames(predictor, LARGE)


# ---------------------------------------------------------------------------- tiles

FRAME = (96, 128)


@pytest.fixture(scope="module")
def tiled(benign_model, tmp_path_factory):
    """A checkpoint of tiles with a region, and a folder of frames for it."""
    folder = tmp_path_factory.mktemp("tiled")
    (folder / "frames").mkdir()
    for seed in range(4):
        Image.fromarray(picture(*FRAME, seed)).save(folder / "frames" / f"{seed}.png")
    view = View((64, 64), 6, FRAME, TilingSpec(0.75, 16), RegionSpec(0, 0, 112, 96))
    spec = checkpoint_spec("plate", view.network, FileRecord("", ""))
    save_checkpoint(benign_model, replace(spec, **view.entries()), folder / "plate.safetensors")
    return folder / "plate.safetensors", folder / "frames"


def check_tiles(fast, plain):
    """Compare answers of a tiled checkpoint in half with float32's, at several batch sizes."""
    frames = np.stack([picture(*FRAME, seed) for seed in range(4)])
    for n in (1, 4, 1, 2, 4):
        found, wanted = fast.infer(frames[:n]), plain.infer(frames[:n])
        assert not found.anomaly_map[:, :, 84:].any(), "outside of the region"
        difference = measure_difference(wanted, found)
        assert difference.map_max_abs < 5e-3
        assert difference.score_max_abs < 5e-3
        if n > 1:
            assert difference.control > 2 * difference.map_max_abs, "frames must be told apart"


def test_tiles_and_a_region_are_recorded(bench, tiled):
    fast = bench.open(tiled[0])
    with load(tiled[0]) as plain:
        check_tiles(fast, plain.runtime)
    assert bench.place.recorded == 3, "one for each batch size"
    fast.close()


@pytest.mark.gpu
def test_a_gpu_records_tiles_and_a_region(tiled, caplog):
    checkpoint, frames = tiled
    options = TorchOptions(precision="fp16", verify_images=frames)
    with load(checkpoint, device="cuda", options=options) as fast, load(checkpoint) as plain:
        check_tiles(fast.runtime, plain.runtime)
    assert "CUDA graphs are not used" not in caplog.text


# ---------------------------------------------------------------------------- recordings


@pytest.mark.gpu
def test_a_recording_that_fails_spoils_neither_thread_nor_stream():
    gpu = open_device("cuda:0", binding="torch")
    stream, place = gpu.stream(), CudaPlace(0)
    x, y = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")
    before = torch.cuda.current_stream()
    (x + 1).clone()  # loads the kernels

    def waiting():
        y.copy_(x + 1)
        torch.cuda.synchronize()  # not while it is recorded

    torch.cuda.synchronize()
    for _ in range(3):
        with pytest.raises(BackendError, match="PyTorch cannot record the network"):
            place.record(stream, waiting)
        assert torch.cuda.current_stream() == before
    assert not y.any(), "a recording runs nothing"
    free = torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        place.run(stream, lambda: y.copy_(x + 2))
    stream.synchronize()
    assert (y == 3).all()
    assert torch.cuda.mem_get_info()[0] >= free - 2**21
    replay, reset = place.record(stream, lambda: y.copy_(x + 3))
    replay()
    stream.synchronize()
    assert (y == 4).all()
    reset()
    stream.close()
    gpu.close()


@pytest.mark.gpu
def test_a_gpu_works_beside_a_recording_of_another_thread():
    """In the mode in which ONNX Runtime records; without ours, the calls fail and it is lost."""
    device = open_device("cuda", binding="driver")
    stream, event, kept = device.stream(), device.event(), device.allocate(16)

    def there():
        more = device.allocate(2**20), device.allocate_pinned(2**20)
        stream.copy_in(more[0].pointer, more[1].array)
        stream.record(event)
        event.synchronize()
        stream.synchronize()
        for thing in (*more, kept):
            thing.close()

    x, graph = torch.ones(1000, device="cuda"), torch.cuda.CUDAGraph()
    ((x + 1) * 2).cpu()  # loads the kernels
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph, capture_error_mode="global"):
        y = x + 1
        pool.submit(there).result(60)
        y = y * 2
    graph.replay()
    assert (y.cpu() == 4).all()
    for thing in (event, stream, device):
        thing.close()
