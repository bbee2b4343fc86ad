"""Classes that are cut over devices by `keras.distribution`, on JAX."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Shape, Tensor
from keras_pedcc.common.checks import check_whole


def class_parallel(
    replicas: int | None = None, *, devices: Iterable[str] | None = None
) -> keras.distribution.ModelParallel:
    """A distribution in which each device holds its share of the centroids.

    Device i of n holds rows `i * num_classes / n` up to `(i + 1) * num_classes / n` of
    the weight `centroids` of every `PEDCCDense` and `CosineDense`, and of what an
    optimizer keeps for them; all other weights it holds whole. It takes its share of
    the batch through the network; then the devices tell each other their features, and
    each compares all of them with its own classes. What they send is as large as the
    features, and maxima and sums of shape `(batch,)`; never cosines or centroids.

    With `replicas` they stand in so many rows instead. A row holds all classes, takes
    its share of the batch, and every device of it takes that whole share through the
    network: more work and memory, for less to send from row to row.

    It is short for a `keras.distribution.ModelParallel` with one entry in its layout
    map: `layout_map[".*centroids"] = ("batch", None)` on a mesh with the one axis
    "batch", or `("model", None)` on one with the axes "batch" and "model". Make that
    yourself where other weights are to be cut, too.

    Args:
        replicas: int, at least 1, a divisor of the number of devices; or `None`.
        devices: List of names as `keras.distribution.list_devices()` gives, or `None`
            for all of them, those of other processes included.

    Returns:
        `keras.distribution.ModelParallel`, for `keras.distribution.set_distribution`,
        before the model is made. The classes must divide by the number of devices of a
        row, and each batch by the number of rows; without rows both by n. A head whose
        classes are cut has no room for more: `capacity` is `num_classes`.

    Raises:
        RuntimeError: The backend is not JAX.
        TypeError: `replicas` is not a whole number.
        ValueError: `replicas` is below 1 or does not divide the number of devices.

    Example:

    >>> distribution = keras_pedcc.class_parallel()  # doctest: +SKIP
    >>> keras.distribution.set_distribution(distribution)  # doctest: +SKIP

    Reference: An et al., "Partial FC: Training 10 Million Identities on a Single
    Machine", 2021, for this placement of features and centroids.
    """
    check_whole(1, replicas=1 if replicas is None else replicas)
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            "`class_parallel` needs the JAX backend, the one on which Keras cuts "
            f"weights. Received: backend={keras.backend.backend()!r}. Set "
            "KERAS_BACKEND=jax."
        )
    devices = keras.distribution.list_devices() if devices is None else list(devices)
    if len(devices) % (replicas or 1):
        raise ValueError(
            "`replicas` must divide the number of devices. Received: replicas="
            f"{replicas}, with {len(devices)} devices. Pass a divisor, or fewer "
            "`devices`."
        )
    shape: Shape = (len(devices),)
    names: tuple[str, ...] = ("batch",)
    if replicas is not None:
        shape, names = (replicas, len(devices) // replicas), ("batch", "model")
    mesh = keras.distribution.DeviceMesh(shape, names, devices)
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[".*centroids"] = (names[-1], None)
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


def class_layout(path: str) -> "ClassLayout | None":
    """Returns the layout that the active distribution gives `path`.

    Returns:
        `ClassLayout`, or `None` without a distribution.
    """
    distribution = keras.distribution.distribution()
    # On other backends Keras cuts no weights.
    if distribution is None or keras.backend.backend() != "jax":
        return None
    layout = distribution.get_tensor_layout(path)
    axes = (None, None) if layout is None else layout.axes
    return ClassLayout(distribution.device_mesh, axes, distribution.batch_dim_name)


class ClassLayout:
    """How the rows of the centroids are cut over the devices of a mesh.

    Args:
        mesh: `keras.distribution.DeviceMesh`.
        axes: Name of the mesh axis over which the classes are cut, and of that for
            `dim`; `None` for an axis that is whole on every device.
        batch_axis: Name of the mesh axis over which the batch is cut.
    """

    def __init__(
        self,
        mesh: keras.distribution.DeviceMesh,
        axes: Sequence[str | None],
        batch_axis: str | None,
    ) -> None:
        self.mesh = mesh
        self.axes = tuple(axes)
        self.batch_axis = batch_axis
        at = self.axes[0]
        self.parts = 1 if at is None else mesh.shape[mesh.axis_names.index(at)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassLayout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"by {self.axes} of mesh {dict(zip(*self._key()[1:3], strict=True))}"

    def _key(self) -> tuple[Any, ...]:
        names, shape = tuple(self.mesh.axis_names), tuple(self.mesh.shape)
        devices = tuple(self.mesh.devices.flat)
        return self.axes, names, shape, devices, self.batch_axis

    def spread(
        self, tensor: Tensor, axes: Sequence[str | None] | None = None
    ) -> Tensor:
        """Cuts `tensor` over the devices; by default part i of it on part i of them."""
        if axes is None:
            axes = (self.axes[0], *[None] * (len(tensor.shape) - 1))
        layout = keras.distribution.TensorLayout(axes, self.mesh)
        return keras.distribution.distribute_tensor(tensor, layout)

    def for_all_classes(self, features: Tensor) -> Tensor:
        """Returns the features replicated on every device that holds classes.

        Batch and classes may be sharded along one mesh axis. Each device then needs
        the features of all samples. XLA would transfer the centroids instead.
        """
        if self.axes[0] is None or self.axes[0] != self.batch_axis:
            return features
        return self.spread(features, [None] * len(features.shape))

    def whole(self, variable: keras.Variable | Tensor) -> Tensor:
        """The value of a variable, in a form that can be read in every process.

        Those that hold a part of it must all call this.
        """
        value = ops.convert_to_tensor(variable)
        if getattr(value, "is_fully_addressable", True):
            return value
        return self.spread(value, [None] * len(value.shape))

    def on_parts(
        self,
        function: Callable[..., Any],
        classes: Sequence[Tensor],
        *index: Tensor,
    ) -> Any:
        """`function(part, *index)` on each device with its part of the classes.

        Args:
            function: Of a tuple of tensors, first axis `num_classes / parts`, and class
                indices that count from the first of these rows; returns tensors.
            classes: The centroids, and what else has `num_classes` as first axis.
            *index: Tensor of class indices, or nothing.

        Returns:
            What `function` does, with the parts as a first axis.
        """
        number = classes[0].shape[0]
        size = number // self.parts
        # The first axis alone is cut: what loops over the second stays on its device.
        cut = tuple(
            self.spread(ops.reshape(each, (self.parts, size, *each.shape[1:])))
            for each in classes
        )
        first = ops.arange(0, number, size, dtype="int32")
        return ops.vectorized_map(
            lambda part: function(part[0], *(at - part[1] for at in index)),
            (cut, first),
        )


def check_divisible(num_classes: int, layout: ClassLayout | None) -> None:
    """Raises unless every device gets equally many classes."""
    if layout is not None and num_classes % layout.parts:
        most = -(-num_classes // layout.parts) * layout.parts
        raise ValueError(
            "`num_classes` must be divisible by the number of devices that the "
            f"classes are cut over. Received: num_classes={num_classes}, with "
            f"{layout.parts} devices along the mesh axis {layout.axes[0]!r}. Pass "
            f"num_classes={most}, of which the last have no samples, or take a mesh "
            "that divides it."
        )


def refuse_room(num_classes: int, capacity: int, layout: ClassLayout | None) -> None:
    """Raises if classes are cut over devices while not all of them are in use."""
    if layout is not None and layout.parts > 1 and num_classes < capacity:
        raise ValueError(
            "A head whose classes are cut over devices must have all of them in use: "
            "some devices would have none, and centroids would have to travel. "
            f"Received: num_classes={num_classes}, capacity={capacity}, with "
            f"{layout.parts} devices along the mesh axis {layout.axes[0]!r}. Pass "
            f"num_classes={capacity}, of which the last have no samples yet, or a "
            "distribution that cuts the batch alone."
        )


def check_layout(layer: keras.layers.Layer, built: ClassLayout | None) -> None:
    """Raises if another distribution was set since the centroids were made.

    Args:
        layer: The head.
        built: `ClassLayout` in which its weight was made, or `None`.
    """
    now = class_layout(f"{layer.path}/centroids")
    if now is not None and now != built:
        raise ValueError(
            "A distribution must be set before the model is built, which places its "
            f"weights. Received: layer {layer.name!r} with centroids placed "
            f"{built or 'on one device'}, under a distribution that places them "
            f"{now}. Call keras.distribution.set_distribution first, then make or load "
            "the model."
        )
