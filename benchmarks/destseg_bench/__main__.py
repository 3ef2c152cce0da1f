"""``python -m destseg_bench``: the command where nothing is installed."""

from destseg_bench.cli import bench

if __name__ == "__main__":
    bench(prog_name="destseg-bench")
