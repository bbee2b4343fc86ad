# %% [markdown]
# # Resume, export, deploy
#
# Resume a run that was killed, turn the trained model into a classifier with names and
# probabilities, and export it as a SavedModel or an ONNX file.

# %%
# In Colab, upload the wheel first: `pip wheel --no-deps .` makes it in a clone.
# %pip install -q --find-links . keras-pedcc matplotlib scikit-learn

# %%
import importlib.util

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import keras_pedcc

digits = load_digits()
images, labels = digits.images[..., None].astype("float32"), digits.target
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]


def new_model():
    keras.utils.set_random_seed(0)
    head, loss = keras_pedcc.recipe("trained", 10)
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Rescaling(1 / 16)(inputs)
    hidden = keras.layers.Conv2D(16, 3, activation="relu")(hidden)
    features = keras.layers.Dense(32)(keras.layers.Flatten()(hidden))
    model = keras_pedcc.PEDCCModel(inputs, head(features))
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# ## Resume
#
# `AtomicBackup` writes weights, optimizer, random states and epoch to one file,
# atomically. Here a callback simulates a power failure in the fourth of eight epochs.
# Then the same code runs again, and starts with that epoch.


# %%
class PowerFailure(keras.callbacks.Callback):
    """Ends the run in the fourth epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


def run(*more):
    model = new_model()
    callbacks = [keras_pedcc.AtomicBackup("run"), *more]
    history = model.fit(x, y, 64, epochs=8, verbose=0, callbacks=callbacks)
    return model, history


try:
    run(PowerFailure())
except KeyboardInterrupt:
    print("killed")
model, history = run()
print("epochs of the second run:", [epoch + 1 for epoch in history.epoch])

# %% [markdown]
# The resumed run ends with the same weights as an uninterrupted one:

# %%
whole = new_model()
whole_history = whole.fit(x, y, 64, epochs=8, verbose=0)
difference = max(
    np.abs(a - b).max()
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True)
)
print(f"largest difference of a weight: {difference:.1e}")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(whole_history.epoch, whole_history.history["loss"], label="never killed")
axes.plot(history.epoch, history.history["loss"], "o", label="resumed")
axes.legend()
_ = axes.set(xlabel="epoch", ylabel="loss")

# %% [markdown]
# ## A classifier with names
#
# The logits of the model are cosines. `classifier` multiplies them by the scale of the
# loss and adds a softmax; `identify` returns names. These probabilities rank the
# classes, but they are not calibrated.

# %%
names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
classifier = keras_pedcc.classifier(model, class_names=names)
probabilities = classifier.predict(x_test, verbose=0)
accuracy = np.mean(probabilities.argmax(axis=1) == y_test)
print(f"{accuracy:.1%} of the test images")
for answers in keras_pedcc.identify(classifier, x_test[:3], k=2):
    print([(name, round(probability, 2)) for name, probability in answers])
keras_pedcc.plot.mistakes(
    x_test, y_test, model.predict(x_test, verbose=0)["logits"], number=8
)

# %% [markdown]
# ## Save and load
#
# The file of the classifier contains the names. `load_model` verifies the checksums of
# the file before it loads the model.

# %%
classifier.save("digits.keras")
loaded = keras_pedcc.load_model("digits.keras")
differences = {"keras": np.abs(loaded.predict(x_test, verbose=0) - probabilities).max()}

# %% [markdown]
# ## Export
#
# `export` is a method of Keras. The exported file needs neither Keras nor this package,
# and does not contain the names: store them separately. Formats whose tools are not
# installed are skipped.


# %%
def missing(*modules):
    return [name for name in modules if importlib.util.find_spec(name) is None]


converter = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
backend = keras.backend.backend()
if backend == "torch" or missing("tensorflow"):
    print("No SavedModel: it needs TensorFlow, as the backend or beside JAX.")
else:
    import tensorflow as tf

    classifier.export("digits_saved_model", verbose=False)
    saved = tf.saved_model.load("digits_saved_model")  # must outlive its function
    served = saved.serve(x_test)
    differences["SavedModel"] = np.abs(served - probabilities).max()

# %%
if absent := missing("onnxruntime", converter[backend]):
    print(f"No ONNX: {absent} not installed.")
else:
    import onnxruntime

    classifier.export("digits.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession("digits.onnx")
    [served] = session.run(None, {session.get_inputs()[0].name: x_test})
    differences["ONNX"] = np.abs(served - probabilities).max()
for name, value in differences.items():
    print(f"{name}: probabilities differ by at most {value:.0e}")

# %% [markdown]
# For search, export the embedder instead: `keras_pedcc.embedder(model)` is a Keras
# model, too.
