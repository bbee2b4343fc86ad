"""A classifier of digits in the formats it is deployed in, each run by its own tool."""

import keras
import numpy as np
import pytest

from keras_pedcc import PEDCCDense, PEDCCLoss, PEDCCModel, classifier

BACKEND = keras.backend.backend()
pytestmark = [
    pytest.mark.slow,
    # The exporters and converters of others warn about their own age.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def digits():
    """A trained classifier, images it has not seen, and their probabilities."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = found.images[..., None].astype("float32"), found.target
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 16)(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.Dense(16)(keras.layers.Flatten()(x))
    model = PEDCCModel(inputs, PEDCCDense(10)(x))
    model.compile(keras.optimizers.Adam(0.01), PEDCCLoss())
    model.fit(images[:1500], labels[:1500], epochs=4, verbose=0)
    part = classifier(model, class_names=[*"0123456789"])
    held = images[1500:1600]
    expected = part.predict(held, verbose=0)
    assert (expected.argmax(axis=1) == labels[1500:1600]).mean() > 0.85
    return part, held, expected


def test_file_of_keras_predicts_the_same(digits, tmp_path):
    part, images, expected = digits
    part.save(tmp_path / "digits.keras")
    loaded = keras.saving.load_model(tmp_path / "digits.keras")
    found = loaded.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert loaded.layers[-1].class_names == [*"0123456789"]


def test_saved_model_predicts_the_same(digits, tmp_path):
    tf = pytest.importorskip("tensorflow")
    if BACKEND == "torch":
        pytest.skip("Keras exports no SavedModel from PyTorch")
    part, images, expected = digits
    part.export(tmp_path / "digits", verbose=False)
    artifact = tf.saved_model.load(str(tmp_path / "digits"))
    np.testing.assert_allclose(artifact.serve(images), expected, atol=1e-5)


def test_onnx_predicts_the_same(digits, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    converters = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
    pytest.importorskip(converters[BACKEND])
    part, images, expected = digits
    part.export(tmp_path / "digits.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_openvino_predicts_the_same(digits, tmp_path):
    openvino = pytest.importorskip("openvino")
    part, images, expected = digits
    part.export(str(tmp_path / "digits.xml"), format="openvino", verbose=False)
    compiled = openvino.Core().compile_model(tmp_path / "digits.xml", "CPU")
    found = compiled(images)[compiled.output(0)]
    # Its convolutions sum in an order of their own.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def with_litert(path, images):
    """Outputs of a LiteRT file, image by image."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    made = interpreter.Interpreter(model_path=str(path))
    made.allocate_tensors()
    [given], [output] = made.get_input_details(), made.get_output_details()
    found = []
    for image in images:
        made.set_tensor(given["index"], image[None])
        made.invoke()
        found.append(made.get_tensor(output["index"])[0])
    return np.array(found)


def test_litert_predicts_the_same(digits, tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("Keras exports LiteRT from TensorFlow here")
    part, images, expected = digits
    part.export(tmp_path / "digits.tflite", format="litert", verbose=False)
    found = with_litert(tmp_path / "digits.tflite", images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_litert_in_int8_names_the_same_classes(digits, tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("Keras exports LiteRT from TensorFlow here")
    import tensorflow as tf

    part, images, expected = digits
    part.export(
        tmp_path / "digits.tflite",
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([image[None]] for image in images),
    )
    found = with_litert(tmp_path / "digits.tflite", images)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.97
    assert np.abs(found - expected).mean() < 0.02
