"""What was asked of a head survives saving and cloning in a frozen model."""

import pathlib
import tempfile

import keras

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def check():
    for frozen in (False, True):
        inputs = keras.Input((4,))
        features = keras.layers.Dense(4)(inputs)
        model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.PEDCCDense(5)(features))
        model.layers[-1].frozen = frozen
        model.trainable = False
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
            copies = [keras_pedcc.load_model(path), keras.models.clone_model(model)]
        for each in (model, *copies):
            each.trainable = False  # on TensorFlow the next line is nothing otherwise
            each.trainable = True
            assert each.layers[-1].trained is not frozen
            assert len(each.trainable_variables) == (2 if frozen else 3)
