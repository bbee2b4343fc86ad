"""Novelty: the old network's classes against those that it does not know."""

import numpy as np

from upgrade_study import training
from upgrade_study.heads import OLD, scale_of, unit

NEIGHBORS = 10
FALSE_ALARMS = 0.05
SCORES = ("largest logit", "energy", "largest probability", "length", "neighbours")


def maker(name, args):
    """Function of task and seed that makes the run of one old network."""

    def make(task, seed):
        old = training.train_old(task, name, seed, args)
        return {
            "backends": [str(old["backend"])],
            "accuracy": accuracy(task, old),
            "scores": reports(task, name, old),
        }

    return make


def reports(task, name, old):
    """A `keras_pedcc.novelty_report` for each score.

    The threshold comes from training images of known classes that the network has not
    seen, and the test images are judged by it.
    """
    import keras_pedcc

    held = task.y[task.probes(False)] < task.num_known
    known = task.y_test < task.num_known
    found = {}
    for score in SCORES:
        on_test = scores_of(task, name, old, "test", score)
        on_held = scores_of(task, name, old, "held", score)[held]
        threshold = keras_pedcc.novelty_threshold(
            on_held, false_alarm_rate=FALSE_ALARMS
        )
        found[score] = keras_pedcc.novelty_report(
            on_test[known], on_test[~known], threshold=threshold
        )
    return found


def scores_of(task, name, old, part, score):
    """One number for each image of a part, larger for images that look known."""
    import keras_pedcc

    features, logits = old[f"{part}_features"], old[f"{part}_logits"]
    scale = scale_of(OLD[name], logits.shape[1])
    # A row that is reserved for a class without images is a score against all others.
    known = logits[:, : task.num_known]
    if score == "largest logit":
        return keras_pedcc.cosine_score(known)
    if score == "energy":
        return keras_pedcc.energy_score(known, scale=scale)
    if score == "largest probability":  # its logarithm, which does not round to 0
        total = keras_pedcc.energy_score(logits, scale=scale)
        return scale * (keras_pedcc.cosine_score(known) - total)
    if score == "length":
        return keras_pedcc.length_score(features)
    seen = task.y[task.probes(True)] < task.num_known
    gallery = unit(old["seen_features"])[seen]
    return keras_pedcc.neighbor_score(unit(features), gallery, k=NEIGHBORS)


def accuracy(task, old):
    """Accuracy in percent of the old network on the test images of its classes."""
    known = task.y_test < task.num_known
    guessed = old["test_logits"][known][:, : task.num_known].argmax(axis=1)
    return 100 * float(np.mean(guessed == task.y_test[known]))
