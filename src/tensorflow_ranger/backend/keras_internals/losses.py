"""How Keras keeps, matches and adds up the losses of a model. Read in Keras 3.12 to 3.15."""


def compiled_loss(model):
    """Return the one loss that holds all that `compile` was given, or None.

    ``Trainer.compile`` makes the ``_compile_loss``, a ``CompileLoss``; it is built with the first
    batch.
    """
    return model._compile_loss


def loss_records(compile_loss):
    """Return the records ``(path, loss, loss_weights, name)`` of a model's compiled losses.

    ``CompileLoss.build`` lists them in ``_flat_losses``, in the order in which it adds them up.
    """
    return compile_loss._flat_losses


def with_losses(compile_loss, losses):
    """Return a copy of a built `compile_loss` that calls `losses` in place of its own.

    ``CompileLoss.call`` matches targets, outputs and weights with its ``_flat_losses``, calls each
    ``loss(y_true, y_pred, sample_weight)`` and returns their weighted sum. With several it updates
    its ``_metrics``, one per loss, where these are not None: the copy has none.

    Args:
        compile_loss: What `compiled_loss` returns.
        losses: List of functions, one for each of `loss_records`.
    """
    copied = object.__new__(type(compile_loss))
    vars(copied).update(vars(compile_loss))
    records = zip(compile_loss._flat_losses, losses, strict=True)
    vars(copied).update(
        _flat_losses=[record._replace(loss=loss) for record, loss in records],
        _metrics=[None] * len(losses),
    )
    return copied


def own_losses(layer):
    """Return the losses that `layer` itself has added in its last call, those within it apart.

    ``Layer._get_own_losses`` knows them in a `keras.StatelessScope`, too; ``Layer.losses`` has
    those of inner layers and regularizers beside them, in no order that tells whose they are.
    """
    return layer._get_own_losses()


def forget_losses(model):
    """Forget the losses that the layers of `model` have added since it was called last.

    ``Layer.add_loss`` keeps the ``id`` of each loss of a `keras.StatelessScope` until the model is
    called again, which begins with ``Layer._clear_losses``. What is added between two calls may
    have the ``id`` of a loss that is gone, and would count for the layer of that loss as well.
    """
    model._clear_losses()


def added_loss_value(model, loss):
    """Return what a loss that a layer adds counts in the model's loss.

    ``Trainer._aggregate_additional_loss`` sums it, casts it, and on TensorFlow divides it by the
    number of replicas.
    """
    return model._aggregate_additional_loss(loss)


def computed_loss(model, x, y, y_pred, sample_weight):
    """Return the loss that a training step of Keras computes.

    ``Trainer._compute_loss`` calls ``compute_loss``, with ``training`` where an override takes it.
    """
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def track_loss(model, loss, samples):
    """Update the mean that `fit` reports as ``loss``: the ``_loss_tracker`` of Keras' steps.

    Args:
        model: A compiled Keras model.
        loss: Scalar; the mean of a batch.
        samples: Scalar; the samples it is the mean of.
    """
    model._loss_tracker.update_state(loss, sample_weight=samples)
