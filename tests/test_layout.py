"""The list of modules in the README against the imports of the code, and patterns."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("memalpha", "configs", "experiments")
UNLISTED = (*PACKAGES, "experiments.lib")  # their modules have rows of their own
_ROW = re.compile(r"^\| `([\w/]+(?:\.py|/))` \|", re.MULTILINE)


def listed(readme):
    """The modules and packages of the list, in its order: `memalpha/x.py` or `memalpha/x/`."""
    section = readme.partition("## Modules")[2].partition("\n## ")[0]
    return _ROW.findall(section)


def unit_of(name, units):
    """The row that a dotted module name belongs to: its file, or the package that it is in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        for unit in (f"{path}.py", f"{path}/"):
            if unit in units:
                return unit
    return None


def dotted(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def sources(root):
    """Dotted name -> tree, of every module; `__main__` files are commands and import anything."""
    return {
        dotted(path.relative_to(root)): ast.parse(path.read_text("utf-8"))
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if path.name != "__main__.py"
    }


def imports(tree, modules):
    """The modules of the project that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & modules or {node.module}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def problems(root, units):
    """What is wrong with the list, and with the imports held against it."""
    trees = sources(root)
    place = {unit: number for number, unit in enumerate(units)}
    wrong = [f"{unit} is listed and not there" for unit in units if not (root / unit).exists()]
    for name, tree in trees.items():
        unit = unit_of(name, place)
        if unit is None:
            if name not in UNLISTED:
                wrong.append(f"{name} is not listed")
            continue
        for other in imports(tree, trees.keys()):
            target = unit_of(other, place)
            if target is None and other not in PACKAGES:
                wrong.append(f"{name} imports {other}, which is not listed")
            elif target is not None and place[target] > place[unit]:
                wrong.append(f"{name} imports {other}, which stands below it")
    return wrong


def circles(root):
    """Import circles between modules, as sets of names."""
    trees = sources(root)
    graph = {name: imports(tree, trees.keys()) & trees.keys() for name, tree in trees.items()}

    def reach(start):
        seen, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    reached = {name: reach(name) for name in graph}
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }


def test_imports_run_down_the_list_in_the_readme():
    units = listed((ROOT / "README.md").read_text("utf-8"))
    assert len(units) > 60 and len(units) == len(set(units))
    assert not problems(ROOT, units)


def test_no_import_circle():
    assert not circles(ROOT)


def test_no_pattern_is_possessive():
    """Python before 3.11.5 matches them wrongly: `(?:,\\d)*+` takes the comma of "17, ok"."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    patterns = [line for line in lines if "re.compile(" in line]
    assert len(patterns) > 20
    assert not [line for line in patterns if re.search(r"(?<!\\)[*+?}]\+", line)]


def test_memalpha_imports_neither_configs_nor_experiments():
    trees = sources(ROOT)
    for name, tree in trees.items():
        if name.split(".")[0] == "memalpha":
            assert all(other.split(".")[0] == "memalpha" for other in imports(tree, trees.keys()))


@pytest.fixture
def house(tmp_path):
    """A package of three modules in order, in which each imports the one before."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "memalpha/a.py").touch()
    (tmp_path / "memalpha/b.py").write_text("from memalpha import a\n")
    (tmp_path / "memalpha/c").mkdir()
    (tmp_path / "memalpha/c/__init__.py").write_text("from memalpha.b import x\n")
    return tmp_path, ["memalpha/a.py", "memalpha/b.py", "memalpha/c/"]


def test_what_breaks_the_order_is_named(house):
    root, units = house
    assert problems(root, units) == [] and circles(root) == set()
    (root / "memalpha/a.py").write_text("def f():\n    import memalpha.c\n")
    assert problems(root, units) == ["memalpha.a imports memalpha.c, which stands below it"]
    assert circles(root) == {frozenset({"memalpha.a", "memalpha.b", "memalpha.c"})}
    (root / "memalpha/d.py").touch()
    assert "memalpha.d is not listed" in problems(root, units)
    units.append("memalpha/gone.py")
    assert "memalpha/gone.py is listed and not there" in problems(root, units)
