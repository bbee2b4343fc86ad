# %% [markdown]
# # Few images per class, and long tails
#
# Evenly spread, frozen centroids suit classes of similar size. When you train from
# scratch with few images, or with rare and frequent classes, prefer the recipe
# `"trained"`: it starts from the same centroids and trains them with the network. For a
# long tail, also pass the class frequencies to the loss. Always compare with cross
# entropy on your images.

# %%
# In Colab, upload the wheel first: `pip wheel --no-deps .` makes it in a clone.
# %pip install -q --find-links . keras-pedcc matplotlib scikit-learn

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_pedcc

images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (images / 16).astype("float32"), labels, random_state=0, stratify=labels
)


def train(kind, x, y, steps=300, **options):
    """Predicted classes of the test images."""
    keras.utils.set_random_seed(0)
    head = keras.layers.Dense(10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if kind != "cross entropy":
        head, loss = keras_pedcc.recipe(kind, 10, return_features=False, **options)
    hidden = [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(32)]
    model = keras.Sequential([keras.Input((64,)), *hidden, head])
    model.compile(keras.optimizers.Adam(3e-3), loss)
    epochs = max(1, steps * 32 // len(x))
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return keras.ops.convert_to_numpy(model(x_test)).argmax(axis=1)


def first(counts):
    """The first images of each class, as many as `counts` says."""
    each = [np.flatnonzero(y == digit)[:n] for digit, n in enumerate(counts)]
    return np.concatenate(each)


# %% [markdown]
# ## Ten images of each class
#
# With so few images, seeds and the choice of images often matter more than the recipe:
# train long enough, and compare several seeds. Each row below is a single run.

# %%
few = first([10] * 10)
few_accuracy = {}
for kind in ("cross entropy", "frozen", "trained"):
    few_accuracy[kind] = np.mean(train(kind, x[few], y[few]) == y_test)
    print(f"{kind}: {few_accuracy[kind]:.1%}")

# %% [markdown]
# ## A long tail
#
# Now class 0 has 120 images and class 9 has 3. The test images remain balanced, so all
# classes count equally.

# %%
counts = np.geomspace(120, 3, 10).round().astype(int)
tail = first(counts)
print(np.bincount(y[tail]).tolist())

# %% [markdown]
# `class_priors` computes the class frequencies from the labels. The loss adds their
# logarithms to the scaled cosines (logit adjustment), so images of rare classes need a
# larger cosine in training. Predictions compare the cosines alone.

# %%
priors = keras_pedcc.class_priors(y[tail])
found = {
    "cross entropy": train("cross entropy", x[tail], y[tail]),
    "frozen": train("frozen", x[tail], y[tail]),
    "trained": train("trained", x[tail], y[tail]),
    "trained, priors": train("trained", x[tail], y[tail], priors=priors),
}
tail_accuracy = {name: np.mean(each == y_test) for name, each in found.items()}
for name, value in tail_accuracy.items():
    print(f"{name}: {value:.1%}")

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for shift, (name, each) in enumerate(found.items()):
    right = [np.mean(each[y_test == digit] == digit) for digit in range(10)]
    axes.bar(np.arange(10) + 0.2 * shift - 0.3, right, 0.2, label=name)
axes.set_xticks(range(10), [f"{digit}\n{n}" for digit, n in enumerate(counts)])
axes.set(xlabel="digit, and its number of training images", ylabel="share right")
_ = axes.legend(loc="lower left")

# %% [markdown]
# The bars on the right are the rare classes. What are their images mistaken for? Rows
# are classes, columns are predictions.

# %%
keras_pedcc.plot.confusion(y_test, found["trained, priors"])

# %% [markdown]
# On these easy images, after 300 steps, cross entropy remains ahead. With 47 classes of
# characters, where the rarest has 10 images, the two are level if both use priors:
# trained centroids reach 66.2 % without and 73.4 % with them, cross entropy 67.7 and
# 73.3 %. Frozen centroids reach only 61.5 and 65.2 %. The page "Priors" of the
# documentation has the settings and seeds.
#
# Choose a recipe on held-out images, never on test images.
