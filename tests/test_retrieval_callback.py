import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS

from keras_pedcc import (
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    RetrievalCallback,
    embed,
    embedder,
    retrieval_report,
)

LABELS = np.arange(24) % 4
MAP = "mean_average_precision_at_r"


def made():
    inputs = keras.Input((5,))
    model = PEDCCModel(inputs, PEDCCDense(4)(keras.layers.Dense(6)(inputs)))
    model.compile(keras.optimizers.SGD(0.5), PEDCCLoss(), **FEW_STEPS)
    return model


@pytest.fixture
def images(rng):
    return rng.standard_normal((24, 5)).astype("float32")


def after_an_epoch(model, *args, **kwargs):
    search, logs = RetrievalCallback(*args, **kwargs), {}
    search.set_model(model)
    search.on_epoch_end(0, logs)
    return logs


def assert_logs_say(logs, report, name="retrieval"):
    keys = [key for key in report if not key.startswith("queries")]
    assert sorted(logs) == sorted(f"val_{name}_{key}" for key in keys)
    for key in keys:
        assert logs[f"val_{name}_{key}"] == pytest.approx(report[key], rel=1e-12)


def test_callback_logs_what_the_report_says(images):
    model = made()
    logs = after_an_epoch(model, images, LABELS, k=(1, 3))
    features = embed(embedder(model), images)
    assert_logs_say(logs, retrieval_report(features, LABELS, k=(1, 3)))
    gallery = {"gallery": images[10:], "gallery_labels": LABELS[10:]}
    logs = after_an_epoch(model, images[:10], LABELS[:10], **gallery, k=2, name="new")
    gallery["gallery"] = features[10:]
    report = retrieval_report(features[:10], LABELS[:10], **gallery, k=2)
    assert_logs_say(logs, report, name="new")


def test_subset_is_drawn_once_and_logged_alike(images):
    labels = np.arange(24) // 6
    searches = [RetrievalCallback(images, labels, subset=10) for _ in range(2)]
    first, second = (search.images for search in searches)
    np.testing.assert_array_equal(first, second)
    assert len(first) == len(searches[0].labels) == 10
    assert len(set(searches[0].labels)) > 2
    rows = [np.flatnonzero((images == each).all(axis=1))[0] for each in first]
    np.testing.assert_array_equal(labels[rows], searches[0].labels)
    model = made()
    features = embed(embedder(model), images[rows])
    logs = after_an_epoch(model, images, labels, subset=10, k=1)
    assert_logs_say(logs, retrieval_report(features, labels[rows], k=1))
    assert len(RetrievalCallback(images, labels, subset=99).images) == 24


def test_checkpoint_and_early_stopping_monitor_the_logs(images, tmp_path):
    model, monitor = made(), "val_retrieval_" + MAP
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor=monitor, mode="max", save_best_only=True
    )
    stop = keras.callbacks.EarlyStopping(monitor, mode="max", patience=1)
    search = RetrievalCallback(images, LABELS)
    callbacks = [search, best, stop]
    found = model.fit(images, LABELS, epochs=9, callbacks=callbacks, verbose=0).history
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    report = retrieval_report(embed(embedder(loaded), images), LABELS)
    assert report[MAP] == pytest.approx(max(found[monitor]), rel=1e-6)
    lower = keras.callbacks.EarlyStopping(monitor)
    with pytest.raises(ValueError, match="Pass `mode='max'`"):
        model.fit(images, LABELS, epochs=2, callbacks=[search, lower], verbose=0)


def test_callback_logs_nan_when_features_are(images):
    model = made()
    model.layers[1].kernel.assign(ops.full((5, 6), np.nan))
    logs = after_an_epoch(model, images, LABELS, k=1)
    assert sorted(logs) == ["val_retrieval_" + MAP, "val_retrieval_recall_at_1"]
    assert all(np.isnan(value) for value in logs.values())


def test_callback_takes_mirror_images_too(rng):
    images = rng.standard_normal((24, 4, 6, 1)).astype("float32")
    inputs = keras.Input((4, 6, 1))
    flat = keras.layers.Flatten()(inputs)
    model = PEDCCModel(inputs, PEDCCDense(4)(keras.layers.Dense(6)(flat)))
    gallery = {"gallery": images[9:], "gallery_labels": LABELS[9:]}
    logs = after_an_epoch(model, images[:9], LABELS[:9], **gallery, flip=True)
    features = embed(embedder(model), images, flip=True)
    gallery["gallery"] = features[9:]
    assert_logs_say(logs, retrieval_report(features[:9], LABELS[:9], **gallery))


def test_callback_refuses_arguments(images):
    with pytest.raises(ValueError, match=r"one label for each of `images`.*\(3,\)"):
        RetrievalCallback(images, [1, 2, 3])
    with pytest.raises(ValueError, match="24 images without one"):
        RetrievalCallback(images, np.arange(24))
    with pytest.raises(ValueError, match="`gallery_labels` must come together"):
        RetrievalCallback(images, LABELS, gallery=images)
    with pytest.raises(ValueError, match=r"`gallery_labels` must .*`gallery`.*\(2,\)"):
        RetrievalCallback(images, LABELS, gallery=images, gallery_labels=[0, 1])
    with pytest.raises(ValueError, match="24 images without one"):
        RetrievalCallback(images, LABELS, gallery=images, gallery_labels=LABELS + 9)
    with pytest.raises(ValueError, match=r"four axes.*images.shape=\(24, 5\)"):
        RetrievalCallback(images, LABELS, flip=True)
    with pytest.raises(ValueError, match="`subset` must be at least 2"):
        RetrievalCallback(images, LABELS, subset=1)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        RetrievalCallback(images, LABELS, k=0)
    with pytest.raises(TypeError, match="`batch_size` must be a whole number"):
        RetrievalCallback(images, LABELS, batch_size=1.5)
