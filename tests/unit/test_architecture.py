"""Imports point down the list of rooms, and the frameworks stand behind one door."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

PACKAGE = "tensorflow_ranger"
COMMAND = "tensorflow_ranger_cli"  # the command line's package, which starts it
SOURCE = Path(__file__).resolve().parents[2] / "src" / PACKAGE

# From the top down: a room imports from itself and from those below it. Rooms of one line do not
# know each other. `python -m tensorflow_ranger` is the command line under another name.
ROOMS = [
    {"__main__"},
    {"__init__"},
    {"python"},
    {"cli"},
    {"training"},
    {"optimizers"},
    {"batch_size", "multitask", "distribution"},
    {"accumulation"},
    {"rules"},
    {"backend"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# The only folder that may know what Keras does not export.
INTERNALS = Path("backend/keras_internals")
FRAMEWORKS = {"tensorflow", "jax", "jaxlib", "torch"}


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
        elif top == COMMAND and room != "__main__":
            found.append(f"{where} is the command, which imports the library")
        elif top == PACKAGE:
            target = room_of(module)
            # The commands use what a user would: the public names.
            public = room == "cli" and target == "__init__"
            if target not in FLOOR:
                found.append(f"{where} is not in the list of rooms")
            elif target != room and FLOOR[target] <= FLOOR[room] and not public:
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


def test_the_command_imports_no_room_but_its_own():
    files = sorted(SOURCE.with_name(COMMAND).rglob("*.py"))
    assert files
    imported = [
        module
        for file in files
        for _, module in imported_modules(ast.parse(file.read_text(encoding="utf-8")))
        if module.partition(".")[0] == PACKAGE
    ]
    assert {room_of(module) for module in imported} == {"cli"}


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("accumulation/window.py", "from tensorflow_ranger.optimizers import inner", "points up"),
        ("accumulation/window.py", "import tensorflow_ranger.training.fit", "points up"),
        ("rules/radam.py", "from tensorflow_ranger import RangerOptimizer", "points up"),
        ("backend/jax.py", "from tensorflow_ranger import accumulation", "points up"),
        ("optimizers/radam.py", "def f():\n    from tensorflow_ranger import cli", "points up"),
        ("multitask/mgda.py", "import tensorflow_ranger.batch_size.search", "neighbour"),
        ("rules/radam.py", "from tensorflow_ranger.kitchen import sink", "list of rooms"),
        ("kitchen/sink.py", "", "list of rooms"),
        ("rules/radam.py", "from . import lookahead", "relative"),
        ("rules/radam.py", "import tensorflow as tf", "framework"),
        ("cli/train.py", "from torch.nn import functional", "framework"),
        ("optimizers/radam.py", "def f():\n    import jax.numpy as jnp", "framework"),
        ("optimizers/radam.py", "from keras.src import tree", "private"),
        ("optimizers/radam.py", "from keras import src", "private"),
        ("backend/torch.py", "import keras.src.backend", "private"),
        ("training/fit.py", "import keras\nkeras.src.tree", "private"),
        ("__init__.py", "def f():\n    import tensorflow_ranger_cli.main", "the command"),
    ],
)
def test_a_wrong_import_is_found(path, source, complaint):
    (found,) = violations(Path(path), source)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__main__.py", "from tensorflow_ranger_cli.main import main"),
        ("__init__.py", "from tensorflow_ranger.optimizers.radam import RAdam as RAdam"),
        ("python/ranger_optimizer.py", "from tensorflow_ranger.optimizers import radam"),
        ("cli/train.py", "from tensorflow_ranger import RangerOptimizer"),
        ("cli/train.py", "from tensorflow_ranger.cli import app"),
        ("optimizers/radam.py", "from tensorflow_ranger import backend"),
        ("backend/jax.py", "import jax\nimport jaxlib"),
        ("rules/radam.py", "from keras import ops, tree"),
        ("backend/keras_internals/models.py", "from keras.src import backend"),
    ],
)
def test_a_right_import_is_not(path, source):
    assert violations(Path(path), source) == []


def test_the_backends_are_twins():
    def functions(path):
        found = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] = ast.unparse(node.args)
            elif (
                isinstance(node, ast.ImportFrom) and node.module == "tensorflow_ranger.backend.each"
            ):
                shared = functions(path.with_name("each.py"))
                found.update({alias.name: shared[alias.name] for alias in node.names})
        return found

    tensorflow = functions(SOURCE / "backend" / "tensorflow.py")
    assert tensorflow
    assert functions(SOURCE / "backend" / "jax.py") == tensorflow
    assert functions(SOURCE / "backend" / "torch.py") == tensorflow
