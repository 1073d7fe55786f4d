import keras
import numpy as np
import pytest
from keras import layers

import tensorflow_ranger as ranger
from tensorflow_ranger.training.microbatch import install
from tests.models import temporaries

SAMPLES, SIZE = 22, 5


def data(samples=SAMPLES):
    rng = np.random.default_rng(0)
    x = rng.normal(loc=2.0, size=(samples, 6))
    return x, (x @ rng.normal(size=(6, 1))) ** 2


def dense_model(*extra, optimizer="sgd", **settings):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6,)), layers.Dense(8, activation="relu")]
    model = keras.Sequential([*inputs, *extra, layers.Dense(1)])
    model.compile(optimizer, loss="mse", **settings)
    return model


def fit(model, **settings):
    x, y = data()
    settings = {"batch_size": 11, "epochs": 2, "shuffle": False, "verbose": 0, **settings}
    return model.fit(x, y, **settings).history


def assert_same_weights(actual, expected, tolerance=1e-6):
    for weight, other in zip(actual.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=tolerance, atol=tolerance)


def momentum():
    return keras.optimizers.SGD(0.01, momentum=0.5)


@pytest.mark.parametrize("may_fold", [False, True])
def test_both_accumulators_give_the_whole_batch(float64, may_fold):
    whole, parts = dense_model(optimizer=momentum()), dense_model(optimizer=momentum())
    install(parts, SIZE, may_fold=may_fold)
    expected, history = fit(whole), fit(parts)
    assert_same_weights(parts, whole)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
    for slot, other in zip(parts.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_allclose(slot, other, rtol=1e-6, atol=1e-6)


def test_moving_statistics_move_once_per_batch_by_the_batch(float64):
    # The first layer is the normalization: its statistics are those of the data.
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), layers.BatchNormalization(momentum=0.75), layers.Dense(1)]
    )
    model.compile("sgd", loss="mse")
    ranger.microbatch(model, SIZE)
    fit(model, epochs=1)
    x, _ = data()
    mean, variance = np.zeros(6), np.ones(6)
    for batch in (x[:11], x[11:]):
        mean = 0.75 * mean + 0.25 * batch.mean(0)
        variance = 0.75 * variance + 0.25 * batch.var(0)
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(model.layers[0].moving_variance, variance, rtol=1e-6)


def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(tmp_path):
    through = ranger.microbatch(dense_model(layers.Dropout(0.5, seed=1), optimizer="adam"), SIZE)
    fit(through, epochs=2)
    stopped = ranger.microbatch(dense_model(layers.Dropout(0.5, seed=1), optimizer="adam"), SIZE)
    fit(stopped, epochs=1)
    stopped.save(tmp_path / "model.keras")
    resumed = ranger.microbatch(keras.saving.load_model(tmp_path / "model.keras"), SIZE)
    # A .keras file has no seeds: whoever resumes a run keeps them beside it.
    for seed, kept in zip(
        resumed.non_trainable_variables, stopped.non_trainable_variables, strict=True
    ):
        seed.assign(kept)
    fit(resumed, epochs=2, initial_epoch=1)
    for weight, other in zip(resumed.get_weights(), through.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)


def test_seeds_advance_once_a_batch():
    class Record(layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(0)

        def call(self, inputs):
            return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seed)

    models = [dense_model(Record()) for _ in range(2)]
    before = np.array(models[0].layers[1].seed.state)
    ranger.microbatch(models[0], SIZE)
    fit(models[0], epochs=1)
    advanced = np.array(models[0].layers[1].seed.state) - before
    assert advanced.tolist() == [0, 2]  # three micro-batches in each of two batches


def test_none_undoes_it():
    model = ranger.microbatch(dense_model(), SIZE)
    fit(model)
    ranger.microbatch(model, None)
    assert not hasattr(model, "microbatch_plan")
    plain = dense_model()
    fit(plain)
    fit(plain)
    fit(model)
    assert_same_weights(model, plain, 1e-5)


def test_auto_finds_a_size_and_trains_like_the_whole_batch(float64):
    whole, parts = dense_model(), dense_model()
    ranger.microbatch(parts, "auto")
    fit(whole, epochs=15)
    fit(parts, epochs=15)
    assert_same_weights(parts, whole)
    plan = parts.microbatch_plan
    assert plan.chosen in {1, 2, 4, 8, 11}
    assert "fastest per sample" in plan.reason
    assert plan.batch == 11


def test_frozen_layers_and_models_without_weights():
    model = dense_model()
    model.layers[0].trainable = False
    model.compile("sgd", loss="mse")
    kernel = np.array(model.layers[0].kernel)
    fit(ranger.microbatch(model, SIZE))
    np.testing.assert_array_equal(model.layers[0].kernel, kernel)


def test_a_loss_that_is_a_function_of_the_batch_is_told_once():
    def largest(y_true, y_pred):
        return keras.ops.max((y_true - y_pred) ** 2)

    model = dense_model()
    model.compile("sgd", loss=largest)
    with pytest.warns(UserWarning, match="the loss 'largest' is not what the whole") as told:
        fit(ranger.microbatch(model, SIZE, loss="shares"))
    assert sum("largest" in str(each.message) for each in told) == 1


@pytest.mark.parametrize("name", ["train_step", "make_train_function"])
def test_a_training_step_on_the_instance_is_refused(name):
    model = dense_model()
    setattr(model, name, lambda *args: None)
    with pytest.raises(ValueError, match=f"microbatch replaces {name}, and Sequential overrides"):
        ranger.microbatch(model, SIZE)


def test_a_test_step_on_the_instance_is_called():
    model = dense_model()
    model.test_step = lambda *args: (
        {"mine": keras.ops.zeros(())}
        if len(args) == 1
        else (
            {"mine": keras.ops.zeros(())},
            args[0],
        )
    )
    fit(ranger.microbatch(model, SIZE))
    assert model.evaluate(*data(), verbose=0, return_dict=True) == {"mine": 0.0}


def test_an_optimizer_that_accumulates_is_refused():
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=4)
    model = ranger.microbatch(dense_model(optimizer=optimizer), SIZE)
    with pytest.raises(ValueError, match=r"Adam\(gradient_accumulation_steps=4\).*4 times"):
        fit(model)


def test_a_subclass_named_sgd_keeps_its_own_update():
    class SGD(keras.optimizers.Optimizer):
        momentum, nesterov = 0.5, False

        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, 3.0 * keras.ops.sign(gradient) * learning_rate)

    class Named(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(3.0 * keras.ops.sign(gradient), variable, learning_rate)

    Named.__name__ = "SGD"
    for make in (lambda: SGD(0.01), lambda: Named(0.01, momentum=0.5)):
        whole, parts = dense_model(optimizer=make()), dense_model(optimizer=make())
        fit(whole)
        fit(ranger.microbatch(parts, SIZE))
        assert_same_weights(parts, whole, 1e-5)


def replaced(model):
    model.optimizer = keras.optimizers.SGD(0.03, momentum=0.9)


def clipped(model):
    model.optimizer.clipnorm = 0.1


def nesterov(model):
    model.optimizer.nesterov = True


@pytest.mark.parametrize("change", [replaced, clipped, nesterov])
def test_the_optimizer_is_changed_between_fits(change):
    # Compiled steps of Keras do not look again.
    whole, parts = (dense_model(optimizer=momentum(), run_eagerly=True) for _ in range(2))
    ranger.microbatch(parts, SIZE)
    for model in (whole, parts):
        fit(model)
        change(model)
        fit(model)
    assert_same_weights(parts, whole, 1e-5)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="Keras refuses it on PyTorch alone")
def test_several_batches_in_a_step_are_refused_as_keras_refuses_them():
    model = ranger.microbatch(dense_model(steps_per_execution=4), SIZE)
    with pytest.raises(ValueError, match=r"steps_per_execution` must be 1 with the PyTorch"):
        fit(model, batch_size=2, epochs=1)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "large"])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r"size must be an integer >= 1.*got"):
        ranger.microbatch(dense_model(), size)


def test_other_arguments_are_checked():
    with pytest.raises(TypeError, match=r"needs a keras\.Model as its first argument: got int"):
        ranger.microbatch(3, 4)
    with pytest.raises(ValueError, match="memory_limit is for size='auto'"):
        ranger.microbatch(dense_model(), 4, memory_limit="1GB")


def test_a_model_with_its_own_train_step_is_refused():
    class Own(keras.Model):
        def train_step(self, data):
            raise NotImplementedError

    class Makes(keras.Model):
        def make_train_function(self, force=False):
            raise NotImplementedError

    for cls in (Own, Makes):
        with pytest.raises(ValueError, match=r"overrides it. Use RangerOptimizer"):
            ranger.microbatch(cls(), 4)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only XLA on JAX tells what it needs")
@pytest.mark.parametrize("loop", ["host", "device"])
def test_memory_does_not_depend_on_the_batch_and_the_fold_needs_next_to_none(loop):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(1024, activation="relu") for _ in range(6)]
    model = keras.Sequential([keras.Input((1024,)), *hidden])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.5), loss="mse")
    install(model, 32, loop=loop)

    def needed(batch):
        x = np.zeros((batch, 1024), "float32")
        return temporaries(model, x, x, 32)

    small = needed(512)
    assert needed(65536) <= 1.02 * small
    assert needed(512 + 31) <= 1.02 * small  # a remainder uses what the others leave
    assert small <= 0.3 * 4 * model.count_params()


@pytest.mark.skipif(keras.config.backend() != "jax", reason="fit takes the weights on JAX alone")
def test_the_weights_outlive_an_error_between_the_batches_of_an_execution():
    x, y = data(11)

    def batches():
        yield from [(x, y)] * 3
        raise RuntimeError("no fourth batch")

    once, model = (dense_model(steps_per_execution=steps) for steps in (1, 2))
    ranger.microbatch(once, SIZE).fit(x, y, batch_size=11, epochs=3, shuffle=False, verbose=0)
    with pytest.raises(RuntimeError, match="no fourth batch"):
        ranger.microbatch(model, SIZE).fit(batches(), steps_per_epoch=4, shuffle=False, verbose=0)
    assert_same_weights(model, once)
    assert int(model.optimizer.iterations.value) == 3
