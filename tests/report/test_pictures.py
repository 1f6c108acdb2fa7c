"""What is in the pictures, and that all of it is within them."""

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from report import runs

from keras_internimage.report import curves, gallery, lettering, matrix, metrics, style

pytestmark = pytest.mark.any_backend

AWKWARD = [
    "$\\frac{$ is no formula",
    "<script>alert(1)</script> & so on",
    "日本語の猫",
    "قطة",
    "two\nlines\tand\x00zero",
    "bad byte \udcff",
    "a very long name " * 8,
    "e\u0301te\u0301 ẞ Ω",
]


def names_of(classes):
    return [f"{AWKWARD[i % len(AWKWARD)]}{i}" for i in range(classes)]


def drawn(figure):
    """The shown texts of a figure and their boxes, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that no font has, for one
        figure.draw(renderer)
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
    texts = [
        x
        for x in figure.findobj(Text)
        if x.get_visible() and x.get_text().strip() and x not in hidden
    ]
    return [(x.get_text(), x.get_window_extent(renderer)) for x in texts]


def assert_within(figure):
    boxes = drawn(figure)
    assert boxes
    width, height = figure.bbox.size
    for shown, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, shown
        assert box.x1 <= width and box.y1 <= height, shown
    return boxes


def assert_apart(labels, side):
    """No label of an axis lies on the next; the boxes hold some room above and below letters."""
    spans = sorted((getattr(x, f"{side}0"), getattr(x, f"{side}1")) for _, x in labels)
    assert len(spans) > 1
    for (low, high), (following, _) in zip(spans, spans[1:], strict=False):
        assert following - high > -0.2 * (high - low)


def draw_matrix(classes, number=2000, **options):
    names = names_of(classes)
    labels = np.random.default_rng(0).integers(0, classes, number)
    predicted = metrics.predictions(runs.scores_of(labels, classes, 0.7))
    counts = metrics.confusion(labels, predicted, classes)
    letters = lettering.Lettering(names)
    labels_ = lettering.class_labels(names, letters)
    with style.drawing(letters.families):
        return matrix.draw(counts, labels_, style.LIGHT, letters, **options), counts


@pytest.mark.parametrize("classes", [1, 2, 8, 40, 200])
def test_matrix(classes):
    figure, counts = draw_matrix(classes)
    boxes = assert_within(figure)
    axes = figure.axes[0]
    for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        labels = [tick.label1 for tick in axis.get_major_ticks()]
        if classes > 1:
            found = [(x.get_text(), x.get_window_extent()) for x in labels]
            assert_apart(found, side)
        assert len(labels) == classes if classes <= 40 else 20 <= len(labels) <= 70
    numbers = [x.get_text() for x in axes.texts if x.get_text().isdigit()]
    if classes <= 40:
        assert numbers == [str(x) for x in counts.ravel() if x]
        for label in axes.texts:
            if label.get_text().isdigit():
                cell = axes.bbox.width / classes
                assert label.get_window_extent().width <= cell
    else:
        assert not numbers
    if classes > matrix.MANY:
        pairs = metrics.confused_pairs(counts, matrix.PAIRS)
        shares = [f"{n} ({n / counts[true].sum():.0%})" for true, _, n in pairs]
        written = [shown for shown, _ in boxes]
        assert all(share in written for share in shares)


def test_matrix_leaves_out_numbers_that_do_not_fit():
    plan = matrix.Plan.of(np.full((30, 30), 10**6))
    assert plan.number_size == 0
    assert matrix.Plan.of(np.full((2, 2), 10**6)).number_size > matrix.SMALLEST


def test_matrix_shows_shares_of_the_true_class():
    letters = lettering.Lettering("ab")
    with style.drawing():
        counts = np.array([[3, 1], [0, 0]])
        figure = matrix.draw(counts, ["a", "b"], style.LIGHT, letters)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.75, 0.25], [0, 0]])


@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
def test_curves(epochs):
    history = runs.history(epochs)
    with style.drawing():
        figure = curves.draw(history, style.LIGHT)
    assert_within(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Loss", "Accuracy", "Learning rate"]
    lines = {(i, x.get_label()): x for i, axes in enumerate(figure.axes) for x in axes.lines}
    np.testing.assert_allclose(lines[0, "training"].get_ydata(), history["loss"])
    np.testing.assert_allclose(lines[1, "validation"].get_ydata(), history["val_accuracy"])
    assert lines[1, "best"].get_xdata() == [epochs]
    assert (0, "best") not in lines


def test_curves_of_a_history_with_gaps():
    nan = np.nan
    history = {"loss": [1.0, nan, 0.5, nan], "val_loss": [nan] * 4, "accuracy": []}
    with style.drawing():
        figure = curves.draw(history, style.DARK)
        nothing = curves.draw({}, style.LIGHT)
        never = curves.draw({"loss": [nan, np.inf]}, style.LIGHT)
    assert_within(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "epoch (not finite: training 2 of 4, validation 4 of 4)"
    # A value between two that are not finite is on no line.
    assert axes.lines[0].get_marker() == "o"
    assert [shown for shown, _ in assert_within(nothing)] == ["No history was recorded."]
    assert "not one finite value" in [shown for shown, _ in assert_within(never)]


def draw_gallery(results, most=gallery.SHOWN):
    found = gallery.collect(results.checked(), most)
    words = [*results.class_names, *(x.path for x in found.mistakes), found.note()]
    letters = lettering.Lettering(words)
    names = lettering.class_labels(results.class_names, letters)
    with style.drawing(letters.families):
        return found, gallery.draw(found, names, style.LIGHT, letters)


@pytest.mark.parametrize("classes", [2, 200])
def test_gallery_shows_the_worst_in_order(tmp_path, classes):
    results = runs.results(tmp_path, names_of(classes), number=90, accuracy=0.4)
    found, figure = draw_gallery(results, most=7)
    assert_within(figure)
    predicted = results.scores.argmax(-1)
    wrong = np.flatnonzero(predicted != results.labels)
    worst = sorted(wrong, key=lambda i: -results.scores[i].max())[:7]
    assert [x.index for x in found.mistakes] == worst
    assert len(figure.axes) == 7
    for axes, index in zip(figure.axes, worst, strict=True):
        shown = axes.images[0].get_array()
        assert shown.shape[1] == gallery.SIDE
        np.testing.assert_array_equal(shown[0, 0], runs.colour(index))
    assert found.heading() == f"The 7 worst of {len(wrong)} mistakes"


def test_captions_stay_in_their_column(tmp_path):
    results = runs.results(tmp_path, names_of(8), number=90, accuracy=0.2)
    _, figure = draw_gallery(results)
    width = figure.axes[0].bbox.width
    boxes = [box for shown, box in drawn(figure) if not shown.startswith("The ")]
    assert len(boxes) == 4 * gallery.SHOWN
    assert max(box.width for box in boxes) <= width + 1


def test_gallery_leaves_out_what_cannot_be_read(tmp_path):
    results = runs.results(tmp_path, ["a", "b"], number=40, accuracy=0.2)
    worst = metrics.worst_mistakes(results.labels, results.scores)
    (tmp_path / "broken $x$.png").write_text("no image")
    results.files[worst[0]] = tmp_path / "gone" / "nowhere.png"
    results.files[worst[2]] = tmp_path / "broken $x$.png"
    found, figure = draw_gallery(results, most=5)
    assert [x.index for x in found.mistakes] == [worst[i] for i in (1, 3, 4, 5, 6)]
    assert found.heading() == f"5 of {len(worst)} mistakes"
    assert "gone/nowhere.png" in found.note() and "broken $x$.png" in found.note()
    assert found.note() in [shown for shown, _ in assert_within(figure)]


def test_gallery_of_no_mistakes(tmp_path):
    results = runs.results(tmp_path, ["a", "b"], number=9, accuracy=1.0)
    found, figure = draw_gallery(results)
    written = [shown for shown, _ in assert_within(figure)]
    assert found.mistakes == [] and written == ["No mistakes among 9 validation images."]


def test_gallery_shows_images_as_the_model_sees_them(tmp_path):
    """`preprocessing.load_image` turns a photograph upright; another reader may not."""
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    results = runs.results(tmp_path, ["a", "b"], number=1, accuracy=0.0)
    results.files = [path]
    (seen,) = gallery.collect(results.checked()).mistakes
    assert seen.image.shape[:2] == (gallery.SIDE, gallery.SIDE // 2)
    results.read = lambda path: np.asarray(Image.open(path))
    (seen,) = gallery.collect(results.checked()).mistakes
    assert seen.image.shape[:2] == (gallery.SIDE // 2, gallery.SIDE)
