# %% [markdown]
# # Upgrade the network and keep the index
#
# Usually an index of embeddings is lost with its network: two networks map the same
# class to different directions, so all images must be embedded again. Networks with the
# same frozen centroids map a class to the same direction. Features of the new network
# can then be found among those of the old one.

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
# The new network is wider, starts from another seed and knows two more classes. Only
# `dim` and the centroids are the same. Both heads have ten rows; two of them have no
# images in the old network.


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
# ## Store a fingerprint with the index
#
# It tells later whether a network has the same centroids. If not,
# `check_same_centroids` raises an error.

# %%
fingerprint = keras_pedcc.centroid_fingerprint(old)
pathlib.Path("index.json").write_text(json.dumps(fingerprint))

kept = json.loads(pathlib.Path("index.json").read_text())
keras_pedcc.check_same_centroids(new, kept)  # no error: they match
try:
    keras_pedcc.check_same_centroids(keras_pedcc.generate_pedcc(10, 32, seed=7), kept)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Measure
#
# `compatibility_report` takes the features of the same images from both networks. For
# comparison, two networks of the same sizes are trained with cross entropy.


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
# The old network maps their images to arbitrary directions, the new one to their
# centroids. Embed only these images again:

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
# A threshold belongs to one network and one index: choose a new one even if the index
# stays.
