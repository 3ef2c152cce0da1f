"""Pretrained weights: found in torch's cache, downloaded once, checked, and refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from destseg_bench.systems import weights
from destseg_bench.systems.cutpaste.system import CutPaste
from destseg_bench.systems.uninformed_students.system import UninformedStudents
from destseg_bench.systems.weights import find_weights, load_resnet18
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.resnet import ResNet18


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that torchvision's files are fetched from, and an empty cache beside it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "URL", tmp_path.as_uri() + "/")
    return tmp_path


def test_a_pinned_file_is_fetched_once_and_checked(make_task, served: Path, monkeypatch) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(weights.FILES, "resnet18", name)
    (served / name).write_bytes(content)
    real, random = make_task(pretrained=True), make_task()
    assert find_weights(random, "resnet18") is None
    path = find_weights(real, "resnet18")
    assert path.read_bytes() == content
    (served / name).unlink()
    assert find_weights(real, "resnet18") == find_weights(random, "resnet18") == path
    path.write_bytes(b"other")
    assert find_weights(random, "resnet18") is None
    with pytest.raises(WeightsError, match="its sha256 does not begin with"):
        find_weights(real, "resnet18")


def test_a_wrong_download_never_gets_the_name(make_task, served: Path, monkeypatch) -> None:
    monkeypatch.setitem(weights.FILES, "resnet18", "net-00000000.pth")
    (served / "net-00000000.pth").write_bytes(b"a page of a proxy")
    with pytest.raises(WeightsError, match="A proxy may have answered"):
        find_weights(make_task(pretrained=True), "resnet18")
    assert list((served / "hub/checkpoints").iterdir()) == []


def test_a_network_is_as_deep_as_its_weights(make_task, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    task = make_task(weights={"resnet18": path}, pretrained=True)
    torch.manual_seed(1)
    trunk = ResNet18(layers=3).state_dict()
    save_file(trunk, path)
    network, origin = load_resnet18(task)
    assert (network.layers, origin) == (3, "trunk.safetensors")
    cutpaste, students = CutPaste(task), UninformedStudents(task)
    assert cutpaste.weights == "trunk.safetensors, layer4 random"
    loaded = cutpaste.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trunk.items())
    assert students.weights == "trunk.safetensors up to layer3"
    assert students.scales[0].decoder.out_features == 256
    assert not any(p.requires_grad for p in students.source.parameters())
    save_file(ResNet18().state_dict(), path)
    assert CutPaste(task).weights == UninformedStudents(task).weights == "trunk.safetensors"
    assert UninformedStudents(task).scales[0].decoder.out_features == 512
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(WeightsError, match=r"bn1\.weight is missing"):
        load_resnet18(task)
