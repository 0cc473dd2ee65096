"""Pages name what exists: files, modules, functions, settings, metrics, commands and links."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from copd.cli import build_parser, split_overrides
from copd.run.cost import COUNTS
from copd.storage import RENAMED_METRICS
from tests.docs_names import (
    COMMANDS,
    PACKAGE,
    ROOT,
    batch_metrics,
    is_defined,
    is_import,
    is_setting,
    metrics,
    options,
    setting_words,
)

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
)

RUN_FILES = {
    *("config.json", "plan.json", "eval.json", "merge.json", "state.json", "trackers.json"),
    *("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "evaluations.jsonl", "dynamics.jsonl"),
    *("report.html", "results.json", "diagnosis.json", "diagnosis.html", "adapter_config.json"),
    *("final/", "adapters/NAME/", "media/", "RUN/tensorboard", "RUN/wandb"),
}
"""Files that runs, studies, models and commands have or write."""

ELSEWHERE = {
    # transformers, torch, TRL, verl, vLLM
    *("AutoImageProcessor", "AutoModelForImageTextToText", "AutoTokenizer", "DistillationTrainer"),
    *("GRPOTrainer", "generate", "suppress_tokens", "requires_grad", "save_to_disk", "fully_shard"),
    *("forward_kl_topk_tail", "vllm_importance_sampling_correction", "reload_weights"),
    *("torch.distributed", "transformers", "bitsandbytes", "datasets", "av", "gguf", "pip"),
    *("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "yuv420p", "yuv444p", "gbrp"),
    # Ray, Kubernetes, Slurm
    *("ray.init", "ReadWriteMany", "--exclusive"),
    # generators of reasoning-gym
    *("basic_arithmetic", "boxnet", "calendar_arithmetic", "chain_sum", "color_cube_rotation"),
    *("family_relationships", "graph_color", "leg_counting", "needle_haystack", "number_format"),
    *("number_sorting", "products", "propositional_logic", "rubiks_cube", "rush_hour"),
    *("score_answer", "sentence_reordering", "spell_backward", "syllogism", "sums"),
    *("word_sequence_reversal", "word_sorting"),
    # columns of data files, and names that a user chooses
    *("data_source", "messages", "pass_rate", "problem", "question", "solution"),
    *("reward_model.ground_truth", "my_rewards.py", "data/digits/image/train.jsonl"),
    *("data/video/all.jsonl", "owner/name", "unified", "runs/_experts1", "runs/studies"),
    *("runs/laptop/final", "agree", "conflict", "scarce", "three_branches_long"),
    # keys of files, labels of the live view, and placeholders
    *("branches", "change", "latest", "left", "stage_index", "time/seconds", "section.key"),
    *("BRANCH/ACTION/NAME", "BRANCH/cost/COUNT", "eval/MODEL/DOMAIN", "eval/MODEL/mean"),
    *("rlvr/DOMAIN", "opd/from_TEACHER/DOMAIN", "FILE.partial", "student_top_under_teacher"),
    *("teacher_top_under_student", "student_entropy", "teacher_entropy", "kl"),
}
"""Names that are not copd's to define."""

SYMBOLS = re.compile(r"[A-Za-z](_[a-z])?|[a-z]+_[ik]t?|V|O_k")
NAME = re.compile(r"_?[A-Za-z]\w*(\.\w+)*")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.:-])(?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|jinja|json)\b")


def text_of(page: Path) -> str:
    """Return a page without fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8")).replace("\\_", "_").replace("\\|", "|")


def spans_of(page: Path) -> set[str]:
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text_of(page))}


def exists(name: str, page: Path) -> bool:
    """Whether a path exists from the root, the package, the page, or where pages say it lies."""
    folders = (ROOT, PACKAGE, page.parent, *(ROOT / f for f in ("configs", "examples", "docs")))
    folders = (*folders, ROOT / "paper" / "studies")
    pattern = name.strip("/")
    return name in RUN_FILES or any(list(f.glob(pattern)) for f in folders if pattern)


def is_metric(name: str) -> bool:
    name = name.removeprefix("text/")
    if name.startswith("cost.*."):
        return name.removeprefix("cost.*.") in COUNTS
    parts = re.fullmatch(r"(?:\*|rlvr/\*|opd/\*|opd/from_image/image|update)/(\w+)(/A\|B)?", name)
    bare = parts[1] if parts else name.removesuffix("_*")
    return bare in metrics() or bare in COUNTS or (not parts and bare in RENAMED_METRICS)


def wrong_in_command(words: list[str]) -> list[str]:
    """Return the command, options and files of `copd ...` that do not exist."""
    known = {"--version", *(options(words[1]) if words[1:] and words[1] in COMMANDS else ())}
    wrong = [w for w in words[1:2] if w not in COMMANDS and w not in known]
    named = [word.partition("=")[0] for word in words[2:] if re.match(r"--[a-z]", word)]
    wrong += [w for w in named if w not in known and not is_setting(w.removeprefix("--"))]
    files = [word for word in words if re.match(r"(configs|examples|paper)/", word)]
    return wrong + [file for file in files if not (ROOT / file).exists()]


def wrong_in_span(span: str, page: Path) -> list[str]:
    """Return what does not exist among the names of a span in backticks."""
    words = span.split()
    if span in ELSEWHERE:
        return []
    if words[0] == "copd" and len(words) > 1:
        return wrong_in_command(words)
    if words[0].startswith("--"):
        every = {option for command in COMMANDS for option in options(command)}
        named = [word for word in words if word.startswith("--")]
        return [o for o in named if o not in every and not is_setting(o.removeprefix("--"))]
    if words[0] == "make" and len(words) == 2:
        found = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [] if words[1] in found else [span]
    if span.startswith("python -m ") and words[2] != "copd":
        path = words[2].replace(".", "/")
        found = (
            exists(f"{f}{path}{e}", page) for f in ("", "src/") for e in (".py", "/__main__.py")
        )
        return [] if any(found) else [span]
    if extra := re.fullmatch(r"pip install 'copd\[(\w+)\]'", span):
        return [] if extra[1] in project()["project"]["optional-dependencies"] else [span]
    if marker := re.fullmatch(r"pytest -m (\w+)", span):
        marks = project()["tool"]["pytest"]["ini_options"]["markers"]
        return [] if any(mark.startswith(f"{marker[1]}:") for mark in marks) else [span]
    if setting := re.fullmatch(r"([a-z_]\w*(?:\.\w+)*) = .*", span):
        is_known = is_setting(setting[1]) or setting[1] in setting_words()
        return [] if is_known else [setting[1]]
    if is_metric(span) or SYMBOLS.fullmatch(span):
        return []
    if re.fullmatch(r"[\w.*-]*/[\w.*/|-]*|[\w*-]+\.(py|md|toml|txt|jsonl?|html|jinja)", span):
        return [] if exists(span, page) else [span]
    return wrong_in_name(span) if NAME.fullmatch(span) else []


def wrong_in_name(name: str) -> list[str]:
    if name.startswith("copd."):
        return [] if is_import(name) else [name]
    if is_defined(name) or is_setting(name) or name in setting_words() or name in COMMANDS:
        return []
    return [name]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


page_by_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


@page_by_page
def test_names_in_backticks_exist(page: Path):
    assert not [name for span in sorted(spans_of(page)) for name in wrong_in_span(span, page)]


@page_by_page
def test_paths_and_headings_in_the_text_exist(page: Path):
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|https?://\S+", " ", text_of(page))
    assert not [path for path in PATH.findall(text) if not exists(path, page)]
    for other, heading in re.findall(r'docs/(\w+)\.md, "([^"]+)"', text):
        assert heading in [title for title, _ in headings(ROOT / "docs" / f"{other}.md")]


@page_by_page
def test_a_function_is_in_the_file_named_beside_it(page: Path):
    text = " ".join(text_of(page).split())
    pairs = re.findall(r"`(\w+(?:\.\w+)*)`(?:, | \(| in `)((?:\w+/)*\w+\.py)", text)
    assert not [pair for pair in pairs if pair[1] not in ELSEWHERE and not is_defined(*pair)]


@page_by_page
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in [slug for _, slug in headings(other)], target


def headings(page: Path) -> list[tuple[str, str]]:
    """Return the headings of a page, with the anchors that GitHub gives them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return [(t, re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-")) for t in titles]


def commands(page: Path) -> Iterator[str]:
    """Yield the `copd` commands of fenced blocks, without comments."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language != "python" else ():
            if re.match(r" *copd [a-z]", line) and "$" not in line and not line.endswith(":"):
                yield line.partition("  #")[0].strip()


@page_by_page
def test_commands_are_accepted(page: Path):
    for command in commands(page):
        words = shlex.split(command)
        assert not wrong_in_command(words), command
        build_parser().parse_args(split_overrides(words[1:])[0])


@page_by_page
def test_python_examples_import_what_exists(page: Path):
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    for tree in [ast.parse(block) for language, block in blocks if language == "python"]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("copd"):
                assert all(is_import(f"{node.module}.{alias.name}") for alias in node.names)


def test_code_and_configurations_refer_to_pages_that_exist():
    files = [path for f in ("src", "configs", "examples") for path in (ROOT / f).rglob("*.*")]
    texts = [p.read_text(encoding="utf-8") for p in files if p.suffix in (".py", ".toml", ".html")]
    named = {page for text in texts for page in re.findall(r"docs/[\w/]+\.md", text)}
    assert named and all((ROOT / page).exists() for page in named)


def test_the_structure_page_lists_every_module_once():
    section = (ROOT / "docs/structure.md").read_text(encoding="utf-8").partition("## Files\n")[2]
    lines = [line for line in FENCE.findall(section)[0][1].splitlines() if line]
    named = [line.split()[0] for line in lines]
    listed = [f"{name}__init__.py" if name.endswith("/") else name for name in named]
    assert sorted(listed) == sorted(
        p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")
    )
    assert all(re.match(r"\S+ {2,}\S", line) for line in lines), "a description of each"


def test_the_structure_page_has_the_layers_that_are_linted():
    contracts = project()["tool"]["importlinter"]["contracts"]
    table = (ROOT / "docs/structure.md").read_text(encoding="utf-8").partition("## Layers\n")[2]
    rows = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`[^|]*) \|", table, re.M)]
    layers = [set(layer.split(" | ")) for layer in contracts[0]["layers"] if layer != "__main__"]
    assert rows[: len(layers)] == layers
    marked = set(re.findall(r"`(\w+)` \*", table.partition("\n## ")[0]))
    light = next(c for c in contracts if c["type"] == "forbidden")["source_modules"]
    assert marked == {name.removeprefix("copd.") for name in light}


def test_the_metrics_page_lists_every_metric_of_a_batch():
    spans = spans_of(ROOT / "docs/metrics.md")
    missing = {
        m for m in batch_metrics() if not {f"{p}/{m}" for p in ("*", "rlvr/*", "opd/*")} & spans
    }
    assert not missing


@pytest.mark.parametrize(
    "span",
    [
        *("token_advantage", "Branch.scores", "branch/lesson.py", "copd.branch.Learning"),
        *("monitor.overlaps", "copd trains", "copd plan --gpu 3", "*/sampler_gaps", "make tests"),
        *(
            "copd train configs/mix.toml",
            "--recipe.round 2",
            "rounds_ = 3",
            "python -m scripts.kill",
            "pip install 'copd[gpu]'",
        ),
    ],
)
def test_a_wrong_name_is_found(span: str):
    assert wrong_in_span(span, ROOT / "README.md")
    assert not is_defined("_score", "run/step.py")
