"""The house report: how large, how tangled and how well explained the source is.

python tests/house/measure.py [ROOT ...]

Each root is a checkout of the project, this one unless given; several stand side by side, so that a
tree can be compared with an earlier one.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("destseg_deploy", "export/destseg_export", "benchmarks/destseg_bench")
DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:|ruff:|pragma:|!)")  # to a tool, not to a reader
LOOPS = (ast.For, ast.While, ast.comprehension)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.BoolOp, ast.ExceptHandler, ast.match_case)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    """One function: body without docstring, McCabe's complexity, parameters without self."""

    name: str
    lines: int
    complexity: int
    parameters: int


class House(NamedTuple):
    """One tree; files are named from its root. Imports inside functions count too."""

    lines: dict[str, int]
    imports: dict[str, set[str]]
    functions: list[Function]
    comments: int

    def folders(self) -> Counter[str]:
        """Return folder -> Python files directly in it, ``__init__`` not counted."""
        files = (Path(name) for name in self.lines)
        return Counter(str(path.parent) for path in files if path.stem != "__init__")

    def wide(self) -> list[str]:
        """Return the functions with more than 8 parameters; in ``cli`` each is an option."""
        wide = [f for f in self.functions if f.parameters > 8 and "/cli/" not in f.name]
        return sorted(f"{f.name} {f.parameters}" for f in wide)

    def cycles(self) -> list[tuple[str, ...]]:
        """Return the groups of files that import each other, directly or through others."""
        reach = {name: set(below) for name, below in self.imports.items()}
        for middle in reach:  # Warshall's closure
            for above in reach.values():
                above |= reach[middle] if middle in above else set()
        looped = {name for name in reach if name in reach[name]}
        return sorted({tuple(sorted(b for b in reach[a] if a in reach[b])) for a in looped})


def measure(root: Path) -> House:
    """Measure the three packages of a checkout."""
    texts, modules = {}, {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = str(path.relative_to(root))
            texts[name] = path.read_text("utf-8")
            dotted = ".".join(path.relative_to((root / package).parent).with_suffix("").parts)
            modules[dotted.removesuffix(".__init__")] = name
    trees = {name: ast.parse(text) for name, text in texts.items()}
    readers = (io.StringIO(text).readline for text in texts.values())
    tokens = (token for reader in readers for token in tokenize.generate_tokens(reader))
    return House(
        lines={name: len(text.splitlines()) for name, text in texts.items()},
        imports={n: {modules[m] for m in _imported(trees[n], set(modules))} - {n} for n in trees},
        functions=[f for name, tree in trees.items() for f in _functions(tree, f"{name}:")],
        comments=sum(t.type == tokenize.COMMENT and not DIRECTIVE.match(t.string) for t in tokens),
    )


def _imported(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                # what a package holds is a module, or is defined in its __init__
                yield name if name in modules else node.module


def _functions(node: ast.AST, prefix: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS):
            yield _function(child, prefix + child.name)
        named = isinstance(child, (*DEFINITIONS, ast.ClassDef))
        yield from _functions(child, f"{prefix}{child.name}." if named else prefix)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Function:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    parameters = sum(a is not None and a.arg not in ("self", "cls") for a in every)
    return Function(name, lines, 1 + sum(map(_paths, body)), parameters)


def _paths(node: ast.AST) -> int:
    inner = isinstance(node, (*DEFINITIONS, ast.ClassDef))  # a nested function counts for itself
    below = 0 if inner else sum(map(_paths, ast.iter_child_nodes(node)))
    return below + isinstance(node, BRANCHES)


def report(house: House) -> dict[str, str]:
    """Return what is measured of one tree -> its value."""
    total = sum(house.lines.values())
    bodies = sorted(function.lines for function in house.functions if function.lines)
    involved = sum(function.complexity > 10 for function in house.functions)
    edges = sum(map(len, house.imports.values()))
    folder, files = house.folders().most_common(1)[0]
    longest = max(house.lines, key=lambda name: house.lines[name])
    return {
        "files": f"{len(house.lines)}",
        "lines": f"{total:,}",
        "files per 1,000 lines": f"{1000 * len(house.lines) / total:.1f}",
        "largest folder": f"{files} {folder}",
        "longest file": f"{house.lines[longest]} {longest}",
        "import edges per 1,000 lines": f"{1000 * edges / total:.1f}",
        "import cycles": f"{len(house.cycles())} ({sum(map(len, house.cycles()))} files)",
        "body lines, median": f"{median(bodies):g}",
        "body lines, p90": f"{bodies[int(0.9 * (len(bodies) - 1))]}",
        "complexity above 10": f"{involved / len(house.functions):.1%}",
        "more than 8 parameters": f"{len(house.wide())} outside cli",
        "comments per 1,000 lines": f"{1000 * house.comments / total:.1f}",
    }


def main(roots: list[str]) -> None:
    """Print the report of each root, side by side, and below it the names that stand out."""
    houses = {root: measure(Path(root)) for root in roots}
    columns = [{"": root, **report(house)} for root, house in houses.items()]
    widths = [max(map(len, column.values())) for column in columns]
    for name in columns[0]:
        cells = (f"{c[name]:<{width}}" for c, width in zip(columns, widths, strict=True))
        print(f"{name:<30}{'  '.join(cells)}".rstrip())
    for root, house in houses.items():
        print(f"\n{root}: import cycles", *(house.cycles() or ["none"]), sep="\n  ")
        print(f"\n{root}: more than 8 parameters", *(house.wide() or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1:] or [str(ROOT)])
