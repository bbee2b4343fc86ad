# %% [markdown]
# # Upgrade the network and keep the index
#
# An index of embeddings usually dies with its network: two networks put one class into
# different directions, so all images must be embedded anew. Networks that share frozen
# centroids put a class into the same direction. New features are then found among old
# ones.

# %%
# In Colab, upload the wheel first: `pip wheel --no-deps .` makes it in a clone.
# %pip install -q --find-links . keras-pedcc matplotlib scikit-learn

# %%
import json
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import keras_pedcc

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
part = np.arange(len(labels)) % 4
train, enrolled, asked = part < 2, part == 2, part == 3
known = np.arange(8)  # the old network never saw 8 and 9

# %% [markdown]
# ## An old network and a new one
#
# The new one is wider, starts from another seed and knows two more classes. Only `dim`
# and the centroids are the same. Both heads get ten rows: a new class takes one
# that has had no images.


# %%
def network(width, seed, classes, frozen=True):
    """An embedder, trained on some classes."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(width, activation="relu")(inputs)
    features = keras.layers.Dense(32, name="features")(hidden)
    head, loss = keras_pedcc.recipe("frozen", 10)
    if not frozen:
        head = keras.layers.Dense(10)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kind = keras_pedcc.PEDCCModel if frozen else keras.Model
    model = kind(inputs, head(features))
    model.compile(keras.optimizers.Adam(3e-3), loss)
    which = train & np.isin(labels, classes)
    model.fit(images[which], labels[which], batch_size=64, epochs=15, verbose=0)
    if frozen:
        return keras_pedcc.embedder(model)
    unit = keras.layers.UnitNormalization()(features)
    return keras.Model(inputs, unit)


old = network(64, seed=1, classes=known)
new = network(256, seed=2, classes=np.arange(10))
index = keras_pedcc.embed(old, images[enrolled])

# %% [markdown]
# ## Keep a fingerprint beside the index
#
# It tells later whether a network aims at the same directions. `check_same_centroids`
# raises an error if not.

# %%
fingerprint = keras_pedcc.centroid_fingerprint(old)
pathlib.Path("index.json").write_text(json.dumps(fingerprint))

kept = json.loads(pathlib.Path("index.json").read_text())
keras_pedcc.check_same_centroids(new, kept)  # nothing: they belong together
try:
    keras_pedcc.check_same_centroids(keras_pedcc.generate_pedcc(10, 32, seed=7), kept)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Measure
#
# `compatibility_report` embeds nothing itself. It takes the features of one set of
# images by both networks. As a comparison, two networks of the same sizes are trained
# with cross entropy.


# %%
def report(old, new):
    return keras_pedcc.compatibility_report(
        keras_pedcc.embed(old, images[asked]),
        keras_pedcc.embed(new, images[asked]),
        labels[asked],
        old_gallery=keras_pedcc.embed(old, images[enrolled]),
        new_gallery=keras_pedcc.embed(new, images[enrolled]),
        gallery_labels=labels[enrolled],
        known=known,
        k=1,
    )


others = network(64, 1, known, frozen=False), network(256, 2, range(10), frozen=False)
reports = {"frozen centroids": report(old, new), "cross entropy": report(*others)}
searches = ["old_in_old", "new_in_old", "new_in_new"]
recalls = {
    name: [found["known"][each]["recall_at_1"] for each in searches]
    for name, found in reports.items()
}
for name, values in recalls.items():
    print(name, dict(zip(searches, np.round(values, 3).tolist(), strict=True)))

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for shift, (name, values) in enumerate(recalls.items()):
    axes.bar(np.arange(3) + 0.4 * shift - 0.2, values, 0.4, label=name)
axes.set_xticks(range(3), ["old in old", "new in old", "new in new"])
axes.set(ylabel="nearest neighbour is right", title="The eight classes known to both")
_ = axes.legend(loc="lower left")

# %% [markdown]
# ## Classes that the old network never saw
#
# It put their images where it pleased, and the new one puts them at their centroids.
# Embed their images anew, and leave all others:

# %%
queries = keras_pedcc.embed(new, images[asked])
unseen = ~np.isin(labels[enrolled], known)


def share_found():
    nearest = np.argmax(queries @ index.T, axis=1)
    return np.mean(labels[enrolled][nearest] == labels[asked])


found_before = share_found()
index[unseen] = keras_pedcc.embed(new, images[enrolled][unseen])
found_after = share_found()
print(f"before: {found_before:.1%}; {unseen.sum()} images anew: {found_after:.1%}")

# %% [markdown]
# A threshold belongs to one network and its index: choose it anew, even if the index
# stays.
