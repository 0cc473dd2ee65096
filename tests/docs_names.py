"""The names that pages may use: of the code, the settings, the metrics, and of files of a run."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

from copd.cli import main
from copd.config import Config
from copd.config.schema import setting_paths
from copd.config.study import Study

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "copd"
COMMANDS = ("train", "resume", "plan", "compare", "eval", "diagnose", "merge", "report", "data")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _assigned(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement assigns, `self.NAME` included."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Name):
                    yield each.id
                elif isinstance(each, ast.Attribute):
                    yield each.attr


def _members(body: list[ast.stmt]) -> set[str]:
    names = {name for node in body for name in _assigned(node)}
    return names | {node.name for node in body if isinstance(node, Definition)}


class Module:
    """The names that a Python file defines."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.names = _members(tree.body)
        """Defined at the top level."""
        self.members: dict[str, set[str]] = {}
        """Class to its methods and attributes."""
        self.bases: dict[str, list[str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                own = {name for child in ast.walk(node) for name in _assigned(child)}
                self.members[node.name] = own | _members(node.body)
                self.bases[node.name] = [ast.unparse(base) for base in node.bases]
        self.arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


@cache
def modules() -> dict[str, Module]:
    """Every Python file of the repository, by its path from the root."""
    folders = ("src/copd", "benchmarks", "scripts", "paper", "examples")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): Module(path) for path in paths}


@cache
def _classes() -> dict[str, set[str]]:
    """Class to its members, inherited ones included."""
    own: defaultdict[str, set[str]] = defaultdict(set)
    bases: defaultdict[str, set[str]] = defaultdict(set)
    for module in modules().values():
        for name, members in module.members.items():
            own[name] |= members
            bases[name] |= {base for base in module.bases[name] if base != name}

    def inherited(name: str) -> set[str]:
        return own[name].union(*(inherited(base) for base in bases[name] if base in own))

    return {name: inherited(name) for name in list(own)}


def is_defined(name: str, path: str | None = None) -> bool:
    """Whether `name` or `Class.member` is defined, in a file of the package if one is given."""
    first, _, member = name.partition(".")
    if path is not None:
        module = modules().get(f"src/copd/{path}") or modules().get(path)
        if module is None:
            return False
        return member in module.members.get(first, ()) if member else first in module.names
    if member:
        return member in _classes().get(first, ())
    return first in _all_names()


@cache
def _all_names() -> set[str]:
    found = set(modules_names())
    for module in modules().values():
        found |= module.names | module.arguments
    return found.union(*_classes().values())


def modules_names() -> set[str]:
    """The packages and modules of copd, without their parents."""
    return {part for path in modules() for part in path.removesuffix(".py").split("/")}


def is_import(name: str) -> bool:
    """Whether `copd.x.y` is a module, or a name defined or exported there."""
    path = "src/" + name.replace(".", "/")
    if f"{path}.py" in modules() or f"{path}/__init__.py" in modules():
        return True
    parent, _, last = path.rpartition("/")
    if f"{parent}.py" in modules():
        return last in modules()[f"{parent}.py"].names
    package = PACKAGE.parent / parent.removeprefix("src/") / "__init__.py"
    return package.exists() and bool(re.search(rf"\b{last}\b", package.read_text(encoding="utf-8")))


@cache
def settings() -> frozenset[str]:
    """Dotted names of all settings, those of studies included."""
    return frozenset({*setting_paths(Config), *setting_paths(Study)})


@cache
def setting_words() -> frozenset[str]:
    """The last parts of all settings, and the words that settings accept as values."""
    tree = ast.Module([], [])
    for path in sorted((PACKAGE / "config").glob("*.py")):
        tree.body += ast.parse(path.read_text(encoding="utf-8")).body
    values = {
        each.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
        for each in ast.walk(node.slice)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }
    return frozenset(values | {path.rpartition(".")[2] for path in settings()})


def is_setting(name: str) -> bool:
    """Whether `section.key` is a setting; names of domains, methods and merges are free."""
    name = re.sub(r"^methods\.\w+\.(?=\w+\.\w)", "", name.removeprefix("common."))
    name = re.sub(r"^(domains|methods|merges)\.\w+", r"\1.NAME", name)
    return name in settings() or f"domains.NAME.{name}" in settings()


@cache
def options(command: str) -> frozenset[str]:
    """The options of a command, by its help."""
    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main([command, "--help"])
    return frozenset(re.findall(r"--[a-z][\w-]*", text.getvalue().partition("settings and")[0]))


@cache
def metrics() -> frozenset[str]:
    """The names of metrics: the strings in the functions that compute them."""
    found: set[str] = set()
    for path in ("branch/learner.py", "branch/gradients.py", "branch/optimizer.py", "run/step.py"):
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(node.value.strip("/").split("/"))
    return frozenset(name for name in found if re.fullmatch(r"\w+", name))


def batch_metrics() -> set[str]:
    """The metrics of one batch, which docs/metrics.md must list."""
    tree = ast.parse((PACKAGE / "branch/learner.py").read_text(encoding="utf-8"))
    (function,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "batch_metrics"
    ]
    keys = [key for n in ast.walk(function) if isinstance(n, ast.Dict) for key in n.keys]
    keys += [n.slice for n in ast.walk(function) if isinstance(n, ast.Subscript)]
    return {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
