"""Devices and number formats, readied before anything runs on them."""

import contextlib

import keras

from image_experiment.data import BadInputError


def use_devices(args):
    """Readies devices, number formats and seeds; returns the scope to build in."""
    keras.utils.set_random_seed(args.seed)
    kind = args.mixed_precision
    keras.config.set_dtype_policy(f"mixed_{kind}" if kind else "float32")
    if args.logical_cpus:
        _split_cpu(args.logical_cpus)
    if keras.backend.backend() == "jax":
        parallel = args.strategy == "data_parallel"
        distribution = keras.distribution.DataParallel() if parallel else None
        keras.distribution.set_distribution(distribution)
    return _mirrored() if args.strategy == "mirrored" else contextlib.nullcontext()


def parts_of_batch():
    """Into how many parts of one size every batch is cut: by JAX's `DataParallel`."""
    distribution = None
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.device_mesh.devices.size


def number_of_replicas():
    """On how many devices a model trains that is built here."""
    if keras.backend.backend() != "tensorflow":
        return parts_of_batch()
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def check_batch(batch_size):
    """Raises unless batches of this size can be cut."""
    parts = parts_of_batch()
    if batch_size % parts:
        raise BadInputError(
            f"--batch-size must be a multiple of the number of devices, {parts}. "
            f"Received: {batch_size} images in a batch."
        )


def even_parts(args):
    """What the number of images in every scored batch must divide by.

    `DataParallel` cuts nothing else, and a replica of `MirroredStrategy` that gets
    none of the last batch fails in TensorFlow's batch normalisation.
    """
    return len(_mirrored_devices()) if args.strategy == "mirrored" else parts_of_batch()


def _mirrored():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(_mirrored_devices()).scope()


def _mirrored_devices():
    """Names of every GPU, or of every CPU where there is none."""
    import tensorflow as tf

    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [device.name for device in tf.config.list_logical_devices(kind)]


def _split_cpu(number):
    """Makes several devices of the one CPU."""
    try:
        if keras.backend.backend() == "jax":
            import jax

            jax.config.update("jax_num_cpu_devices", number)
        else:
            import tensorflow as tf

            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * number,
            )
    except RuntimeError as error:
        raise BadInputError(f"--logical-cpus {number}: {error}") from error
