"""What users may rely on. A change here needs a line in the changelog."""

import inspect
import subprocess
import sys
import types

import keras
import pytest

import tensorflow_ranger
from tensorflow_ranger import RangerOptimizer
from tensorflow_ranger.python import ranger_optimizer


def public(names):
    return {name for name in names if not name.startswith("_")}


def names_of(module):
    """Return the public names of `module`, without its submodules."""
    return {
        name
        for name in public(dir(module))
        if not isinstance(getattr(module, name), types.ModuleType)
    }


def parameters(function):
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_names_of_the_package():
    assert names_of(tensorflow_ranger) == {
        "AccumulationSchedule",
        "AdaptiveGradientClipping",
        "Lookahead",
        "MicrobatchPlan",
        "NoiseEstimate",
        "RAdam",
        "Ranger",
        "Ranger21",
        "RangerOptimizer",
        "Verification",
        "accumulate_gradients",
        "microbatch",
        "multitask",
        "rescale_for_batch",
        "tag_fan_in",
        "verify",
    }
    assert tensorflow_ranger.__version__


def test_names_of_the_callbacks():
    assert names_of(tensorflow_ranger.callbacks) == {
        "AccumulationSchedule",
        "GradientNorm",
        "NoiseScale",
        "TaskConflicts",
    }


def test_names_for_test_suites():
    assert names_of(tensorflow_ranger.testing) == {"check_exact"}
    assert parameters(tensorflow_ranger.testing.check_exact) == (
        "(model, batch, sizes=None, rtol=None)"
    )


def test_names_of_the_founding_module():
    assert names_of(ranger_optimizer) == {"RangerOptimizer"}
    assert ranger_optimizer.RangerOptimizer is RangerOptimizer


def test_names_of_ranger_optimizer():
    # Beside these it has the names that every Keras optimizer has.
    optimizer = RangerOptimizer()
    ours = public(dir(RangerOptimizer)) | public(vars(optimizer))
    assert ours - set(dir(keras.optimizers.Optimizer(0.1))) == {
        "accumulation_steps",
        "accumulator_dtype",
        "adaptive_clipping",
        "centralize",
        "evaluate_slow_weights",
        "follow",
        "inner_optimizer",
        "lookahead",
        "measure_noise",
        "measure_norms",
        "noise_scale",
        "optimizers",
        "pending_micro_batches",
        "reduction",
        "skip_nonfinite",
        "skipped_micro_batches",
    }


def test_arguments_of_ranger_optimizer():
    assert parameters(RangerOptimizer) == (
        "(learning_rate=None, momentum=None, accumulation_steps=4, inner='sgd', *, "
        "max_accumulation_steps=None, reduction='mean', skip_nonfinite=True, "
        "accumulator_dtype=None, lookahead=None, adaptive_clipping=None, centralize=False, "
        "evaluate_slow_weights=False, name='ranger_optimizer', **kwargs)"
    )
    assert parameters(RangerOptimizer.apply) == (
        "(self, grads, trainable_variables=None, mass=None)"
    )
    assert parameters(RangerOptimizer.apply_gradients) == "(self, grads_and_vars, mass=None)"
    assert parameters(RangerOptimizer.stateless_apply) == (
        "(self, optimizer_variables, grads, trainable_variables, mass=None)"
    )


def test_importing_loads_no_framework_that_keras_does_not():
    # This process has loaded what other tests and plugins need, so a fresh one is asked.
    frameworks = "print(*{'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    code = (
        f"import sys, keras; {frameworks}; "
        f"import tensorflow_ranger.python.ranger_optimizer; {frameworks}"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    by_keras, loaded = (set(line.split()) for line in told.stdout.splitlines())
    assert loaded == by_keras
    assert keras.config.backend() in loaded
    if keras.config.backend() != "tensorflow":
        assert "tensorflow" not in loaded


@pytest.mark.once
@pytest.mark.parametrize(
    "start",
    [["tensorflow-ranger.py"], pytest.param(["-m", "mine"], marks=pytest.mark.thorough)],
    ids=" ".join,
)
def test_importing_looks_at_no_command_line_and_a_model_loads(start, tmp_path):
    """Though the package is imported before Keras."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(RangerOptimizer(), "mse")
    model.save(tmp_path / "model.keras")
    code = (
        "from tensorflow_ranger import RangerOptimizer, microbatch\n"
        "import keras\n"
        "keras.saving.load_model('model.keras')\n"
    )
    for name in ("tensorflow-ranger.py", "mine.py"):
        (tmp_path / name).write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, *start, "tensorflow_ranger"], check=True, cwd=tmp_path)


@pytest.mark.once
def test_the_command_line_imports_keras_when_it_has_chosen_a_backend():
    command = [sys.executable, "-X", "importtime", "-m", "tensorflow_ranger_cli", "train", "--help"]
    imported = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    assert " tensorflow_ranger_cli.commands.train\n" in imported
    assert " keras\n" not in imported
    assert " tensorflow_ranger\n" not in imported


def public_functions():
    """Yield pairs of a name and a function of the package: its own, and those of its classes."""
    modules = (tensorflow_ranger.callbacks, tensorflow_ranger.testing, tensorflow_ranger)
    named = {name: thing for module in modules for name, thing in vars(module).items()}
    for name in sorted(public(named)):
        thing = named[name]
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing) and thing.__module__.startswith("tensorflow_ranger."):
            for member, value in vars(thing).items():
                function = getattr(value, "fget", getattr(value, "__func__", value))
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield f"{name}.{member}", function


@pytest.mark.once
@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_public_functions_say_what_they_return(name, function):
    assert "return" in function.__annotations__, name
