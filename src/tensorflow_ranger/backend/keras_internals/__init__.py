"""What Keras does not export and this library needs: one small function for each private name.

Read in Keras 3.12 to 3.15, which pyproject.toml asks for; the contract tests in
``tests/unit/backend/keras_internals/`` fail by a function's name where Keras has changed.
Nothing else in this package imports a private module of Keras, or reads, assigns or overrides a
private attribute of its objects.
"""

from tensorflow_ranger.backend.keras_internals.calls import call_state as call_state
from tensorflow_ranger.backend.keras_internals.calls import calling_by as calling_by
from tensorflow_ranger.backend.keras_internals.calls import graph_of as graph_of
from tensorflow_ranger.backend.keras_internals.calls import hand_on_losses as hand_on_losses
from tensorflow_ranger.backend.keras_internals.calls import in_call_state as in_call_state
from tensorflow_ranger.backend.keras_internals.calls import (
    made_under_remat_scope as made_under_remat_scope,
)
from tensorflow_ranger.backend.keras_internals.calls import nodes_of as nodes_of
from tensorflow_ranger.backend.keras_internals.draws import drawing_by as drawing_by
from tensorflow_ranger.backend.keras_internals.draws import drawing_device as drawing_device
from tensorflow_ranger.backend.keras_internals.draws import drawn_seed as drawn_seed
from tensorflow_ranger.backend.keras_internals.jax_trainer import (
    hand_on_uneven_batches as hand_on_uneven_batches,
)
from tensorflow_ranger.backend.keras_internals.jax_trainer import return_state as return_state
from tensorflow_ranger.backend.keras_internals.jax_trainer import (
    state_in_variables as state_in_variables,
)
from tensorflow_ranger.backend.keras_internals.lookups import looking_up_by as looking_up_by
from tensorflow_ranger.backend.keras_internals.losses import (
    added_loss_value as added_loss_value,
)
from tensorflow_ranger.backend.keras_internals.losses import compiled_loss as compiled_loss
from tensorflow_ranger.backend.keras_internals.losses import (
    computed_loss as computed_loss,
)
from tensorflow_ranger.backend.keras_internals.losses import forget_losses as forget_losses
from tensorflow_ranger.backend.keras_internals.losses import loss_records as loss_records
from tensorflow_ranger.backend.keras_internals.losses import own_losses as own_losses
from tensorflow_ranger.backend.keras_internals.losses import track_loss as track_loss
from tensorflow_ranger.backend.keras_internals.losses import with_losses as with_losses
from tensorflow_ranger.backend.keras_internals.models import add_metric as add_metric
from tensorflow_ranger.backend.keras_internals.models import as_fit_converts as as_fit_converts
from tensorflow_ranger.backend.keras_internals.models import before_build as before_build
from tensorflow_ranger.backend.keras_internals.models import build as build
from tensorflow_ranger.backend.keras_internals.models import compiled_metrics as compiled_metrics
from tensorflow_ranger.backend.keras_internals.models import in_place_of_build as in_place_of_build
from tensorflow_ranger.backend.keras_internals.models import is_saving as is_saving
from tensorflow_ranger.backend.keras_internals.models import layers_of as layers_of
from tensorflow_ranger.backend.keras_internals.models import metric_function as metric_function
from tensorflow_ranger.backend.keras_internals.models import seeds_of as seeds_of
from tensorflow_ranger.backend.keras_internals.models import strategy_of as strategy_of
from tensorflow_ranger.backend.keras_internals.models import takes_training as takes_training
from tensorflow_ranger.backend.keras_internals.models import wrapped_error as wrapped_error
from tensorflow_ranger.backend.keras_internals.optimizers import (
    JointUpdate as JointUpdate,
)
from tensorflow_ranger.backend.keras_internals.optimizers import (
    ShowsInnerAverages as ShowsInnerAverages,
)
from tensorflow_ranger.backend.keras_internals.optimizers import accumulated as accumulated
from tensorflow_ranger.backend.keras_internals.optimizers import accumulator_of as accumulator_of
from tensorflow_ranger.backend.keras_internals.optimizers import clipped as clipped
from tensorflow_ranger.backend.keras_internals.optimizers import index_of as index_of
from tensorflow_ranger.backend.keras_internals.optimizers import (
    is_accumulating as is_accumulating,
)
from tensorflow_ranger.backend.keras_internals.optimizers import (
    learning_rate_of as learning_rate_of,
)
from tensorflow_ranger.backend.keras_internals.optimizers import own_variables as own_variables
from tensorflow_ranger.backend.keras_internals.optimizers import (
    require_known as require_known,
)
from tensorflow_ranger.backend.keras_internals.optimizers import skip_reduction as skip_reduction
from tensorflow_ranger.backend.keras_internals.optimizers import (
    skips_weight_decay as skips_weight_decay,
)
from tensorflow_ranger.backend.keras_internals.optimizers import take_variables as take_variables
from tensorflow_ranger.backend.keras_internals.optimizers import (
    trained_variables as trained_variables,
)
from tensorflow_ranger.backend.keras_internals.optimizers import (
    update_step_replaced as update_step_replaced,
)
from tensorflow_ranger.backend.keras_internals.variables import get_mask as get_mask
from tensorflow_ranger.backend.keras_internals.variables import layout_map as layout_map
from tensorflow_ranger.backend.keras_internals.variables import layout_of as layout_of
from tensorflow_ranger.backend.keras_internals.variables import rows_of_state as rows_of_state
from tensorflow_ranger.backend.keras_internals.variables import set_mask as set_mask
