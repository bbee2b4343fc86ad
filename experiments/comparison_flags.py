"""The command line of scripts that start runs with other flags; needs no Keras."""

import pathlib
import shlex

from cifar100 import CIFAR100
from emnist import EMNIST
from faces import FACES
from image_experiment.data import Source, load_digits
from image_experiment.experiment import Experiment

MNIST = Experiment(
    name="mnist",
    source=Source("MNIST", ("mnist.npz",), "mnist", (28, 28, 1), 10),
    stem=EMNIST.stem,
    blocks=EMNIST.blocks,
    dim=EMNIST.dim,
    pad=0,
    flip=False,
    notes="",
)
DIGITS = Experiment(
    name="digits",
    source=Source("Digits", (), "", (8, 8, 1), 10, loader=load_digits),
    stem=16,
    blocks=((1, 32), (1, 64)),
    dim=64,
    pad=0,
    flip=False,
    notes="",
)
EXPERIMENTS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "emnist47": EMNIST,
    "cifar100": CIFAR100,
    "faces": FACES,
}
OF_CLASSES = [name for name in EXPERIMENTS if name != "faces"]  # not of pairs
# The digits are small: the paper's 120 epochs would be 120 times too many, and in 240
# steps instead of 23,400 the plain softmax must fade as much faster.
DEFAULT_FLAGS = {
    "digits": "--epochs 12 --batch-size 64 --schedule cosine --finetune-epoch 8 "
    "--annealing-speed 100".split()
}
# Flags of the runs that folders follow.
FOLDERS = ("--data-dir", "--lfw", "--train", "--output-dir", "--branch-from")


def leave_out_repeats(args, *names):
    """A seed given twice would count twice, and two processes share its folder."""
    for name in names:
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))


def refuse_flag(parser, args, flag, instead):
    """Ends the program if a flag that differs from run to run is to go to all."""
    if any(word.partition("=")[0] == flag for word in args.flags):
        parser.error(f"{flag} cannot go to every run: {instead}")


def command_of(script, parser, args):
    """The command of a script: what is not a default, without folders of this machine.

    Args:
        script: Name of the script.
        parser: Its parser.
        args: What that has read; `args.flags` are those that go to every run.
    """
    words = ["python", f"experiments/{script}.py"]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if value == action.default or action.type is pathlib.Path:
            continue
        words += [action.option_strings[0]]
        words += value if isinstance(value, list) else [value]
    return shlex.join(map(str, [*words, *without_folders(args.flags)]))


def without_folders(flags):
    """Flags of the runs, with FOLDER in the place of each folder."""
    shown, folder_follows = [], False
    for word in flags:
        flag, equals, _ = word.partition("=")
        of_folder = flag in FOLDERS
        word = f"{flag}=FOLDER" if of_folder and equals else word
        shown.append("FOLDER" if folder_follows else word)
        folder_follows = of_folder and not equals
    return shown
