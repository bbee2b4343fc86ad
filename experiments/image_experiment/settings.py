"""Every setting of an image experiment: the paper's values are the defaults."""

import argparse
import os
import pathlib

from image_experiment.data import BadInputError

# Of a whole number or factor: what a seed can be.
LARGEST = 2**32 - 1
MOST_PADDING = 1000
# Of `losses.py`, which needs Keras.
LOSSES = (
    "pedcc",
    "pedcc_am",
    "am_softmax",
    "arcface",
    "a_softmax",
    "l_softmax",
    "center",
    "cross_entropy",
    "hinge",
)
# What a run may change without becoming another run.
NOT_OF_THE_RUN = (
    "output_dir",
    "data_dir",
    "lfw",
    "train",
    "resume",
    "branch_from",
    "verbose",
    "workers",
    "figures",
    "score",
)


def parse(experiment, argv, description=""):
    """Settings from the command line; wrong ones raise `BadInputError`."""
    args = make_parser(experiment, description).parse_args(argv)
    if args.finetune_epoch is None:
        args.finetune_epoch = default_finetune_epoch(args.epochs)
    _check(experiment, args)
    return args


def default_finetune_epoch(epochs):
    """The paper's 70 of 120, for any number of epochs."""
    return epochs * 7 // 12


def make_parser(experiment, description=""):
    """The parser of one run, which needs no Keras."""
    parser = argparse.ArgumentParser(
        description=f"{description} {experiment.notes}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,  # a script that passes flags on looks for whole ones
    )
    for add_group in (_add_data, _add_recipe, _add_loss, _add_run, _add_hardware):
        add_group(parser, experiment)
    return parser


def of_the_run(args):
    """The settings that make a run what it is, ready for JSON."""
    return {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in vars(args).items()
        if name not in NOT_OF_THE_RUN
    }


def flags_of(experiment, chosen):
    """The flags that lead to these settings, where they differ from the defaults.

    Args:
        experiment: `Experiment`.
        chosen: Dict of settings, as `of_the_run` returns.

    Returns:
        List of strings; `parse` makes the same settings of them.
    """
    parser, flags = make_parser(experiment), []
    defaults = {name: parser.get_default(name) for name in chosen}
    defaults["finetune_epoch"] = default_finetune_epoch(chosen["epochs"])
    actions = {action.dest: action for action in parser._actions}
    for name, value in chosen.items():
        if value == defaults[name]:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            negative = f"--no-{flag[2:]}" in actions[name].option_strings
            flags.append(flag if value or not negative else f"--no-{flag[2:]}")
        else:
            values = value if isinstance(value, list) else [value]
            flags += [flag, *map(str, values)]
    return flags


def _add_data(parser, experiment):
    add = parser.add_argument_group("data").add_argument
    experiment.add_data_flags(add)
    add("--pad", type=int, default=experiment.pad, help="black pixels for the crop")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=experiment.flip,
        help="mirror half of the images",
    )


def _add_recipe(parser, experiment):
    add = parser.add_argument_group("recipe").add_argument
    add("--epochs", type=int, default=120, help="of --passes each")
    add(
        "--passes",
        type=int,
        default=1,
        help="how often each image comes in an epoch; more than 1 saves time where "
        "there are few images",
    )
    add(
        "--batch-size",
        type=int,
        default=experiment.batch_size,
        help="images per step, all devices",
    )
    add("--learning-rate", type=float, default=0.1, help="of SGD with momentum 0.9")
    add(
        "--schedule",
        choices=("step", "cosine"),
        default="step",
        help="how the learning rate falls, at the start of epochs",
    )
    add(
        "--decay-epochs",
        type=int,
        nargs="*",
        default=[25, 50, 80, 100],
        help="epochs with a tenth of the rate before, of --schedule step; the paper "
        "names none, its authors' demo these",
    )
    add(
        "--weight-decay",
        type=float,
        default=5e-4,
        help="as a penalty on the kernels, which passes through the momentum as in "
        "PyTorch's SGD; the paper does not say which kind",
    )
    add("--width", type=float, default=1.0, help="factor on every number of filters")
    add("--dim", type=int, default=experiment.dim, help="length of the features")
    add(
        "--feature-norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="batch normalisation without scale and shift on the features, in the "
        "place of a bias: the authors' demo has it, the paper does not say",
    )
    add("--label-smoothing", type=float, default=0.0, help="not in the paper")
    add("--mixup", type=float, default=0.0, help="beta parameter; not in the paper")


def _add_loss(parser, experiment):
    add = parser.add_argument_group("loss").add_argument
    add("--loss", choices=LOSSES, default="pedcc", help="the objective")
    add("--scale", type=float, default=15.0, help="s of eq. 8")
    add(
        "--margin",
        type=float,
        default=0.5,
        help="m of eq. 8, in units of cosine; that of ArcFace, in radians",
    )
    add("--mse-weight", type=float, default=10.0, help="lambda of eq. 10")
    add("--mse-root", type=int, default=1, help="n of eq. 10; the paper: 1, 2, 3")
    add("--multiple", type=int, default=4, help="m of L- and A-Softmax: 1 to 8")
    add(
        "--annealing-speed",
        type=float,
        default=1.0,
        help="how many times faster than published the plain softmax fades out of L- "
        "and A-Softmax; published for tens of thousands of steps",
    )
    add(
        "--center-weight",
        type=float,
        default=0.003,
        help="lambda of center loss; the paper does not say which it took",
    )
    add("--center-rate", type=float, default=0.5, help="alpha of center loss")
    add(
        "--centroids",
        choices=("pedcc", "trained", "random"),
        default="pedcc",
        help="pedcc: frozen until --finetune-epoch; trained: from there, but with the "
        "network from the first step; random: the same from random directions. Only "
        "the first is the paper's",
    )
    add(
        "--anchor",
        type=float,
        default=0.0,
        help="a of the penalty a / 2 sum |c - c_0|^2 on centroids that are trained; "
        "not in the paper",
    )
    add(
        "--keep-mean",
        action=argparse.BooleanOptionalAction,
        help="whether the mean of the centroids stays where it is while they are "
        "trained; if left out, with --centroids trained and random. Not in the paper",
    )
    add("--centroid-seed", type=int, default=0, help="draws the centroids")
    add(
        "--finetune-epoch",
        type=int,
        help="the centroids are trained too, from the start of this epoch; if left "
        "out after 7 of 12 parts of the epochs, as the paper's 70 of 120",
    )
    add("--finetune-rate", type=float, default=1e-3, help="their learning rate")
    add(
        "--fixed",
        action="store_true",
        help="the centroids are never trained (the rows of the tables that are not "
        '"fine-tuned"); the state at --finetune-epoch is kept for --branch-from',
    )


def _add_run(parser, experiment):
    add = parser.add_argument_group("run").add_argument
    add(
        "--output-dir",
        type=pathlib.Path,
        default=pathlib.Path("runs") / experiment.name,
        help="for everything that is written; one run, one folder",
    )
    add("--seed", type=int, default=0, help="of weights, order and augmentation")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add(
        "--branch-from",
        type=pathlib.Path,
        metavar="FOLDER",
        help="start from the state that the same run with --fixed, in FOLDER, had at "
        "--finetune-epoch",
    )
    add(
        "--score",
        choices=("each", "last"),
        default="each",
        help="whether each epoch is scored, or the last alone",
    )
    add(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw them at the end",
    )
    add("--verbose", type=int, default=1, help="Keras: 0 silent, 1 bars, 2 lines")


def _add_hardware(parser, experiment):
    add = parser.add_argument_group("hardware").add_argument
    add(
        "--strategy",
        choices=("none", "mirrored", "data_parallel"),
        default="none",
        help="use every device: mirrored is TensorFlow's, data_parallel is JAX's",
    )
    add("--logical-cpus", type=int, help="split the CPU into so many devices")
    add(
        "--mixed-precision",
        nargs="?",
        const="bfloat16",
        choices=("bfloat16", "float16"),
        help="of the network; head and loss stay in float32. Alone: bfloat16",
    )
    add(
        "--jit",
        action=argparse.BooleanOptionalAction,
        help="compile with XLA; Keras decides if left out. On a CPU TensorFlow is "
        "often faster with --no-jit; JAX compiles nothing then, and crawls",
    )
    add("--workers", type=int, default=1, help="threads that make batches ahead")


def _check(experiment, args):
    import keras  # after the parser, so that `--help` is quick

    _check_ranges(args, experiment.lowest())
    backend = keras.backend.backend()
    needed = {"mirrored": "tensorflow", "data_parallel": "jax"}.get(args.strategy)
    if needed not in (None, backend):
        raise BadInputError(
            f"--strategy {args.strategy} needs KERAS_BACKEND={needed}; Keras runs on "
            f"{backend}."
        )
    if args.logical_cpus is not None:
        most = max(2, os.cpu_count() or 1)
        if backend == "torch" or not 1 <= args.logical_cpus <= most:
            raise BadInputError(
                f"--logical-cpus must lie between 1 and {most} here, on TensorFlow or "
                f"JAX. Received: {args.logical_cpus}, on {backend}."
            )
    if args.branch_from and (args.fixed or args.resume):
        raise BadInputError(
            "--branch-from starts a run that trains the centroids: leave out --fixed "
            "and --resume."
        )
    if args.fixed and args.centroids != "pedcc":
        raise BadInputError(
            f"--fixed contradicts --centroids {args.centroids}, which are trained from "
            "the first step: leave one out."
        )
    for name in ("keep_mean", "anchor"):
        if getattr(args, name) and args.fixed:
            raise BadInputError(
                f"--{name.replace('_', '-')} is for centroids that are trained: leave "
                "out --fixed."
            )


def _check_ranges(args, lowest_of_data):
    lowest = {
        **lowest_of_data,
        "epochs": 1, "passes": 1, "batch_size": 1, "dim": 2, "mse_root": 1,
        "workers": 1,
        "pad": 0, "seed": 0, "centroid_seed": 0, "finetune_epoch": 0,
        "weight_decay": 0, "label_smoothing": 0, "mixup": 0, "margin": 0,
        "mse_weight": 0, "multiple": 1, "center_weight": 0, "anchor": 0,
    }  # fmt: skip
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise _out_of_range(args, name, f"at least {low}")
        if value is not None and value > LARGEST:
            raise _out_of_range(args, name, f"at most {LARGEST}")
    for name in (
        "learning_rate", "width", "scale", "finetune_rate", "center_rate",
        "annealing_speed",
    ):  # fmt: skip
        if not 0 < getattr(args, name) < float("inf"):
            raise _out_of_range(args, name, "above 0")
    if args.pad > MOST_PADDING:
        raise _out_of_range(args, "pad", f"at most {MOST_PADDING}")
    if min(args.decay_epochs, default=0) < 0:
        raise _out_of_range(args, "decay_epochs", "at least 0")
    for name in ("label_smoothing", "dropout"):
        if not getattr(args, name, 0) < 1:
            raise _out_of_range(args, name, "below 1")


def _out_of_range(args, name, rule):
    flag = "--" + name.replace("_", "-")
    return BadInputError(f"{flag} must be {rule}. Received: {getattr(args, name)}.")
