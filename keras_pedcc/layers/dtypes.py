"""The dtypes of heads."""

import keras


def check_float(dtype: str) -> None:
    """Raises unless weights of this dtype can hold centroids."""
    if "float" not in dtype:
        raise ValueError(
            f"`dtype` must be a float dtype. Received: dtype={dtype!r}. Pass "
            '"bfloat16", or leave it out.'
        )


def float_dtype(layer: keras.layers.Layer) -> str:
    """The dtype a head computes in: float64 if its policy does, else float32."""
    double = keras.backend.standardize_dtype(layer.compute_dtype) == "float64"
    return "float64" if double else "float32"
