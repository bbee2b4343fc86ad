"""Tables 1 and 2 of the paper for PEDCC-Loss, at full size, in one command.

    python experiments/paper_tables.py --data-dir FOLDER --jobs 4

Runs every row of both tables, several at once: PEDCC-Loss with n = 1, 2 and 3, each
with fixed centroids and fine-tuned, cross entropy, AM-Softmax, ArcFace, center loss,
A-Softmax with m = 4, L-Softmax with m = 4 and 2, and hinge. Those that train the
centroids late branch from the run with fixed centroids, whose first 70 epochs they
share. May be stopped at any time (or by `--minutes`) and goes on where it was. The
`result.json` of each finished run is copied to `experiments/results/images/`; then
`python experiments/results_table.py --write` puts them into the site.

Two rows are not the paper's. `pedcc_recipe` trains the centroids with the network,
margin 0.2, lambda 3 (`docs/guides/finetune.md`). `modern_n1_fixed` has cosine decay,
label smoothing and longer training on the same network, to be chosen with `--held-out
5000` first. Such runs have a folder of their own, `held_out_5000` in `--output-dir`,
and nothing of them is copied.

All rows train at the paper's rate, unless `--choose-rates 0.03 0.1 --held-out 5000`
says to train each, with a seed of its own, at each of these rates on all but 5000
training images first. It then takes the rate of highest accuracy on these. The
`result.json` that is copied tells what it was chosen by, under "choice".
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from image_experiment.comparisons import LOSSES, best_rate, share_gpu

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "images"
OTHER_LOSSES = (
    "cross_entropy",
    "am_softmax",
    "arcface",
    "center",
    "a_softmax_m4",
    "l_softmax_m4",
    "l_softmax_m2",
    "hinge",
)
EXPERIMENTS = ("cifar100", "emnist")
CHOOSING_SEED = 100  # of the runs by which rates are chosen
MODERN = ["--schedule", "cosine", "--epochs", "200", "--label-smoothing", "0.1"]


@dataclasses.dataclass
class Row:
    """One run: which experiment, its flags, and the run it branches from."""

    name: str
    experiment: str
    flags: list
    parent: str | None = None
    choice: dict | None = None  # by which the learning rate was chosen

    @property
    def kind(self):
        return kind_of(self.name)


def kind_of(name):
    """The name of a row without its seed."""
    return name.rsplit("_seed", 1)[0]


@dataclasses.dataclass
class Progress:
    """Where each row is: all are waiting at first."""

    waiting: list
    running: list = dataclasses.field(default_factory=list)  # rows with processes
    finished: list = dataclasses.field(default_factory=list)
    failed: list = dataclasses.field(default_factory=list)

    def ready(self):
        """Rows that can start: the run that they branch from, if any, is finished."""
        names = {None, *(row.name for row in self.finished)}
        return [row for row in self.waiting if row.parent in names]

    def stopped(self):
        """Whether there was something left to do at the end."""
        return bool(self.running or self.ready())

    def summary(self):
        rows = len(self.waiting + self.running + self.finished + self.failed)
        return (
            f"{len(self.finished)} of {rows} runs are finished, {len(self.failed)} "
            f"failed, {len(self.running)} stopped, {len(self.waiting)} not started."
        )


def make_rows(experiments, seeds):
    """All rows, each after the one it branches from."""
    rows = []
    for seed in dict.fromkeys(seeds):
        for experiment in dict.fromkeys(experiments):
            rows += _rows_of(experiment, seed)
    return rows


def _rows_of(experiment, seed):
    def row(name, *flags, parent=None):
        name = f"{experiment}_{name}_seed{seed}"
        return Row(name, experiment, [*flags, "--seed", str(seed)], parent)

    def pedcc(n):
        root = ["--mse-root", str(n)]
        fixed = row(f"pedcc_n{n}_fixed", *root, "--fixed")
        return [fixed, row(f"pedcc_n{n}_tuned", *root, parent=fixed.name)]

    others = [row(name, *LOSSES[name]) for name in OTHER_LOSSES]
    recipe = row("pedcc_recipe", *LOSSES["pedcc_recipe"])
    modern = row("modern_n1_fixed", *MODERN, "--fixed")
    return [*pedcc(1), *pedcc(2), recipe, *others, *pedcc(3), modern]


def run_phases(args, signals=()):
    """Chooses the rates if asked to, then trains the rows; returns the last progress.

    Rows of which a rate could not be tried count as failed: they are not trained.
    """
    if not args.choose_rates:
        return run_all(args.rows, args, signals)
    progress = run_all(choosing_rows(args), held_out_args(args), signals)
    if progress.stopped():
        return progress
    parents = {row.kind: row.parent and kind_of(row.parent) for row in args.rows}
    choices = {kind: choice_of(kind, parents[kind], args) for kind in parents}
    rows = [at_chosen_rate(row, choices) for row in args.rows if choices[row.kind]]
    progress = run_all(rows, args, signals)
    progress.failed += [row for row in args.rows if not choices[row.kind]]
    return progress


def choosing_rows(args):
    """Each of the rows once for each rate, seeds aside."""
    kinds = {row.kind for row in args.rows}
    rows = make_rows(args.experiments, [CHOOSING_SEED])
    return [
        at_rate(row, rate, row.parent)
        for rate in args.choose_rates
        for row in rows
        if row.kind in kinds
    ]


def at_rate(row, rate, parent=None, choice=None):
    """A row at this rate, and the one it branches from, if any, at the same."""
    flags = [*row.flags, "--learning-rate", str(rate)]
    parent = parent and rated(parent, rate)
    return Row(rated(row.name, rate), row.experiment, flags, parent, choice)


def rated(name, rate):
    return f"_rate{rate:g}_seed".join(name.rsplit("_seed", 1))


def at_chosen_rate(row, choices):
    """A row at its rate; it branches from the fixed run if that takes the same."""
    choice, parent = choices[row.kind], row.parent
    rate = choice["learning_rate"]
    of_parent = choices[kind_of(parent)] if parent else None
    if not (of_parent and of_parent["learning_rate"] == rate):
        parent = None
    return at_rate(row, rate, parent, choice)


def choice_of(kind, parent, args):
    """The best rate of a row and what it was chosen by; None if a result is missing.

    A row that branches from a run that diverged did so, too.
    """
    folder, tried = held_out_args(args).output_dir, {}
    for rate in args.choose_rates:
        before = parent and tried_at(parent, rate, folder)
        diverged = before if before and before["diverged"] else None
        tried[rate] = diverged or tried_at(kind, rate, folder)
    if None in tried.values():
        print(f"{kind}: no rate could be chosen, see the logs in {folder}")
        return None
    best = best_rate({rate: [result] for rate, result in tried.items()})
    print(f"{kind}: rate {best:g}", flush=True)
    return {
        "learning_rate": best,
        "held_out": args.held_out,
        "seed": CHOOSING_SEED,
        "tried": {f"{rate:g}": result for rate, result in tried.items()},
    }


def tried_at(kind, rate, folder):
    """What came out on held-out images; None without a result."""
    name = rated(f"{kind}_seed{CHOOSING_SEED}", rate)
    path = folder / name / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return {name: result[name] for name in ("accuracy", "diverged")}


def held_out_args(args):
    """The settings of runs that are scored on held-out training images."""
    folder = args.output_dir / f"held_out_{args.held_out}"
    flags = [*args.flags, "--held-out", str(args.held_out)]
    return argparse.Namespace(**{**vars(args), "output_dir": folder, "flags": flags})


def run_all(rows, args, signals=()):
    """Runs the rows, at most `args.jobs` at once, until there is a signal.

    No process that it started outlives it.

    Returns:
        `Progress`.
    """
    progress = Progress(waiting=list(rows))
    try:
        while progress.ready() or progress.running:
            if signals or time.monotonic() >= args.deadline:
                break
            take_in_ended(progress, args)
            start_ready(progress, args)
            time.sleep(0.2)
    finally:
        for _, process in progress.running:
            process.kill()
            process.wait()
    print(progress.summary())
    return progress


def start_ready(progress, args):
    """Starts as many rows as may run beside those that do."""
    for row in progress.ready()[: args.jobs - len(progress.running)]:
        progress.running.append((row, start(row, args)))
        progress.waiting.remove(row)


def take_in_ended(progress, args):
    """Moves rows whose process has ended to the finished or the failed."""
    for row, process in list(progress.running):
        if process.poll() is None:
            continue
        progress.running.remove((row, process))
        if process.returncode:
            log = args.output_dir / f"{row.name}.log"
            print(f"{row.name}: failed with code {process.returncode}, see {log}")
            progress.failed.append(row)
        else:
            take_in_result(row, args)
            progress.finished.append(row)


def take_in_result(row, args):
    """Tells what came out, and copies it if it is a result on the test images."""
    path = args.output_dir / row.name / "result.json"
    result = json.loads(path.read_text())
    scored_on = result["data"]["scored_on"]
    accuracy = f"{100 * result['accuracy']:.2f} % of the {scored_on}"
    print(f"{row.name}: finished, {accuracy}", flush=True)
    if scored_on == "test images":
        args.results_dir.mkdir(parents=True, exist_ok=True)
        copy = args.results_dir / f"{row.name}.json"
        shutil.copy(path, copy)
        if row.choice:
            copy.write_text(json.dumps({**result, "choice": row.choice}, indent=1))


def start(row, args):
    """Starts a run, or goes on with it; its output goes to a log of its own."""
    folder = args.output_dir / row.name
    begun = (folder / "settings.json").exists()
    branch = ["--branch-from", str(args.output_dir / row.parent)] if row.parent else []
    command = [sys.executable, str(HERE / f"{row.experiment}.py")]
    command += ["--output-dir", str(folder), "--verbose", "2", *row.flags, *args.flags]
    command += ["--resume"] if begun else branch
    if args.data_dir:
        command += ["--data-dir", str(args.data_dir)]
    print(f"{row.name}: {'goes on' if begun else 'starts'}", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if args.jobs > 1:
        share_gpu(environment)
    with (args.output_dir / f"{row.name}.log").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


@contextlib.contextmanager
def noted_signals():
    """A list that takes SIGINT and SIGTERM, which do not end this process then."""
    noted, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_args(argv):
    """Settings, and the rows asked for; unknown flags go to every run."""
    parser = _make_parser()
    args, args.flags = parser.parse_known_args(argv)
    rows = make_rows(args.experiments, args.seeds)
    for words in args.only or []:
        if not any(has_words(row, words) for row in rows):
            names = ", ".join(row.name for row in rows)
            parser.error(f"--only {words} is in the name of no row. They are: {names}.")
    args.rows = chosen_rows(rows, args.only)
    args.deadline = time.monotonic() + 60 * args.minutes
    if not args.choose_rates:
        return held_out_args(args) if args.held_out else args
    args.choose_rates = list(dict.fromkeys(args.choose_rates))
    if not args.held_out:
        parser.error("--choose-rates needs --held-out: how many images to choose by")
    if any(flag.startswith("--learning-rate") for flag in args.flags):
        parser.error("--choose-rates contradicts --learning-rate: leave one out")
    return args


def _make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further flags go to every run, as --mixed-precision.",
    )
    add = parser.add_argument
    add("--experiments", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="of every row")
    only = (
        "rows whose name has one of these in it as whole words, and those they branch "
        "from: n1 is every row with n = 1, pedcc_n1_fixed that row of each experiment "
        "and seed, cifar100_pedcc_n1_fixed_seed0 one run. Which they are is printed"
    )
    add("--only", nargs="+", metavar="NAME", help=only)
    add("--jobs", type=at_least(1), default=1, help="runs at once")
    add("--minutes", type=above_0, default=float("inf"), help="stop after so many")
    held_out = "choose settings: as of cifar100.py. In a folder of its own, not copied"
    add("--held-out", type=at_least(0), default=0, help=held_out)
    rates = "learning rates, of which each row takes the best on --held-out images"
    add("--choose-rates", nargs="+", type=above_0, metavar="RATE", help=rates)
    add("--data-dir", type=pathlib.Path, help="as of cifar100.py")
    add("--output-dir", type=pathlib.Path, default=pathlib.Path("runs/paper_tables"))
    add("--results-dir", type=pathlib.Path, default=RESULTS, help="for result.json")
    return parser


def at_least(low):
    """Reader of whole numbers from `low` on."""

    def whole_number(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, not {text}")
        return int(text)

    return whole_number


def above_0(text):
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return float(text)


def has_words(row, words):
    """Whether the words, as `pedcc_n1`, are whole ones of the row's name."""
    return f"_{words}_" in f"_{row.name}_"


def chosen_rows(rows, only):
    """The rows asked for, and those they branch from; all without `only`."""
    if not only:
        return rows
    wanted = [row for row in rows if any(has_words(row, words) for words in only)]
    names = {row.name for row in wanted} | {row.parent for row in wanted}
    return [row for row in rows if row.name in names]


def main(argv=None):
    args = parse_args(argv)
    print(f"{len(args.rows)} runs: {', '.join(row.name for row in args.rows)}")
    with noted_signals() as signals:
        progress = run_phases(args, signals)
    if signals:
        return 128 + signals[0]
    return 1 if progress.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
