"""PyTorch: functions that the backward pass runs again, so that it need not keep what they made."""

import torch
from torch.utils import checkpoint


def replayed(function, inputs, weights):
    """Return ``function(inputs, weights)``; a backward pass runs it again.

    Args:
        function: Function of two lists of tensors that returns a list of tensors.
        inputs: List of tensors.
        weights: List of floating tensors.
    """
    # To stop early raises an error of PyTorch's through the layers, which Keras would rewrite.
    with checkpoint.set_checkpoint_early_stop(False):
        return checkpoint.checkpoint(function, inputs, weights, use_reentrant=False)


def bytes_kept(function, inputs, weights):
    """Return the bytes that a backward pass keeps of what ``function(inputs, weights)`` makes."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (*inputs, *weights)}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()

    # An output that it saves itself would never be freed: nothing is saved, for nobody asks for it.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda none: none):
        outputs = function([_leaf(tensor) for tensor in inputs], weights)
    del outputs
    return sum(kept.values())


def _leaf(tensor):
    return tensor.detach().requires_grad_(tensor.is_floating_point())
