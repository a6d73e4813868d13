"""Print size and structure of the package: lines, import cycles, imports in functions, call depth, start-up times.

    python tools/house.py

The last three rows run the installed package; with `--static` only the sources are read.
"""

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"

# Runs in its own process: one call with the bundled model, observed at the first forward of the fusion.
CALL = """
import sys
import numpy as np
import torch
import fusioner

root = fusioner.__path__[0]

def report(module, args):
    if (type(module).__module__, type(module).__name__) != ("fusioner.model.fusion", "Fusion"):
        return
    frame, frames = sys._getframe(), []
    while frame:
        if frame.f_code.co_filename.startswith(root) and not frame.f_code.co_name.startswith("<"):
            frames.append(frame.f_code.co_qualname)
        frame = frame.f_back
    modules = [name for name in sys.modules if name.split(".")[0] == "fusioner"]
    print(len(modules), len(frames), " > ".join(reversed(frames)))
    sys.exit()

torch.nn.modules.module.register_module_forward_pre_hook(report)
fusioner.load(runtime="torch")(np.zeros((64, 64, 3), np.uint8), ["cat"])
"""
# The same call as most users make it: on ONNX Runtime.
DEFAULT_CALL = """
import sys
import numpy as np
import fusioner
fusioner.load(device="cpu")(np.zeros((64, 64, 3), np.uint8), ["cat"])
print(len([name for name in sys.modules if name.split(".")[0] == "fusioner"]))
"""


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    """Return whether `node` is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield every import that can run, and whether it is inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        elif is_type_checking(child):
            for other in getattr(child, "orelse", []):
                yield from imports(other, in_function)
        else:
            yield from imports(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def targets(statement: ast.Import | ast.ImportFrom, modules: set[str]) -> set[str]:
    """Return the modules of the package that one import statement loads."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & modules
    base = statement.module or ""
    names = {f"{base}.{alias.name}" for alias in statement.names}
    return (names & modules) or ({base} & modules)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            new = graph[stack.pop()] - seen
            seen |= new
            stack += new
        return seen

    reach = {name: reachable(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def best_time(*command: str, rounds: int = 5) -> float:
    """Return the shortest wall time of a command, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one row per measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static", action="store_true", help="read the sources only, run nothing")
    static = parser.parse_args().static

    files = {module_name(path): path.read_text("utf-8") for path in sorted(SRC.rglob("*.py"))}
    graph: dict[str, set[str]] = {name: set() for name in files}
    top_level: dict[str, set[str]] = {name: set() for name in files}
    functions = with_import = in_functions = 0
    for name, text in files.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                with_import += any(True for _ in imports(node))
        for statement, inside in imports(tree):
            in_functions += inside
            found = targets(statement, set(files)) - {name}
            graph[name] |= found
            if not inside:
                top_level[name] |= found

    lines = sum(len(text.splitlines()) for text in files.values())
    print(f"lines of Python           {lines:,}")
    print(f"files                     {len(files)}")
    print(f"imports inside functions  {in_functions} (in {with_import} of {functions} functions)")
    for title, edges in (("import cycles, top level", top_level), ("import cycles, all", graph)):
        found = cycles(edges)
        print(f"{title:25} {len(found)}")
        for group in found:
            print(f"    {', '.join(group)}")
    if static:
        return
    call = subprocess.run([sys.executable, "-c", CALL], check=True, capture_output=True, text=True)
    modules, frames, path = call.stdout.split(maxsplit=2)
    default = subprocess.run([sys.executable, "-c", DEFAULT_CALL], check=True, capture_output=True, text=True)
    print(f"modules imported by seg() {default.stdout.strip()}, {modules} with torch")
    print(f"frames before the fusion  {frames}: {path.strip()}")
    python = best_time("-c", "pass")
    print(f"import fusioner           {best_time('-c', 'import fusioner') - python:.2f} s")
    print(f"fusioner --help           {best_time('-m', 'fusioner', '--help'):.2f} s (Python itself: {python:.2f} s)")


if __name__ == "__main__":
    main()
