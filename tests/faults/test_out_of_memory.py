"""Training goes on when memory really runs out, with the weights it would have had."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

ABORTED = -signal.SIGABRT
# Of what a deep model needs, where the search begins: enough for layers that are run again.
LITTLE = {"torch": 0.4, "tensorflow": 0.375, "jax": 0.28}[keras.config.backend()]
# Of what such a model with many words needs: enough for logits in chunks.
FEW = 0.4
# Where TensorFlow finds no memory, Intel's library aborts, and so does Eigen's matrix product with
# several threads: it raises an error in a thread that nobody watches.
ENVIRONMENT = os.environ | {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}


def run(spare, *arguments):
    command = [sys.executable, "-m", "tests.faults.out_of_memory", str(spare), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT
    )
    is_too_little = done.returncode == ABORTED or "MemoryError" in done.stderr
    assert done.returncode == 0 or is_too_little, done.stderr[-3000:]
    return done


def result_of(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def train_until_out_of_memory(bytes_needed, message, share, *arguments):
    # Allocators keep more than they need, and a framework that can't start a thread aborts: how
    # little is too little, and not far too little, takes a few tries.
    low, high = 0.0, 1.0
    for _ in range(6):
        done = run(int(share * bytes_needed), *arguments)
        if done.returncode:
            low = share
        elif done.returncode == 0 and message in done.stderr:
            return result_of(done)
        else:
            high = share
        share = (low + high) / 2
    raise AssertionError(f"{bytes_needed} bytes of address space were never needed.")


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["buffer", "fold"])
def test_a_limited_process_ends_with_the_weights_of_an_unlimited_one(optimizer):
    done = run(0, optimizer)
    unlimited, silence = result_of(done), done.stderr
    message = "Out of memory with micro-batches of 32768"
    limited = train_until_out_of_memory(unlimited["bytes"], message, 0.55, optimizer)
    assert "Out of memory" not in silence
    assert limited["size"] < unlimited["size"] == 32768
    assert_same_training(limited, unlimited)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["buffer", "fold"])
def test_where_not_even_one_sample_fits_layers_are_run_again(optimizer):
    done = run(0, optimizer, "deep")
    unlimited = result_of(done)
    assert unlimited["repeats"] is None
    message = "One sample does not fit the memory: the backward pass runs layers again"
    limited = train_until_out_of_memory(unlimited["bytes"], message, LITTLE, optimizer, "deep")
    assert "layers' calls again" in limited["repeats"]
    assert_same_training(limited, unlimited_in_the_size_of(limited, optimizer, "deep"))


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["buffer", "fold"])
def test_where_one_samples_logits_do_not_fit_they_are_computed_in_chunks(optimizer):
    unlimited = result_of(run(0, optimizer, "words"))
    assert unlimited["head"] is None
    message = "One sample does not fit the memory: logits are computed in chunks"
    limited = train_until_out_of_memory(unlimited["bytes"], message, FEW, optimizer, "words")
    assert "in chunks of" in limited["head"]
    assert_same_training(limited, unlimited_in_the_size_of(limited, optimizer, "words"))


def unlimited_in_the_size_of(limited, *arguments):
    # A million float32 numbers have another sum, by 1e-4 of it, if they are added up in halves.
    return result_of(run(0, *arguments, str(limited["size"])))


def assert_same_training(limited, unlimited):
    for key, values in unlimited["history"].items():
        np.testing.assert_allclose(limited["history"][key], values, rtol=1e-5)
    for weight, expected in zip(limited["weights"], unlimited["weights"], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
