"""The example of FSDP2 trains to the weights of one process, and holds its part of the memory."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tensorflow_ranger as ranger
from tests.unit.training.gradients import only_torch

pytestmark = [only_torch, pytest.mark.thorough]
ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2


@pytest.fixture
def results(once):
    """Return, by case, a list with what each process wrote."""
    from tests.distributed import fsdp2_worker

    folder = once("fsdp2", run)
    return {
        name: [dict(np.load(folder / f"{name}-{rank}.npz")) for rank in range(PROCESSES)]
        for name in fsdp2_worker.CASES
    }


def run(folder):
    """Run the cases, which write to `folder`."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
        *(f"--nproc-per-node={PROCESSES}", "-m", "tests.distributed.fsdp2_worker", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]


def alone(build_model, build_optimizer, batches):
    """Return what one process comes to with Keras alone, on whole batches."""
    model = build_model()
    model.compile(build_optimizer(), loss="sparse_categorical_crossentropy")
    losses = []
    for x, y in batches:
        loss = keras.losses.sparse_categorical_crossentropy(y, model(x))
        losses.append(float(keras.ops.mean(loss).detach()))
        model.train_on_batch(x, y)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return model, losses


@pytest.mark.parametrize("case", ["last", "each", "ema"])
def test_it_trains_like_one_process_on_the_whole_batch(results, case):
    from tests.distributed import fsdp2_worker

    build_model, build_optimizer, _ = fsdp2_worker.CASES[case]
    model, losses = alone(build_model, build_optimizer, fsdp2_worker.batches())
    expected = model.get_weights()
    initial = build_model().get_weights()
    moved = max(np.abs(a - b).max() for a, b in zip(expected, initial, strict=True))
    assert moved > 1e-3
    for result in results[case]:
        np.testing.assert_allclose(result["losses"], losses, atol=1e-6)
        for i, weight in enumerate(expected):
            np.testing.assert_allclose(result[f"weight_{i}"], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("case", "slots"), [("last", 1), ("each", 2), ("ema", 3)])
def test_each_process_holds_its_part_and_nothing_whole(results, case, slots):
    from tests.distributed import fsdp2_worker

    model = fsdp2_worker.CASES[case][0]()
    trainable = sum(v.value.numel() for v in model.trainable_variables)
    frozen = sum(v.value.numel() for v in model.non_trainable_variables)
    part = trainable // PROCESSES  # all weights have an axis of even size
    for result in results[case]:
        assert result["shards"] == part
        assert slots * part <= result["slots"] <= slots * part + 8
        # Shards, slots and frozen weights, and no gradient: four bytes each, and a few scalars.
        expected = 4 * ((1 + slots) * part + frozen)
        assert expected <= result["bytes"] <= expected + 256


@pytest.mark.parametrize(("case", "layers", "times"), [("last", 4, 1), ("each", 3, 4)])
def test_gradients_are_reduced_once_an_update_or_once_a_micro_batch(results, case, layers, times):
    for result in results[case]:
        assert result["reductions"] == layers * times


@pytest.mark.parametrize(
    "build",
    [
        lambda: keras.optimizers.Muon(),
        lambda: keras.optimizers.Lamb(),
        lambda: keras.optimizers.Adafactor(),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        lambda: ranger.Ranger(),
        lambda: ranger.Ranger21(total_updates=10),
        lambda: ranger.RangerOptimizer(inner="adam"),
        lambda: type("Normed", (keras.optimizers.Adam,), {})(),
    ],
)
def test_optimizers_of_whole_tensors_are_refused(build):
    from examples import fsdp2

    optimizer = build()
    name = type(optimizer).__name__
    message = f"must treat each weight by itself: got {name}, which may look at whole tensors"
    with pytest.raises(ValueError, match=f"{message}.*Use one of SGD, Adam, "):
        fsdp2.check(network(), optimizer)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("clipnorm", 1.0),
        ("global_clipnorm", 1.0),
        ("centralize", True),
        ("adaptive_clipping", ranger.AdaptiveGradientClipping()),
    ],
)
def test_options_for_whole_tensors_are_refused(option, value):
    from examples import fsdp2

    optimizer = ranger.RAdam(**{option: value})
    with pytest.raises(ValueError, match=f"{option} is for whole tensors.*got {option}="):
        fsdp2.check(network(), optimizer)


def test_elementwise_optimizers_are_taken():
    from examples import fsdp2

    for name in fsdp2.ELEMENTWISE.split(", "):
        optimizer = getattr(ranger, name, None) or getattr(keras.optimizers, name)
        fsdp2.check(network(), optimizer(clipvalue=1.0))


@pytest.mark.parametrize(
    "options",
    [{"kernel_constraint": "max_norm"}, {"kernel_regularizer": "l2"}],
    ids=["constraint", "regularizer"],
)
def test_rules_of_whole_weights_are_refused(options):
    from examples import fsdp2

    with pytest.raises(ValueError, match=r"would look at a shard alone: got \S+/kernel\. Use"):
        fsdp2.check(network(**options), keras.optimizers.SGD())


def test_weights_outside_of_layers_are_refused():
    from examples import fsdp2

    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(2,), name="scale")

    with pytest.raises(ValueError, match=r"Weights must be in layers.*got \S*scale\."):
        fsdp2.check(Scaled(), keras.optimizers.SGD())


def network(**options):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, **options)])
