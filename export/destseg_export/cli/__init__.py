"""destseg-export: checkpoint to verified ONNX model and engine, and what a spec says."""

from __future__ import annotations

from destseg_export.cli.builds import study_builds
from destseg_export.cli.inspect import inspect
from destseg_export.cli.refit import refit
from destseg_export.cli.whole import export
from destseg_export.cpu_commands import fuse_command, quantize_command
from destseg_export.study_command import study_half_command

export.add_command(fuse_command)
export.add_command(inspect)
export.add_command(quantize_command)
export.add_command(refit)
export.add_command(study_builds)
export.add_command(study_half_command)
