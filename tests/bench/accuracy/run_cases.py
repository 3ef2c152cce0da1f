"""Runs that were never trained, and what would have been measured of them."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from destseg_bench.accuracy.measure import MeasuredRun
from destseg_bench.accuracy.runs import Run
from destseg_deploy.evaluation.metrics import PixelMetrics
from destseg_deploy.evaluation.test_set import TABLE_S1, Evaluation, TopKRow
from destseg_deploy.spec import FileRecord, ModelSpec, TrainingRecord
from destseg_deploy.training.recipe import PRESETS, Recipe

TRAINED = {
    "checkpoint": "0" * 64,
    "teacher": {"source": "torchvision IMAGENET1K_V1"},
    "precision": "fp32",
    "device": "cpu",
    "textures": "dtd/images",
    "loop": "lean",
}


def measured(
    category: str,
    seed: int,
    value: float,
    *,
    recipe: Recipe = PRESETS["paper"],
    masks: bool = True,
    settings: tuple[str, ...] = (),
    **trained: Any,
) -> MeasuredRun:
    """Return a run whose image AUROC is ``value``, and whose other metrics are known parts of it.

    Pixel AUROC is 0.9 of it, AP 0.8, PRO 0.7, IAP 0.6, IAP@90 0.5; each step of T takes 0.01.
    """
    parts = [value * share for share in (0.9, 0.8, 0.7, 0.6, 0.5)]
    pixel = PixelMetrics(*parts, f1_max=0.1, f1_threshold=0.5, regions=1, pixels=64)
    found = Evaluation(
        images=2,
        anomalous=1,
        image_auroc=value,
        image_f1_max=1.0,
        image_f1_threshold=0.5,
        pixel=pixel if masks else None,
        vanished=(f"/home/someone/data/{category}/test/cut/000.png",),
    )
    run = Run(
        Path("data") / category,
        Path(f"{category}-seed{seed}.safetensors"),
        replace(recipe, seed=seed).for_category(category),
        settings=settings,
    )
    sweep = tuple(TopKRow(t, t, value - 0.01 * i) for i, t in enumerate(TABLE_S1))
    return MeasuredRun(run, {**TRAINED, **trained}, found, sweep)


def place_checkpoint(source: Path, path: Path, category: str, recipe: Recipe) -> ModelSpec:
    """Put a checkpoint of that category and recipe at a path; its weights are another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec.read(source)
    if category == spec.category:
        os.link(source, path)
    else:  # without its contract, which names the other category
        save_file(load_file(source), path)
        spec = replace(spec, artifact=FileRecord.of(path))
    training = TrainingRecord(
        recipe=asdict(recipe.for_category(category)),
        data=f"/home/someone/data/{category}",
        textures="/home/someone/dtd/images",
        images=6,
        seconds=1.0,
        losses={"student": 2.0, "segmentation": 0.5},
    )
    spec = replace(spec, category=category, training=training)
    spec.write(path)
    return spec
