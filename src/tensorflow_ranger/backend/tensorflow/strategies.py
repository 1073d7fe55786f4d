"""TensorFlow: the `tf.distribute.Strategy` of variables."""


def strategy_of(variables):
    """Return the strategy that holds `variables` on several replicas, or None."""
    for variable in variables:
        strategy = getattr(variable.value, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            return strategy
    return None


def is_multi_worker(strategy):
    """Return whether the replicas of `strategy` are spread over several processes."""
    # Public names tell it by class alone, and a strategy may be of a user's own class.
    return strategy.extended._in_multi_worker_mode()  # noqa: SLF001
