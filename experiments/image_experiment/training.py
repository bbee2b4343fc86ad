"""One run, from the command line to the files it leaves."""

import json
import math
import shutil
import sys
import warnings

import keras

import keras_pedcc
from image_experiment import reporting, settings
from image_experiment.batches import FollowEpoch, TrainingBatches
from image_experiment.data import BadInputError, read_arrays
from image_experiment.devices import check_batch, number_of_replicas, use_devices
from image_experiment.losses import (
    LOSSES,
    ON_COSINES,
    ON_PLAIN_LOGITS,
    make_optimizer,
    may_fine_tune,
)
from keras_pedcc.common.atomic import write_file

BRANCH = "branch.npz"
BEGUN = "settings.json.unfinished"
OF_BRANCH = ("backup.npz", "history.csv")  # what a branch takes over


def run(experiment, argv=None, description=""):
    """Trains as the command line says; returns the exit code.

    That is 0, 1 if the loss became NaN, or 2 for what the user can put right.
    """
    try:
        result = train(experiment, settings.parse(experiment, argv, description))
    except BadInputError as error:
        print(f"{experiment.name}: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{experiment.name}: error: out of memory ({error})", file=sys.stderr)
        return 2
    return int(result["diverged"])


def train(experiment, args, watch=None):
    """Trains, or goes on, and leaves everything in the folder of the run.

    Args:
        experiment: `Experiment`.
        args: Settings, as `settings.parse` returns.
        watch: Function of settings and images that returns a list of callbacks,
            which see the training beside those of the recipe.

    Returns:
        What is in `result.json`.

    Raises:
        BadInputError: What the user can put right.
    """
    scope = use_devices(args)
    images = experiment.load(args)
    with scope:
        model = make_model(experiment, args, images)
        replicas = number_of_replicas()
    if not open_folder(args, images):
        print(f"The run in {args.output_dir} is finished: nothing to do.")
        return read_json(args.output_dir / "result.json")
    reporting.print_start(experiment, args, images, model)
    fit(experiment, model, args, images, watch(args, images) if watch else [])
    unfinished = args.output_dir / "unfinished.keras"
    model.save(unfinished)
    unfinished.replace(args.output_dir / "model.keras")
    predicted = experiment.predict(args, images, model)
    result = reporting.write_result(
        experiment, args, images, model, predicted, replicas
    )
    drawn = {}
    if args.figures and not result["diverged"]:
        drawn = experiment.draw(args, images, model, predicted)
    reporting.print_end(experiment, args, result, drawn)
    return result


def open_folder(args, images):
    """Makes the folder of the run, or goes on in it; False if it is finished.

    Refuses to write over another run.
    """
    this = {
        **settings.of_the_run(args),
        "backend": keras.backend.backend(),
        "data": f"{images.origin} {images.fingerprint()}",
    }
    folder, kept = args.output_dir, args.output_dir / "settings.json"
    refuse_remains(folder, kept)
    if kept.exists():
        return goes_on(args, this)
    if args.resume:
        print(f"{folder} holds no run yet: a new one begins.")
    if args.branch_from:
        check_branch(args, this)
    try:
        begin(args, this)
    except OSError as error:
        raise BadInputError(
            f"--output-dir {folder} cannot be written ({error.strerror})."
        ) from error
    return True


def goes_on(args, this):
    """Whether there is something left to do of the run in the folder; checks it."""
    folder = args.output_dir
    if not args.resume:
        raise BadInputError(
            f"{folder} holds a run already. Pass --resume to go on with it, or "
            "another --output-dir."
        )
    then = read_json(folder / "settings.json")
    refuse_changes(then, this, f"the run in {folder}")
    if (folder / "backup.npz").exists():
        read_arrays(folder / "backup.npz", ("state",))  # or tells what is wrong
    return not (folder / "result.json").exists()


def begin(args, this):
    """Makes the folder of a run; it is one from the rename on, which is the last step.

    A start that was killed before leaves `BEGUN`, by which the next one knows that
    what else is there is of no run.
    """
    folder = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / BEGUN).exists():
        for name in OF_BRANCH:
            (folder / name).unlink(missing_ok=True)
    (folder / BEGUN).write_text(json.dumps(this, indent=1) + "\n")
    if args.branch_from:
        start_branch(args)
    (folder / BEGUN).replace(folder / "settings.json")


def refuse_remains(folder, kept):
    """Raises where files of a run lie without its settings: whose are they?"""
    names = ["result.json", "model.keras", BRANCH]
    if not (folder / BEGUN).exists():
        names += OF_BRANCH
    there = [name for name in names if (folder / name).exists()]
    if there and not kept.exists():
        raise BadInputError(
            f"{folder} holds {', '.join(there)}, and no settings.json that says of "
            "which run. Delete them, or pass another --output-dir."
        )


def read_json(path):
    """The dict in a JSON file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{path} cannot be read (it holds no dict).")
    return found


def refuse_changes(then, now, what):
    """Raises a `BadInputError` that names each setting with another value."""
    changed = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise BadInputError(
            f"{what} had other settings: {'; '.join(changed)}. Pass what it had, or "
            "another --output-dir."
        )


def check_branch(args, this):
    """Raises unless the other run has the state that this one starts from."""
    source = args.branch_from
    for name in (BRANCH, "history.csv", "settings.json"):
        if not (source / name).is_file():
            raise BadInputError(
                f"{source} has no {name}: there must be a run with --fixed that "
                f"reached epoch {args.finetune_epoch}."
            )
    then = read_json(source / "settings.json")
    refuse_changes(then | {"fixed": False}, this, f"the run in {source}")


def start_branch(args):
    """Takes over state and history that another run had at `--finetune-epoch`."""
    source, folder = args.branch_from, args.output_dir
    rows = reporting.read_history(source / "history.csv")[: args.finetune_epoch]
    # How fast the other run was says nothing about this one.
    unknown = dict.fromkeys(reporting.SPEEDS, math.nan)
    if rows:
        reporting.write_history(
            folder / "history.csv", [{**row, **unknown} for row in rows]
        )
    shutil.copy(source / BRANCH, folder / "backup.npz")


def make_model(experiment, args, images):
    """The network with head and loss, compiled."""
    inputs, features = experiment.network(args, images)
    try:
        outputs, loss = LOSSES[args.loss](features, images.num_classes, args)
    except ValueError as error:  # a constant out of the range of its loss
        raise BadInputError(str(error)) from error
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    model.compile(
        make_optimizer(args),
        loss,
        metrics=make_metrics(args, images.num_classes),
        jit_compile="auto" if args.jit is None else args.jit,
    )
    return model


def make_metrics(args, num_classes):
    """Accuracy; where they are defined, the parts of eq. 10 and the spread."""
    wrapped, losses = keras.metrics.MeanMetricWrapper, keras_pedcc.losses
    metrics = {"logits": ["accuracy"]}
    if args.loss in ON_COSINES:
        distance = wrapped(losses.centroid_distance, "centroid_distance")
        metrics["logits"].append(distance)
    if args.loss in ON_COSINES and args.loss != "arcface":  # its margin is an angle
        constants = {"scale": args.scale, "margin": args.margin}
        metrics["logits"].append(
            wrapped(losses.am_softmax_loss, "am_softmax", **constants)
        )
    if args.loss not in ON_PLAIN_LOGITS:
        spread = keras_pedcc.IntraClassDistance(num_classes, args.dim)
        metrics["features"] = [spread]
    return metrics


def fit(experiment, model, args, images, callbacks=()):
    """Trains for `args.epochs` epochs, or what is left of them.

    `callbacks` join those of the recipe.
    """
    batches = TrainingBatches(
        images.x_train,
        images.y_train,
        args.batch_size,
        seed=args.seed,
        size=images.crop,
        pad=args.pad,
        flip=args.flip,
        num_classes=images.num_classes,
        label_smoothing=args.label_smoothing,
        mixup=args.mixup,
        passes=args.passes,
        workers=args.workers,
    )
    check_batch(batches.batch_size)
    scored, scoring = None, []
    if args.score == "each":
        scored, scoring = experiment.each_epoch(args, images)
    with warnings.catch_warnings():
        # The script tells so itself, and gives it another exit code.
        warnings.filterwarnings("ignore", "The loss should be a number")
        model.fit(
            batches,
            epochs=args.epochs,
            validation_data=scored,
            validation_batch_size=args.batch_size,
            callbacks=[*scoring, *make_callbacks(args, batches), *callbacks],
            verbose=args.verbose,
            shuffle=False,
        )


def make_callbacks(args, batches):
    callbacks = [
        keras_pedcc.AtomicBackup(args.output_dir, delete_checkpoint=False),
        KeepBranch(args),
        FollowEpoch(batches),
        keras.callbacks.LearningRateScheduler(lambda epoch: rate_of(epoch, args)),
        reporting.History(args.output_dir / "history.csv", batches),
        keras.callbacks.TerminateOnNaN(),
    ]
    if may_fine_tune(args):
        # A run that never unfreezes has it too: its backups then fit one that does.
        epoch = None if args.fixed else args.finetune_epoch
        callbacks.append(keras_pedcc.FinetuneCallback(epoch, args.finetune_rate))
    return callbacks


def rate_of(epoch, args):
    """Learning rate of an epoch, counted from 0."""
    if args.schedule == "cosine":
        return args.learning_rate * (1 + math.cos(math.pi * epoch / args.epochs)) / 2
    return args.learning_rate * 0.1 ** sum(epoch >= e for e in args.decay_epochs)


class KeepBranch(keras.callbacks.Callback):
    """Keeps the backup of the start of `--finetune-epoch`, in a run with --fixed."""

    def __init__(self, args):
        super().__init__()
        self.folder = args.output_dir
        self.epoch = args.finetune_epoch if args.fixed else None

    def on_epoch_begin(self, epoch, logs=None):
        self.due = epoch == self.epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.due:  # `AtomicBackup`, before it in the list, has just written
            backup = (self.folder / "backup.npz").read_bytes()
            write_file(self.folder / BRANCH, lambda file: file.write(backup))
            self.due = False
