"""RAdam, Ranger and Ranger21, slow and obvious, in float64: written from the papers' algorithms."""

import math

import numpy as np


class RAdamTwin:
    """Algorithm 2 of Liu et al. 2020, with centralization before and Lookahead after it.

    Args:
        weights: List of arrays.
        fan_in: For each weight the axes to centralize over.
        learning_rate: Float.
        beta_1: Float.
        beta_2: Float.
        epsilon: Float.
        weight_decay: Float, decoupled.
        lookahead: Tuple (k, alpha), or None.
    """

    def __init__(
        self,
        weights,
        fan_in,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        weight_decay=0.0,
        lookahead=None,
    ):
        self.weights = [np.array(weight, "float64") for weight in weights]
        self.slow = [weight.copy() for weight in self.weights]
        self.first = [np.zeros_like(weight) for weight in self.weights]
        self.second = [np.zeros_like(weight) for weight in self.weights]
        self.fan_in, self.rate, self.decay = fan_in, learning_rate, weight_decay
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.lookahead = lookahead
        self.t = 0

    def apply(self, gradients):
        """Make one update."""
        self.t += 1
        for i, gradient in enumerate(gradients):
            if self.fan_in[i]:
                gradient = gradient - gradient.mean(axis=self.fan_in[i], keepdims=True)
            self.weights[i] -= self.rate * self.decay * self.weights[i]
            self.first[i] = self.beta_1 * self.first[i] + (1 - self.beta_1) * gradient
            self.second[i] = self.beta_2 * self.second[i] + (1 - self.beta_2) * gradient**2
            direction = self.first[i] / (1 - self.beta_1**self.t)
            self.weights[i] -= self.rate * self.rectified(direction, self.second[i])
        look_ahead(self)

    def rectified(self, direction, second):
        longest = 2 / (1 - self.beta_2) - 1
        power = self.beta_2**self.t
        length = longest - 2 * self.t * power / (1 - power)
        if length < 5:
            return direction
        r = math.sqrt(
            (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        )
        return r * direction * math.sqrt(1 - power) / (np.sqrt(second) + self.epsilon)


def look_ahead(twin):
    """Make the step of Algorithm 1 of Zhang et al. 2019, if it is due."""
    if twin.lookahead is None or twin.t % twin.lookahead[0]:
        return
    for i, fast in enumerate(twin.weights):
        twin.slow[i] = (1 - twin.lookahead[1]) * twin.slow[i] + twin.lookahead[1] * fast
        twin.weights[i] = twin.slow[i].copy()


class Ranger21Twin:
    """Ranger21's steps one after the other.

    Args:
        weights: List of arrays.
        fan_in: For each weight the axes of the fan-in; () for none.
        settings: Every argument of the optimizer that matters, by its name.
    """

    def __init__(self, weights, fan_in, decay_dtype="float64", **settings):
        self.weights = [np.array(weight, "float64") for weight in weights]
        self.slow = [weight.copy() for weight in self.weights]
        self.averages = [[np.zeros_like(w) for w in self.weights] for _ in range(2)]
        self.second = [np.zeros_like(weight) for weight in self.weights]
        self.fan_in, self.decay_dtype, self.s = fan_in, decay_dtype, settings
        self.lookahead = settings["lookahead"]
        self.t = 0

    def apply(self, gradients):
        """Make one update."""
        self.t += 1
        s, t, rate = self.s, self.t, self.s["learning_rate"] * self.share()
        gradients = [self.prepared(i, gradient) for i, gradient in enumerate(gradients)]
        for i, gradient in enumerate(gradients):
            self.second[i] = s["beta_2"] * self.second[i] + (1 - s["beta_2"]) * gradient**2
        correction = 1 - s["beta_2"] ** t
        squares = np.concatenate([second.ravel() for second in self.second]) / correction
        root = math.sqrt(squares.mean())
        for i, gradient in enumerate(gradients):
            if root:
                shrink = np.asarray(1 - s["weight_decay"] * rate / root, self.decay_dtype)
                self.weights[i] *= shrink
            norm = unit_norm(self.weights[i], self.fan_in[i])
            with np.errstate(divide="ignore", invalid="ignore"):
                pull = 2 * s["norm_loss"] * (1 - 1 / (norm + s["epsilon"]))
            if s["norm_loss"]:
                self.weights[i] = self.weights[i] * (1 - rate * pull)
            denominator = np.sqrt(self.second[i]) / math.sqrt(correction) + s["epsilon"]
            if s["softplus"] is not None:
                denominator = np.log1p(np.exp(s["softplus"] * denominator)) / s["softplus"]
            step = rate / (1 - s["beta_1"] ** t) * self.direction(i, gradient) / denominator
            self.weights[i] = self.weights[i] - step
        look_ahead(self)

    def prepared(self, i, gradient):
        s = self.s
        if s["adaptive_clipping"] is not None:
            clipping, epsilon = s["adaptive_clipping"]
            most = clipping * np.maximum(unit_norm(self.weights[i], self.fan_in[i]), epsilon)
            norm = unit_norm(gradient, self.fan_in[i])
            gradient = np.where(norm > most, gradient * most / np.maximum(norm, 1e-30), gradient)
        if s["centralize"] and self.fan_in[i]:
            gradient = gradient - gradient.mean(axis=self.fan_in[i], keepdims=True)
        if s["normalize"] and gradient.size > 2:
            gradient = gradient / (gradient.std(ddof=1) + 1e-8)
        return gradient

    def direction(self, i, gradient):
        s, factor = self.s, self.s["positive_negative"]
        if factor is None:
            average = s["beta_1"] * self.averages[0][i] + (1 - s["beta_1"]) * gradient
            self.averages[0][i] = average
            return average
        moving, other = (0, 1) if self.t % 2 else (1, 0)
        square = s["beta_1"] ** 2
        self.averages[moving][i] = square * self.averages[moving][i] + (1 - square) * gradient
        noise = factor if s["paper_noise_norm"] else s["beta_2"]
        both = (1 + factor) * self.averages[moving][i] - factor * self.averages[other][i]
        return both / math.sqrt((1 + noise) ** 2 + noise**2)

    def share(self):
        s, t, share = self.s, self.t, 1.0
        if s["warm_up_updates"]:
            share = min(1.0, t / s["warm_up_updates"])
        if s["total_updates"]:
            start = int(s["warm_down_start"] * s["total_updates"])
            if t >= start:
                done = min(1.0, (t - start + 1) / (s["total_updates"] - start + 1))
                end = s["least_learning_rate"] / s["learning_rate"]
                share = 1 - (1 - end) * done
        return share


def unit_norm(tensor, fan_in):
    """Return the norm of every unit; of the rows of a table, and of all of a vector."""
    axes = fan_in or ((tensor.ndim - 1,) if tensor.ndim > 1 else None)
    return np.sqrt((tensor**2).sum(axis=axes, keepdims=True))
