"""What a model's `microbatch_plan` shows: the size in use, and notes about batches."""

import dataclasses
import logging
from typing import Any

_logger = logging.getLogger("tensorflow_ranger")


class ShownPlan:
    """Keeps the attribute `microbatch_plan` of a model up to date.

    Args:
        model: The Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._notes: dict[str, Any] = {}
        self._shown = None
        self._is_first_batch = True

    def show(self, plan):
        """Show the `MicrobatchPlan`, with the notes."""
        # Keras looks at every attribute that a model is given: not for each batch.
        if self._shown is not plan:
            self._shown = plan
            self._model.microbatch_plan = dataclasses.replace(plan, **self._notes)

    def warn_of_no_split(self, size, samples):
        """Warn if the first batch of `samples` is not split by micro-batches of `size`."""
        if self._is_first_batch and size >= samples:
            _logger.warning(
                "The first batch of %d samples was not split: the micro-batch is no smaller. Give "
                "fit a larger batch_size, which is 32 unless it is given.",
                samples,
            )
        self._is_first_batch = False

    def note_loss(self, reason):
        """Tell once why the loss is computed for the whole batch, if `reason` is not None."""
        if "loss" in self._notes or reason is None:
            return
        text = (
            f"The loss is computed on the outputs of the whole batch, since {reason}: that is "
            "exact, and takes one more forward pass."
        )
        _logger.warning("%s loss='shares' takes the micro-batches' losses in its place.", text)
        self._note("loss", text)

    def note_cells(self, cells):
        """Tell once how many time steps of a first batch are computed.

        Args:
            cells: Function that returns those of the padded batch, and those that are computed.
        """
        if "padding" in self._notes:
            return
        padded, computed = cells()
        self._note("time_steps", (computed, padded))
        self._note(
            "padding",
            f"{computed} of the first batch's {padded} padded time steps are computed "
            f"({computed / padded:.0%}).",
        )

    def note_rematerialization(self, rematerialization):
        """Tell once what the backward pass runs again, if it does."""
        text = None if rematerialization is None else rematerialization.summary
        if text != self._notes.get("rematerialization"):
            self._note("rematerialization", text)

    def note_head(self, head, reason):
        """Tell once in which chunks the logits are computed, or for which `reason` they are not."""
        text = None if head is None else head.summary
        if head is None and reason is not None:
            text = f"All logits are computed at once, for {reason}."
        if text != self._notes.get("head"):
            self._note("head", text)

    def _note(self, name, value):
        plan = self._shown
        self._notes[name] = value
        self._shown = None
        if plan is not None:
            self.show(plan)
