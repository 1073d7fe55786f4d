"""Realistic mistakes get an error that names the remedy, or that the troubleshooting explains."""

# Types forbid some of the mistakes.
# pyright: reportArgumentType=false, reportCallIssue=false

import logging
from pathlib import Path

import keras
import numpy as np
import pytest

import tensorflow_ranger as ranger
from tensorflow_ranger import accumulate_gradients, callbacks, microbatch, multitask, verify

BACKEND = keras.config.backend()
PAGE = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class Batches:
    """Stands for a data set or a loader: what is iterated yields batches."""

    def __iter__(self):
        yield X, Y


class OwnStep(keras.Sequential):
    def train_step(self, *arguments):
        raise NotImplementedError


def uncompiled(cls=keras.Sequential):
    return cls([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])


def compiled(optimizer="sgd", loss="mse", **options):
    model = uncompiled()
    model.compile(optimizer, loss, **options)
    return model


def fit(model, x=X, y=Y, **options):
    return model.fit(x, y, **{"batch_size": 32, "verbose": 0, **options})


def variables(model):
    found = model.trainable_variables
    return [variable.value for variable in found] if BACKEND == "jax" else found


def accumulate(loss_fn, batch=(X, Y), size=16):
    return accumulate_gradients(loss_fn, variables(compiled()), batch, size)


def fit_unfrozen():
    model = uncompiled()
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    fit(microbatch(model, 16))
    model.layers[0].trainable = True
    fit(model)


def fit_without_targets():
    model = microbatch(compiled(), 16)
    fit(model)  # Keras' own error comes first, unless the model is built
    fit(model, y=None)


def fit_under_remat_scope():
    with keras.RematScope("full"):
        model = compiled()
    fit(microbatch(model, 16))


def built(optimizer):
    optimizer.build(compiled().trainable_variables)
    return optimizer


def apply_swapped(optimizer):
    model = compiled()
    gradients = [keras.ops.zeros(variable.shape) for variable in model.trainable_variables]
    optimizer.apply(model.trainable_variables, gradients)


def apply_without_gradients():
    weights = compiled().trainable_variables
    ranger.RangerOptimizer().apply([None for _ in weights], weights)


def assign_beside_auto():
    ranger.RangerOptimizer(accumulation_steps="auto").accumulation_steps = 8


def accumulate_foreign_tensors():
    if BACKEND == "torch":
        import jax.numpy as foreign
    else:
        import torch as foreign
    accumulate(lambda *_: None, (foreign.asarray(X), foreign.asarray(Y)))


Adam = keras.optimizers.Adam
Optimizer = ranger.RangerOptimizer

# What was written, the error, and words of the remedy.
MISTAKES = {
    "size of zero": (lambda: microbatch(compiled(), 0), ValueError, "'auto' finds it"),
    "size as a float": (lambda: microbatch(compiled(), 16.0), ValueError, "an integer >= 1"),
    "size as text": (lambda: microbatch(compiled(), "16"), ValueError, "an integer >= 1"),
    "Auto": (lambda: microbatch(compiled(), "Auto"), ValueError, "'auto' finds it"),
    "size before the model": (
        lambda: microbatch(16, compiled()),
        TypeError,
        "Give the model first: microbatch(model, ...)",
    ),
    "class of a model": (lambda: microbatch(OwnStep, 16), TypeError, "Make a model of it first"),
    "layer for a model": (
        lambda: microbatch(keras.layers.Dense(1), 16),
        TypeError,
        "Put the layer into keras.Sequential",
    ),
    "function for a model": (
        lambda: microbatch(lambda inputs: inputs, 16),
        TypeError,
        "use accumulate_gradients",
    ),
    "train_step of its own": (
        lambda: microbatch(uncompiled(OwnStep), 16),
        ValueError,
        "call accumulate_gradients in it",
    ),
    "memory_limit without auto": (
        lambda: microbatch(compiled(), 16, memory_limit="4GB"),
        ValueError,
        "memory_limit is for size='auto'",
    ),
    "memory_limit without unit": (
        lambda: microbatch(compiled(), "auto", memory_limit=4),
        ValueError,
        "such as '4GB'",
    ),
    "memory_limit of another unit": (
        lambda: microbatch(compiled(), "auto", memory_limit="4 gigs"),
        ValueError,
        "such as '4GB'",
    ),
    "memory_limit as a share": (
        lambda: microbatch(compiled(), "auto", memory_limit=0.5),
        ValueError,
        "such as '4GB'",
    ),
    "padding as Keras' word": (
        lambda: microbatch(compiled(), 16, padding="post"),
        ValueError,
        "such as 0, or None",
    ),
    "padding switched on": (
        lambda: microbatch(compiled(), 16, padding=True),
        ValueError,
        "such as 0, or None",
    ),
    "padding of a fixed size": (
        lambda: fit(microbatch(compiled(), 16, padding=0)),
        ValueError,
        "Declare it as keras.Input((None, ...))",
    ),
    "loss function for microbatch": (
        lambda: microbatch(compiled(), 16, loss="mse"),
        ValueError,
        "given to model.compile",
    ),
    "one segment": (
        lambda: microbatch(compiled(), 16, rematerialize=1),
        ValueError,
        "a number of segments >= 2",
    ),
    "rematerialization as Keras' word": (
        lambda: microbatch(compiled(), 16, rematerialize="full"),
        ValueError,
        "True, False, None",
    ),
    "sums of integers": (
        lambda: microbatch(compiled(), 16, accumulator_dtype="int32"),
        ValueError,
        'Use "float32"',
    ),
    "sums of a dtype that is none": (
        lambda: microbatch(compiled(), 16, accumulator_dtype="float8"),
        ValueError,
        'Use "float32"',
    ),
    "RematScope": (fit_under_remat_scope, ValueError, "rematerialize=True"),
    "Keras' accumulation left in place": (
        lambda: fit(microbatch(compiled(Adam(gradient_accumulation_steps=4)), 16)),
        ValueError,
        "Leave it out, and give fit a batch_size 4 times as large",
    ),
    "no loss": (
        lambda: fit(microbatch(compiled(loss=None), 16)),
        ValueError,
        "Give `compile` a loss",
    ),
    "no targets": (
        fit_without_targets,
        ValueError,
        "Give fit x and y, or batches (x, y)",
    ),
    "unfrozen without compile": (fit_unfrozen, ValueError, "Call model.compile again"),
    "misspelt argument": (
        lambda: Optimizer(acumulation_steps=4),
        ValueError,
        "Did you mean accumulation_steps?",
    ),
    "Keras' name of the window": (
        lambda: Optimizer(gradient_accumulation_steps=4),
        ValueError,
        "set accumulation_steps",
    ),
    "old name of the learning rate": (
        lambda: Optimizer(inner="adam", lr=1e-3),
        ValueError,
        "learning_rate",
    ),
    "optimizer's name for the learning rate": (
        lambda: Optimizer("adam"),
        TypeError,
        "inner='adam'",
    ),
    "optimizer for the learning rate": (lambda: Optimizer(Adam()), TypeError, "inner=Adam(...)"),
    "class of an optimizer": (lambda: Optimizer(inner=Adam), TypeError, "Adam(...)"),
    "name of an optimizer of this library": (
        lambda: Optimizer(inner="radam"),
        ValueError,
        "inner=tensorflow_ranger.RAdam(...)",
    ),
    "momentum beside another optimizer": (
        lambda: Optimizer(1e-3, momentum=0.9, inner="adam"),
        ValueError,
        "It takes amsgrad, beta_1",
    ),
    "window as text": (
        lambda: Optimizer(accumulation_steps="4"),
        ValueError,
        "an integer >= 1",
    ),
    "lookahead as its k": (
        lambda: Optimizer(lookahead=5),
        TypeError,
        "Use tensorflow_ranger.Lookahead()",
    ),
    "clipping as its factor": (
        lambda: Optimizer(adaptive_clipping=0.01),
        TypeError,
        "Use tensorflow_ranger.AdaptiveGradientClipping()",
    ),
    "misspelt optimizer": (lambda: Optimizer(inner="adamm"), ValueError, "Did you mean 'adam'?"),
    "learning rate beside an optimizer": (
        lambda: Optimizer(1e-3, inner=Adam()),
        ValueError,
        "Set it on the instance",
    ),
    "scaled loss inside": (
        lambda: Optimizer(inner=keras.optimizers.LossScaleOptimizer(Adam())),
        ValueError,
        "put it outside",
    ),
    "window of zero": (
        lambda: Optimizer(accumulation_steps=0),
        ValueError,
        "Use 1 to update after every micro-batch",
    ),
    "window as a dict": (
        lambda: Optimizer(accumulation_steps={0: 1, 100: 4}),
        ValueError,
        "an AccumulationSchedule",
    ),
    "window beside auto": (assign_beside_auto, ValueError, "Make an optimizer with an integer"),
    "window in a window": (
        lambda: Optimizer(inner=Optimizer()),
        ValueError,
        "Multiply their accumulation_steps",
    ),
    "lookahead switched on": (
        lambda: Optimizer(lookahead=True),
        TypeError,
        "Use tensorflow_ranger.Lookahead()",
    ),
    "Ranger21 without its length": (ranger.Ranger21, ValueError, "set warm_down=False"),
    "variables before gradients": (
        lambda: apply_swapped(Optimizer()),
        TypeError,
        "Give the gradients first",
    ),
    "variables before gradients, built": (
        lambda: apply_swapped(built(Optimizer())),
        TypeError,
        "apply(grads, trainable_variables)",
    ),
    "no gradients": (apply_without_gradients, ValueError, "Check that the loss"),
    "noise without micro-batches": (
        lambda: fit(compiled(), callbacks=[callbacks.NoiseScale()]),
        ValueError,
        "Call microbatch(model, size) before fit",
    ),
    "schedule of another optimizer": (
        lambda: fit(compiled(), callbacks=[ranger.AccumulationSchedule({0: 1, 9: 4})]),
        TypeError,
        "Compile the model with one",
    ),
    "schedule as a list": (
        lambda: ranger.AccumulationSchedule([1, 4]),
        TypeError,
        "Use {0: 1, 1000: 4}",
    ),
    "schedule that begins late": (
        lambda: ranger.AccumulationSchedule({1000: 4}),
        ValueError,
        "Add what comes first, such as 0: 1",
    ),
    "conflicts of no tasks": (
        lambda: fit(microbatch(compiled(), 16), callbacks=[callbacks.TaskConflicts()]),
        ValueError,
        'Call multitask(model, combine="sum")',
    ),
    "tasks as a list": (
        lambda: multitask(compiled(), "upgrad", tasks=["first", "second"]),
        ValueError,
        "map the name of each task to a list",
    ),
    "tasks of no output": (
        lambda: fit(multitask(compiled(), "upgrad", tasks={"a": ["first"], "b": ["third"]})),
        ValueError,
        "A loss has the name of its output",
    ),
    "rule to rescale that is none": (
        lambda: ranger.rescale_for_batch(Adam(), from_batch=32, to_batch=64, rule="square"),
        ValueError,
        'Take "sqrt" for Adam',
    ),
    "one task": (
        lambda: fit(multitask(compiled(), "pcgrad")),
        ValueError,
        "Compile one loss per output",
    ),
    "rule in capitals": (lambda: multitask(compiled(), "PCGrad"), ValueError, "'pcgrad'"),
    "optimizer's name to rescale": (
        lambda: ranger.rescale_for_batch("adam", from_batch=32, to_batch=64),
        TypeError,
        "keras.optimizers.Adam(1e-3)",
    ),
    "callback as a class": (
        lambda: fit(microbatch(compiled(), 16), callbacks=[callbacks.NoiseScale]),
        TypeError,
        "got the class NoiseScale. Write NoiseScale()",
    ),
    "callback as a class, without microbatch": (
        lambda: fit(compiled(), callbacks=[callbacks.GradientNorm]),
        TypeError,
        "got the class GradientNorm. Write GradientNorm()",
    ),
    "schedule as a class": (
        lambda: fit(compiled(Optimizer()), callbacks=[ranger.AccumulationSchedule]),
        TypeError,
        "got the class AccumulationSchedule. Write AccumulationSchedule({0: 1, 1000: 4})",
    ),
    "verify as fit": (
        lambda: verify(compiled(), X, Y, 16),
        TypeError,
        "got 4 arguments. Call it as verify(model, (x, y), 16)",
    ),
    "Keras' name of the batch for verify": (
        lambda: verify(compiled(), (X, Y), batch_size=16),
        TypeError,
        "has no argument 'batch_size'. Did you mean size?",
    ),
    "another name of the size": (
        lambda: microbatch(compiled(), micro_batch_size=16),
        TypeError,
        "has no argument 'micro_batch_size'. Did you mean size? Call it as microbatch(model, 32)",
    ),
    "Keras' name of the batch": (
        lambda: microbatch(compiled(), batch_size=16),
        TypeError,
        "Did you mean size?",
    ),
    "misspelt memory_limit": (
        lambda: microbatch(compiled(), "auto", mem_limit="4GB"),
        TypeError,
        "Did you mean memory_limit?",
    ),
    "one size for check_exact": (
        lambda: ranger.testing.check_exact(compiled(), (X, Y), size=16),
        TypeError,
        "Did you mean sizes?",
    ),
    "verify before compile": (
        lambda: verify(uncompiled(), (X, Y), 16),
        ValueError,
        "Call model.compile first",
    ),
    "verify without targets": (lambda: verify(compiled(), X, 16), ValueError, "Give fit x and y"),
    "verify of a data set": (
        lambda: verify(compiled(), Batches(), 16),
        ValueError,
        "next(iter(data))",
    ),
    "verify of lists": (
        lambda: verify(compiled(), (X.tolist(), Y.tolist()), 16),
        ValueError,
        "numpy.asarray",
    ),
    "verify of one sample": (
        lambda: verify(compiled(), (X[0], Y[0]), 1),
        ValueError,
        "a row for each sample",
    ),
    "verify of a batch that is not split": (
        lambda: verify(compiled(), (X, Y), 64),
        ValueError,
        "Give a smaller size",
    ),
    "size before the batch": (
        lambda: verify(compiled(), 16, (X, Y)),
        ValueError,
        "got an object of the class tuple",
    ),
    "model for its variables": (
        lambda: accumulate_gradients(lambda *_: None, compiled(), (X, Y), 16),
        TypeError,
        "model.trainable_variables]" if BACKEND == "jax" else "Give its trainable_variables",
    ),
    "loss of two arguments": (
        lambda: accumulate(lambda x, y, weights: None),
        TypeError,
        "inside the function, such as x, y = micro_batch",
    ),
    "loss that is a number": (lambda: accumulate(0.5), TypeError, "Give the function itself"),
    "loss for each sample": (
        lambda: accumulate(lambda *arguments: keras.ops.zeros(16)),
        TypeError,
        "Reduce the loss over all its axes",
    ),
    "loss without a value": (lambda: accumulate(print), TypeError, "a scalar tensor"),
    "loss with metrics in a dict": (
        lambda: accumulate(lambda *arguments: (keras.ops.zeros(()), {"accuracy": 0.5})),
        TypeError,
        "Set has_aux=True",
    ),
    "aux without metrics": (
        lambda: accumulate_gradients(
            lambda *arguments: keras.ops.zeros(()),
            variables(compiled()),
            (X, Y),
            16,
            has_aux=True,
        ),
        TypeError,
        "must return a pair (loss, aux)",
    ),
    "scalar in the batch": (
        lambda: accumulate(lambda *_: None, (X, Y, np.float32(0.5))),
        ValueError,
        "Let loss_fn close over",
    ),
    "data set to accumulate": (
        lambda: accumulate(lambda *_: None, Batches()),
        ValueError,
        "Give one batch at a time",
    ),
    "lists to accumulate": (
        lambda: accumulate(lambda *_: None, (X.tolist(), Y)),
        ValueError,
        "Make it an array",
    ),
    "tensors of another framework": (accumulate_foreign_tensors, TypeError, "KERAS_BACKEND="),
}


@pytest.mark.parametrize(("mistake", "error", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_the_error_names_the_remedy(mistake, error, remedy):
    with pytest.raises(error) as caught:
        mistake()
    assert remedy in str(caught.value)


@pytest.mark.skipif(BACKEND != "torch", reason="modules are PyTorch's")
def test_parameters_of_a_module_have_an_optimizer_of_their_own():
    import torch

    module = torch.nn.Linear(8, 1)
    with pytest.raises(TypeError, match="accumulate_gradients in your loop"):
        Optimizer().build(module.parameters())
    with pytest.raises(TypeError, match="An optimizer of PyTorch"):
        Optimizer(inner=torch.optim.SGD(module.parameters(), 0.1))


@pytest.mark.parametrize(("size", "is_told"), [(16, False), (32, True), (512, True)])
def test_a_batch_that_is_not_split_is_told_once(size, is_told, caplog):
    with caplog.at_level(logging.WARNING, "tensorflow_ranger"):
        fit(microbatch(compiled(), size), epochs=2)
    told = [r.getMessage() for r in caplog.records if "larger batch_size" in r.getMessage()]
    assert len(told) == is_told


def fit_loss_of_no_output():
    inputs = keras.Input((8,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("first", "second")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss={"first": "mse", "third": "mse"})
    fit(microbatch(model, 16), y={"first": Y, "second": Y})


def hardest(y_true, y_pred):
    losses = keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)
    return keras.ops.top_k(losses, 20)[0]


# Python's and Keras' own errors do not name the remedy: the page does.
ERRORS_OF_OTHERS = {
    "microbatch before compile": (
        lambda: fit(microbatch(uncompiled(), 16)),
        ValueError,
        "You must call `compile()` before using the model",
    ),
    "misspelt keyword": (
        lambda: multitask(compiled(), combination="pcgrad"),
        TypeError,
        "got an unexpected keyword argument",
    ),
    "micro-batch as an argument of fit": (
        lambda: fit(compiled(), microbatch=16),
        TypeError,
        "got an unexpected keyword argument",
    ),
    "no size": (
        lambda: microbatch(compiled()),
        TypeError,
        "missing 1 required positional argument: 'size'",
    ),
    "loss of a fixed number of samples": (
        lambda: fit(microbatch(compiled(loss=hardest), 16)),
        (ValueError, RuntimeError),
        {
            "tensorflow": "input must have last dimension >= k",
            "jax": "k argument to top_k must be no larger than size along axis",
            "torch": "selected index k out of range",
        }[BACKEND],
    ),
    "targets of another length": (
        lambda: fit(microbatch(compiled(), 16), y=Y[:10]),
        ValueError,
        "Data cardinality is ambiguous",
    ),
    "class of an optimizer": (
        lambda: compiled(Optimizer),
        ValueError,
        "Could not interpret optimizer identifier",
    ),
    "loss of no output": (fit_loss_of_no_output, KeyError, "can't be found in either the model's"),
    "no targets": (
        lambda: fit(microbatch(compiled(), 16), y=None),
        ValueError,
        {
            "tensorflow": "compares outputs with targets: got y=None",
            "jax": "None is not a valid value for jnp.array",
            "torch": "Invalid dtype: object",
        }[BACKEND],
    ),
}


@pytest.mark.parametrize(
    ("mistake", "error", "words"), ERRORS_OF_OTHERS.values(), ids=ERRORS_OF_OTHERS
)
def test_an_error_of_others_stands_in_the_troubleshooting(mistake, error, words):
    with pytest.raises(error) as caught:
        mistake()
    assert words in str(caught.value)
    assert words in PAGE.read_text(encoding="utf-8")
