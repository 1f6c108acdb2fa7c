"""What the page says in words, of users' values above all, and what it draws itself."""

import dataclasses
import datetime
import importlib.resources
import io

import keras
import numpy as np
import pytest
from PIL import Image
from report import runs
from report.test_report import Page, minimal

from keras_internimage.report import (
    Provenance,
    curves,
    describe,
    gallery,
    matrix,
    metrics,
    page,
    provenance,
    write,
)

pytestmark = pytest.mark.any_backend

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "</style></title></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "--></bdi>&lt;b&gt;&amp;",
    "a\x00\x1b\u2028b\udcff",
    "\u202egnp.exe",
]
WHEN = datetime.datetime(2026, 11, 26, 10, 41, tzinfo=datetime.UTC)


def rendered(results, panels=()):
    """The page of `results`, with a dot for each picture that matplotlib would draw."""
    results = results.checked()
    names, predicted = results.class_names, metrics.predictions(results.scores)
    counts = metrics.confusion(results.labels, predicted, len(names))
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "PNG")
    few = len(names) <= matrix.MANY
    pictures = {
        "curves": [describe.curve(results.history, title) for title in panels],
        "matrix": [describe.confusion(counts, names)] if few else [],
    }
    for key, texts in pictures.items():
        pictures[key] = [(text, dot.getvalue(), dot.getvalue()) for text in texts]
    return Page(page.render(results, names, gallery.collect(results, 5), pictures))


def values_of(found):
    """All texts and attributes of a page."""
    return [*found.words, *(value for _, own in found.elements for value in own.values())]


@pytest.mark.parametrize("classes", [len(HOSTILE), matrix.MANY + 1])
def test_no_value_of_a_user_is_markup(tmp_path, classes):
    """With a picture of the matrix, and with the one that the page draws."""
    names = (HOSTILE * 5)[:classes]
    plain = runs.results(tmp_path / "images", ["a"] * classes, accuracy=0.3)
    folder = tmp_path / "<b>onerror=alert(1)"
    evil = dataclasses.replace(
        plain,
        class_names=names,
        title=HOSTILE[3],
        settings=dict(zip(HOSTILE, HOSTILE[::-1], strict=True)),
        skipped=[(x, x) for x in HOSTILE],
        files=runs.images(folder, 60),
        train_counts=range(classes),
        provenance=Provenance(WHEN, 1.0, 1, HOSTILE[0], HOSTILE[1], {HOSTILE[2]: HOSTILE[3]}),
    )
    same = {"settings": dict(enumerate(range(8))), "skipped": [("a", "a")] * 8}
    same |= {"train_counts": evil.train_counts}
    same["provenance"] = Provenance(WHEN, 1.0, 1, "a", "a", {"a": "a"})
    found, expected = rendered(evil), rendered(dataclasses.replace(plain, **same))

    def shape(found):
        return [(tag, sorted(attributes)) for tag, attributes in found.elements]

    # The same elements with the same attributes: whatever was written is text.
    assert shape(found) == shape(expected)
    assert "{{ 7 * 7 }}{% raw %}" in found.words and not any("49" == x for x in found.words)
    texts = "\n".join(map(str, values_of(found)))
    assert "\x00" not in texts and "\x1b" not in texts and "\udcff" not in texts
    assert any(HOSTILE[1] in x for x in found.words)


def test_alternative_texts_say_what_is_seen(tmp_path):
    results = runs.results(tmp_path, ["cat", "<dog>"], epochs=4, accuracy=0.8)
    results.history = {
        "loss": [2.0, 1.0, 0.5, 0.25],
        "val_loss": [1.5, 0.75, 1.0, 1.25],
        "val_accuracy": [0.41, 0.8, 0.93, 0.9],
        "learning_rate": [1e-4, 1e-3, 5e-4, 1e-5],
    }
    found = rendered(results, curves.panels(results.history))
    texts = [x["alt"] for x in found.all("img")]
    assert all(texts)
    counts = metrics.confusion(results.labels, results.scores.argmax(-1), 2)
    (true, predicted, images), *_ = metrics.confused_pairs(counts, 1)
    names = results.class_names
    assert texts[:4] == [
        "Loss over the epochs: validation loss falls from 1.5 to 0.75 in epoch 2, and is 1.25 in "
        "epoch 4, the last; training loss falls from 2 to 0.25 in epoch 4.",
        "Accuracy over the epochs: validation accuracy rises from 0.41 to 0.93 in epoch 3, and is "
        "0.9 in epoch 4, the last.",
        "Learning rate over the epochs: 0.0001 in epoch 1, at most 0.001 in epoch 2, 1e-05 in "
        "epoch 4, the last.",
        f"Confusion matrix of 2 classes: {np.trace(counts)} of 60 images on its diagonal, "
        f"classified correctly. Most often, {names[true]} is taken for {names[predicted]}: "
        f"{images} images.",
    ]
    worst = metrics.worst_mistakes(results.labels, results.scores)[0]
    assert texts[4].startswith(
        f"{results.files[worst].parent.name}/{results.files[worst].name}, an image of "
        f"{names[results.labels[worst]]}, taken for {names[1 - results.labels[worst]]} with "
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], "is 0.5 in epoch 1"),
        ([0.5, 0.4], "is 0.5 in epoch 1, its best, and is 0.4 in epoch 2, the last"),
        ([np.nan, 0.4, np.nan, 0.6, np.nan], "rises from 0.4 to 0.6 in epoch 4"),
        ([np.nan, np.inf], "has not one finite value"),
    ],
)
def test_alternative_texts_of_odd_histories(values, expected):
    text = describe.curve({"accuracy": values}, "Accuracy")
    assert text == f"Accuracy over the epochs: training accuracy {expected}."


def test_many_classes_are_a_matrix_to_scroll(tmp_path):
    """Each class has its name and each pair of classes with images its cell, none is shrunk."""
    classes = 200
    results = runs.results(tmp_path, [f"class <{i}>" for i in range(classes)], number=900)
    found = rendered(results)
    counts = metrics.confusion(results.labels, results.scores.argmax(-1), classes)
    cells = {(int(x["y"]), int(x["x"])): float(x["fill-opacity"]) for x in found.all("rect")}
    assert set(cells) == set(map(tuple, np.argwhere(counts)))
    shares = metrics.shares(counts)
    for cell, opacity in cells.items():
        assert opacity == pytest.approx(np.sqrt(shares[cell]), abs=0.006)
    (svg,) = found.all("svg")
    assert svg["viewbox"] == "0 0 200 200"
    assert svg["aria-label"].startswith("Confusion matrix of 200 classes: ")
    true, predicted, images = metrics.confused_pairs(counts, 1)[0]
    share = shares[true, predicted]
    title = f"class <{true}>, taken for class <{predicted}>: {images} image{'s' * (images > 1)}"
    assert (
        f"{title} ({share:.0%} of the true class)".replace("%", "\N{NO-BREAK SPACE}%")
        in found.words
    )
    # The names stand before the pairs' cells: rows and columns, and the table of the classes.
    for i in range(classes):
        assert found.words.count(f"class <{i}>") >= 3
    assert not [x for x in found.all("img") if "onfusion" in x["alt"]]


def test_images_by_class(tmp_path):
    names = [f"class {i}" for i in range(40)]
    results = runs.results(tmp_path, names, number=80)
    counts = np.arange(40) * 3 + 4
    found = rendered(dataclasses.replace(results, train_counts=counts))
    rows = [row for row in found.rows if len(row) == 3]
    validation = np.bincount(results.labels, minlength=40)
    assert rows[0] == ["Class", "Training", "Validation"] == rows[page.OPEN_ROWS + 1]
    expected = [[names[i], str(counts[i]), str(validation[i])] for i in range(40)[::-1]]
    assert [row for row in rows if row[0] != "Class"] == expected
    assert len(found.all("details")) == 2, "long tables unfold"
    assert (
        f"{counts.sum():,} training images, 80 validation images; 4 to 121 training images a "
        "class: the largest has 30 times as many as the smallest."
    ) in found.text
    same = rendered(dataclasses.replace(results, train_counts=[7] * 40))
    assert "7 training images each." in same.text


def test_when_and_on_what():
    about = Provenance(WHEN, 5025.4, 29_876_543, "NVIDIA <H100>", "a processor", {"Keras": "3.15"})
    rows = rendered(minimal(provenance=about)).rows
    for row in (
        ["date", "2026-11-26 10:41 UTC"],
        ["duration", "1 h 23 min"],
        ["parameters", "29,876,543"],
        ["device", "NVIDIA <H100>"],
        ["processor", "a processor"],
        ["versions", "Keras 3.15"],
    ):
        assert row in rows
    assert "When and on what" not in rendered(minimal(provenance=Provenance())).text


def test_provenance_of_this_process(tmp_path, monkeypatch):
    found = Provenance.collect(61.2, 5, "a device")
    now = datetime.datetime.now(datetime.UTC)
    assert abs((now - found.date).total_seconds()) < 60
    assert found.rows()["duration"] == "1 min 1 s"
    assert found.versions["Keras"] == keras.__version__
    assert len(found.versions) == 4 and all(found.versions.values())
    assert found.processor and "  " not in found.processor
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some Processor @ 2 GHz\nmodel name\t: Other\n")
    assert provenance._linux_name(file) == "Some Processor @ 2 GHz"
    file.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert provenance._linux_name(file) == provenance._linux_name(tmp_path / "none") == ""
    monkeypatch.setattr(provenance, "_linux_name", str)
    monkeypatch.setattr(provenance, "_macos_name", str)
    assert provenance.processor_name().split(",")[0], "the architecture where nothing is known"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (93_784, "26 h 3 min")],
)
def test_durations(seconds, text):
    assert Provenance(seconds=seconds).rows() == {"duration": text}


@pytest.mark.parametrize("counts", [[1, 2], [1.0, 2.0, 3.0], [1, 2, -1]])
def test_counts_that_do_not_fit_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match=r"`train_counts` must be integers of the shape \(3,\)"):
        write(tmp_path / "out", minimal(train_counts=counts))
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr("keras_internimage.report.gallery.collect", None)  # not even begun
    with pytest.raises(NotADirectoryError, match="`folder` must be a folder. Received: folder="):
        write(tmp_path / "file", minimal())
    assert (tmp_path / "file").read_text() == "precious"


def test_the_styles_are_those_of_the_file():
    """Included as it is: neither escaped nor taken for a template."""
    styles = importlib.resources.files("keras_internimage.report") / "templates" / "report.css"
    content = page.render(
        minimal().checked(),
        ["a", "b", "c"],
        gallery.Gallery([], 0, 1, []),
        {"curves": [], "matrix": []},
    )
    assert styles.read_text("utf-8").strip() in content
