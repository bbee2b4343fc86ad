import collections

import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS, only_once

from keras_pedcc import AtomicBackup, ClassBatches, PEDCCDense, PEDCCLoss, PEDCCModel

# Classes smaller than K, as large, larger, and far larger.
SIZES = [2, 3, 4, 5, 11, 40, 7]
LABELS = np.repeat(np.arange(7), SIZES)
IMAGES = np.arange(len(LABELS), dtype="float32")[:, None]


def made(classes=3, samples=4, labels=LABELS, **kwargs):
    images = np.arange(len(labels), dtype="float32")[:, None]
    return ClassBatches(images, labels, classes=classes, samples=samples, **kwargs)


def all_rows(batches, epochs):
    """Rows of batches one after the other, over so many epochs."""
    found = []
    for batches.epoch in range(epochs):
        found += [batches.rows(i) for i in range(len(batches))]
    return found


@only_once
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("samples", [1, 4, 6])
def test_every_batch_is_p_classes_times_k_samples(classes, samples):
    for rows in all_rows(made(classes, samples), epochs=20):
        counts = collections.Counter(LABELS[rows].tolist())
        assert len(counts) == classes
        assert set(counts.values()) == {samples}
        times = collections.Counter(rows.tolist())
        for row, number in times.items():
            size = SIZES[LABELS[row]]
            assert samples // size <= number <= -(-samples // size)


@only_once
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("samples", [1, 4, 6])
def test_classes_and_samples_come_equally_often_at_any_time(classes, samples):
    of_classes, of_rows = np.zeros(7, int), np.zeros(len(LABELS), int)
    for rows in all_rows(made(classes, samples), epochs=20):
        np.add.at(of_rows, rows, 1)
        of_classes[np.unique(LABELS[rows])] += 1
        assert np.ptp(of_classes) <= 1
        assert all(np.ptp(of_rows[LABELS == label]) <= 1 for label in range(7))
    assert of_rows.min() > 0


@only_once
@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_batches_depend_on_seed_and_epoch_alone(classes):
    first, second = made(classes), made(classes)
    expected = all_rows(first, epochs=9)
    order = np.random.default_rng(1).permutation(len(expected))
    for at in order:  # whatever was asked for before
        second.epoch, index = divmod(at, len(second))
        np.testing.assert_array_equal(second.rows(index), expected[at])
        fresh = made(classes)
        fresh.epoch = second.epoch
        np.testing.assert_array_equal(fresh.rows(index), expected[at])
    other = made(classes, seed=1)
    assert not np.array_equal(other.rows(0), first.rows(0))


@only_once
def test_classes_meet_all_others():
    met = set()
    for rows in all_rows(made(classes=2), epochs=60):
        met.add(tuple(np.unique(LABELS[rows])))
    assert len(met) == 7 * 6 / 2


@only_once
def test_batch_holds_the_images_and_labels_of_its_rows():
    labels = 10 * LABELS[:, None]
    batches = made(labels=labels)
    images, found = batches[2]
    rows = batches.rows(2)
    np.testing.assert_array_equal(images[:, 0], rows)
    np.testing.assert_array_equal(found, labels[rows, 0])
    assert len(batches) == 6  # 72 samples in batches of 12
    assert len(made(steps=3)) == 3
    assert len(made(classes=5)) == 4
    tensor = ClassBatches(ops.ones((72, 2)), LABELS, classes=2, samples=2)
    assert tensor[0][0].shape == (4, 2)


class Recorded(ClassBatches):
    """Keeps the epoch and number of each batch that was asked for."""

    seen = ()

    def __getitem__(self, index):
        self.seen = [*self.seen, (self.epoch, index)]
        return super().__getitem__(index)


class Seen(keras.callbacks.Callback):
    """The batches of each epoch, without those that Keras asks for beforehand."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.epochs = batches, []

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.seen = ()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.batches.seen)


def compiled():
    inputs = keras.Input((1,))
    head = PEDCCDense(7)
    model = PEDCCModel(inputs, head(keras.layers.Dense(7)(inputs)))
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    return model


def fitted(model, batches, *callbacks, **kwargs):
    """What `fit` saw of the batches, epoch by epoch."""
    seen = Seen(batches)
    model.fit(batches, shuffle=False, verbose=0, callbacks=[*callbacks, seen], **kwargs)
    return seen.epochs


def of_epochs(*epochs, steps=2):
    return [[(epoch, i) for i in range(steps)] for epoch in epochs]


def recorded():
    return Recorded(IMAGES, LABELS, classes=2, samples=2, steps=2)


def test_fit_sees_one_epoch_after_the_other():
    model, batches = compiled(), recorded()
    found = fitted(model, batches, batches.callback(), epochs=2)
    assert found == of_epochs(0, 1)
    # Without the callback: Keras may have begun to read before the first epoch.
    epochs = [epoch[0][0] for epoch in fitted(model, batches, epochs=3)]
    assert epochs[0] in (2, 3)
    assert np.diff(epochs).tolist() == [1, 1]


def test_fit_that_begins_later_sees_the_epochs_from_there(tmp_path):
    batches = recorded()
    follow = batches.callback()
    model = compiled()
    assert fitted(model, batches, follow, epochs=5, initial_epoch=3) == of_epochs(3, 4)
    for epochs, expected in ((2, (0, 1)), (3, (2,))):
        batches = recorded()
        backup = AtomicBackup(tmp_path / "backup", delete_checkpoint=False)
        callbacks = backup, batches.callback()
        found = fitted(compiled(), batches, *callbacks, epochs=epochs)
        assert found == of_epochs(*expected)


@only_once
def test_tf_dataset_gives_the_same_batches():
    batches = recorded()
    dataset = batches.to_tf_dataset()
    assert len(dataset) == 2
    for batches.epoch in (0, 4):
        pairs = list(dataset.as_numpy_iterator())
        for index, (images, labels) in enumerate(pairs):
            np.testing.assert_array_equal(images, batches[index][0])
            np.testing.assert_array_equal(labels, batches[index][1])
    follow = batches.callback()
    options = {"shuffle": False, "verbose": 0, "callbacks": [follow]}
    history = compiled().fit(dataset, epochs=2, **options)
    assert len(history.history["loss"]) == 2
    assert batches.epoch == 1


@only_once
def test_batches_refuse_arguments():
    with pytest.raises(ValueError, match="classes=8, with 7 classes"):
        made(classes=8)
    with pytest.raises(ValueError, match="`samples` must be at least 1"):
        made(samples=0)
    with pytest.raises(TypeError, match="`seed` must be a whole number"):
        made(seed=0.5)
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        made(steps=0)
    with pytest.raises(ValueError, match=r"one label for each of `images`.*\(3,\)"):
        ClassBatches(IMAGES, [0, 1, 2], classes=2, samples=2)
    with pytest.raises(ValueError, match=r"whole numbers\. .*labels.dtype=<U1"):
        ClassBatches(IMAGES[:2], ["a", "b"], classes=2, samples=2)
    with pytest.raises(ValueError, match=r"at least one image.*type ndarray"):
        ClassBatches(IMAGES[:0], [], classes=2, samples=2)
