"""Compatibility of two networks, against a slow float64 twin."""

import numpy as np
import pytest

from keras_pedcc import compatibility_report, retrieval_report
from keras_pedcc.evaluation import ranking


def unit(rows):
    rows = np.asarray(rows, "float64")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_criteria(old, new, labels, items, item_labels, alone):
    """Counts the pairs one by one."""
    old, new, items = unit(old), unit(new), unit(items)
    held, number = [0, 0], [0, 0]
    for q in range(len(old)):
        for i in range(len(items)):
            if alone and q == i:
                continue
            gain = new[q] @ items[i] - old[q] @ items[i]
            kind = int(labels[q] != item_labels[i])
            number[kind] += 1
            held[kind] += gain <= 0 if kind else gain >= 0
    return {
        "same_not_farther": held[0] / number[0],
        "others_not_nearer": held[1] / number[1],
    }


@pytest.fixture
def networks(rng):
    """Features by two networks, and labels."""
    labels = rng.integers(0, 6, 50)
    directions = rng.standard_normal((6, 8))
    old = directions[labels] + 1.5 * rng.standard_normal((50, 8))
    new = directions[labels] + 0.8 * rng.standard_normal((50, 8))
    return old, new, labels


@pytest.mark.parametrize("block", [None, 64])
def test_criteria_agree_with_counting(networks, block, monkeypatch):
    if block:
        monkeypatch.setattr(ranking, "BLOCK", block * 400)
    old, new, labels = networks
    report = compatibility_report(old, new, labels)
    expected = slow_criteria(old, new, labels, old, labels, True)
    assert {name: report[name] for name in expected} == pytest.approx(expected)
    assert report["compatible"]


def test_criteria_and_searches_take_a_gallery(networks):
    old, new, labels = networks
    gallery = {
        "old_gallery": old[30:],
        "new_gallery": new[30:],
        "gallery_labels": labels[30:],
    }
    report = compatibility_report(old[:30], new[:30], labels[:30], **gallery, k=3)
    expected = slow_criteria(
        old[:30], new[:30], labels[:30], old[30:], labels[30:], False
    )
    assert {name: report[name] for name in expected} == pytest.approx(expected)
    for name, queries, items in (
        ("old_in_old", old, old),
        ("new_in_old", new, old),
        ("new_in_new", new, new),
    ):
        assert report[name] == retrieval_report(
            queries[:30],
            labels[:30],
            gallery=items[30:],
            gallery_labels=labels[30:],
            k=3,
        )


def test_searches_leave_each_image_out(networks):
    old, new, labels = networks
    report = compatibility_report(old, new, labels)
    assert report["old_in_old"] == retrieval_report(old, labels)
    assert report["new_in_new"] == retrieval_report(new, labels)
    # Were an image found as itself, a network that answers alike would find it always.
    same = compatibility_report(old, old, labels)
    assert same["new_in_old"] == same["old_in_old"] == report["old_in_old"]
    assert same["same_not_farther"] == same["others_not_nearer"] == 1
    assert not same["compatible"]


def test_known_and_unseen_queries_are_told_apart(networks):
    old, new, labels = networks
    report = compatibility_report(old, new, labels, known=[0, 1, 2], k=1)
    numbers = [report[name]["new_in_old"]["queries"] for name in ("known", "unseen")]
    assert numbers == [np.sum(labels < 3), np.sum(labels >= 3)]
    recalls = [
        report[name]["new_in_old"]["recall_at_1"] for name in ("known", "unseen")
    ]
    mean = np.average(recalls, weights=numbers)
    assert report["new_in_old"]["recall_at_1"] == pytest.approx(mean)
    assert compatibility_report(old, new, labels, known=range(6))["unseen"] is None


def test_networks_that_do_not_belong_together_are_refused(networks):
    old, new, labels = networks
    with pytest.raises(ValueError, match=r"of one length.*new.shape=\(50, 5\)"):
        compatibility_report(old, new[:, :5], labels)
    with pytest.raises(ValueError, match=r"must come together. Received: 1 of 3"):
        compatibility_report(old, new, labels, old_gallery=old)
    with pytest.raises(ValueError, match=r"at least two classes. Received: 1"):
        compatibility_report(old, new, labels, known=[3])
    with pytest.raises(ValueError, match="`old_gallery` must"):
        compatibility_report(
            old,
            new,
            labels,
            old_gallery=old[:0],
            new_gallery=new[:0],
            gallery_labels=labels[:0],
        )


def test_unseen_classes_of_one_image_each_give_no_report(rng):
    old, new = rng.standard_normal((2, 6, 3))
    report = compatibility_report(old, new, [0, 0, 1, 1, 2, 3], known=[0, 1], k=1)
    assert report["unseen"] is None
