"""The result of a run: one number on the terminal, in the checkpoint and in the report."""

import keras
import pytest

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs import result
from tensorflow_ranger_cli.runs.run_directory import RunDirectory
from tensorflow_ranger_cli.runs.update_history import UpdateHistory
from tensorflow_ranger_cli.tasks import registry
from tests.application import runs
from tests.application.pages import facts, history
from tests.marks import first

pytestmark = first

WHY = (
    "The saved model has one more update than the last epoch's figures, which were taken at "
    "update 1: the end of training made update 2 from the remaining micro-batches."
)


def stored(path):
    directory = RunDirectory(path)
    directory.read()
    return directory.result


def evaluated(path):
    model = keras.saving.load_model(path / "model.keras")
    return model.evaluate(*runs.few_digits()[1], verbose=0, return_dict=True)["accuracy"]


def page_of(path):
    assert main(["report", str(path)]) == 0
    return path / "report.html"


def test_the_saved_model_is_judged_and_the_difference_explained(tmp_path, capsys):
    path = tmp_path / "run"
    assert runs.train(path, "--epochs", "1") == 0
    *_, why, held_out = capsys.readouterr().out.splitlines()
    accuracy = evaluated(path)
    assert stored(path) == {"figures": {"accuracy": pytest.approx(accuracy)}, "updates": 2}
    assert held_out.startswith(f"Held-out accuracy {accuracy:.1%}. ")
    assert why == WHY
    page = page_of(path)
    assert facts(page)["result"] == f"held-out accuracy {accuracy:.1%}"
    assert WHY.replace("'", "&#x27;") in page.read_text(encoding="utf-8")


def test_a_last_epoch_that_ends_with_an_update_is_the_result(tmp_path, capsys):
    path = tmp_path / "run"
    assert runs.train(path, *runs.MICROBATCH, "--epochs", "1") == 0
    accuracy = float(history(path)[-1]["val_accuracy"])
    assert stored(path) == {"figures": {"accuracy": pytest.approx(accuracy)}, "updates": 2}
    assert "one more update" not in capsys.readouterr().out
    page = page_of(path)
    assert facts(page)["result"] == f"held-out accuracy {accuracy:.1%}"
    assert "one more update" not in page.read_text(encoding="utf-8")


def test_training_on_replaces_the_result(stopped):
    assert runs.train(stopped, "--resume", "--epochs", "4") == 0
    accuracy = pytest.approx(evaluated(stopped))
    assert stored(stopped) == {"figures": {"accuracy": accuracy}, "updates": 7}


def test_a_run_that_trains_on_has_no_result_yet(stopped, monkeypatch):
    def interrupt(self, logs=None):
        raise KeyboardInterrupt

    assert stored(stopped) is not None
    monkeypatch.setattr(UpdateHistory, "on_train_begin", interrupt)
    assert runs.train(stopped, "--resume", "--epochs", "4") == 130
    assert stored(stopped) is None
    assert facts(page_of(stopped))["result"] == "none yet"


def test_figures_that_a_task_no_longer_has_are_left_out():
    task = registry.find("reviews-multitask")
    first, second = task.figures
    both = result.record({first: 0.5, second: 0.25}, updates=3)
    found = result.figures(both, task)
    assert found == {first: 0.5, second: 0.25}
    assert result.in_words(found) == f"{first.in_words(0.5)}, {second.in_words(0.25)}"
    del both["figures"][first.name]
    assert result.figures(both, task) == {second: 0.25}
