"""What only shows in a process of its own: kills, fresh loads, exports."""

import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_pedcc

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")


def run(folder, moment):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), moment]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finished = run(folder, "never")
    assert finished.returncode == 0, finished.stderr
    with np.load(folder / "weights.npz") as file:
        return [file[name] for name in file.files]


# Inside of epochs; just before and after backups, the first and one when unfrozen.
CHAINS = {
    "in_epochs": ["batch:0", "batch:2", "batch:3"],
    "at_backups": ["before:0", "after:0", "before:2", "after:1"],
}


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="long; two backends will do"
)
@pytest.mark.parametrize("moments", CHAINS.values(), ids=CHAINS)
def test_killed_run_ends_as_the_whole_one(tmp_path, whole, moments):
    for moment in moments:
        killed = run(tmp_path, moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "weights.npz").exists()
    finished = run(tmp_path, "never")
    assert finished.returncode == 0, finished.stderr
    with np.load(tmp_path / "weights.npz") as file:
        for name, expected in zip(file.files, whole, strict=True):
            np.testing.assert_array_equal(file[name], expected)


LOAD = """
import sys
import numpy as np
import keras
import keras_pedcc
from keras_pedcc.layers import pedcc_dense

def refuse(*args, **kwargs):
    raise AssertionError("the centroids were generated again")

pedcc_dense.generate_pedcc = refuse
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
data = np.load(sys.argv[1] + "/data.npz")
before = model.predict(data["images"], verbose=0)
callback = keras_pedcc.FinetuneCallback(int(sys.argv[2]))
model.fit(data["images"], data["labels"], epochs=4, initial_epoch=2, shuffle=False,
          verbose=0, callbacks=[callback])
np.savez(sys.argv[1] + "/loaded.npz", *model.get_weights(), logits=before["logits"],
         trainable=model.get_layer("head").trained)
"""


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
@pytest.mark.parametrize(
    ("epoch", "given"), [(1, False), (3, True)], ids=["unfrozen", "frozen, given"]
)
def test_saved_model_goes_on_in_a_new_process(tmp_path, rng, epoch, given):
    images = rng.standard_normal((32, 4)).astype("float32")
    labels = np.arange(32) % 3
    inputs = keras.Input((4,))
    centroids = rng.standard_normal((3, 8)) if given else None
    head = keras_pedcc.PEDCCDense(3, centroids=centroids, name="head")
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(8)(inputs)))
    model.compile(keras.optimizers.Adam(0.01), keras_pedcc.PEDCCLoss(mse_root=2))
    callback = keras_pedcc.FinetuneCallback(epoch)
    model.fit(images, labels, epochs=2, verbose=0, callbacks=[callback])
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    logits = model.predict(images, verbose=0)["logits"]
    model.fit(
        images,
        labels,
        epochs=4,
        initial_epoch=2,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(epoch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    loaded = np.load(tmp_path / "loaded.npz")
    np.testing.assert_array_equal(loaded["logits"], logits)
    for i, weight in enumerate(model.get_weights()):
        np.testing.assert_array_equal(loaded[f"arr_{i}"], weight)


# The exporters and converters of others warn about their own age.
old_tools = pytest.mark.filterwarnings("ignore")


def exported(tmp_path, rng, **kwargs):
    """A small model, images, and its predictions; exported to `tmp_path`."""
    images = rng.standard_normal((5, 8, 8, 1)).astype("float32")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.Dense(16)(keras.layers.Flatten()(x))
    model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.PEDCCDense(3)(x))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    model.fit(images, np.arange(5) % 3, verbose=0)
    model.export(tmp_path / "exported", verbose=False, **kwargs)
    return images, model.predict(images, verbose=0)


@old_tools
def test_saved_model_predicts_the_same(tmp_path, rng):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() == "torch":
        pytest.skip("Keras exports no SavedModel from PyTorch")
    images, expected = exported(tmp_path, rng)
    artifact = tf.saved_model.load(str(tmp_path / "exported"))
    served = artifact.serve(images)
    for name in ("features", "logits"):
        np.testing.assert_allclose(served[name], expected[name], atol=1e-6)


@old_tools
def test_onnx_predicts_the_same(tmp_path, rng):
    onnxruntime = pytest.importorskip("onnxruntime")
    converters = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
    pytest.importorskip(converters[keras.backend.backend()])
    images, expected = exported(tmp_path, rng, format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "exported")
    found = session.run(None, {session.get_inputs()[0].name: images})
    names = [output.name for output in session.get_outputs()]
    assert len(names) == 2
    for array in found:
        match = expected["features" if array.shape[1] == 16 else "logits"]
        np.testing.assert_allclose(array, match, atol=1e-5)
