"""The house as a whole: which part may use which, what a bare machine can do, what the two commands need."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dne_lab"
MODULES = {
    ".".join(["dne_lab", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
# Each floor uses those below it, and itself.
FLOORS = (
    *("core", "data", "models", "methods", "measure", "training"),
    *("analysis", "plots", "claims", "widgets", "commands"),
)
SHOWING = {
    "matplotlib",
    "seaborn",
    "plotly",
    "ipywidgets",
    "anywidget",
    "IPython",
    "jupyter",
    "jupyterlab",
    "notebook",
    "nbformat",
}
NOTEBOOK = (
    "plotly",
    "ipywidgets",
    "anywidget",
    "IPython",
    "jupyterlab",
    "jupyter_server",
    "ipykernel",
    "nbval",
    "nbformat",
    "nbclient",
)


def floor(module: str) -> str:
    """The folder that a module lies in; "commands" for the package itself, which offers what they offer."""
    part = module.removeprefix("dne_lab").lstrip(".").split(".")[0]
    return "commands" if part in ("", "__main__") else part


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, file in MODULES.items():
        yield name, ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """All absolute names that a tree imports, wherever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def at_import(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_imports_go_one_way() -> None:
    wrong = []
    for name, tree in trees():
        for used in imports(tree):
            if not used.startswith("dne_lab") or name == "dne_lab":
                continue
            allowed = FLOORS.index(floor(used)) <= FLOORS.index(floor(name))
            if used == "dne_lab":  # what it offers is for users
                allowed = floor(name) == "commands"
            if not allowed:
                wrong.append(f"{name} imports {used}")
    assert not wrong


def used_modules() -> dict[str, set[str]]:
    """What each module imports of the package, wherever and for whatever, types too. The package itself, which gives
    the names that users import, is left out."""
    return {name: {used for used in imports(tree) if used in MODULES} - {name} for name, tree in trees()}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    left = {name: used for name, used in used_modules().items() if name != "dne_lab"}
    while left:
        ready = [name for name, used in left.items() if not used & left.keys()]
        assert ready, f"a circle among {sorted(left)}"
        for name in ready:
            del left[name]


MAKE_A_RUN = {"Run", "open", "start", "train", "fork", "fork_as"}  # functions and methods that return one


def assigned_runs(tree: ast.Module) -> Iterator[str]:
    """Assignments to attributes of what is called ``run``, is annotated as a `Run`, or comes from what makes one."""
    runs = {"run"}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            if re.search(r"\bRun\b", ast.unparse(node.annotation).replace("type[Run]", "")):
                runs.add(node.arg)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            maker = node.value.func
            if getattr(maker, "attr", getattr(maker, "id", "")) in MAKE_A_RUN:
                runs |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def is_run(node: ast.expr) -> bool:
        return getattr(node, "attr", getattr(node, "id", "")) in runs

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and is_run(node.value):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        setting = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr")
        if setting and is_run(node.args[0]):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("line", [
    "def f(source: Run): source.state = 1",
    "def f(other: 'Run | None'): other.x += 1",
    "made = Run.open(path); made.a, b = 1, 2",
    "self.run.state = None",
    "made = old.fork('x'); del made.viewers",
    "setattr(run, 'state', 1)",
])  # fmt: skip
def test_an_assignment_to_a_run_is_found(line: str) -> None:
    assert list(assigned_runs(ast.parse(line)))
    assert not list(assigned_runs(ast.parse("def f(state: RunState): state.record = run.state.record; self.x = run.y")))


def test_nobody_assigns_to_an_attribute_of_a_run_but_the_run() -> None:
    found = {name: [*assigned_runs(tree)] for name, tree in trees() if name != "dne_lab.training.run"}
    assert not {name: lines for name, lines in found.items() if lines}


def test_nothing_below_plots_knows_how_to_show_anything() -> None:
    for name, tree in trees():
        if floor(name) not in ("plots", "claims", "widgets"):
            used = {full.split(".")[0] for full in (at_import(tree) if floor(name) == "commands" else imports(tree))}
            assert not used & SHOWING, f"{name} imports {used & SHOWING}"


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for name, tree in trees():
        used = {full.split(".")[0] for full in at_import(tree)}
        assert not used & {"torchvision", "sklearn", "scipy", "matplotlib", "seaborn", "plotly", "pandas"}, name
    for name in ("dne_lab", "dne_lab.commands.cli", "dne_lab.__main__"):
        direct = {full.split(".")[0] for full in at_import(ast.parse(MODULES[name].read_text()))}
        assert "torch" not in direct and "numpy" not in direct  # --help must answer at once


BARE = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def test_a_machine_without_anything_to_show_things_can_still_do_everything_else(tmp_path: Path) -> None:
    """Every command that trains, counts or packs, in one process that finds no notebook and no plotting library."""
    missing = (*NOTEBOOK, "matplotlib", "seaborn", "torchvision", "hypothesis")
    code = (
        f"MISSING = {missing!r}\n"
        + BARE
        + """
import contextlib, io, json, pathlib
import dne_lab as lab
from dne_lab.commands import cli
from dne_lab.core import presets

def run(*words):
    sys.argv = ["dne-lab", *words]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
    return told.getvalue()

tiny = "data.tasks=6,4 learn.epochs=1 tune.epochs=0 learn.batch=256 "
tiny += "network.depth=2 network.patch=8 network.head_width=4 network.heads=2,1"
words = [word for pair in tiny.split() for word in ("--set", pair)]
presets.PRESETS["tiny"] = {"data": {"tasks": [5, 5]}, "network": {"patch": 8, "depth": 2, "head_width": 4}}
found = {
    "bench": run("bench", "--preset", "tiny", "--tasks", "2", "--batch", "2", "--pairs", "1"),
    "run": run("run", "dne,joint", *words),
    "report": run("report", "runs"),
    "cost": run("cost", "dne", "--tasks", "6,4", "--preset", "digits", *words[2:]),
    "export": run("export", *map(str, pathlib.Path("runs").glob("dne-*")), "dne.zip"),
    "archive": run("report", "dne.zip", "--json"),
    "open": lab.open("dne.zip").record.table().to_string(),
}
try:
    lab_command = run("lab")
except AssertionError as error:
    found["lab"] = str(error)
found["loaded"] = [name for name in sys.modules if name.split(".")[0] in MISSING]
print(json.dumps(found))
"""
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    assert "DNE (k = 1)" in found["run"] and "Joint" in found["report"] and "F literal" in found["cost"]
    assert "times as fast" in found["bench"]
    assert json.loads(found["archive"])[0]["finished"] and "seen accuracy" in found["open"]
    assert "2)" in found["lab"] and "JupyterLab is not installed here" in done.stderr


def test_the_environment_for_conda_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    python, pip, packages = environment["dependencies"]
    assert python == "python" + project["requires-python"] and pip == "pip"
    assert packages == {"pip": ["-e .[test]"]}
    assert "test" in project["optional-dependencies"]


# Declared, and used in another way than by an import.
STARTED = {
    "jupyterlab": "dne-lab lab starts it",
    "pytest-xdist": "-n 2 in the options of pytest",
    "nbval": "--nbval-lax in the options of pytest",
    "voila": "a program that tests start",
    "ruff": "a program",
    "mypy": "a program",
    "tensorboard": "torch.utils.tensorboard imports it",
    "pandas-stubs": "types for mypy",
    "types-pyyaml": "types for mypy",
    "types-tqdm": "types for mypy",
}
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "pydantic_core": "pydantic-core"}
PACKAGES |= {"huggingface_hub": "huggingface-hub"}
WITH_OTHERS = {"nbformat", "IPython", "ipykernel", "pluggy"}  # what JupyterLab, nbclient and pytest consist of


def imported(files: Iterable[Path]) -> set[str]:
    """What files import from elsewhere, as packages are called."""
    own = {file.stem for folder in ("tests", "notebooks", "figures") for file in (ROOT / folder).rglob("*.py")}
    names = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            lines = "".join("".join(cell["source"]) + "\n" for cell in cells).splitlines()
            text = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
        names |= {full.split(".")[0] for full in imports(ast.parse(text))}
    return {PACKAGES.get(name, name) for name in names - set(sys.stdlib_module_names) - own - {"dne_lab"}}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, tests = (
        {re.split(r"[<>=\[ ]", text)[0] for text in listed}
        for listed in (project["dependencies"], project["optional-dependencies"]["test"])
    )
    folders = ("tests", "notebooks", "figures")
    files = [file for folder in folders for end in ("py", "ipynb") for file in (ROOT / folder).rglob(f"*.{end}")]
    extra = {
        re.split(r"[<>=\[ ]", text)[0]
        for name, listed in project["optional-dependencies"].items()
        for text in listed
        if name != "test"
    }
    package, others = imported(MODULES.values()), imported([ROOT / "setup.py", *files])
    wrong = {
        "imported by the package, not declared": package - needed - extra,
        "imported by tests or notebooks, not declared": others - needed - tests - WITH_OTHERS,
        "declared as an extra, not imported by the package": extra - package - others - STARTED.keys() - {"dne-lab"},
        "declared, not imported by the package": needed - package - STARTED.keys(),
        "declared for tests, not imported by them": tests - others - STARTED.keys(),
        "said to be used in another way, and imported or not declared": {
            name for name in STARTED if name in package or name not in needed | tests | extra
        },
    }
    assert not {what: names for what, names in wrong.items() if names}


LONGEST, SHORTEST = 450, 60  # lines of a module
SMALL = 80  # one that a single module uses and is shorter lives inside it
WHOLE = {  # ideas that are whole in fewer lines
    "dne_lab.__main__",
    "dne_lab.commands.check",
    "dne_lab.commands.imports",
    "dne_lab.core.errors",
    "dne_lab.core.shown",
    "dne_lab.models.classifier",
    "dne_lab.models.variants",
}


def test_modules_are_neither_long_nor_fragments() -> None:
    lines = {name: len(f.read_text().splitlines()) for name, f in MODULES.items() if f.name != "__init__.py"}
    assert not {name: count for name, count in lines.items() if count > LONGEST}
    assert {name for name, count in lines.items() if count < SHORTEST} <= WHOLE
    users: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, used in used_modules().items():
        for module in used:
            users[module].add(name)
    one_page = ("dne_lab.methods.", "dne_lab.widgets.")  # a method, or an explorer, is a page of its own
    small = {name for name, count in lines.items() if count < SMALL and len(users[name]) == 1}
    assert not {name for name in small - WHOLE if not name.startswith(one_page)}


def test_no_two_modules_have_one_name() -> None:
    rooms = ("dne_lab.models.", "dne_lab.methods.")
    names = [name for name, f in MODULES.items() if f.name != "__init__.py" and not name.startswith(rooms)]
    last = [name.split(".")[-1] for name in names]
    assert not {name for name, short in zip(names, last, strict=True) if last.count(short) > 1}


RESHAPES = {"reshape", "permute", "view", "flatten", "unflatten", "einsum", "transpose", "movedim"}
SHAPE = re.compile(r"\(.*,.*\)")  # such as (B, n, D)


def bare_reshapes(text: str) -> Iterator[str]:
    """Lines that change the shape of a tensor and say none, in a comment there or above, or as their function's only
    lines in its docstring."""
    tree, lines = ast.parse(text), text.splitlines()
    said = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and SHAPE.search(ast.get_docstring(node) or "")
        if len(node.body) <= 3 and node.end_lineno - node.body[-1].lineno == 0
        for line in range(node.lineno, node.end_lineno + 1)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in RESHAPES:
            near = (node.func.end_lineno - 1, node.func.end_lineno, node.end_lineno)
            comments = [lines[line - 1].partition("#")[2] for line in near]
            if node.lineno not in said and not any(map(SHAPE.search, comments)):
                yield lines[node.func.end_lineno - 1].strip()


def test_a_shape_stands_at_every_reshape_of_a_network() -> None:
    assert list(bare_reshapes("x = y.flatten(2)")) and not list(bare_reshapes("x = y.flatten(2)  # (B, n)"))
    rooms = ("dne_lab.models.", "dne_lab.methods.")
    found = {n: [*bare_reshapes(f.read_text())] for n, f in MODULES.items() if n.startswith(rooms)}
    assert not {name: lines for name, lines in found.items() if lines}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = re.compile(rb"(?<![\w.])/(?:home|Users|root|work)/\w+|[A-Z]:\\Users")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file() and file.suffix not in (".png", ".npz", ".safetensors", ".gif"):
            found += [f"{name}: {match.decode()}" for match in places.findall(file.read_bytes())]
    assert not [text for text in found if not text.startswith("tests/test_package.py")]


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods, by dotted name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def overrides(tree: ast.Module, name: str) -> bool:
    """Whether a method is one of a class with bases: then it has the docstring of what it overrides."""
    owner = name.split(".")[0]
    return "." in name and any(isinstance(n, ast.ClassDef) and n.name == owner and n.bases for n in tree.body)


def test_everything_public_has_a_docstring_and_types() -> None:
    wrong = []
    for module, tree in trees():
        if not ast.get_docstring(tree):
            wrong.append(f"{module}: no docstring")
        for name, node in public(tree):
            if not ast.get_docstring(node) and not overrides(tree, name):
                wrong.append(f"{module}.{name}: no docstring")
            if isinstance(node, ast.FunctionDef):
                arguments = [
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                    node.args.vararg,
                    node.args.kwarg,
                ]
                bare = [a.arg for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
                wrong += [f"{module}.{name}: {bare} without types"] if bare else []
                wrong += [f"{module}.{name}: no type of what it returns"] if node.returns is None else []
    assert not wrong


def test_the_package_offers_what_it_says() -> None:
    import dne_lab

    assert set(dne_lab.__all__) == set(dne_lab._WHERE)
    assert all(getattr(dne_lab, name).__doc__ for name in dne_lab.__all__) and set(dne_lab.__all__) <= set(dir(dne_lab))
    with pytest.raises(AttributeError, match="no attribute 'strean'; it has LabError, Labelling, Record"):
        dne_lab.strean  # noqa: B018
