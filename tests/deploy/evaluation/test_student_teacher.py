"""The student-teacher map of a checkpoint, measured beside its segmentation."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from destseg_deploy.data.images import read_image
from destseg_deploy.evaluation.report import evaluate_category
from destseg_deploy.evaluation.test_set import score_test_set
from destseg_deploy.loading import load
from destseg_deploy.models.destseg import upsample
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.options import OrtOptions
from destseg_deploy.predictor import Predictor


def test_a_checkpoint_gives_its_student_teacher_map_too(checkpoint, onnx_artifact, category):
    """The paper's DeST, which users compare with; an export has the segmentation alone."""
    with load(checkpoint) as predictor:
        found = evaluate_category(predictor, checkpoint, category)
        maps = score_test_set(Predictor(predictor.runtime.student_teacher()), category).maps
        frames = np.stack([read_image(sample.image) for sample in found.test.samples])
        graph = predictor.runtime._graph
        with torch.inference_mode():
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
            _, expected = graph.model(normalize_pixels(pixels))
            expected = upsample(expected, torch.Size((64, 64)))[:, 0] / 8
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)
    assert np.abs(maps - found.test.maps).max() > 0.1, "control: the segmentation is another map"
    assert found.student_teacher is not None
    assert found.student_teacher.pixel != found.result.pixel
    assert found.to_dict()["student_teacher"]["pixel"]["ap"] == found.student_teacher.pixel.ap
    with load(onnx_artifact, options=OrtOptions(threads=1)) as predictor:
        exported = evaluate_category(predictor, onnx_artifact, category)
    assert exported.student_teacher is None
    assert exported.to_dict()["student_teacher"] is None
