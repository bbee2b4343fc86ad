# %% [markdown]
# # A million classes
#
# A softmax over C classes of d features needs an array of `C * d` centroids and, in
# every step, one of `batch * C` cosines. `Blockwise` avoids the second array,
# `KerdockDense` avoids both. The sizes here run in seconds on a CPU; the code for a
# million is the same.

# %%
# In Colab, upload the wheel first: `pip wheel --no-deps .` makes it in a clone.
# %pip install -q --find-links . keras-pedcc matplotlib scikit-learn

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import keras_pedcc

# %% [markdown]
# ## Many classes from few data
#
# Each of 300 images of handwritten digits is a class of its own. The network must
# recognise the image under noise (instance recognition).

# %%
originals = load_digits().data[:300] / 16
classes = np.arange(len(originals))
rng = np.random.default_rng(0)


def noisy(copies, strength=0.1):
    noise = rng.normal(scale=strength, size=(copies, *originals.shape))
    return (originals + noise).reshape(-1, 64).astype("float32")


x, y = noisy(20), np.tile(classes, 20)
x_test, y_test = noisy(1), classes

# %% [markdown]
# ## Without the array of cosines
#
# With `scores=Blockwise(n)` the loss computes the logits by blocks of n classes, and
# the head returns the features alone. From 100,000 classes on this is the default. The
# more classes, the larger the scale must be; `scale="auto"` chooses it.


# %%
def train(head):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(512, activation="relu")(inputs)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(64)(hidden)))
    loss = keras_pedcc.PEDCCLoss(scale="auto", margin=0.2, mse_weight=3)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, batch_size=100, epochs=6, verbose=0)
    features = model.predict(x_test, batch_size=512, verbose=0)["features"]
    _, nearest = keras_pedcc.nearest_classes(features, head, k=5)
    return keras.ops.convert_to_numpy(nearest)


blockwise = keras_pedcc.PEDCCDense(
    len(classes), centroids="kerdock", scores=keras_pedcc.Blockwise(128)
)
nearest = train(blockwise)
right = {"PEDCCDense": np.mean(nearest[:, 0] == y_test)}
print(f"PEDCCDense: {right['PEDCCDense']:.1%} of the images are recognised")

# %% [markdown]
# ## Without the array of centroids
#
# The vectors of a Kerdock set form orthonormal bases that differ in signs only.
# `KerdockDense` stores these signs, and a fast Walsh-Hadamard transform computes the
# cosines. The number of classes must exceed twice the largest power of two up to `dim`.

# %%
kerdock = keras_pedcc.KerdockDense(len(classes), scores="blockwise")
nearest = train(kerdock)
right["KerdockDense"] = np.mean(nearest[:, 0] == y_test)
print(f"KerdockDense: {right['KerdockDense']:.1%} of the images are recognised")


# %% [markdown]
# How much memory do the weights of both heads take?


# %%
def bytes_of(layer):
    weights = [keras.ops.convert_to_numpy(each) for each in layer.weights]
    return sum(each.nbytes for each in weights)


print(f"PEDCCDense {bytes_of(blockwise):,} bytes, KerdockDense {bytes_of(kerdock):,}")

# %% [markdown]
# ## A million
#
# With 512 features the signs of a million classes take half a megabyte; the array of
# centroids would take two gigabytes. Search works as before.

# %%
large = keras_pedcc.KerdockDense(1_000_000)
features = large(rng.normal(size=(4, 512)).astype("float32"))["features"]
cosines, nearest = keras_pedcc.nearest_classes(features, large, k=5)
megabytes = bytes_of(large) / 1e6
print(f"{megabytes:.1f} MB for {large.num_classes:,} classes; nearest {nearest.shape}")

# %%
number = np.geomspace(1e3, 1e7, 30)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
centroids, scores = 4 * 512 * number / 2**30, 4 * 128 * number / 2**30
axes.loglog(number, centroids + scores, label="PEDCCDense, all cosines")
axes.loglog(number, centroids, label="PEDCCDense, blocks")
axes.loglog(number, bytes_of(large) / 1e6 * number / 2**30, label="KerdockDense")
axes.axvline(1e6, color="0.7", linewidth=1)
axes.legend()
_ = axes.set(xlabel="classes", ylabel="GiB, 512 features, batch 128")

# %% [markdown]
# The lines are sizes of arrays, not measurements. A block-wise step also needs a block
# of cosines. To train the million classes, put `large` into a `PEDCCModel` with
# `PEDCCLoss(scale="auto")`, as `train` does above. That takes 0.5 to 0.7 GiB in total.
# Three things help further:
#
# - `scores=keras_pedcc.Sampled(0.1)`, for `PEDCCDense`, uses a random tenth of the
#   other classes in each step.
# - `class_parallel` divides the classes among several devices.
# - `class_priors` balances frequent and rare classes, except in blocks of Kerdock.
