# %% [markdown]
# # Transfer learning with Keras Applications
#
# A pretrained backbone gets a linear layer and a head. First the two are trained on the
# frozen backbone, then the backbone is fine-tuned at a small learning rate, with its
# batch normalisation in inference mode all the time.

# %%
# In Colab, first run: %pip install -q "keras-pedcc[plot]" scikit-learn
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import keras_pedcc

keras.utils.set_random_seed(0)
digits = load_digits()
images = np.kron(digits.images, np.ones((4, 4)))  # 8 x 8 pixels become 32 x 32
images = np.repeat(255 / 16 * images[..., None], 3, axis=-1).astype("float32")
x, y, x_test, y_test = images[:800], digits.target[:800], images[1200:], digits.target
y_test = y_test[1200:]

# %% [markdown]
# ## The backbone
#
# Here its weights are random, so that nothing is downloaded. For your images pass
# `weights="imagenet"`, with the size that the backbone was trained on. Backbones of
# KerasHub work alike: `keras_hub.models.ResNetBackbone.from_preset(...)`, followed by
# `keras.layers.GlobalAveragePooling2D()`.

# %%
weights = None  # or "imagenet"
backbone = keras.applications.MobileNet(
    input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=weights
)

# %% [markdown]
# Random weights have no statistics of their activations yet. One pass in training mode
# with a momentum of 0 sets them. Pretrained weights have theirs: skip this cell.

# %%
preprocess = keras.layers.Rescaling(1 / 127.5, offset=-1)
norms = [
    each
    for each in backbone.layers
    if isinstance(each, keras.layers.BatchNormalization)
]
for layer in norms:
    layer.momentum = 0.0
activations = backbone(preprocess(x[:200]), training=True)

# %% [markdown]
# ## The model
#
# The features of the backbone come from a ReLU and a pooling of it, so a linear layer
# must follow.
#
# The recipe `"frozen"` fixes the centroids. The features of all networks trained this
# way stay comparable.

# %%
inputs = keras.Input((32, 32, 3))
pooled = keras.layers.GlobalAveragePooling2D()(backbone(preprocess(inputs)))
features = keras.layers.Dense(64)(pooled)
head, loss = keras_pedcc.recipe("frozen", 10)
model = keras_pedcc.PEDCCModel(inputs, head(features))


def fit(learning_rate, epochs):
    optimizer = keras.optimizers.Adam(learning_rate)
    # Without XLA, which takes longer to compile this network than to train it here.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    result = model.evaluate(x_test, y_test, batch_size=200, verbose=0, return_dict=True)
    return result["accuracy"]


# %% [markdown]
# ## Head first
#
# The new layer starts from random weights. Its first gradients would wreck a pretrained
# backbone, so that one waits. `trainable` counts from the next `compile`.

# %%
backbone.trainable = False
accuracy_of_head = fit(learning_rate=1e-2, epochs=10)
print(f"the linear layer alone: {accuracy_of_head:.1%}")

# %% [markdown]
# ## Then the backbone
#
# Take a tenth of the first learning rate or less; for pretrained weights 1e-4 or 1e-5
# is usual. Deep backbones are often unfrozen from the top: set `trainable = False` on
# the first layers, and train those near the head.
#
# A `BatchNormalization` with `trainable = False` runs in inference mode. That keeps its
# statistics, which a few small batches would spoil. `training=False` in the call of the
# backbone is not enough: `fit` passes `training=True` to it all the same.

# %%
backbone.trainable = True
for layer in norms:
    layer.trainable = False
statistics = [keras.ops.convert_to_numpy(each.moving_mean) for each in norms]
accuracy = fit(learning_rate=1e-3, epochs=8)
print(f"fine-tuned: {accuracy:.1%}")
kept = all(
    np.array_equal(before, keras.ops.convert_to_numpy(layer.moving_mean))
    for before, layer in zip(statistics, norms, strict=True)
)
print("statistics of batch normalisation unchanged:", kept)

# %%
figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
axes.bar(["head alone", "fine-tuned"], [accuracy_of_head, accuracy])
_ = axes.set(ylabel="share of test images right", ylim=(0, 1))

# %%
cosines = model.predict(x_test, batch_size=200, verbose=0)["logits"]
keras_pedcc.plot.margins(cosines, y_test)

# %% [markdown]
# With random weights these numbers only show that the steps work. They say nothing
# about what a pretrained backbone reaches.
