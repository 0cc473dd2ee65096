"""The code reads like the field: docstrings, words, and pages that name what exists."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "copd").rglob("*.py"))
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
)

PRIVATE = r"lessons?|portraits?|portray\w*|likeness(?:es)?|told|mourn|verbs?|house|PromptBook"
"""Words that the field does not use for what copd does; docs/method.md has the ones it does."""

PRIVATE_NAMES = {
    *("lesson", "lessons", "portrait", "portraits", "told", "tell", "asked", "wanted", "kept"),
    *("aside", "verb", "verbs", "book", "piece", "pieces", "likeness", "question", "mourn"),
}


def _names(path: Path) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                yield token.string.strip("_"), token.start[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_source_file_uses_the_words_of_the_field(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if re.search(rf"\b(?:{PRIVATE})\b|[Kk]nows (?:no|not|neither)\b", line)
    ]
    found += [f"{line}: {name}" for name, line in _names(path) if name in PRIVATE_NAMES]
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_uses_the_words_of_the_field(path):
    text = path.read_text(encoding="utf-8")
    assert not re.findall(rf"\b(?:{PRIVATE})\b", text)


def _exported() -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """The definitions behind every package's `__all__`."""
    definitions: dict[tuple[str, str], ast.FunctionDef | ast.ClassDef] = {}
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
                definitions[module.removesuffix(".__init__"), node.name] = node
    for path, tree in trees.items():
        package = ".".join(path.relative_to(ROOT / "src").parent.parts)
        names: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = set(ast.literal_eval(node.value))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if alias.name in names and (node.module, alias.name) in definitions:
                        yield f"{package}.{alias.name}", definitions[node.module, alias.name]
        yield from (
            (f"{package}.{name}", node)
            for (module, name), node in definitions.items()
            if module == package and name in names
        )


EXPORTED = dict(_exported())


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_an_exported_function_documents_arguments_and_result(name):
    node = EXPORTED[name]
    text = ast.get_docstring(node) or ""
    assert text, "a docstring"
    if isinstance(node, ast.ClassDef):
        return
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    if arguments:
        section = text.partition("Args:")[2].partition("\n\n")[0]
        missing = [a for a in arguments if not re.search(rf"^\s+{a}: ", section, re.MULTILINE)]
        assert not missing, f"not under Args: {missing}"
    result = ast.unparse(node.returns) if node.returns else "None"
    if result != "None":
        assert "Returns:" in text or "Yields:" in text
    if any(isinstance(n, ast.Raise) for n in ast.walk(node)):
        assert "Raises:" in text
