"""The picture of a run: loss and metrics, with the updates marked."""

import numpy as np

INK = "#3d3d3d"
MICRO_BATCH = "#b9c6d3"
TRAINING = "#1f5fa8"
HELD_OUT = "#d1601f"


def draw(history, updates, samples, batch_size, title, point="micro-batch", metrics=("accuracy",)):
    """Return a figure of the loss and of each metric against micro-batches, or whole batches.

    A pale dot is one of them; the line joins the means of the windows, one point at each
    update, which a tick under the curves marks as well. Circles are the held-out samples.

    Args:
        history: `UpdateHistory` of whole epochs.
        updates: Updates made in all, with that of the window which the end of training closed.
        samples: Training samples in an epoch.
        batch_size: Samples of a micro-batch.
        title: String.
        point: What the history has a row for: "micro-batch" or "batch".
        metrics: Names of the metrics.
    """
    from matplotlib.figure import Figure  # drawn without a window, whatever the machine has

    names = ("loss", *metrics)
    figure = Figure(figsize=(9, 0.5 + 3 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True)
    epochs, micro_batches = history.epochs, history.micro_batches
    made = np.array([row["updates"] for row in micro_batches])
    made[-1] = updates
    closing = np.flatnonzero(np.diff(made, prepend=0))  # the micro-batches that updated
    per_epoch = len(micro_batches) // len(epochs)
    ends = per_epoch * np.arange(1, len(epochs) + 1)
    for panel, name in zip(panels, names, strict=True):
        running = np.array([row[name] for row in micro_batches])
        values = single_values(running, per_epoch, samples, batch_size)
        held_out = [row[f"val_{name}"] for row in epochs]
        _draw_panel(panel, values, closing, ends, held_out, point)
        panel.set_ylabel(name.replace("_", " "))
    panels[0].set_title(title, loc="left", color=INK)
    panels[0].legend(loc="upper right", frameon=False)
    panels[-1].set_xlabel(f"{point}es (vertical lines: epochs)")
    return figure


def single_values(running, per_epoch, samples, batch_size):
    """Return each micro-batch's own mean.

    Keras logs the mean over the epoch so far. With n_k samples seen up to micro-batch k,

        v_k = (n_k m_k - n_{k-1} m_{k-1}) / (n_k - n_{k-1}).

    Args:
        running: Array of the logged means m_k, whole epochs one after the other.
        per_epoch: Micro-batches in an epoch.
        samples: Samples in an epoch.
        batch_size: Samples of a micro-batch; the last one of an epoch may have fewer.
    """
    seen = np.minimum(np.arange(1, per_epoch + 1) * batch_size, samples)
    sums = running.reshape(-1, per_epoch) * seen
    values = np.diff(sums, axis=1, prepend=0) / np.diff(seen, prepend=0)
    return values.ravel()


def window_means(values, closing):
    """Return the mean over each window.

    Args:
        values: Array with a value for each micro-batch.
        closing: Indices of the micro-batches that closed a window.
    """
    starts = np.concatenate([[0], closing[:-1] + 1])
    return np.array(
        [values[start : end + 1].mean() for start, end in zip(starts, closing, strict=True)]
    )


def _draw_panel(panel, values, closing, ends, held_out, point):
    position = np.arange(1, len(values) + 1)
    panel.plot(position, values, ".", color=MICRO_BATCH, markersize=3, label=f"{point} (training)")
    if closing.size:
        means = window_means(values, closing)
        panel.plot(
            position[closing], means, color=TRAINING, linewidth=1.2, label="window (training mean)"
        )
        # A strip below the curves: x counts micro-batches, y is a fraction of the panel.
        panel.plot(
            position[closing],
            np.full(len(closing), 0.03),
            "|",
            transform=panel.get_xaxis_transform(),
            color=TRAINING,
            markersize=8,
            markeredgewidth=0.6,
            label=f"update ({len(closing)})",
        )
    panel.plot(ends, held_out, "o-", color=HELD_OUT, markersize=5, clip_on=False, label="held out")
    for end in ends:
        panel.axvline(end, color=INK, linewidth=0.4, alpha=0.35, zorder=0)
    panel.set_xlim(0, len(values))
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=INK)
    panel.margins(y=0.12)
