"""What the command line makes of a launcher's environment variables."""

import json

import keras
import numpy as np
import pytest

from tensorflow_ranger_cli.errors import UsageError
from tensorflow_ranger_cli.runs import launch
from tensorflow_ranger_cli.runs.launch import Launch, detect
from tensorflow_ranger_cli.runs.shuffled_batches import OwnRows, ShuffledBatches
from tests.application import runs
from tests.marks import first

# On JAX one test is about its own rule.
pytestmark = [] if keras.config.backend() == "jax" else first

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "4000",
}
KERAS = {
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:2",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    "KERAS_DISTRIBUTION_PROCESS_ID": "1",
}
CLUSTER = {"worker": ["a:1", "b:2"]}


def tf_config(kind="worker", index=1, **cluster):
    task = {"type": kind, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster or CLUSTER, "task": task})}


def without(environment, name):
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        {"KERAS_DISTRIBUTION_NUM_PROCESSES": "1"},
        {"TF_CONFIG": ""},
        {"TF_CONFIG": "{}"},
        tf_config(index=0, worker=["a:1"]),
    ],
)
def test_one_process_is_alone(environment):
    assert detect(environment) == Launch()
    assert Launch().in_words(devices=1) is None


def test_torchrun():
    addresses = ("127.0.0.1:4001", "127.0.0.1:4002")
    assert detect(TORCHRUN) == Launch("torchrun", 2, 1, addresses, local=1)


def test_torchrun_with_a_host_for_each_process():
    environment = TORCHRUN | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert detect(environment) == Launch("torchrun", 2, 1, ("127.0.0.1:4001",))
    assert detect(environment | tf_config(index=0)).addresses == ("a:1", "b:2")
    assert detect(environment | tf_config(index=0)).process == 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_restarts_are_counted(processes):
    environment = TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "3", "WORLD_SIZE": processes}
    environment["RANK"] = "0"
    assert detect(environment).restarts == 3


def test_other_launchers_of_ranks():
    environment = without(without(TORCHRUN, "TORCHELASTIC_RUN_ID"), "LOCAL_WORLD_SIZE")
    assert detect(environment) == Launch("WORLD_SIZE", 2, 1, ("127.0.0.1:4001",))


def test_keras_distribution():
    assert detect(KERAS) == Launch("keras.distribution", 2, 1, ("a:1", "b:2"))


@pytest.mark.parametrize(
    ("kind", "index", "process"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
)
def test_tf_config(kind, index, process):
    environment = tf_config(kind, index, worker=["a:1", "b:2"], chief=["c:3"])
    assert detect(environment) == Launch("TF_CONFIG", 3, process, ("c:3", "a:1", "b:2"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without(TORCHRUN, "RANK"), "RANK must be set where WORLD_SIZE is: got none"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR must be set where WORLD_SIZE is"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT must be set where WORLD_SIZE is"),
        (TORCHRUN | {"RANK": "2"}, "RANK must be an integer >= 0 and <= 1: got 2"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer >= 1: got two"),
        (
            without(KERAS, "KERAS_DISTRIBUTION_JOB_ADDRESSES"),
            "KERAS_DISTRIBUTION_JOB_ADDRESSES must be set where KERAS_DISTRIBUTION_NUM_PROCESSES",
        ),
        (
            without(KERAS, "KERAS_DISTRIBUTION_PROCESS_ID"),
            "KERAS_DISTRIBUTION_PROCESS_ID must be set",
        ),
        ({"TF_CONFIG": "worker"}, "TF_CONFIG must be JSON such as .* got worker"),
        ({"TF_CONFIG": '["a:1"]'}, r"TF_CONFIG must be JSON such as .* got \[\"a:1\"\]"),
        (tf_config("ps", 0), "TF_CONFIG must name this process's task, .* got {'type': 'ps'"),
        (tf_config("worker", 2), "TF_CONFIG must name this process's task"),
        (
            {"TF_CONFIG": json.dumps({"cluster": CLUSTER})},
            "TF_CONFIG must name this process's task, .* got None",
        ),
    ],
)
def test_variables_that_make_no_sense_are_named(environment, message):
    with pytest.raises(UsageError, match=message):
        detect(environment)


def test_one_line_says_who_trains_and_who_writes():
    assert Launch("torchrun", 2).in_words(devices=1) == (
        "2 processes of torchrun; process 0 writes the run"
    )
    assert Launch("TF_CONFIG", 3).in_words(devices=4) == (
        "3 processes of TF_CONFIG, 4 devices each; process 0 writes the run"
    )
    assert Launch().in_words(devices=2) == "2 devices of one process"


def test_tensorflow_needs_every_address():
    launched = Launch("torchrun", 2, 1, ("127.0.0.1:4001",))
    with pytest.raises(
        UsageError, match=r"got 2 processes of torchrun on several hosts\. Set TF_CONFIG"
    ):
        launch.joined(launched, "tensorflow").__enter__()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_batch_in_its_order(processes):
    x = np.arange(40)
    batches = ShuffledBatches(x, x, batch_size=16, seed=0)
    parts = [OwnRows(batches, processes, process) for process in range(processes)]
    batches.set_epoch(1)
    for index in range(3):
        assert {len(part) for part in parts} == {3}
        whole = [np.concatenate(arrays) for arrays in zip(*(p[index] for p in parts), strict=True)]
        np.testing.assert_array_equal(whole, batches[index])
        sizes = [len(part[index][0]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def alone_of(processes, monkeypatch):
    """Let this process take itself for one of several, as far as it can alone."""
    alone = Launch("torchrun", processes, addresses=("127.0.0.1:1",) * processes)
    monkeypatch.setattr(launch, "detect", lambda environment: alone)
    engine = type("Engine", (), {"equal_rows": keras.config.backend() == "jax", "devices": 1})
    monkeypatch.setattr("tensorflow_ranger_cli.frameworks.Engine", lambda *_: engine)
    monkeypatch.setattr(engine, "is_lost_peer", lambda error: False, raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--microbatch", "auto"], "--microbatch auto is measured by one process: got 3"),
        (["--batch-size", "2"], "--batch-size must"),
        (["--batch-size", "222"], "the last batch of an epoch must"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(options, message, tmp_path, capsys, monkeypatch):
    alone_of(3, monkeypatch)
    assert runs.train(tmp_path, *options) == 2
    runs.assert_one_error(capsys, message, "got")


@pytest.mark.skipif(keras.config.backend() != "jax", reason="elsewhere parts may differ")
def test_on_jax_parts_must_be_equal(tmp_path, capsys, monkeypatch):
    alone_of(3, monkeypatch)
    assert runs.train(tmp_path, "--batch-size", "32") == 2
    runs.assert_one_error(capsys, "--batch-size must be a multiple of the 3 processes: got 32")


def test_a_run_that_is_started_again_goes_on(stopped, capsys, monkeypatch):
    monkeypatch.setattr(launch, "detect", lambda environment: Launch(restarts=1))
    assert runs.train(stopped, "--epochs", "3") == 0
    assert "Resuming after epoch 3" in capsys.readouterr().out


@first
def test_a_run_that_is_started_again_is_no_other_one(stopped, capsys, monkeypatch):
    monkeypatch.setattr(launch, "detect", lambda environment: Launch(restarts=1))
    before = runs.contents(stopped)
    assert runs.train(stopped, "--epochs", "3", "--seed", "1") == 2
    runs.assert_one_error(capsys, f"{stopped} holds a run with other settings")
    assert runs.contents(stopped) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "detect", lambda environment: Launch(restarts=1))
    assert runs.train(tmp_path, "--epochs", "1") == 0
    assert capsys.readouterr().out.startswith("Training: ")
