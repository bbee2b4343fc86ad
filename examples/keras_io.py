"""
Title: Metric learning for image classification with ArcFace and PEDCC
Author: The keras_pedcc developers
Date created: 2026/11/30
Last modified: 2026/11/30
Description: Training image embeddings with a margin loss, and searching with them.
Accelerator: None
"""

"""
## Introduction

Metric learning trains a network whose outputs, the *embeddings*, can be compared:
images of one class point in the same direction, those of two classes in different ones.
Search, verification and the recognition of new classes need this.

A simple and strong way is a classifier on unit vectors. The head holds one direction,
the *centroid*, per class, and its logits are the cosines of embedding and centroids:

- **ArcFace** trains the centroids with the network. Its loss asks each embedding to be
  closer to its own centroid than to all others, by an angle: the margin.
- **PEDCC** (predefined evenly-distributed class centroids) computes the centroids
  beforehand, as far apart as possible, and freezes them. Only the network is trained.

Neither needs pairs, triplets or mining. This example trains both on the digits 0 to 6,
and searches among images of 7, 8 and 9, which neither network has seen.

```
pip install keras-pedcc scikit-learn
```
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_pedcc

"""
## Data

The 1,797 handwritten digits of scikit-learn have 8 x 8 pixels and come with it.
"""

digits = load_digits()
images, labels = digits.images[..., None].astype("float32") / 16, digits.target
seen = labels < 7
x, y = images[seen], labels[seen]
x_new, y_new = images[~seen], labels[~seen]
print(f"{len(x)} images to train on, {len(x_new)} images of new classes")

"""
## A network and its head

The layer before the head is linear. Behind a ReLU, no feature could be negative, and
embeddings could not point in every direction.

`PEDCCModel` is a `keras.Model` whose loss takes all outputs of the head: the unit
features and the logits.
"""


def build(head):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(32, 3, activation="relu")(inputs)
    hidden = keras.layers.Conv2D(32, 3, activation="relu")(hidden)
    features = keras.layers.Dense(64)(keras.layers.Flatten()(hidden))
    return keras_pedcc.PEDCCModel(inputs, head(features))


"""
## Training

The two differ in head and loss alone. `RetrievalCallback` embeds the images of the new
classes after each epoch, searches each among the others, and logs how often the nearest
one is of the same class.
"""


def train(head, loss, epochs=6):
    model = build(head)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    search = keras_pedcc.RetrievalCallback(x_new, y_new, k=1)
    history = model.fit(
        x, y, batch_size=64, epochs=epochs, callbacks=[search], verbose=0
    )
    recalls = history.history["val_retrieval_recall_at_1"]
    print(f"{head.name}: recall at 1 by epoch {np.round(recalls, 3).tolist()}")
    return model, recalls


arcface, arcface_recalls = train(
    keras_pedcc.CosineDense(7, name="arcface"),
    keras_pedcc.ArcFaceLoss(scale=16, margin=0.2),
)
pedcc, pedcc_recalls = train(*keras_pedcc.recipe("frozen", 7, name="pedcc"))

"""
## Search

`embedder` cuts the head off. The result is a plain Keras model from images to unit
vectors, and the scalar product of two of them is their cosine.
"""

embedder = keras_pedcc.embedder(pedcc)
embeddings = keras_pedcc.embed(embedder, x_new)
query, gallery = embeddings[0], embeddings[1:]
nearest = np.argsort(-gallery @ query)[:5]
print(f"a {y_new[0]} finds {y_new[1:][nearest].tolist()}")

"""
## Conclusion

On so few images and one seed, small differences between the two are chance. Frozen
centroids have two practical advantages: they cost no gradient and no optimizer state,
and they are the same in every run, so the next network can search an old index.

Where only accuracy on the training classes counts, also try trained centroids:
`keras_pedcc.recipe("trained", num_classes)`.

References:

- Deng et al., [ArcFace](https://arxiv.org/abs/1801.07698), CVPR 2019.
- Zhu et al., [PEDCC-Loss](https://doi.org/10.1109/ACCESS.2019.2960065), 2020.
"""
