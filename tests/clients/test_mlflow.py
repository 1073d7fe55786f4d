"""What MLflow records by itself of a training in micro-batches."""

import keras
import mlflow
import pytest

from tensorflow_ranger import microbatch
from tests.clients.whole_and_parts import TOLERANCE, assert_same_path, built, fit
from tests.models import data, network

# MLflow's tables on a newer SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")

X, Y = data(24)


@pytest.fixture
def autolog(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    mlflow.keras.autolog(log_models=False)
    yield
    mlflow.keras.autolog(disable=True)


def recorded(model):
    """Train `model` and return what MLflow wrote down: parameters, and all values of metrics."""
    with mlflow.start_run() as run:
        fit(model, {"x": X, "y": Y}, batch_size=12)
    client = mlflow.MlflowClient()
    data = client.get_run(run.info.run_id).data
    history = {
        name: [point.value for point in client.get_metric_history(run.info.run_id, name)]
        for name in data.metrics
    }
    return data.params, history


def test_autolog(float64, autolog):
    whole, parts = (
        built(lambda: network(keras.optimizers.Adam(0.01, name="adam"))) for _ in range(2)
    )
    start = whole.get_weights()
    expected_parameters, expected = recorded(whole)
    parameters, metrics = recorded(microbatch(parts, 5))
    assert parameters == expected_parameters
    assert len(expected["loss"]) == 3
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(values, rel=TOLERANCE), name
    assert_same_path(parts.get_weights(), whole.get_weights(), start)
