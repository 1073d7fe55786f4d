"""Every engine ends with the weights of one process, and sums gradients once per update."""

import re

import keras
import numpy as np
import pytest

from tests.distributed import cases, launch, padded
from tests.distributed.engines import Here
from tests.float64 import in_float64

SCALARS = 64  # bytes an update may send beside its gradients: masses, losses and metrics

# What an engine trains in every suite, and what in the thorough run alone. Each makes a run of its
# own. Keras' own train step fails under several TensorFlow workers.
QUICK = ["masks", "padded", "batch_normalization", "contrasting", "drawing", "streaming", "norms"]
OTHERS = ["uneven", "ranger", "not_finite", "norms_of_windows"]
ENGINES = {
    "tensorflow": {
        "tensorflow_mirrored": ([*QUICK, "plain"], OTHERS),
        "tensorflow_workers": (
            ["masks"],
            ["balanced", "padded", "batch_normalization", "contrasting", "drawing", "ranger"],
        ),
    },
    "jax": {
        "jax_data_parallel": (QUICK, [*OTHERS, "plain"]),
        # Keras gives each process as many samples.
        "jax_processes": (
            ["masks", "contrasting_even"],
            ["balanced", "padded", "batch_normalization", "drawing_even"],
        ),
        "jax_model_parallel": ([], ["masks", "padded", "streaming"]),
    },
    "torch": {"torch_processes": ([*QUICK, "balanced"], OTHERS)},
}[keras.config.backend()]
LOCKSTEP = ("jax_processes", "tensorflow_workers")
MAIN = next(iter(ENGINES))  # looked at in every suite, the others in the thorough run
pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")
THOROUGH = pytest.mark.thorough


def runs(is_wanted=lambda engine, name: True):
    """Return what the engines train as parameters: all of it, or what is wanted."""
    return [
        pytest.param(engine, name, marks=[THOROUGH] * is_other)
        for engine, groups in ENGINES.items()
        for is_other, names in enumerate(groups)
        for name in names
        if is_wanted(engine, name)
    ]


EVERY_ENGINE = [pytest.param(e, marks=[THOROUGH] * (e != MAIN)) for e in ENGINES]
OBSERVED = ["dropout", "resumed", "refused"]
OBSERVED += {
    "torch": ["begun_apart"],
    "jax": ["trimmed", "searched"],
    "tensorflow": ["trimmed"],
}[keras.config.backend()]
OBSERVED_OTHERS = [] if keras.config.backend() == "torch" else ["trimmed_others"]


@pytest.fixture
def results(once):
    """A function that returns the results of an engine's processes, for many cases at once."""

    def results_of(engine, name):
        quick, others = ([*names] for names in ENGINES[engine])
        (quick if engine == MAIN else others).extend(OBSERVED)
        others += OBSERVED_OTHERS
        is_other = name in others
        names = others if is_other else quick
        folder = f"{engine}_others" if is_other else engine
        return launch.results(once(folder, lambda place: launch.run(engine, place, *names)))

    return results_of


@pytest.fixture(scope="module")
def alone():
    """The results of one process on the whole batch."""
    known = {}

    def results_of(name):
        if name not in known:
            known[name] = cases.run(cases.CASES[name], Here(replicas=1))[0]
        return known[name]

    return results_of


def assert_same_weights(actual, expected):
    for weight, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("engine", "name"), runs())
def test_weights_are_those_of_one_process(results, alone, engine, name):
    expected = alone(name)
    for process in results(engine, name):
        assert_same_weights(process[name]["weights"], expected["weights"])
        assert process[name]["updates"] == expected["updates"]
        assert process[name]["skipped"] == expected["skipped"]


@pytest.mark.parametrize(("engine", "name"), runs())
def test_history_is_that_of_the_whole_batch(results, alone, engine, name):
    histories = [process[name]["history"] for process in results(engine, name)]
    if engine == "torch_processes" and cases.CASES[name].size is None:
        # Keras' own step knows the metrics of its process alone: here, of half the samples.
        histories = [{key: np.mean([h[key] for h in histories], 0) for key in histories[0]}]
    # What Keras' own step is given there is a micro-batch of each replica's.
    has_other_parts = cases.CASES[name].size is None and not engine.startswith("jax")
    for history in histories:
        for key, values in alone(name)["history"].items():
            if key == "microbatch_gradient_norm" and has_other_parts:
                assert (np.array(history[key]) > np.array(values)).all()
            else:
                np.testing.assert_allclose(history[key], values, rtol=1e-4, atol=1e-6)


# On JAX, XLA sums in Keras' own step before the optimizer sees a gradient.
@pytest.mark.parametrize(
    ("engine", "name"),
    runs(
        lambda engine, name: (
            name in ("masks", "padded", "ranger", "contrasting", "contrasting_even")
            or (name == "streaming" and not engine.startswith("jax"))
        )
    ),
)
def test_gradients_cross_the_replicas_once_per_update(results, engine, name):
    for process in results(engine, name):
        updates, sizes = process[name]["collectives"]
        gradients = process[name]["bytes"]
        assert sum(size > SCALARS for size in sizes) == updates
        assert sum(sizes) <= updates * (gradients + SCALARS)
        if engine != "jax_model_parallel":  # there each device has a part of the kernels
            assert max(sizes) >= gradients


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_replicas_drop_other_inputs(results, engine):
    # With the same mask on all replicas, an input would be dropped by all or by none.
    for process in results(engine, "dropout"):
        assert process["dropout"] > 10


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_a_run_goes_on_in_mid_window(results, alone, engine):
    for process in results(engine, "resumed"):
        assert process["resumed"]["pending"] == 1
        assert_same_weights(process["resumed"]["weights"], alone("saved")["weights"])


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_what_an_engine_cannot_do_is_an_error(results, engine):
    expected = {
        "size": "size='auto' is measured by one process: got several",
        "padding": "padding=0 would train another model. What the model computes between its lay",
        "rows": "A batch must give each replica of a process as many samples: got 3",
    }
    lockstep = engine in LOCKSTEP
    for process in results(engine, "refused"):
        messages = process["refused"]
        assert "padding" in messages
        assert ("size" in messages) == lockstep
        assert ("rows" in messages) == (engine == "jax_processes")
        for name, message in messages.items():
            assert expected[name] in message


if keras.config.backend() != "torch":  # where each process divides its own samples in Python

    @pytest.fixture(scope="module")
    def padded_alone():
        """The results of plain `fit` on the padded batches, on one device."""
        known = {}

        def results_of(name):
            if name not in known:
                with in_float64():
                    known[name] = padded.trained(name, Here(replicas=1))
            return known[name]

        return results_of

    @pytest.mark.parametrize(
        ("engine", "name"),
        [
            pytest.param(
                engine, name, marks=[THOROUGH] * (engine != MAIN or name not in padded.QUICK)
            )
            for engine in ENGINES
            for name in padded.CASES
            if name != "whole" or engine not in LOCKSTEP  # see `observations.trimmed_others`
        ],
    )
    def test_trimmed_samples_train_as_padded_ones(results, padded_alone, engine, name):
        observation = "trimmed" if name in padded.QUICK else "trimmed_others"
        for process in results(engine, observation):
            found, expected = process[observation][name], padded_alone(name)
            for weight, other in zip(found["weights"], expected["weights"], strict=True):
                np.testing.assert_allclose(weight, other, rtol=0, atol=1e-10)
            np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
            (share,) = re.findall(r"padded time steps are computed \((\d+)%\)", found["plan"])
            assert 50 < int(share) < 95


if keras.config.backend() == "torch":

    def test_microbatch_begins_with_the_weights_of_the_first_process(results):
        first, second = (
            process["begun_apart"]["2"] for process in results("torch_processes", "begun_apart")
        )
        assert first == second
        assert isinstance(first, list)

    def test_ranger_optimizer_refuses_weights_that_begin_apart(results):
        for process in results("torch_processes", "begun_apart"):
            assert "The processes train different weights" in process["begun_apart"]["None"]


if keras.config.backend() == "jax":

    def test_the_size_is_found_for_the_devices_of_a_process(results):
        (process,) = results("jax_data_parallel", "searched")
        assert process["searched"] in (1, 2, 4, 8)
