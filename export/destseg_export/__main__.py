"""``python -m destseg_export``: the command where nothing is installed."""

from destseg_export.cli.export import export

if __name__ == "__main__":
    export(prog_name="destseg-export")
