"""What an optimizer holds of a window where several replicas fill it together."""

from tensorflow_ranger.backend import replicas
from tensorflow_ranger.distribution.reduction import (
    are_merged,
    merge_window,
    on_all_replicas,
    require_alike,
)
from tensorflow_ranger.optimizers.wrapper import OptimizerWrapper


class ReplicatedOptimizer(OptimizerWrapper):
    """The part of `RangerOptimizer` that knows of replicas."""

    reduction = "mean"
    _is_compared = False  # with the weights of other processes

    @property
    def _share(self):
        # Of gradients that are merged, every replica holds an equal share.
        merged = are_merged(self)
        return 1.0 / replicas.copies(self._trained_variables) if merged else 1.0

    def _agreed(self, flag):
        return flag if are_merged(self) else on_all_replicas(flag)

    def _loss_scale(self, weighted):
        # What the gradients are divided by, to be those of a replica's own mean loss.
        scale = self.loss_scale_factor or 1.0
        if weighted or are_merged(self) or self.reduction == "sum":
            return scale
        return scale / replicas.loss_divisor()

    def _merge(self, window, shares):
        if are_merged(self):
            return
        if not self._is_compared:
            require_alike(self._trained_variables)
            self._is_compared = True
        merge_window(window, shares)
