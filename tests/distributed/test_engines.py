"""Every engine ends with the weights of one process, and sums gradients once per update."""

import keras
import numpy as np
import pytest

from tests.distributed import cases, launch
from tests.distributed.engines import Here

SCALARS = 64  # bytes an update may send beside its gradients: masses, losses and metrics

# Keras' own train step fails under several TensorFlow workers.
EVERYWHERE = [
    "masks",
    "batch_normalization",
    "uneven",
    "contrasting",
    "ranger",
    "streaming",
    "not_finite",
]
ENGINES = {
    "tensorflow": {
        "tensorflow_mirrored": EVERYWHERE,
        "tensorflow_workers": ["masks", "batch_normalization", "contrasting", "ranger"],
    },
    "jax": {
        "jax_data_parallel": EVERYWHERE,
        # Keras gives each process as many samples.
        "jax_processes": ["masks", "batch_normalization", "contrasting_even"],
        "jax_model_parallel": ["masks", "streaming"],
    },
    "torch": {"torch_processes": EVERYWHERE},
}[keras.config.backend()]
pytestmark = pytest.mark.filterwarnings("ignore:Left out:UserWarning")
RUNS = [(engine, name) for engine, names in ENGINES.items() for name in names]
OBSERVED = ["dropout", "resumed", "refused"]
OBSERVED += {"torch": ["begun_apart"], "jax": ["searched"], "tensorflow": []}[
    keras.config.backend()
]


@pytest.fixture
def results(once):
    """A function that returns the results of an engine's processes, for all cases at once."""

    def results_of(engine):
        names = (*ENGINES[engine], *OBSERVED)
        return launch.results(once(engine, lambda folder: launch.run(engine, folder, *names)))

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


@pytest.mark.parametrize(("engine", "name"), RUNS)
def test_weights_are_those_of_one_process(results, alone, engine, name):
    expected = alone(name)
    for process in results(engine):
        assert_same_weights(process[name]["weights"], expected["weights"])
        assert process[name]["updates"] == expected["updates"]
        assert process[name]["skipped"] == expected["skipped"]


@pytest.mark.parametrize(("engine", "name"), RUNS)
def test_history_is_that_of_the_whole_batch(results, alone, engine, name):
    histories = [process[name]["history"] for process in results(engine)]
    if engine == "torch_processes" and cases.CASES[name].size is None:
        # Keras' own step knows the metrics of its process alone: here, of half the samples.
        histories = [{key: np.mean([h[key] for h in histories], 0) for key in histories[0]}]
    for history in histories:
        for key, values in alone(name)["history"].items():
            np.testing.assert_allclose(history[key], values, rtol=1e-4, atol=1e-6)


# On JAX, XLA sums in Keras' own step before the optimizer sees a gradient.
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        (e, n)
        for e, n in RUNS
        if n in ("masks", "ranger", "contrasting", "contrasting_even")
        or (n == "streaming" and e[0] != "j")
    ],
)
def test_gradients_cross_the_replicas_once_per_update(results, engine, name):
    for process in results(engine):
        updates, sizes = process[name]["collectives"]
        gradients = process[name]["bytes"]
        assert sum(size > SCALARS for size in sizes) == updates
        assert sum(sizes) <= updates * (gradients + SCALARS)
        if engine != "jax_model_parallel":  # there each device has a part of the kernels
            assert max(sizes) >= gradients


@pytest.mark.parametrize("engine", ENGINES)
def test_replicas_drop_other_inputs(results, engine):
    # With the same mask on all replicas, an input would be dropped by all or by none.
    for process in results(engine):
        assert process["dropout"] > 10


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_goes_on_in_mid_window(results, alone, engine):
    for process in results(engine):
        assert process["resumed"]["pending"] == 1
        assert_same_weights(process["resumed"]["weights"], alone("saved")["weights"])


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_cannot_do_is_an_error(results, engine):
    expected = {
        "size": "size='auto' is measured by one process: got several",
        "rows": "A batch must give each replica of a process as many samples: got 3",
    }
    lockstep = engine in ("jax_processes", "tensorflow_workers")
    for process in results(engine):
        messages = process["refused"]
        assert ("size" in messages) == lockstep
        assert ("rows" in messages) == (engine == "jax_processes")
        for name, message in messages.items():
            assert expected[name] in message


if keras.config.backend() == "torch":

    def test_microbatch_begins_with_the_weights_of_the_first_process(results):
        first, second = (process["begun_apart"]["2"] for process in results("torch_processes"))
        assert first == second
        assert isinstance(first, list)

    def test_ranger_optimizer_refuses_weights_that_begin_apart(results):
        for process in results("torch_processes"):
            assert "The processes train different weights" in process["begun_apart"]["None"]


if keras.config.backend() == "jax":

    def test_the_size_is_found_for_the_devices_of_a_process(results):
        (process,) = results("jax_data_parallel")
        assert process["searched"] in (1, 2, 4, 8, 16, 32)
