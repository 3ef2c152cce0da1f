"""The command destseg-export and its subcommands.

``export`` goes the whole way from a checkpoint; ``fuse`` and ``quantize`` make an ONNX file
cheaper; ``refit`` puts other weights into an engine; ``bundle`` packs for a line PC; ``cpp`` writes
a project around an artifact; ``repository`` is for servers; ``inspect`` prints a spec; the studies
measure.
"""

from __future__ import annotations

from destseg_export.cli.bundle import bundle
from destseg_export.cli.cpp import cpp_command
from destseg_export.cli.cpu import fuse_command, quantize_command
from destseg_export.cli.export import export
from destseg_export.cli.inspect import inspect
from destseg_export.cli.refit import refit
from destseg_export.cli.repository import repository_command
from destseg_export.cli.studies import (
    study_builds_command,
    study_half_command,
    study_int8_command,
)

for command in (
    bundle,
    cpp_command,
    fuse_command,
    inspect,
    quantize_command,
    refit,
    repository_command,
    study_builds_command,
    study_half_command,
    study_int8_command,
):
    export.add_command(command)
