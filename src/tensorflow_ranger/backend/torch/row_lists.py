"""PyTorch: the gradient of a table of which rows were looked up, kept as a list of rows.

The list is a sparse COO tensor, with a row for each look-up. To add it to an array of the size of
the table costs its rows, where a dense gradient costs the table, for each micro-batch.
"""

import torch


def look_up(function, table, indices):
    """Return what ``function(table, indices)`` does, with a list of rows for a gradient.

    Where there are more look-ups than rows, the table is smaller than the list.
    """
    weight = table.value
    is_parameter = type(weight) is torch.nn.Parameter and weight.requires_grad and weight.ndim == 2
    if not is_parameter or torch.compiler.is_compiling() or indices.numel() > len(weight):
        return function(table, indices)
    indices = torch.as_tensor(indices, device=weight.device).long()
    indices = torch.where(indices < 0, indices + len(weight), indices)
    return torch.nn.functional.embedding(indices, weight, sparse=True)


def is_list(total):
    """Return whether a gradient or a sum is a list of rows."""
    return isinstance(total, torch.Tensor) and total.is_sparse


def parts(total):
    """Return the places of a list's rows in the table, and the rows."""
    return total._indices()[0], total._values()  # noqa: SLF001 (`indices` would sum the rows)


def summed(total):
    """Return a list that has each row of the table at most once."""
    return total.coalesce()


def are_fewer(lists):
    """Return whether all `lists` are lists of rows, with fewer rows in all than the table."""
    return all(map(is_list, lists)) and sum(len(parts(each)[1]) for each in lists) < len(lists[0])


def joined(lists):
    """Return the list of all lists of rows."""
    places, rows = (torch.cat(each) for each in zip(*map(parts, lists), strict=True))
    return torch.sparse_coo_tensor(places[None], rows, lists[0].shape, check_invariants=False)


@torch.no_grad()
def rows_at(variable, places):
    """Return the rows of `variable` at these places."""
    return variable.value[places]


@torch.no_grad()
def add_rows(variable, places, rows):
    """Add to the rows of `variable` at these places, of which one may come twice."""
    variable.value.index_add_(0, places, rows)
