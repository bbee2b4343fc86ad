"""Versions and hardware, as recorded beside every result."""

import os
import pathlib
import platform

import keras
import numpy as np

import keras_pedcc


def environment():
    """Versions and hardware."""
    backend = keras.backend.backend()
    versions = {"keras": keras, "keras_pedcc": keras_pedcc, "numpy": np}
    versions[backend] = __import__(backend)
    return {
        "backend": backend,
        **{name: module.__version__ for name, module in versions.items()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": device_names(backend),
    }


def cpu_name():
    """Model of the processor, as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def device_names(backend):
    """What the backend computes on: each GPU by its name, or `["CPU"]`."""
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    if backend == "torch":
        import torch

        gpus = range(torch.cuda.device_count())
        return [torch.cuda.get_device_name(i) for i in gpus] or ["cpu"]
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    names = [details(gpu).get("device_name", "gpu") for gpu in gpus]
    return names or ["cpu"] * len(tf.config.list_logical_devices("CPU"))
