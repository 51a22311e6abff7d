"""How the house is built: who imports whom, what an import does, what the package ships."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTERMOST = {"cli", "report", "app", "viewer"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, by the name it is imported under."""
    for folder, name in (
        ("lvlm_probe", "lvlm_probe"),
        ("adapters", "lvlm_probe.adapters"),
        ("recipes", "lvlm_probe.recipes"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder)
            if inner.parts[0] not in ("adapters", "recipes") or folder != "lvlm_probe":
                parts = [*inner.parts[:-1], *([] if inner.stem == "__init__" else [inner.stem])]
                yield ".".join([name, *parts]), path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Names that a module imports from the package, and whether only for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield node.module or "", id(node) in checking
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in checking


def part(name: str) -> str:
    """core, adapters, recipes, demo or outermost."""
    pieces = name.split(".")
    if len(pieces) > 1 and pieces[1] in ("adapters", "recipes", "demo"):
        return pieces[1]
    return "outermost" if len(pieces) > 1 and pieces[1] in OUTERMOST else "core"


MAY = {
    "core": {"core", "demo"},
    "demo": {"demo"},
    "adapters": {"adapters", "core"},
    "recipes": {"recipes", "core"},
    "outermost": {"outermost", "recipes", "adapters", "core", "demo"},
}


def test_layers() -> None:
    found = dict(modules())
    assert {"lvlm_probe.probe", "lvlm_probe.adapters.llava", "lvlm_probe.recipes.relevancy"} <= set(
        found
    )
    wrong = [
        f"{name} imports {target}"
        for name, path in found.items()
        for target, _ in imported(path)
        if target.split(".")[0] == "lvlm_probe" and part(target) not in MAY[part(name)]
    ]
    assert wrong == []


def test_recipes_do_not_import_one_another() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        if part(name) == "recipes"
        for target, _ in imported(path)
        if part(target) == "recipes" and target.split(".")[2:3] != name.split(".")[2:3]
    ]
    assert wrong == []


def test_nnsight_is_known_to_one_module() -> None:
    users = [
        n for n, path in modules() if any(t.split(".")[0] == "nnsight" for t, _ in imported(path))
    ]
    assert users == ["lvlm_probe.hooks"]


def test_core_does_not_name_families() -> None:
    import lvlm_probe.adapter as adapter

    families = {a.family for a in adapter.available_adapters().values()}
    for name, path in modules():
        if part(name) == "core":
            code = ast.unparse(ast.parse(path.read_text("utf-8")))
            quoted = {n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)}
            assert not families & quoted, f"{name} names a family"


IMPORT = """
import sys
before_filters = list(__import__("warnings").filters)
import lvlm_probe
heavy = {m.split(".")[0] for m in sys.modules} & {
    "torch", "numpy", "transformers", "nnsight", "safetensors", "PIL", "matplotlib", "accelerate", "jaxtyping"
}
assert not heavy, heavy
assert __import__("warnings").filters == before_filters
assert "lvlm_probe.probe" not in sys.modules
assert set(lvlm_probe.__all__) <= set(dir(lvlm_probe))
try:
    lvlm_probe.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
"""

CHANGES = """
import sys, torch, transformers, matplotlib, signal, logging, os
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions
def state():
    return {
        "backward": torch.Tensor.backward, "grad": torch.Tensor.grad, "call": torch.nn.Module.__call__,
        "sdpa": torch.nn.functional.scaled_dot_product_attention, "attention": dict(functions.items()),
        "dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(), "grad mode": torch.is_grad_enabled(),
        "backend": matplotlib.get_backend(auto_select=False), "dpi": matplotlib.rcParams["savefig.dpi"],
        "signals": signal.getsignal(signal.SIGINT), "logging": logging.root.level, "environment": dict(os.environ),
        "save": hasattr(object, "save"), "filters": list(__import__("warnings").filters),
    }
before = state()
import lvlm_probe
from lvlm_probe import *
import lvlm_probe.cli, lvlm_probe.report, lvlm_probe.picture, lvlm_probe.hooks
lvlm_probe.available_recipes()
after = state()
assert before == after, [k for k in before if before[k] != after[k]]
assert "nnsight" not in sys.modules
"""


@pytest.mark.parametrize("code", [IMPORT, CHANGES], ids=["loads nothing", "changes nothing"])
def test_import_is_free(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_help_is_quick_to_load() -> None:
    code = "import sys, lvlm_probe.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_are_those_of_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tree = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(config["packages"]) == tree
    where = config["package-dir"]
    for name in tree:
        if part(name) in ("adapters", "recipes"):
            assert where[name] == name.removeprefix("lvlm_probe.").replace(".", "/")
    for name in ("adapters", "recipes"):
        assert (ROOT / "lvlm_probe" / name).readlink() == Path("..", name)


def test_entry_points_are_those_of_the_tree() -> None:
    """Every adapter and recipe of the tree is registered, and under its own name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipes = project["entry-points"]["lvlm_probe.recipes"]
    import lvlm_probe as lp

    assert sorted(recipes) == [info.name for info in lp.available_recipes()]
    adapters = project["entry-points"]["lvlm_probe.adapters"]
    files = {p.stem for p in (ROOT / "adapters").glob("*.py")} - {"__init__", "auto"}
    assert set(adapters) == files


def test_public_names_are_few_and_typed() -> None:
    import lvlm_probe as lp

    assert len(lp.__all__) <= 12
    assert all(getattr(lp, name) is not None for name in lp.__all__)
    assert (ROOT / "lvlm_probe" / "py.typed").exists()


def test_skipped_tests_are_listed() -> None:
    listed = (ROOT / "tests" / "QUARANTINE.md").read_text()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                "skip" in ast.unparse(d) or "xfail" in ast.unparse(d) for d in node.decorator_list
            ):
                assert f"`{node.name}`" in listed, (
                    f"{path.name}: {node.name} is skipped without a word"
                )


@pytest.mark.slow
def test_wheel_holds_everything(tmp_path: Path) -> None:
    """Built as a release would be, and unpacked: the two outer folders, the demo model, no bare names."""
    import shutil
    import zipfile

    # In a copy: a stale build/ in the tree would ship deleted files.
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        symlinks=True,
        ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info"),
    )
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"lvlm_probe"}
    for name, path in modules():
        inner = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        assert inner in names
    assert {
        "lvlm_probe/demo/model.safetensors",
        "lvlm_probe/demo/config.json",
        "lvlm_probe/py.typed",
    } <= names
    assert any(n.startswith("lvlm_probe/demo/examples/") and n.endswith(".png") for n in names)
    assert wheel.stat().st_size < 12_000_000
