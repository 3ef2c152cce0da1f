"""STPM: the weights that it starts from."""

import math

import pytest
import torch

from destseg_bench.systems.stpm import Stpm
from destseg_bench.systems.weights import load_resnet18
from destseg_deploy.models.resnet import ResNet18


def _check_torchvisions(network: ResNet18) -> None:
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in convolutions:
        fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
        few = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a deviation
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=few)


def test_the_student_starts_from_the_weights_that_torchvision_draws(task):
    """They were PyTorch's own, uniform by fan-in: 2.4 times too small in the deepest layers."""
    system = Stpm(task)
    _check_torchvisions(system.student)
    _check_torchvisions(system.teacher)
    first, second = (network.conv1.weight for network in (system.student, system.teacher))
    assert not torch.equal(first, second)


def test_a_random_resnet18_is_drawn_as_torchvisions(task):
    _check_torchvisions(load_resnet18(task)[0])
