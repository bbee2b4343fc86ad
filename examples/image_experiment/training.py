"""One run, from the command line to the files it leaves."""

import contextlib
import json
import math
import shutil
import sys

import keras

import keras_pedcc
from image_experiment import reporting, settings
from image_experiment.batches import FollowEpoch, TrainingBatches
from image_experiment.data import BadInputError
from image_experiment.losses import (
    LOSSES,
    ON_COSINES,
    ON_PLAIN_LOGITS,
    WITH_PEDCC,
    make_optimizer,
)

BRANCH = "branch.npz"


def run(experiment, argv=None, description=""):
    """Trains as the command line says; returns the exit code.

    That is 0, 1 if the loss became NaN, or 2 for what the user can put right.
    """
    try:
        result = train(experiment, settings.parse(experiment, argv, description))
    except BadInputError as error:
        print(f"{experiment.name}: error: {error}", file=sys.stderr)
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
    if not open_folder(args, images):
        print(f"The run in {args.output_dir} is finished: nothing to do.")
        return read_json(args.output_dir / "result.json")
    reporting.print_start(experiment, args, images, model)
    fit(experiment, model, args, images, watch(args, images) if watch else [])
    model.save(args.output_dir / "model.keras")
    predicted = experiment.predict(args, images, model)
    result = reporting.write_result(experiment, args, images, model, predicted)
    drawn = {}
    if args.figures and not result["diverged"]:
        drawn = experiment.draw(args, images, model, predicted)
    reporting.print_end(experiment, args, result, drawn)
    return result


def use_devices(args):
    """Readies the devices and number formats; returns the scope to build in."""
    backend = keras.backend.backend()
    keras.utils.set_random_seed(args.seed)
    kind = args.mixed_precision
    keras.config.set_dtype_policy(f"mixed_{kind}" if kind else "float32")
    if args.logical_cpus:
        split_cpu(args.logical_cpus)
    if backend == "jax":
        parallel = args.strategy == "data_parallel"
        distribution = keras.distribution.DataParallel() if parallel else None
        keras.distribution.set_distribution(distribution)
        if parallel and args.batch_size % distribution.device_mesh.devices.size:
            raise BadInputError(
                "--batch-size must be a multiple of the number of devices, "
                f"{distribution.device_mesh.devices.size}. Received: {args.batch_size}."
            )
    if args.strategy != "mirrored":
        return contextlib.nullcontext()
    import tensorflow as tf

    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    return tf.distribute.MirroredStrategy(names).scope()


def split_cpu(number):
    """Makes several devices of the one CPU, before anything runs on it."""
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
    if kept.exists():
        if not args.resume:
            raise BadInputError(
                f"{folder} holds a run already. Pass --resume to go on with it, or "
                "another --output-dir."
            )
        refuse_changes(read_json(kept), this, f"the run in {folder}")
        return not (folder / "result.json").exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if args.branch_from:
            start_branch(args, this)
        reporting.write_whole(kept, json.dumps(this, indent=1))
    except OSError as error:
        raise BadInputError(
            f"--output-dir {folder} cannot be written ({error.strerror})."
        ) from error
    return True


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read ({error}).") from error


def refuse_changes(then, now, what):
    """Raises a `BadInputError` that names each setting with another value."""
    changed = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise BadInputError(f"{what} had other settings: {'; '.join(changed)}.")


def start_branch(args, this):
    """Takes over state and history that another run had at `--finetune-epoch`."""
    source = args.branch_from
    if not (source / BRANCH).is_file():
        raise BadInputError(
            f"{source} has no {BRANCH}: there must be a run with --fixed that reached "
            f"epoch {args.finetune_epoch}."
        )
    then = read_json(source / "settings.json")
    refuse_changes(then | {"fixed": False}, this, f"the run in {source}")
    shutil.copy(source / "history.csv", args.output_dir / "history.csv")
    shutil.copy(source / BRANCH, args.output_dir / "backup.npz")


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
    metrics = {"logits": ["accuracy"]}
    if args.loss in ON_COSINES:
        metrics["logits"] += [
            keras.metrics.MeanMetricWrapper(
                keras_pedcc.losses.am_softmax_loss,
                "am_softmax",
                scale=args.scale,
                margin=args.margin,
            ),
            keras.metrics.MeanMetricWrapper(
                keras_pedcc.losses.centroid_distance, "centroid_distance"
            ),
        ]
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
    scored, scoring = None, []
    if args.score == "each":
        scored, scoring = experiment.each_epoch(args, images)
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
    if args.loss in WITH_PEDCC and args.centroids == "pedcc":
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
        if epoch == self.epoch:
            unfinished = self.folder / f"{BRANCH}.unfinished"
            shutil.copy(self.folder / "backup.npz", unfinished)
            unfinished.replace(self.folder / BRANCH)
