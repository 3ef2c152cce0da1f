"""What only a GPU can show of the training. Not run where there is none."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.loop import Observers
from destseg_deploy.training.recipe import Recipe, TrainingOptions
from destseg_deploy.training.setup import prepare

pytestmark = pytest.mark.gpu
RECIPE = Recipe(size=64, batch_size=4, student_steps=12, segmentation_steps=12, rotation="full")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_between_two_reads_waits_for_the_gpu(category, precision):
    """Each phase reads its losses at steps 1, 11 and 12; all other steps may not synchronise."""

    def report(progress):
        position = (progress.done - 1) % 12
        torch.cuda.set_sync_debug_mode("error" if 1 <= position < 9 else "default")

    options = TrainingOptions(teacher="random", device="cuda", precision=precision)
    setup = prepare(category, RECIPE, options)
    state = RunState.fresh(RECIPE.steps)
    try:
        setup.loop.fit(setup.source(), state, Observers(report))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(state.losses).all()


def test_gpu_and_cpu_train_alike(category):
    losses = []
    for device in ("cpu", "cuda"):
        options = TrainingOptions(teacher="random", device=device, precision="fp32", workers=0)
        setup = prepare(category, RECIPE, options)
        state = RunState.fresh(RECIPE.steps)
        setup.loop.fit(setup.source(), state)
        losses.append(state.losses)
    assert np.allclose(losses[0][:3], losses[1][:3], rtol=0.02)
