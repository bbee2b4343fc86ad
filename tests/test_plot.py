import numpy as np
import pytest
from tensors import only_once

from keras_pedcc import plot, verification_report

pytest.importorskip("matplotlib")
pytestmark = only_once
COSINES = np.array([[0.9, 0.2, -0.1], [0.3, 0.5, 0.8], [0.1, 0.6, 0.2], [0.7, 0.1, 0]])
LABELS = np.array([0, 1, 1, 2])  # right, by 0.3 wrong, right, by 0.7 wrong
NAMES = ["ant", "bee", "cat"]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_features_lie_in_the_plane_where_they_vary_most(rng):
    plane = np.linalg.qr(rng.standard_normal((6, 6)))[0][:2]
    places = rng.standard_normal((30, 2)) * [5, 2]
    places -= places.mean(axis=0)
    _, _, axes_of_places = np.linalg.svd(places)
    expected = places @ axes_of_places.T
    labels = np.arange(30) % 3
    figure = plot.features(
        places @ plane, labels, centroids=np.eye(3, 6), class_names=NAMES
    )
    drawn = figure.axes[0].collections
    assert len(drawn) == 3 + 3
    for index in range(3):
        found = np.asarray(drawn[index].get_offsets())
        wanted = expected[labels == index]
        np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)
    legend = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == NAMES


def test_margins_are_right_below_the_diagonal():
    figure = plot.margins(COSINES, LABELS[:, None])
    right, wrong = (each.get_offsets().tolist() for each in figure.axes[0].collections)
    assert right == [[0.9, 0.2], [0.6, 0.2]]
    assert wrong == [[0.5, 0.8], [0.0, 0.7]]
    assert figure.axes[0].get_title() == "Median margin 0.050"


def test_confusion_counts_rows_by_class():
    figure = plot.confusion(LABELS, COSINES.argmax(axis=1), class_names=NAMES)
    expected = [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [str(count or "") for row in expected for count in row]
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, [[1, 0, 0], [0, 0.5, 0.5], [1, 0, 0]])
    assert figure.axes[0].get_title() == "2 of 4 right"
    many = plot.confusion(np.arange(30), np.arange(30))
    assert len(many.axes[0].texts) == 0


def test_largest_mistakes_come_first():
    images = np.arange(4)[:, None, None, None] * np.ones((4, 5, 5, 1))
    images[:, 0, 0] = -1
    figure = plot.mistakes(images, LABELS, COSINES, class_names=NAMES)
    assert titles(figure) == ["cat → ant\nby 0.70", "bee → cat\nby 0.30"]
    assert figure.get_suptitle() == "Largest mistakes, of 2 in 4"
    shown = figure.axes[0].images[0].get_array()
    assert (shown.min(), shown.max(), shown.shape) == (0, 1, (5, 5))
    assert len(titles(plot.mistakes(images, LABELS, COSINES, number=1))) == 1
    none = plot.mistakes(images[:1], LABELS[:1], COSINES[:1])
    assert none.get_suptitle() == "Largest mistakes, of 0 in 1"


def test_roc_tells_the_numbers_of_the_report(rng, tmp_path):
    same = np.sort(rng.integers(0, 2, 60))
    scores = same + rng.standard_normal(60)
    figure = plot.roc(same, scores)
    report = verification_report(same, scores, folds=np.arange(60) % 2)
    told = f"AUC {report['auc']:.4f}, equal error rate {report['eer']:.4f}"
    assert figure.axes[0].get_title() == told
    figure.savefig(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5_000


def test_plots_refuse_arguments():
    with pytest.raises(ValueError, match=r"cosines.shape=\(4, 3\), with a label 3"):
        plot.margins(COSINES, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"class indices, from 0.*dtype=int64"):
        plot.margins(COSINES, [0, 1, 2, -1])
    with pytest.raises(ValueError, match=r"class indices, from 0.*dtype=<U1"):
        plot.confusion([*"ab"], [0, 1])
    with pytest.raises(ValueError, match=r"images.shape=\(3, 5, 5\), for 4 rows"):
        plot.mistakes(np.ones((3, 5, 5)), LABELS, COSINES)
    with pytest.raises(ValueError, match="`number` must be at least 1"):
        plot.mistakes(np.ones((4, 5, 5)), LABELS, COSINES, number=0)
    with pytest.raises(ValueError, match="`features` must be finite"):
        plot.features(np.full((4, 3), np.nan), LABELS)
