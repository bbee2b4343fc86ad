"""Writes the files that later versions must load: `python tests/saved/make.py`.

Once for each released version, on TensorFlow: a model for each kind of head, trained
for two epochs with its centroids let go in the second, what it answers, and a file of
centroids. Existing files stay as they are.
"""

import pathlib

import keras
import numpy as np

import keras_pedcc

FOLDER = pathlib.Path(__file__).parent
HEADS = {
    "pedcc": lambda: keras_pedcc.PEDCCDense(5, name="head"),
    "given": lambda: keras_pedcc.PEDCCDense(5, centroids=np.eye(5, 8), name="head"),
    "streaming": lambda: keras_pedcc.PEDCCDense(20, scores="blockwise", name="head"),
    "sampled": lambda: keras_pedcc.PEDCCDense(
        20, scores=keras_pedcc.Sampled(0.5), name="head"
    ),
    "cosine": lambda: keras_pedcc.CosineDense(5, name="head"),
    "kerdock": lambda: keras_pedcc.KerdockDense(20, name="head"),
}


def samples():
    images = np.random.default_rng(0).standard_normal((20, 6)).astype("float32")
    return images, np.arange(20) % 5


def make(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    outputs = HEADS[name]()(keras.layers.Dense(8)(inputs))
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, keras_pedcc.PEDCCLoss(mse_root=2), metrics=["accuracy"])
    trained = isinstance(model.get_layer("head"), keras_pedcc.PEDCCDense)
    callbacks = [keras_pedcc.FinetuneCallback(1, 0.01)] if trained else []
    model.fit(*samples(), epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def main():
    version = keras_pedcc.__version__
    for name in HEADS:
        path = FOLDER / f"{version}_{name}.keras"
        if not path.exists():
            model = make(name)
            model.save(path)
            answers = model.predict(samples()[0], verbose=0)
            weights = dict(enumerate(model.get_weights()))
            answers |= {f"weight_{i}": value for i, value in weights.items()}
            np.savez(path.with_suffix(".npz"), **answers)
    path = FOLDER / f"{version}_centroids.npz"
    if not path.exists():
        keras_pedcc.save_centroids(path, keras_pedcc.generate_pedcc(7, 4))


if __name__ == "__main__":
    main()
