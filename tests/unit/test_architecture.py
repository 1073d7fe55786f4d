"""Imports point down the list of rooms, and the frameworks stand behind one door."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

PACKAGE = "tensorflow_ranger"
APPLICATION = "tensorflow_ranger_cli"
SOURCES = Path(__file__).resolve().parents[2] / "src"
SOURCE = SOURCES / PACKAGE

# From the top down: a room imports from itself and from those below it. Rooms of one line do not
# know each other.
ROOMS = [
    {"__main__"},
    {"__init__"},
    {"python", "callbacks", "testing"},
    {"training"},
    {"optimizers"},
    {"batch_size", "multitask", "distribution"},
    {"accumulation"},
    {"checks"},
    {"rules"},
    {"backend"},
]
APPLICATION_ROOMS = [
    {"__main__"},
    {"main"},
    {"app"},
    {"commands"},
    {"report"},
    {"runs"},
    {"tasks"},
    {"options"},
    {"frameworks", "keras_backend", "byte_counts"},
    {"interrupts"},
    {"silence", "spelling", "errors"},
    {"__init__"},
]


def floors(rooms):
    """Return the number of each room's line."""
    return {room: floor for floor, line in enumerate(rooms) for room in line}


FLOOR = floors(ROOMS)
APPLICATION_FLOOR = floors(APPLICATION_ROOMS)
# The only folder that may know what Keras does not export.
INTERNALS = Path("backend/keras_internals")
FRAMEWORKS = {"tensorflow", "jax", "jaxlib", "torch"}
# What users import, beside the public names of the package itself.
PUBLIC_MODULES = {
    f"{PACKAGE}.callbacks",
    f"{PACKAGE}.python.ranger_optimizer",
    f"{PACKAGE}.testing",
}


def room_of(module):
    """Return the room of ``tensorflow_ranger.room.file``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(tree):
    """Yield ``(line, module)`` for all that is imported in `tree`, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                # `from package import room` imports the room; any other name, the module itself.
                if module == PACKAGE and alias.name not in FLOOR:
                    yield node.lineno, module
                else:
                    yield node.lineno, f"{module}.{alias.name}"
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) == ("keras", "src")
        ):
            yield node.lineno, "keras.src"


def violations(path, source):
    """Return what is wrong with the imports of the file at `path`, relative to the package."""
    room = path.parts[0].removesuffix(".py")
    if room not in FLOOR:
        return [f"{path}: {room} is not in the list of rooms"]
    found = []
    for line, module in imported_modules(ast.parse(source)):
        where = f"{path}:{line}: {module}"
        top = module.partition(".")[0]
        if module.startswith("."):
            found.append(f"{where} is a relative import")
        elif top in FRAMEWORKS and room != "backend":
            found.append(f"{where} is a framework outside backend/")
        elif f"{module}.".startswith("keras.src.") and INTERNALS not in path.parents:
            found.append(f"{where} is private to Keras")
        elif top == APPLICATION:
            found.append(f"{where} is the application, which imports the library")
        elif top == PACKAGE:
            target = room_of(module)
            if target not in FLOOR:
                found.append(f"{where} is not in the list of rooms")
            elif target != room and FLOOR[target] <= FLOOR[room]:
                found.append(f"{where} points up, or to a neighbour")
    return found


def private_strings(source):
    """Return the strings in `source` that are private names: ruff's SLF sees attributes alone."""
    return [
        f"{node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"_[A-Za-z]\w*", node.value)
    ] + [
        f"{node.lineno}: {node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) == ("sys", "modules")
    ]


def private_names(cls):
    """Return the private attributes that the source of `cls` reads, assigns or defines."""
    names = re.findall(
        r"\b(?:self|cls|super\(\))\.(_[a-z]\w*)|\bdef (_[a-z]\w*)|^    (_[a-z]\w*) = ",
        inspect.getsource(cls),
        re.MULTILINE,
    )
    return {name for each in names for name in each if name}


def shared_with_keras(cls):
    """Return the private names of `cls` that Keras' classes below it have, too."""
    below = [each for each in cls.__mro__ if each.__module__.startswith("keras.")]
    return private_names(cls) & set().union(*map(private_names, below))


def library_files():
    """Return the library's files outside the door to Keras, with their paths in the package."""
    files = [(file.relative_to(SOURCE), file) for file in sorted(SOURCE.rglob("*.py"))]
    return [(path, file) for path, file in files if INTERNALS not in path.parents]


def test_no_string_is_a_private_name():
    found = [
        f"{path}:{each}"
        for path, file in library_files()
        # The first asks what is imported already; the other is an application.
        if path != Path("__init__.py") and path.parts[0] != "cli"
        for each in private_strings(file.read_text(encoding="utf-8"))
        if not (path.stem == "fan_in_by_call" and "_shape" in each)  # the end of an argument's name
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'getattr(model, "_metrics")',
        'vars(optimizer).get("_all_reduce_sum_gradients")',
        'layer.__dict__["_losses"] = []',
        "import sys\nvars(sys.modules[trainer.__module__])",
        'return {"_symbolic_build": build}',
    ],
)
def test_a_private_name_in_a_string_is_found(source):
    if source.startswith("return"):
        source = f"def f():\n    {source}"
    assert len(private_strings(source)) == 1


def test_no_class_shares_a_private_name_with_the_keras_class_below_it():
    found = {}
    for path, _ in library_files():
        # Another framework's twins, and scripts that run when they are imported.
        if path.parts[0] in ("backend", "__main__.py", "cli"):
            continue
        module = importlib.import_module(
            ".".join((PACKAGE, *path.with_suffix("").parts)).removesuffix(".__init__")
        )
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                found[cls.__qualname__] = shared_with_keras(cls)
    assert "RangerOptimizer" in found
    assert {name: shared for name, shared in found.items() if shared} == {}


def test_a_shared_private_name_is_found():
    import keras

    class Counts(keras.optimizers.SGD):
        def build(self, variables):
            self._own = self._iterations

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            pass

    assert shared_with_keras(Counts) == {"_iterations", "_backend_update_step"}


def test_imports_point_down():
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    found = []
    for file in files:
        found += violations(file.relative_to(SOURCE), file.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def public_names():
    """Return the names that the package's `__init__` imports as themselves."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names if alias.asname == alias.name}


def uses_of_library(tree):
    """Yield ``(line, name)`` for what is imported of the library, or reached as its attribute."""
    called = set()  # what this file calls the library
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == PACKAGE:
                    called.add(alias.asname or alias.name)
                elif alias.name.startswith(f"{PACKAGE}."):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{PACKAGE}."):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in called
        ):
            yield node.lineno, f"{PACKAGE}.{node.attr}"


def violations_of_application(path, source):
    """Return what is wrong with the imports of the application's file at `path`."""
    room = path.parts[0].removesuffix(".py")
    if room not in APPLICATION_FLOOR:
        return [f"{path}: {room} is not in the list of rooms"]
    tree, found = ast.parse(source), []
    for line, name in uses_of_library(tree):
        module = name.rpartition(".")[0]
        is_public = module == PACKAGE and name.rpartition(".")[2] in public_names()
        if not is_public and not {name, module} & PUBLIC_MODULES:
            found.append(f"{path}:{line}: {name} is no public name")
    for line, module in imported_modules(tree):
        where = f"{path}:{line}: {module}"
        parts = module.split(".")
        if module.startswith("."):
            found.append(f"{where} is a relative import")
        elif parts[0] in FRAMEWORKS and room != "frameworks":
            found.append(f"{where} is a framework outside frameworks/")
        elif f"{module}.".startswith("keras.src."):
            found.append(f"{where} is private to Keras")
        elif parts[0] == APPLICATION:
            target = parts[1] if len(parts) > 1 else "__init__"
            if target not in APPLICATION_FLOOR:
                found.append(f"{where} is not in the list of rooms")
            elif target != room and APPLICATION_FLOOR[target] <= APPLICATION_FLOOR[room]:
                found.append(f"{where} points up, or to a neighbour")
    return found


def test_the_application_imports_public_names_and_its_rooms_point_down():
    folder = SOURCES / APPLICATION
    files = sorted(folder.rglob("*.py"))
    assert files
    found = []
    for file in files:
        source = file.read_text(encoding="utf-8")
        found += violations_of_application(file.relative_to(folder), source)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("runs/run.py", "from tensorflow_ranger import backend", "no public name"),
        (
            "runs/run.py",
            "from tensorflow_ranger.training.verification.verify import verify",
            "no public name",
        ),
        ("runs/run.py", "import tensorflow_ranger.batch_size.plan", "no public name"),
        ("runs/run.py", "import tensorflow_ranger as r\nr.training.verify", "no public name"),
        ("runs/run.py", "from tensorflow_ranger_cli.commands import train", "points up"),
        ("tasks/digits.py", "def f():\n    from tensorflow_ranger_cli import runs", "points up"),
        ("runs/run.py", "import torch", "framework"),
        ("runs/run.py", "from keras.src import tree", "private"),
        ("kitchen/sink.py", "", "list of rooms"),
    ],
)
def test_a_wrong_import_of_the_application_is_found(path, source, complaint):
    (found,) = violations_of_application(Path(path), source)
    assert complaint in found


@pytest.mark.parametrize(
    "source",
    [
        "from tensorflow_ranger import MicrobatchPlan, microbatch",
        "from tensorflow_ranger.callbacks import NoiseScale",
        "import tensorflow_ranger as ranger\nranger.callbacks.NoiseScale",
        "from tensorflow_ranger.python import ranger_optimizer",
        "from tensorflow_ranger_cli.tasks import registry",
    ],
)
def test_a_right_import_of_the_application_is_not(source):
    assert violations_of_application(Path("runs/run.py"), source) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("accumulation/window.py", "from tensorflow_ranger.optimizers import inner", "points up"),
        ("accumulation/window.py", "import tensorflow_ranger.training.fit", "points up"),
        ("rules/radam.py", "from tensorflow_ranger import RangerOptimizer", "points up"),
        ("backend/jax/arrays.py", "from tensorflow_ranger import accumulation", "points up"),
        ("optimizers/radam.py", "def f():\n    import tensorflow_ranger.callbacks", "points up"),
        ("multitask/mgda.py", "import tensorflow_ranger.batch_size.search", "neighbour"),
        ("rules/radam.py", "from tensorflow_ranger.kitchen import sink", "list of rooms"),
        ("kitchen/sink.py", "", "list of rooms"),
        ("rules/radam.py", "from . import lookahead", "relative"),
        ("rules/radam.py", "import tensorflow as tf", "framework"),
        ("training/microbatch.py", "from torch.nn import functional", "framework"),
        ("optimizers/radam.py", "def f():\n    import jax.numpy as jnp", "framework"),
        ("optimizers/radam.py", "from keras.src import tree", "private"),
        ("optimizers/radam.py", "from keras import src", "private"),
        ("backend/torch/arrays.py", "import keras.src.backend", "private"),
        ("training/fit.py", "import keras\nkeras.src.tree", "private"),
        ("__init__.py", "def f():\n    import tensorflow_ranger_cli.main", "the application"),
        ("__main__.py", "from tensorflow_ranger_cli.main import main", "the application"),
    ],
)
def test_a_wrong_import_is_found(path, source, complaint):
    (found,) = violations(Path(path), source)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from tensorflow_ranger.optimizers.radam import RAdam as RAdam"),
        ("python/ranger_optimizer.py", "from tensorflow_ranger.optimizers import radam"),
        ("__main__.py", "import subprocess"),
        ("callbacks.py", "from tensorflow_ranger.training.noise_scale import NoiseScale"),
        ("optimizers/radam.py", "from tensorflow_ranger import backend"),
        ("backend/jax/arrays.py", "import jax\nimport jaxlib"),
        ("rules/radam.py", "from keras import ops, tree"),
        ("backend/keras_internals/models.py", "from keras.src import backend"),
    ],
)
def test_a_right_import_is_not(path, source):
    assert violations(Path(path), source) == []


def public_functions(path):
    """Return the arguments of the public functions that the file at `path` gives, by name.

    What is imported `as` itself counts, from wherever it comes. An argument with a default does
    not: it is for the callers within one backend.
    """
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [argument.arg for argument in node.args.args]
            found[node.name] = arguments[: len(arguments) - len(node.args.defaults)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.asname == alias.name]
            if names:
                there = public_functions(SOURCES / f"{(node.module or '').replace('.', '/')}.py")
                found.update({name: there[name] for name in names})
    return found


def modules_of(backend):
    """Return the names of the modules in a backend's folder."""
    return {file.name for file in (SOURCE / "backend" / backend).glob("*.py")}


@pytest.mark.parametrize(
    "module", sorted(modules_of("tensorflow") & modules_of("jax") & modules_of("torch"))
)
def test_the_backends_are_twins(module):
    tensorflow, jax, torch = (
        public_functions(SOURCE / "backend" / backend / module)
        for backend in ("tensorflow", "jax", "torch")
    )
    assert jax == tensorflow
    assert torch == tensorflow
    assert tensorflow or module == "__init__.py"


def test_every_module_that_is_loaded_by_name_has_twins():
    loaded = re.findall(
        r'_of_active_backend\("(\w+)"\)', (SOURCE / "backend" / "__init__.py").read_text("utf-8")
    )
    assert len(loaded) == 9
    for backend in ("tensorflow", "jax", "torch"):
        assert {f"{name}.py" for name in loaded} <= modules_of(backend)
