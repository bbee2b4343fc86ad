"""What comparisons of losses share, without Keras: it would take hold of the GPU."""

import os
import statistics

TRAINED = ["--mse-root", "1", "--centroids", "trained"]
# The flags of each row.
LOSSES = {
    "hinge": ["--loss", "hinge"],
    "cross_entropy": ["--loss", "cross_entropy"],
    "l_softmax_m2": ["--loss", "l_softmax", "--multiple", "2"],
    "l_softmax_m4": ["--loss", "l_softmax", "--multiple", "4"],
    "a_softmax_m4": ["--loss", "a_softmax", "--multiple", "4"],
    "center": ["--loss", "center"],
    "am_softmax": ["--loss", "am_softmax"],
    "arcface": ["--loss", "arcface"],
    "pedcc_am": ["--loss", "pedcc_am", "--fixed"],
    "pedcc_n1": ["--mse-root", "1", "--fixed"],
    "pedcc_n1_tuned": ["--mse-root", "1"],
    "pedcc_n1_trained": TRAINED,
    "pedcc_recipe": [*TRAINED, "--margin", "0.2", "--mse-weight", "3"],
    "pedcc_n2": ["--mse-root", "2", "--fixed"],
    "pedcc_n2_tuned": ["--mse-root", "2"],
    "pedcc_n3": ["--mse-root", "3", "--fixed"],
    "pedcc_n3_tuned": ["--mse-root", "3"],
}
# Without these, JAX and TensorFlow take nearly all memory of a GPU at the start, and
# the next process on it has none.
SHARED_GPU = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


def share_gpu(environment=os.environ):
    """Has a process leave memory of the GPU to others, unless told otherwise."""
    for name, value in SHARED_GPU.items():
        environment.setdefault(name, value)


def best_rate(results):
    """The learning rate of highest mean accuracy; one that diverged only if all did.

    Args:
        results: For each learning rate, what is in `result.json` of its runs.
    """

    def merit(rate):
        finite = not any(result["diverged"] for result in results[rate])
        return finite, statistics.mean(result["accuracy"] for result in results[rate])

    return max(results, key=merit)
