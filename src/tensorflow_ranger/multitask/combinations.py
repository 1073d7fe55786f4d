"""The ways to make one gradient of many, by name."""

from tensorflow_ranger.multitask import aligned_mtl, cagrad, mgda, pcgrad, plain_sum, upgrad

# Each is a function from the gradients' Gram matrix (T, T) to the weights (T,) of their sum.
COMBINATIONS = {
    "sum": plain_sum.weights,
    "pcgrad": pcgrad.weights,
    "mgda": mgda.weights,
    "cagrad": cagrad.weights,
    "upgrad": upgrad.weights,
    "aligned": aligned_mtl.weights,
}
