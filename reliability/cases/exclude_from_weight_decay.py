"""What is excluded from weight decay through a `FinetuneOptimizer` does not decay."""

import keras
import numpy as np
from keras import ops

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def check():
    def adamw():
        return keras.optimizers.AdamW(0.01, weight_decay=0.5)

    inputs = keras.Input((3,))
    dense = keras.layers.Dense(4)
    head = keras_pedcc.PEDCCDense(3, trainable=True)
    model = keras_pedcc.PEDCCModel(inputs, head(dense(inputs)))
    optimizer = keras_pedcc.FinetuneOptimizer(adamw(), adamw())
    optimizer.exclude_from_weight_decay(var_names=["kernel", "centroids"])
    model.compile(optimizer, keras_pedcc.PEDCCLoss())
    before = [np.array(ops.convert_to_numpy(v)) for v in (dense.kernel, head.centroids)]
    images, labels = np.ones((6, 3), "float32"), np.arange(6) % 3
    # Weights of 0: decay alone could move anything.
    model.fit(images, labels, sample_weight=np.zeros(6), verbose=0)
    for variable, start in zip((dense.kernel, head.centroids), before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), start)
