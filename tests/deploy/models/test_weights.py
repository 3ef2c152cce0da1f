"""Weights: what is read strictly, what is refused, and that no pickle runs its code."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import socket
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from destseg_deploy.errors import SpecError, WeightsError
from destseg_deploy.files import sha256
from destseg_deploy.models import weights
from destseg_deploy.models.destseg import DeSTSeg, Teacher, cosine_distances, normalize
from destseg_deploy.models.resnet import ResNet18
from destseg_deploy.models.weights import (
    TEACHER_FILE,
    TEACHER_SHA256,
    TEACHER_URL,
    category_of,
    checkpoint_spec,
    fit_statistics,
    load_checkpoint,
    load_teacher,
    read_state_dict,
    save_checkpoint,
    torchvision_teacher,
)
from destseg_deploy.spec import FileRecord, ModelSpec, TeacherRecord, spec_path

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> State:
    """A whole ResNet18 as torchvision names it, with random weights."""
    torch.manual_seed(7)
    state = ResNet18().state_dict()
    return {**state, "fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}


@pytest.fixture(scope="module")
def stem(resnet: State) -> State:
    """The part of it that a teacher takes."""
    return {n: t for n, t in resnet.items() if not n.startswith(("layer4", "fc"))}


def small(state: State) -> State:
    """The same names and shapes, in a file of a few kilobytes."""
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}


def write(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def holds(teacher: Teacher, state: State) -> bool:
    own = teacher.encoder.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in own.items())


# ---------------------------------------------------------------------------- the teacher


def test_a_whole_torchvision_file_fills_the_teacher(resnet: State, tmp_path: Path) -> None:
    path, teacher = write(resnet, tmp_path / "resnet18.pth"), Teacher()
    assert not holds(teacher, resnet)
    record = load_teacher(teacher, path)
    assert holds(teacher, resnet)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record == TeacherRecord("file", "resnet18.pth", digest)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    path.unlink()  # 45 MB


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "backbone.", "teacher_net.encoder."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_layers_1_to_3_under_any_prefix_are_enough(
    prefix: str, suffix: str, stem: State, tmp_path: Path
) -> None:
    other = {"projector.conv1.weight": torch.zeros(1)} if prefix else {}
    named = {**{prefix + name: tensor for name, tensor in stem.items()}, **other}
    teacher = Teacher()
    load_teacher(teacher, write(named, tmp_path / f"teacher{suffix}"))
    assert holds(teacher, stem)


def test_counters_of_batchnorm_may_be_missing(stem: State, tmp_path: Path) -> None:
    """Older torchvision files have none."""
    old = {n: t for n, t in stem.items() if not n.endswith("num_batches_tracked")}
    assert len(old) < len(stem)
    teacher = Teacher()
    load_teacher(teacher, write(old, tmp_path / "old.pth"))
    assert holds(teacher, stem)


def drop(state: State) -> State:
    return {n: t for n, t in state.items() if n != "layer2.0.conv1.weight"}


def add(state: State) -> State:
    return {**state, "layer1.2.conv1.weight": torch.zeros(1)}


def widen(state: State) -> State:
    return {**state, "layer3.0.conv1.weight": torch.zeros(256, 128, 1, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"not a torchvision ResNet18: layer2\.0\.conv1\.weight is missing"),
        (add, r"not a torchvision ResNet18: layer1\.2\.conv1\.weight is unknown"),
        (widen, r"layer3\.0\.conv1\.weight has shape \(256, 128, 1, 1\), expected \(256, 128, 3"),
        (lambda state: {"a": torch.zeros(1)}, r"conv1\.weight is missing"),
        (lambda state: {}, r"conv1\.weight is missing"),
    ],
)
def test_another_network_is_refused(
    change: Callable[[State], State], message: str, stem: State, tmp_path: Path
) -> None:
    path, teacher = write(change(small(stem)), tmp_path / "other.pth"), Teacher()
    before = {name: tensor.clone() for name, tensor in teacher.encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as error:
        load_teacher(teacher, path)
    assert str(path) in str(error.value)
    assert holds(teacher, before)


def test_a_random_teacher_keeps_its_weights_and_takes_no_file(tmp_path: Path) -> None:
    teacher = Teacher()
    before = {name: tensor.clone() for name, tensor in teacher.encoder.state_dict().items()}
    assert load_teacher(teacher, source="random") == TeacherRecord("random")
    assert holds(teacher, before)
    with pytest.raises(WeightsError, match=r"'random' takes no weights, got .*a\.pth"):
        load_teacher(teacher, tmp_path / "a.pth", source="random")


def test_auto_is_random_only_where_imagenet_weights_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> Path:
        raise WeightsError("no network")

    monkeypatch.setattr(weights, "torchvision_teacher", offline)
    assert load_teacher(Teacher(), source="auto") == TeacherRecord("random")
    with pytest.raises(WeightsError, match="no network"):
        load_teacher(Teacher(), source="imagenet")
    path = write(Teacher().encoder.state_dict(), tmp_path / "teacher.safetensors")
    assert load_teacher(Teacher(), path, source="auto").file == "teacher.safetensors"
    monkeypatch.setattr(weights, "torchvision_teacher", lambda: path)
    assert load_teacher(Teacher(), source="auto").file == "teacher.safetensors"


def test_fitted_statistics_make_a_random_teacher_tell_images_apart() -> None:
    """On the images it was fitted to, each channel then has mean 0 and variance 1."""
    torch.manual_seed(0)
    teacher, images = Teacher(), torch.randn(8, 3, 64, 64) * 0.2 + 1
    before = snapshot(teacher)
    assert max(distances(teacher, images)) < 0.02
    fit_statistics(teacher, images)
    assert min(distances(teacher, images)) > 0.1
    stem = teacher.encoder.bn1(teacher.encoder.conv1(images))
    assert float(stem.mean((0, 2, 3)).abs().max()) < 1e-4
    assert float((stem.var((0, 2, 3)) - 1).abs().max()) < 1e-2
    assert not any(module.training for module in teacher.modules())
    changed = {n for n, t in snapshot(teacher).items() if not torch.equal(t, before[n])}
    assert {name.split(".")[-1] for name in changed} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def distances(teacher: Teacher, images: Tensor) -> list[float]:
    """Return how far the features of different images are apart, per level: 1 - cosine."""
    features = [normalize(x) for x in teacher(images)]
    others = [x.flip(0) for x in features]
    return [float(d.mean()) for d in cosine_distances(features, others)]


def snapshot(teacher: Teacher) -> State:
    return {name: tensor.clone() for name, tensor in teacher.state_dict().items()}


def test_a_checkpoint_of_ours_passes_on_where_its_teacher_came_from(tmp_path: Path) -> None:
    """A random teacher must not become one "from a file", which no note speaks of."""
    named = FileRecord("", "")
    for known in (TeacherRecord("random"), TeacherRecord("file", "resnet18.pth", "c" * 64)):
        model, path = DeSTSeg(), tmp_path / f"{known.source}.safetensors"
        save_checkpoint(model, checkpoint_spec("cable", (64, 64), named, teacher=known), path)
        teacher = Teacher()
        assert load_teacher(teacher, path) == known
        assert holds(teacher, model.teacher_net.encoder.state_dict())
    spec_path(path).unlink()
    with pytest.raises(SpecError, match=r"file\.json"):
        load_teacher(Teacher(), path)
    official = write(model.state_dict(), tmp_path / "DeSTSeg_MVTec_5000_cable.pckl")
    assert load_teacher(Teacher(), official).source == "file"


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'imagenet21k': expected one of imagenet, auto, random"):
        load_teacher(Teacher(), tmp_path / "a.pth", source="imagenet21k")


def test_the_real_teacher_loads(shared: Path) -> None:
    path, teacher = shared / "weights/resnet18_imagenet1k_v1_layers1-3.safetensors", Teacher()
    record = load_teacher(teacher, path)
    assert record.source == "file"
    assert record.sha256 == sha256(path)
    norm = teacher.encoder.bn1
    assert torch.allclose(norm.weight, torch.tensor(1 + 1e-5).sqrt())  # folded, see its README
    with torch.no_grad():
        features = teacher(torch.randn(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert all(0.1 < float(f.std()) < 10 for f in features)


# ---------------------------------------------------------------------------- download


@pytest.fixture
def served(stem: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher at a file:// address that has the pinned hash."""
    path = write(stem, tmp_path / "served.pth")
    monkeypatch.setattr(weights, "TEACHER_SHA256", sha256(path))
    return path


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def urlopen(request: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)


def test_the_pin_is_torchvisions_v1() -> None:
    assert TEACHER_URL == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert TEACHER_SHA256.startswith("f37072fd")  # torch puts the hash's start into the name
    assert len(TEACHER_SHA256) == 64


def test_a_missing_teacher_is_downloaded_once(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache/checkpoints"
    path = torchvision_teacher(cache, served.as_uri())
    assert path == cache / TEACHER_FILE
    assert path.read_bytes() == served.read_bytes()
    assert [p.name for p in cache.iterdir()] == [TEACHER_FILE]
    refuse(monkeypatch, AssertionError("asked again"))
    assert torchvision_teacher(cache) == path


def test_a_program_without_stderr_can_download(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as pythonw and services of Windows have it
    assert torchvision_teacher(tmp_path, served.as_uri()).is_file()


def test_torchs_own_cache_is_used(
    served: Path, stem: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home/hub/checkpoints"
    folder.mkdir(parents=True)
    served.rename(folder / TEACHER_FILE)
    refuse(monkeypatch, AssertionError("not needed"))
    teacher = Teacher()
    record = load_teacher(teacher)
    assert holds(teacher, stem)
    assert record.source == "torchvision IMAGENET1K_V1"
    assert record.file == TEACHER_FILE


def test_a_download_with_another_hash_is_thrown_away(served: Path, tmp_path: Path) -> None:
    served.write_bytes(b"<html>Please log in</html>")
    cache = tmp_path / "cache"
    with pytest.raises(WeightsError, match=r"another sha256 .* A proxy may have answered"):
        torchvision_teacher(cache, served.as_uri())
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half"),
    ],
)
def test_offline_the_error_names_both_ways_out(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, error)
    with pytest.raises(WeightsError) as caught:
        torchvision_teacher(tmp_path / "cache")
    message = str(caught.value)
    assert TEACHER_URL in message
    assert "--teacher-weights FILE" in message
    assert f"copy that file to {tmp_path / 'cache'}" in message
    assert "--teacher random" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_stalls_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes the connection and never answers."""
    monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT_S", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(WeightsError, match=r"cannot be downloaded .*timed out"):
            torchvision_teacher(tmp_path, address)
    assert socket.getdefaulttimeout() == before


def test_a_cached_file_of_another_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TEACHER_FILE).write_bytes(b"older")
    refuse(monkeypatch, AssertionError("it must not be replaced silently"))
    with pytest.raises(WeightsError, match=r"not torchvision's IMAGENET1K_V1.* Delete the file"):
        torchvision_teacher(tmp_path)
    assert (tmp_path / TEACHER_FILE).read_bytes() == b"older"


# ---------------------------------------------------------------------------- damaged files

TENSORS = {"a.weight": torch.arange(600.0), "b.weight": torch.ones(3, 4)}


@pytest.mark.parametrize("kind", ["new.pth", "old.pth", "new.safetensors"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "old.pth":
        torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    else:
        write(TENSORS, path)
    data = path.read_bytes()
    assert torch.equal(read_state_dict(path)["a.weight"], TENSORS["a.weight"])
    for length in {0, 1, len(data) - 1, *range(0, len(data), len(data) // 40)}:
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=kind):
            read_state_dict(path)


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    """Whatever the unpickler trips over."""
    path = write(TENSORS, tmp_path / "a.pth")
    data, random = path.read_bytes(), torch.Generator().manual_seed(0)
    start = data.index(b"\x80\x02")
    refused = 0
    for _ in range(80):
        damaged = bytearray(data)
        for position in torch.randint(start, start + 200, (3,), generator=random).tolist():
            damaged[position] = int(torch.randint(256, (), generator=random))
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except WeightsError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": TENSORS},
        [torch.zeros(1)],
        torch.zeros(1),
        {"a.weight": torch.zeros(1), "epoch": 3},
        {1: torch.zeros(1)},
    ],
)
def test_anything_but_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: not a state dict of tensors"):
        read_state_dict(tmp_path / "a.pth")


def test_text_and_missing_files_are_refused(tmp_path: Path) -> None:
    for name in ("page.pth", "page.safetensors"):
        (tmp_path / name).write_text("<!DOCTYPE html><html>404</html>")
        with pytest.raises(WeightsError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file"):
        read_state_dict(tmp_path / "gone.pth")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "plain", "module"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(form: str, tmp_path: Path) -> None:
    path, target = tmp_path / "DeSTSeg_MVTec_5000_cable.pckl", tmp_path / "ran"
    if form == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif form == "plain":
        path.write_bytes(pickle.dumps({"a": Bomb(target)}, protocol=2))
    else:
        torch.save({"a": torch.zeros(1), "b": Bomb(target)}, path)
    for read in (read_state_dict, load_checkpoint):
        with pytest.raises(WeightsError, match=r"cable\.pckl: refused, because it is damaged or"):
            read(path)
    assert not target.exists()
    if form == "torch":
        torch.load(path, weights_only=False)
        assert target.exists()  # the file was armed


# ---------------------------------------------------------------------------- checkpoints


def equal(a: DeSTSeg, b: DeSTSeg) -> bool:
    own, other = a.state_dict(), b.state_dict()
    return list(own) == list(other) and all(torch.equal(own[n], other[n]) for n in own)


def beside(checkpoint: Path, folder: Path) -> Path:
    """Return the checkpoint again, in another folder, with a spec of its own."""
    path = folder / checkpoint.name
    os.link(checkpoint, path)
    spec_path(path).write_bytes(spec_path(checkpoint).read_bytes())
    return path


def test_a_checkpoint_comes_back_as_it_was(checkpoint: Path, model: DeSTSeg) -> None:
    loaded, spec = load_checkpoint(checkpoint)
    assert equal(loaded, model)
    assert not loaded.training
    assert spec == ModelSpec.read(checkpoint)
    assert spec.artifact == spec.checkpoint == FileRecord(checkpoint.name, sha256(checkpoint))
    assert (spec.kind, spec.category, spec.precision) == ("checkpoint", "cable", "fp32")
    assert spec.size == spec.network_size == spec.map_size == (64, 64)
    assert spec.output.top_k == 6  # 100 of 256 x 256
    assert spec.threshold is not None
    assert {path.name for path in checkpoint.parent.iterdir()} == {
        "cable.safetensors",
        "cable.json",
    }


def test_an_official_checkpoint_loads_with_the_papers_spec(model: DeSTSeg, tmp_path: Path) -> None:
    path = tmp_path / "DeSTSeg_MVTec_5000_metal_nut.pckl"
    torch.save(model.state_dict(), path)
    loaded, spec = load_checkpoint(path)
    assert equal(loaded, model)
    assert not loaded.training
    assert (spec.category, spec.size, spec.output.top_k) == ("metal_nut", (256, 256), 100)
    assert spec.artifact == FileRecord(path.name, sha256(path))
    assert spec.threshold is None
    path.unlink()  # 140 MB


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("DeSTSeg_MVTec_5000_metal_nut.pckl", "metal_nut"),
        ("DeSTSeg_MVTec_500_cable.pckl", "cable"),
        ("DeSTSeg_MVTec_10000_screw.pckl", "screw"),
        ("DeSTSeg_MVTec_5000_line_2_left.pckl", "line_2_left"),
        ("DeSTSeg_VisA_5000_pcb1.pckl", "pcb1"),
        ("cable.safetensors", "cable"),
        ("line_2_left.safetensors", "line_2_left"),
        ("DeSTSeg_MVTec_cable.pckl", "DeSTSeg_MVTec_cable"),
    ],
)
def test_the_category_is_what_an_official_name_says(name: str, category: str) -> None:
    """A checkpoint of another number of steps kept its prefix in the category."""
    assert category_of(Path(name)) == category


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("student_net.decoder_layer4.0.conv1.weight", None, "is missing"),
        ("segmentation_net.head.0.aspp_feature_extractors.4.conv.weight", (1,), "is unknown"),
        ("segmentation_net.res.0.conv1.weight", (256, 320, 3, 3), r"has shape \(256, 320, 3, 3\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    name: str, value: tuple[int, ...] | None, message: str, model: DeSTSeg, tmp_path: Path
) -> None:
    state = small(model.state_dict())
    state.pop(name, None)
    if value is not None:
        state[name] = torch.zeros(()).expand(value)
    path = write(state, tmp_path / "other.pckl")
    with pytest.raises(WeightsError, match=f"not a DeSTSeg checkpoint: {name} {message}"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_spec_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = beside(checkpoint, tmp_path)
    load_checkpoint(path)
    spec_path(path).unlink()
    with pytest.raises(SpecError, match=r"no spec cable\.json beside it"):
        load_checkpoint(path)


def test_the_spec_of_another_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = beside(checkpoint, tmp_path)
    spec = ModelSpec.read(path)
    replace(spec, artifact=FileRecord("cable.safetensors", "0" * 64)).write(path)
    with pytest.raises(
        SpecError, match=r"is not what cable\.json describes .* sha256 000000000000"
    ):
        load_checkpoint(path)


def test_the_spec_of_an_onnx_beside_a_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = beside(checkpoint, tmp_path)
    spec = ModelSpec.read(path)
    replace(spec, kind="onnx", artifact=FileRecord("cable.onnx", spec.artifact.sha256)).write(path)
    with pytest.raises(SpecError, match=r"describes cable\.onnx \(onnx\), not a checkpoint"):
        load_checkpoint(path)


def test_a_save_that_fails_leaves_the_old_checkpoint(
    model: DeSTSeg, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cable.safetensors"
    path.write_bytes(b"old")
    spec_path(path).write_text("old")

    def disk_full(file: Path, content: bytes) -> int:
        with file.open("wb") as half:
            half.write(content[:1000])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, ModelSpec.read(checkpoint), path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "cable.safetensors": "old",
        "cable.json": "old",
    }


def test_tensors_are_saved_dense_whatever_their_order_in_memory(
    model: DeSTSeg, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[State] = []

    def keep(tensors: State, metadata: dict[str, str]) -> bytes:
        saved.append(tensors)
        return b""

    monkeypatch.setattr(weights, "save", keep)
    net = DeSTSeg()
    net.load_state_dict(model.state_dict())
    net.to(memory_format=torch.channels_last)
    assert not net.student_net.encoder.conv1.weight.is_contiguous()
    spec = save_checkpoint(net, ModelSpec.read(checkpoint), tmp_path / "cable.safetensors")
    assert all(tensor.is_contiguous() for tensor in saved[0].values())
    assert all(torch.equal(tensor, saved[0][name]) for name, tensor in model.state_dict().items())
    assert spec == ModelSpec.read(tmp_path / "cable.safetensors")


def test_a_checkpoint_is_as_readable_as_any_file(
    model: DeSTSeg, checkpoint: Path, tmp_path: Path
) -> None:
    """A line PC often runs as another user than the one who trained."""
    path = tmp_path / "cable.safetensors"
    save_checkpoint(model, ModelSpec.read(checkpoint), path)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
