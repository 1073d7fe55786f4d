"""What this library hangs on a model, past Keras' tracker, which would save it with the model."""


def attach(model, name, value):
    """Give `model` an attachment `name`, or take it away if `value` is None.

    Copies and saved models have no attachments; `model_copies` installs them anew.

    Args:
        model: A Keras model.
        name: String.
        value: Anything.
    """
    if value is None:
        vars(model).pop(_key(name), None)
    else:
        vars(model)[_key(name)] = value


def attached(model, name):
    """Return the attachment `name` of `model`, or None."""
    return vars(model).get(_key(name))


def tasks_of(model):
    """Return the `Tasks` of `model`, or None."""
    return attached(model, "tasks")


def set_tasks(model, tasks):
    """Give `model` its `Tasks`, or None."""
    attach(model, "tasks", tasks)


def _key(name):
    return f"tensorflow_ranger.{name}"
