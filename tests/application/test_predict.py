"""``tensorflow-ranger predict``: a trained run on the user's own input."""

import keras
import numpy as np
import pytest
from PIL import Image

from tensorflow_ranger_cli.errors import UsageError
from tensorflow_ranger_cli.tasks import registry
from tensorflow_ranger_cli.tasks.data import arguments, images
from tests.application import runs, slices
from tests.marks import first

pytestmark = first


def save(path, digit, side=28, invert=False, mode="L", shift=(0, 0)):
    """Write one of MNIST's digits as an image file, on a larger sheet of paper."""
    picture = Image.fromarray(np.uint8(255 * digit[..., 0])).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    sheet = Image.new("L", (2 * side, 3 * side))
    sheet.paste(picture, shift)
    if invert:
        sheet = Image.eval(sheet, lambda value: 255 - value)
    sheet.convert(mode).save(path)
    return path


@pytest.fixture(scope="module")
def digit():
    (x, _), _ = slices.slice_of("digits")
    return x[4]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("same.png", {}),
        ("large.png", {"side": 140, "shift": (40, 90)}),
        ("dark_on_light.png", {"side": 84, "invert": True, "shift": (5, 130)}),
        ("colour.jpg", {"side": 112, "invert": True, "mode": "RGB"}),
        ("palette.gif", {"side": 56, "mode": "P", "shift": (20, 0)}),
    ],
)
def test_an_image_is_made_as_mnist_has_them(name, changes, digit, tmp_path):
    image = images.read(save(tmp_path / name, digit, **changes))
    assert image.shape == digit.shape
    assert image.dtype == "float32"
    assert image.min() == 0
    # Resized and centred anew: not the same, but as near as no other digit comes.
    assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.9


def test_a_transparent_background_is_paper(digit, tmp_path):
    ink = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    ink.putalpha(Image.fromarray(np.uint8(255 * digit[..., 0])))
    ink.save(tmp_path / "ink.png")
    image = images.read(tmp_path / "ink.png")
    assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.9


def test_an_empty_sheet_is_named(tmp_path):
    Image.new("L", (40, 40), 255).save(tmp_path / "empty.png")
    with pytest.raises(UsageError, match=r"must show a digit.*empty\.png"):
        images.read(tmp_path / "empty.png")


def test_digits_are_predicted(finished, digit, tmp_path, capsys):
    file = save(tmp_path / "digit.png", digit)
    assert runs.run("predict", str(finished), str(file), str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    model = keras.saving.load_model(finished / "model.keras")
    row = model.predict(images.read(file)[None], verbose=0)[0]
    assert lines == [f"{file}: {row.argmax()} ({row.max():.1%})"] * 2


@pytest.mark.parametrize("name", ["reviews", "reviews-multitask", "brown"])
def test_texts_are_predicted(name, tmp_path, capsys):
    directory = tmp_path / "run"
    assert slices.train(name, directory, "--epochs", "1") == 0
    file = tmp_path / "text.txt"
    file.write_text("The film was good .\n")
    capsys.readouterr()
    assert runs.run("predict", str(directory), str(file), "The film was good .") == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert not captured.err
    assert len(lines) == 2
    assert lines[0].startswith(f"{file}: ")
    if name == "brown":
        assert all(line.partition(": ")[2].startswith("The film was good .") for line in lines)
    else:
        assert lines[0].partition(": ")[2] == lines[1].partition(": ")[2]
        assert lines[0].count("%") == len(registry.find(name).figures)


@pytest.mark.parametrize("content", [b"text", b"", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_image_is_named(content, finished, tmp_path, capsys):
    file = tmp_path / "image.png"
    file.write_bytes(content)
    assert runs.run("predict", str(finished), str(file)) == 2
    runs.assert_one_error(capsys, "FILE must be an image of a digit", str(file))


def test_a_file_that_is_missing_is_named(finished, tmp_path, capsys):
    assert runs.run("predict", str(finished), str(tmp_path / "none.png")) == 2
    runs.assert_one_error(capsys, "FILE must be an image", "none.png")


def test_a_photograph_held_upright_is_read_upright(digit, tmp_path):
    turned = Image.fromarray(np.uint8(255 * digit[..., 0])).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees, clockwise, to see it
    turned.save(tmp_path / "photograph.png", exif=exif)
    image = images.read(tmp_path / "photograph.png")
    assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.9


def test_a_long_text_is_no_name_of_a_file():
    text = "A review as long as people write them. " * 200
    assert arguments.text_of(text) == text


@pytest.mark.parametrize("argument", ["none.txt", "a review.txt", "", "  "])
def test_neither_a_text_file_nor_a_text_is_named(argument):
    with pytest.raises(UsageError, match="must be a text file, or a text of several words"):
        arguments.text_of(argument)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UsageError, match="must be text in UTF-8"):
        arguments.text_of(str(tmp_path / "image.png"))


def test_a_directory_without_a_run_is_named(tmp_path, capsys):
    assert runs.run("predict", str(tmp_path), "image.png") == 2
    runs.assert_one_error(capsys, "DIR must be the directory of a run", str(tmp_path))


def test_an_unfinished_run_is_named(stopped, capsys):
    (stopped / "model.keras").unlink()
    assert runs.run("predict", str(stopped), "image.png") == 2
    runs.assert_one_error(capsys, "must hold a finished run", f"--resume --output {stopped}")


def test_a_damaged_model_is_named(stopped, digit, tmp_path, capsys):
    (stopped / "model.keras").write_bytes(b"text")
    file = save(tmp_path / "digit.png", digit)
    assert runs.run("predict", str(stopped), str(file)) == 1
    runs.assert_one_error(capsys, "model.keras cannot be loaded")


def test_a_task_without_use_for_files_is_named(stopped, capsys):
    settings = stopped / "settings.json"
    settings.write_text(settings.read_text().replace('"digits"', '"spoken-digits"'))
    assert runs.run("predict", str(stopped), "image.png") == 2
    runs.assert_one_error(capsys, "must be given a run of digits, brown", "got spoken-digits")
