"""The files of a report: the page above all."""

import base64
import dataclasses
import html.parser
import io
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image
from report import runs

from keras_internimage.report import Results, gallery, metrics, page, write

pytestmark = pytest.mark.any_backend

FILES = {"curves.png", "confusion.png", "mistakes.png", "report.html"}
EVIL = "<script>alert('x')</script> & \"quotes\" $x$"
VOID = {"meta", "img", "source"}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order, and keeps what the tests ask for."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.rows, self.words = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []
        self.text = re.sub(r"[ \n]+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def picture(address):
    kind, content = address.split(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    results = runs.results(
        folder / "images",
        [EVIL, "b"],
        title=f"Title {EVIL}",
        settings={EVIL: EVIL},
        skipped=[(f"{EVIL}.jpg", EVIL), ("bad\udcff.jpg", "not UTF-8")],
    )
    worst = metrics.worst_mistakes(results.labels, results.scores)[0]
    results.files[worst] = results.files[worst].rename(folder / "images" / "<b>&.png")
    assert write(folder / "new" / "out", results) == folder / "new" / "out" / "report.html"
    return folder / "new" / "out", results


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    names = [f"class {i} äöü {'long ' * (i % 9)}" for i in range(200)]
    results = runs.results(folder / "images", names, number=1500, epochs=100)
    write(folder, results)
    return folder, results


@pytest.fixture(params=["two", "many"])
def report(request):
    return request.getfixturevalue(request.param)


def test_files(report):
    folder, _ = report
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES
    for name in FILES - {"report.html"}:
        with Image.open(folder / name) as image:
            image.load()
            assert image.format == "PNG"
            assert 400 <= image.width <= 4000 and 200 <= image.height <= 4000
            low, high = image.convert("L").getextrema()
            assert low < 80 and high == 255


def test_the_page_is_one_file(report):
    folder, _ = report
    content = (folder / "report.html").read_text(encoding="utf-8")
    found = Page(content)
    assert not re.search(r"https?://|@import|url\(|//[a-z]", re.sub(r"base64,[^\"]*", "", content))
    assert not found.all("script") and not found.all("link") and not found.all("a")
    addresses = [x["src"] for x in found.all("img")] + [x["srcset"] for x in found.all("source")]
    assert len(addresses) > 8
    for address in addresses:
        assert picture(address).width >= 100
    for _, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "href"]


def test_light_and_dark_pictures_differ(two):
    found = read(two[0])
    pairs = zip(found.all("source"), found.all("img"), strict=False)
    for dark, light in [next(pairs) for _ in range(4)]:
        assert dark["media"] == "(prefers-color-scheme: dark)"
        a, b = picture(light["src"]), picture(dark["srcset"])
        assert a.size == b.size
        assert np.mean(a.convert("L")) > 200 and np.mean(b.convert("L")) < 100
        assert int(light["width"]) == round(a.width * 96 / page.PICTURE_DPI)


def test_what_users_wrote_is_escaped(two):
    found = read(two[0])
    assert found.text.count("<script>alert('x')</script>") >= 6
    assert f"Title {EVIL}" in found.text
    assert [EVIL, EVIL] in found.rows
    assert [f"{EVIL}.jpg", EVIL] in found.rows
    assert ["bad\ufffd.jpg", "not UTF-8"] in found.rows
    assert "images/<b>&.png" in found.text


def test_headline(many):
    folder, results = many
    found = read(folder)
    share = (results.scores.argmax(-1) == results.labels).mean()
    top = metrics.top_k(results.labels, results.scores, 5)
    for expected in (f"{share:.1%}", f"{top:.1%}", "Best epoch 100", "1,500", "in 200 classes"):
        assert expected.replace("%", "\N{NO-BREAK SPACE}%") in found.text
    assert "Top-5" not in read_two_text(results, folder)


def read_two_text(results, folder):
    """The page of the same images, with two classes."""
    labels, scores = results.labels[:5] % 2, np.eye(2)[results.labels[:5] % 2]
    few = dataclasses.replace(
        results, class_names=["a", "b"], labels=labels, scores=scores, files=results.files[:5]
    )
    write(folder / "few", few)
    return read(folder / "few").text


def test_table_of_classes(report):
    folder, results = report
    found = read(folder)
    names = [" ".join(name.split()) for name in results.class_names]
    predicted = results.scores.argmax(-1)
    of = metrics.per_class(results.labels, predicted, len(names))
    rows = {
        " ".join(row[0].split()): row[1:]
        for row in found.rows
        if len(row) == 5 and row[0] != "Class"
    }
    assert set(rows) == set(names)
    for i, name in enumerate(names):
        expected = [of.precision[i], of.recall[i], of.f1[i]]
        shown = ["–" if np.isnan(x) else f"{x:.3f}" for x in expected]
        assert rows[name] == [*shown, str(of.support[i])]
    assert list(rows) == [names[i] for i in of.worst_first()]
    assert len(found.all("details")) == (len(names) > page.OPEN_ROWS * 1.5)


def test_table_of_pairs(many):
    folder, results = many
    names = results.class_names
    counts = metrics.confusion(results.labels, results.scores.argmax(-1), len(names))
    rows = [row for row in read(folder).rows if len(row) == 4][1:]
    expected = metrics.confused_pairs(counts, page.PAIRS)
    assert [row[:3] for row in rows] == [[names[t], names[p], str(n)] for t, p, n in expected]


def test_gallery_of_the_page(many):
    folder, results = many
    found = read(folder)
    worst = metrics.worst_mistakes(results.labels, results.scores)[: gallery.SHOWN]
    shown = [x["src"] for x in found.all("img") if x["src"].startswith("data:image/jpeg")]
    assert len(shown) == len(worst) == gallery.SHOWN
    for address, index in zip(shown, worst, strict=True):
        middle = np.asarray(picture(address).convert("RGB"))[50, 50].astype(int)
        assert np.abs(middle - runs.colour(index % 100)).max() < 12


def minimal(**changes):
    labels = np.array([0])
    empty = Results(["a", "b", "c"], {}, labels, np.array([[0.2, 0.8, 0.0]]), ["gone.png"])
    return dataclasses.replace(empty, **changes)


def test_one_image_no_history_no_settings(tmp_path):
    write(tmp_path, minimal())
    found = read(tmp_path)
    assert "No history was recorded." in found.text
    assert "1 of 1 validation image wrong; none can be shown." in found.text
    assert "2 classes have no validation images" in found.text
    assert ["c", "–", "–", "–", "0"] in found.rows
    assert "Settings" not in found.text and "Files left out" not in found.text


def test_no_images(tmp_path):
    write(tmp_path, minimal(labels=[], scores=np.zeros((0, 3)), files=[]))
    assert "No validation images." in read(tmp_path).text


def test_all_right(tmp_path):
    write(tmp_path, minimal(scores=np.array([[1.0, 0.0, 0.0]])))
    found = read(tmp_path)
    assert "No mistakes among 1 validation image." in found.text
    assert "Most confused pairs" not in found.text


def test_a_training_that_diverged(tmp_path):
    nan = float("nan")
    history = {"loss": [1.0, nan], "val_loss": [nan, nan]}
    write(tmp_path, minimal(history=history, scores=np.full((1, 3), nan)))
    found = read(tmp_path)
    assert "The scores of 1 validation image are not finite." in found.text
    assert "nan" not in found.text.lower().split()
    assert "training loss 1.0000" in found.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": []}, "`class_names` must name at least one class"),
        ({"labels": [[0]]}, r"`labels` must be integers of the shape \(N,\).*\(1, 1\)"),
        ({"labels": [0.5]}, "`labels` must be integers .*float64"),
        ({"labels": [3]}, r"`labels` must be in 0..2. Received: 3..3"),
        ({"scores": np.zeros((1, 2))}, r"\(1, 3\) here. Received: shape=\(1, 2\)"),
        ({"files": []}, "`files` must be as many as `labels`, 1. Received: 0 files"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", minimal(**changes))
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_earlier_report(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).write_text("earlier")

    def failing(*_):
        raise RuntimeError("no page")

    with monkeypatch.context() as patch:
        patch.setattr(page, "render", failing)
        with pytest.raises(RuntimeError, match="no page"):
            write(tmp_path, minimal())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        FILES, "earlier"
    )
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RuntimeError, match="no page"):
        write(tmp_path, minimal())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        FILES, "earlier"
    )


def test_a_users_settings_of_matplotlib_change_nothing(tmp_path):
    import matplotlib

    write(tmp_path / "plain", minimal())
    changed = {"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "axes.grid": True}
    with matplotlib.rc_context(changed):
        write(tmp_path / "changed", minimal())
        assert matplotlib.rcParams["font.size"] == 30
    for name in FILES:
        before, after = (tmp_path / x / name for x in ("plain", "changed"))
        assert before.read_bytes() == after.read_bytes()


def test_leaves_no_figure_to_pyplot(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    write(tmp_path, minimal())
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_says_how_to_get_a_missing_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} must be installed.* pip install 'keras-internimage\[report\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        write(tmp_path / "out", minimal())
    assert not (tmp_path / "out").exists()
