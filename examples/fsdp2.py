"""Train a Keras model whose weights are spread over processes by PyTorch's FSDP2.

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/fsdp2.py

Every process holds its shard of the weights and of the optimizer's state, and runs its share of
each batch in micro-batches. One update is made of the whole batch of all processes.
"""

import keras
import numpy as np
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

import tensorflow_ranger as ranger
from tensorflow_ranger_cli.tasks import digits

# The optimizers that treat each weight by itself, so that a process can update its shard alone.
ELEMENTWISE = "SGD, Adam, AdamW, Nadam, Adamax, Lion, RMSprop, Adagrad, Adadelta, Ftrl, RAdam"


def main():
    """Train the founding network on 4,000 handwritten digits."""
    if keras.config.backend() != "torch":
        raise SystemExit(f"FSDP2 needs KERAS_BACKEND=torch: got {keras.config.backend()}.")
    if torch.cuda.is_available():
        torch.cuda.set_device(distributed.get_node_local_rank())
    distributed.init_process_group()  # nccl between GPUs, gloo between CPUs
    (x, y), held_out = digits.load()
    model = digits.build_model(seed=0)  # any Keras model, with the same weights in every process
    optimizer = ranger.RAdam(4e-3, beta_2=0.99)
    shards = shard(model, optimizer)
    held = sum(variable.value.numel() for variable in shards)
    print(f"process {distributed.get_rank()} holds {held:,} of {model.count_params():,} weights")

    random = np.random.default_rng(0)  # the same in every process, too
    for i in range(1, 81):
        rows = random.choice(len(x), 250, replace=False)
        loss = update(model, optimizer, x[rows], y[rows], micro_batches=4)
        if i % 16 == 0 and distributed.get_rank() == 0:
            print(f"update {i}: loss {loss:.4f}", flush=True)
    optimizer.finalize_variable_values(shards)
    weights = whole_weights(model)
    if distributed.get_rank() == 0:
        model = digits.build_model(seed=0)  # not sharded: to evaluate and to save
        model.set_weights(weights)
        correct = model.predict(held_out[0], verbose=0).argmax(axis=1) == held_out[1]
        print(f"accuracy on 1,000 other digits: {correct.mean():.3f}")
    distributed.destroy_process_group()


def shard(model, optimizer):
    """Shard each layer's weights; build `optimizer` on this process's shards and return those.

    The model is built, with the same weights in every process. The optimizer is not built yet.
    """
    check(model, optimizer)
    for module in [module for layer in model.layers for module in layer.modules()]:
        module.named_parameters()  # Keras may list them no sooner
    for module in [model, *model.children()]:
        if isinstance(module, keras.Model) and module not in model.layers:
            module.torch_params.clear()  # lists the parameters of all layers once more
    whole = {variable.value for variable in model.non_trainable_variables}
    for i, layer in enumerate(model.layers):
        if layer.trainable_variables:
            model.add_module(f"layer_{i}", layer)  # Keras keeps layers in a list of its own
            fully_shard(layer, shard_placement_fn=longest_even_axis, ignored_params=whole)
            layer.register_forward_pre_hook(follow)
            layer.register_forward_hook(follow)
            follow(layer)
    fully_shard(model, ignored_params=whole)
    shards = [
        keras.Variable(torch.nn.Parameter(v.value.to_local().detach()), name=v.name)
        for v in model.trainable_variables
    ]
    optimizer.build(shards)
    return shards


def check(model, optimizer):
    """Raise a ValueError for what would need whole tensors to update a shard."""
    name = type(optimizer).__name__
    if name not in ELEMENTWISE.split(", "):
        raise ValueError(
            f"The optimizer must treat each weight by itself: got {name}, which may look at whole "
            f"tensors, of which a process holds a shard. Use one of {ELEMENTWISE}."
        )
    for option in ("clipnorm", "global_clipnorm", "adaptive_clipping", "centralize"):
        if getattr(optimizer, option, None):
            raise ValueError(
                f"{option} is for whole tensors, of which a process holds a shard: got "
                f"{option}={getattr(optimizer, option)}. Leave it out, or clip with clipvalue."
            )
    in_layers = {id(v) for layer in model.layers for v in layer.trainable_variables}
    for v in model.trainable_variables:
        if v.constraint or v.regularizer or id(v) not in in_layers:
            raise ValueError(
                "Weights must be in layers, without constraints and regularizers, which would look "
                f"at a shard alone: got {v.path}. Use weight decay, and move weights into layers."
            )


def longest_even_axis(parameter):
    """Return the axis to cut. A convolution's first axis, FSDP2's choice, has 3 rows or so."""
    processes = distributed.get_world_size()
    even = [axis for axis, size in enumerate(parameter.shape) if size % processes == 0]
    return Shard(max(even, key=lambda axis: parameter.shape[axis], default=0))


def follow(layer, *_):
    """Point Keras' variables at what FSDP2's hooks have put into the layer: whole, or shards."""
    for variable in layer.trainable_variables:
        variable._value = layer.torch_params[variable.path]


def update(model, optimizer, x, y, micro_batches, reduce_each=False):
    """Make one update with the gradient of the batch's mean loss; return that loss.

    Every process gets the whole batch and takes its share, which may be a sample larger than
    another's. `reduce_each` sums gradients over the processes after each micro-batch, not only
    after the last: each process then holds the sum of a shard in place of a whole one.
    """
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    total = 0
    for i, rows in enumerate(np.array_split(np.arange(rank, len(x), processes), micro_batches)):
        model.set_requires_gradient_sync(reduce_each or i == micro_batches - 1)
        outputs = model(x[rows], training=True)
        loss = keras.losses.sparse_categorical_crossentropy(y[rows], outputs).sum() / len(x)
        (loss * processes).backward()  # FSDP2 divides by the number of processes
        total += loss.detach().float()
    gradients = [variable.value.grad for variable in model.trainable_variables]
    with torch.no_grad():
        optimizer.apply([None if g is None else g.to_local() for g in gradients])
    model.zero_grad()
    distributed.all_reduce(total)
    return float(total)


def whole_weights(model):
    """Return what `model.get_weights()` would. All processes must call this."""
    with torch.no_grad():
        values = [variable.value for variable in model.weights]
        values = [v.full_tensor() if isinstance(v, DTensor) else v for v in values]
        return [keras.ops.convert_to_numpy(value) for value in values]


if __name__ == "__main__":
    main()
