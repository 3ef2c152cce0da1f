"""How the frames of an export are cut into tiles, and which region of them is inspected.

What a checkpoint was trained with is the default. Everything else is counted in pixels of the
frame, so that it needs the frame's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.errors import ExportError
from destseg_deploy.spec import ModelSpec, RegionSpec, TilingSpec, other_scores

OVERLAP_SHARE = 4
"""Tiles overlap by a quarter unless told otherwise."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """What to do with a frame; None leaves each to the checkpoint.

    Attributes:
        scale: Pixels of the network per pixel of the frame; the network sees tiles then.
        overlap: Pixels of the network that neighbouring tiles share at least; the training's, or a
            quarter of a tile, unless given.
        tile_batch: Tiles that the network takes at a time; all of a frame unless given.
        region: What is inspected, or the path of a PNG mask of the frame's size.
    """

    scale: float | None = None
    overlap: int | None = None
    tile_batch: int | None = None
    region: RegionSpec | Path | None = None

    @classmethod
    def of_spec(cls, spec: ModelSpec) -> Cut:
        """Return how the frames of an artifact are cut."""
        if spec.tiling is None:
            return cls(region=spec.region)
        tiling = spec.tiling
        return cls(tiling.scale, tiling.overlap, tiling.tile_batch, spec.region)

    def tiling(self, trained: ModelSpec) -> TilingSpec | None:
        """Return how frames are cut, or None where the network sees whole frames.

        Raises:
            ExportError: If an option needs a scale and there is none.
        """
        own = trained.tiling
        if self.scale is None and own is None:
            for name, value in (("--overlap", self.overlap), ("--tile-batch", self.tile_batch)):
                if value is not None:
                    raise ExportError(
                        f"{name} {value}: without tiles. Pass --scale, or leave {name} out."
                    )
            return None
        start = own or TilingSpec(1.0, min(trained.network_size) // OVERLAP_SHARE)
        return TilingSpec(
            start.scale if self.scale is None else self.scale,
            start.overlap if self.overlap is None else self.overlap,
            start.tile_batch if self.tile_batch is None else self.tile_batch,
        )

    def frame(self, trained: ModelSpec, input_size: Size | None) -> Size:
        """Return the size of the frames.

        Raises:
            ExportError: If pixels of the frame are counted and its size is not known.
        """
        if input_size is not None:
            return input_size
        if trained.takes_any_size:
            for name, value in (("--scale", self.scale), ("--roi", self.region)):
                if value is not None:
                    raise ExportError(
                        f"{name} {value}: the size of the frames is not known. Pass it with "
                        "--input-size HEIGHTxWIDTH."
                    )
        return trained.size

    def region_of(self, trained: ModelSpec, frame: Size) -> RegionSpec | None:
        """Return what is inspected of frames of a size.

        Raises:
            ExportError: If the checkpoint's region belongs to frames of another size.
            SpecError: If the mask cannot be read.
        """
        if isinstance(self.region, Path):
            return RegionSpec.read_mask(self.region, frame)
        if self.region is not None or trained.region is None:
            return self.region
        if frame != trained.size:
            raise ExportError(
                f"--input-size {frame[0]}x{frame[1]}: the checkpoint's region {trained.region} "
                f"belongs to frames of {trained.size[0]}x{trained.size[1]}. Pass the region of the "
                "new frames with --roi."
            )
        return trained.region


def remark_scale(trained: ModelSpec, spec: ModelSpec, report: Callable[[str], None]) -> None:
    """Say where things have another size in the network's pixels than in training."""
    before, now = (one.tiling.scale if one.tiling else None for one in (trained, spec))
    if before is not None and before != now:
        report(
            f"scale {now:g} is not {before:g}, with which this checkpoint was trained: the network "
            "sees parts of another size than it learned"
        )


def remark_threshold(trained: ModelSpec, spec: ModelSpec, report: Callable[[str], None]) -> None:
    """Say that the checkpoint's threshold was left out, and why."""
    if trained.threshold is not None and (reason := other_scores(trained, spec)):
        report(
            f"{reason}: the checkpoint's threshold does not fit and was left out; set one with "
            "destseg-threshold"
        )
