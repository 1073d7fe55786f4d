"""Contract: what Keras' models and metrics do not export is as `keras_internals` takes it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tensorflow_ranger.backend import keras_internals

BACKEND = keras.config.backend()


def model_of(*inner, metrics=None):
    model = keras.Sequential([keras.Input((2,)), *inner, layers.Dense(1)])
    model.compile("sgd", "mse", metrics=metrics)
    return model


def test_layers_of_are_all_once_and_the_outer_ones_first():
    class Holds(layers.Layer):
        def __init__(self):
            super().__init__()
            self.listed = [layers.Dense(2)]
            self.shared = self.listed[0]

        def call(self, x):
            return self.shared(x)

    holder = Holds()
    model = model_of(holder, keras.Sequential([layers.Dropout(0.5)]))
    found = keras_internals.layers_of(model)
    assert found[0] is model
    assert sum(layer is holder.shared for layer in found) == 1
    assert found.index(holder) < found.index(holder.shared)
    (dropout,) = (layer for layer in found if isinstance(layer, layers.Dropout))
    assert all(layer not in model.layers for layer in (holder.shared, dropout))


def test_takes_training_tells_the_signature_of_call():
    class Without(keras.Model):
        def call(self, x):
            return x

    class With(keras.Model):
        def call(self, x, training=False):
            return x

    assert not keras_internals.takes_training(Without())
    assert keras_internals.takes_training(With())


def test_seeds_of_are_the_seeds_and_no_weights():
    dropout = layers.Dropout(0.5, seed=1)
    model = model_of(layers.BatchNormalization(), dropout)
    (seed,) = keras_internals.seeds_of(model)
    assert seed is dropout.seed_generator.state


@pytest.mark.parametrize("weighted", [False, True])
def test_build_makes_all_state_and_changes_no_weights(weighted):
    model = keras.Sequential([layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    x, y = np.ones((3, 2), "float32"), np.ones((3, 1), "float32")
    keras_internals.build(model, (x, y, np.ones(3, "float32") if weighted else None))
    assert model.built
    assert model.optimizer.built
    assert keras_internals.compiled_metrics(model).built
    assert keras_internals.compiled_loss(model).built
    before = model.get_weights()
    keras_internals.build(model, (x, y, None))
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert int(model.optimizer.iterations.value) == 0


@pytest.mark.skipif(BACKEND != "jax", reason="iterators are looked at on JAX alone")
def test_before_build_shows_the_iterators_of_fit_and_evaluate_before_a_batch_is_taken():
    taken, seen = [], []

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            taken.append(index)
            return np.ones((3, 2)), np.ones((3, 1))

    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    attribute = keras_internals.before_build(
        model, lambda iterator: seen.append((iterator.data_adapter, len(taken)))
    )
    vars(model).update(attribute)
    model.fit(Batches(), verbose=0)
    assert len(seen) == 1
    assert seen[0][1] == 0
    model.evaluate(Batches(), verbose=0)
    assert len(seen) == 2
    keras_internals.build(model, (np.ones((3, 2)), np.ones((3, 1)), None))
    assert len(seen) == 2


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know no strategy")
def test_in_place_of_build_is_called_by_fit_and_evaluate():
    model, seen = model_of(), []

    def build(iterator=None, data_batch=None):
        seen.append((iterator is None, data_batch is None))

    vars(model).update(keras_internals.in_place_of_build(build))
    x, y = np.ones((3, 2)), np.ones((3, 1))
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.train_on_batch(x, y)
    assert seen == [(False, True), (False, True), (True, False)]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know no strategy")
def test_strategy_of_is_the_scope_that_a_model_was_made_in():
    import tensorflow as tf

    assert keras_internals.strategy_of(model_of()) is None
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = model_of()
    assert keras_internals.strategy_of(model) is strategy


def test_compiled_metrics_update_all_that_compile_was_given():
    model = model_of()
    assert keras_internals.compiled_metrics(model) is None
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"])
    x, y = np.ones((2, 2)), np.ones((2, 1))
    keras_internals.build(model, (x, y, None))
    compiled = keras_internals.compiled_metrics(model)
    assert [metric.name for metric in compiled.metrics] == ["mae", "mse"]
    compiled.update_state(ops.zeros((2, 1)), ops.full((2, 1), 3.0), ops.convert_to_tensor([1.0, 0]))
    assert {k: float(v) for k, v in compiled.result().items()} == {"mae": 3.0, "mse": 9.0}


def test_metric_function_is_what_compile_was_given():
    def worst(y_true, y_pred):
        return ops.max(ops.abs(y_true - y_pred))

    model = model_of(metrics=[worst, "mae", keras.metrics.AUC()])
    batch = np.ones((2, 2), "float32"), np.ones((2, 1), "float32")
    keras_internals.build(model, (*batch, None))
    metrics = keras_internals.compiled_metrics(model).metrics
    functions = [keras_internals.metric_function(metric) for metric in metrics]
    assert functions[0] is worst
    assert functions[1] is keras.losses.mean_absolute_error
    assert functions[2] is metrics[2]


def test_add_metric_lets_steps_carry_it_once_and_saves_it_with_nothing(tmp_path):
    model = model_of()
    metric = keras.metrics.Sum(name="extra")
    keras_internals.add_metric(model, metric)
    keras_internals.add_metric(model, metric)
    assert sum(each is metric for each in model.metrics) == 1
    assert any(v is metric.variables[0] for v in model.metrics_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not any(each.name == "extra" for each in loaded.metrics)


def test_wrapped_error_is_what_a_layer_raised_and_no_older_one():
    class Fails(layers.Layer):
        def call(self, x):
            raise RuntimeError("inner")

    with pytest.raises(RuntimeError, match="inner") as caught:
        Fails()(ops.ones((2, 2)))
    wrapped = keras_internals.wrapped_error(caught.value)
    assert isinstance(wrapped, RuntimeError)
    assert str(wrapped) == "inner"
    own = RuntimeError("own")
    own.__context__ = ValueError("handled before")
    assert keras_internals.wrapped_error(own) is None


def test_is_saving_while_a_model_is_saved(tmp_path):
    seen = []

    class Watched(keras.Sequential):
        def get_compile_config(self):
            seen.append(keras_internals.is_saving())
            return super().get_compile_config()

    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    model.get_compile_config()
    assert seen == [True, False]


def test_as_fit_converts_gives_what_a_step_gets():
    x, y = np.arange(6.0).reshape(3, 2), {"a": [1, 2, 3]}
    weight = np.ones(3)
    given = keras_internals.as_fit_converts(x, {"a": np.array(y["a"])}, weight, 3)
    np.testing.assert_array_equal(given[0], x)
    assert keras.backend.standardize_dtype(given[0].dtype) == keras.config.floatx()
    np.testing.assert_array_equal(given[1]["a"], y["a"])
    np.testing.assert_array_equal(given[2]["a"], weight)
