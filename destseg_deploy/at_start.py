"""Ctrl-C while a command is still importing: end quietly. There is nothing to clean up yet.

The packages below take half a second to import, and Python would answer with a traceback through
them. Programs of others that import this package keep their own reaction.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress

COMMANDS = "train evaluate predict threshold sample report page export bench"
"""Each is installed as ``destseg-<command>``, beside ``destseg``."""

PROGRAM = re.compile(rf"destseg(-({COMMANDS.replace(' ', '|')}))?(-script\.py|\.exe)?")

if PROGRAM.fullmatch(os.path.basename(next(iter(sys.argv), ""))):
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
