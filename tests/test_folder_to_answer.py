"""The whole way: a folder of images, training with evaluation, a file."""

import importlib.util

import keras
import numpy as np
import pytest

from keras_pedcc import (
    ClassBatches,
    ImageFiles,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    RetrievalCallback,
    classifier,
    identify,
)

CONVERTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
TOOLS = ("onnxruntime", CONVERTERS[keras.backend.backend()])


@pytest.fixture
def folders(tmp_path):
    """Digits as PNG files, in a sub-folder for each class."""
    Image = pytest.importorskip("PIL.Image")
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for number, label in enumerate(digits.target):
        part = "held" if number % 5 == 0 else "train"
        path = tmp_path / part / f"digit {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(path)
    return tmp_path


def network():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu")(x)
    x = keras.layers.Dense(32)(keras.layers.Flatten()(x))
    model = PEDCCModel(inputs, PEDCCDense(10)(x))
    model.compile(keras.optimizers.Adam(0.005), PEDCCLoss(), metrics=["accuracy"])
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the converters of others warn of their age
def test_folder_to_answer(folders):
    kind = {"size": (8, 8), "color_mode": "grayscale"}
    train = ImageFiles.from_folder(folders / "train", **kind)
    held = ImageFiles.from_folder(
        folders / "held", **kind, class_names=train.class_names
    )
    images = held[:]
    batches = ClassBatches(train, train.labels, classes=8, samples=8)
    monitor = "val_retrieval_mean_average_precision_at_r"
    best = keras.callbacks.ModelCheckpoint(
        folders / "best.keras", monitor=monitor, mode="max", save_best_only=True
    )
    search = RetrievalCallback(images, held.labels)
    logs = network().fit(
        batches,
        epochs=6,
        shuffle=False,
        verbose=0,
        callbacks=[batches.callback(), search, best],
    )
    assert max(logs.history["val_retrieval_recall_at_1"]) > 0.9

    model = keras.saving.load_model(folders / "best.keras")
    named = classifier(model, class_names=train.class_names)
    named.save(folders / "named.keras")
    answers = identify(keras.saving.load_model(folders / "named.keras"), images)
    right = [held.class_names[label] for label in held.labels]
    names = [name for [(name, _)] in answers]
    assert np.mean([a == b for a, b in zip(names, right, strict=True)]) > 0.9

    if all(importlib.util.find_spec(tool) for tool in TOOLS):
        import onnxruntime

        named.export(folders / "named.onnx", format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(folders / "named.onnx")
        [found] = session.run(None, {session.get_inputs()[0].name: images})
        probabilities = [probability for [(_, probability)] in answers]
        np.testing.assert_allclose(found.max(axis=1), probabilities, atol=1e-5)
