"""Every loss of the paper's tables on the same network, images, schedule and seeds.

    python experiments/compare_losses.py                          digits, in minutes
    python experiments/compare_losses.py --dataset emnist47 --data-dir FOLDER

Beside the paper's rows: `pedcc_am`, without eq. 9; `pedcc_n1_trained`, centroids that
are trained from the first step; and `pedcc_recipe`, the same with a margin of 0.2 and
lambda 3 (`docs/guides/finetune.md`).

Each loss takes, of the learning rates given, the one of highest accuracy on held-out
training images, over seeds of its own; all runs of the table then train on all
training images and are scored on the test images after the last epoch. (Faces: both on
all people but the held-out ones, and scored on pairs.) A run that is
finished is not repeated: the same command goes on where it was stopped. Flags that
are not listed go to every run, see `cifar100.py --help`.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import threading
import time

from comparison_flags import (
    DEFAULT_FLAGS,
    EXPERIMENTS,
    command_of,
    leave_out_repeats,
    refuse_flag,
)
from image_experiment.comparisons import LOSSES, best_rate, share_gpu

# Flags of one run, and what stands for them here.
OF_ONE_RUN = {
    "--seed": "--seeds",
    "--loss": "--losses",
    "--learning-rate": "--learning-rates",
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further flags go to every run, as --width 0.25 or --epochs 5.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", choices=EXPERIMENTS, default="digits", help="which images")
    add("--data-dir", type=pathlib.Path, help="as of cifar100.py; digits need none")
    add("--losses", nargs="+", default=list(LOSSES), choices=LOSSES, metavar="LOSS")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the table")
    add(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[0.03, 0.1],
        help="each loss takes one of them",
    )
    add("--tuning-seeds", type=int, nargs="+", default=[100], help="to choose with")
    add(
        "--held-out",
        type=int,
        help="images to choose with (faces: people); about a tenth if left out",
    )
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--output-dir", type=pathlib.Path, help="runs/compare_DATASET if left out")
    args, args.flags = parser.parse_known_args(argv)
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    leave_out_repeats(args, "losses", "seeds", "learning_rates", "tuning_seeds")
    for flag, own in OF_ONE_RUN.items():
        refuse_flag(parser, args, flag, f"did you mean {own}?")
    args.command = command_of("compare_losses", parser, args)
    args.output_dir = (
        args.output_dir or pathlib.Path("runs") / f"compare_{args.dataset}"
    )
    args.held_out = args.held_out or default_held_out(args)
    args.flags = [*DEFAULT_FLAGS.get(args.dataset, []), *args.flags]
    return args


def default_held_out(args):
    return {
        "digits": 300,
        "mnist": 6000,
        "emnist47": 9400,
        "cifar100": 5000,
        "faces": 100,  # people
    }[args.dataset]


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
from image_experiment import settings, training
from image_experiment.data import BadInputError
from image_experiment.reporting import environment_of, place_of
from scipy import stats

BASELINE = "cross_entropy"
CHOICE_OF_IMAGES = ("limit", "imbalance", "held_out", "score_held_out", "min_images")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its place in the tables, and what the command line would be."""

    loss: str
    seed: int
    rate: float
    dataset: str
    folder: str
    flags: tuple


def main(argv=None):
    """Trains what is missing, reports, and writes the table; returns the exit code."""
    args = parse_args(argv)
    try:
        tried = run_all(tuning_jobs(args), args)
        rates = choose_rates(tried, args)
        results = run_all(final_jobs(args, rates), args)
    except BadInputError as error:
        print(f"compare_losses: error: {error}", file=sys.stderr)
        return 2
    summary = summarise(results, rates, args)
    summary["diverged"] = diverged({**tried, **results})
    text = as_markdown(summary)
    (args.output_dir / "table.md").write_text(text)
    (args.output_dir / "table.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(summary, args.output_dir / "accuracy.png")
    print(f"\n{text}\nWritten to {args.output_dir}: table.md, table.json, accuracy.png")
    return 0


def tuning_jobs(args):
    """Runs on held-out training images; none where there is one rate."""
    if len(args.learning_rates) == 1:
        return []
    held_out = held_out_flags(args, choosing=True)
    return [
        make_job(args, loss, seed, rate, "held_out", *held_out)
        for rate in args.learning_rates
        for seed in args.tuning_seeds
        for loss in args.losses
    ]


def choose_rates(tried, args):
    """The learning rate of each loss, by accuracy on held-out training images."""
    if not tried:
        return dict.fromkeys(args.losses, args.learning_rates[0])
    results = {loss: {rate: [] for rate in args.learning_rates} for loss in args.losses}
    for job, result in tried.items():
        results[job.loss][job.rate].append(result)
    return {loss: best_rate(of_rates) for loss, of_rates in results.items()}


def final_jobs(args, rates):
    held_out = held_out_flags(args, choosing=False)
    return [
        make_job(args, loss, seed, rates[loss], "test", *held_out)
        for seed in args.seeds
        for loss in args.losses
    ]


def held_out_flags(args, choosing):
    return EXPERIMENTS[args.dataset].held_out_flags(args.held_out, choosing=choosing)


def make_job(args, loss, seed, rate, part, *flags):
    folder = args.output_dir / part / f"{loss}_rate{rate:g}_seed{seed}"
    flags = [
        *LOSSES[loss],
        "--learning-rate",
        rate,
        "--seed",
        seed,
        *flags,
        *args.flags,
    ]
    if args.data_dir:
        flags += ["--data-dir", args.data_dir]
    flags += ["--output-dir", folder, "--resume", "--verbose", "0"]
    flags += ["--no-figures", "--score", "last"]
    return Job(loss, seed, rate, args.dataset, str(folder), tuple(map(str, flags)))


def run_all(jobs, args):
    """Results of all jobs, by job and in their order; a line is printed as each ends.

    Their flags are read before any is trained: a wrong one ends the program here.
    """
    for job in jobs:
        settings.parse(EXPERIMENTS[job.dataset], job.flags)
    results = dict(reported(as_ended(jobs, args.jobs), len(jobs)))
    refuse_other_images(results)
    return {job: results[job] for job in jobs}


def refuse_other_images(results):
    """Raises a `BadInputError` if runs of one choice of images had different ones."""
    first = {}
    for job, result in results.items():
        chosen = tuple(result["settings"].get(name) for name in CHOICE_OF_IMAGES)
        data = result["data"]
        expected, folder = first.setdefault(chosen, (data, job.folder))
        if data["fingerprint"] != expected["fingerprint"]:
            raise BadInputError(
                f"The run in {job.folder} has other images, of {data['origin']}, than "
                f"that in {folder}, of {expected['origin']}. Pass another --output-dir."
            )


def as_ended(jobs, at_once):
    """Each job with its result, as it ends."""
    if at_once == 1:
        yield from ((job, run_one(job)) for job in jobs)
        return
    with make_pool(at_once) as pool:
        futures = {pool.submit(run_one, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # else the pool would train what is left before it ends
            for future in futures:
                future.cancel()
            raise


def make_pool(jobs):
    """Processes that train side by side, and share a GPU if there is one."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        jobs, context, initializer=begin_worker
    )


def begin_worker():
    share_gpu()  # no device is in use yet
    end_with_parent()


def end_with_parent():
    """Has a worker end when the process that started it is killed.

    Else it would go on, beside the workers of the same command given again.
    """

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_one(job):
    """Trains one job, or reads what it left when it was trained before."""
    path = pathlib.Path(job.folder) / "result.json"
    if not path.exists():
        train(job)
    result = json.loads(path.read_text())
    wanted = settings.parse(EXPERIMENTS[job.dataset], job.flags)
    place = EXPERIMENTS[job.dataset].name, keras.backend.backend()
    training.refuse_changes(
        what_it_was(result["settings"], result["experiment"], backend_of(result)),
        what_it_was(settings.of_the_run(wanted), *place),
        f"The run in {job.folder}",
    )
    return result


def what_it_was(chosen, experiment, backend):
    return {**chosen, "experiment": experiment, "backend": backend}


def backend_of(result):
    return result["environment"]["backend"]


def train(job):
    """Trains one job in silence."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = training.run(EXPERIMENTS[job.dataset], job.flags)
    if code == 2:
        raise BadInputError(f"{job.loss}, seed {job.seed}: {err.getvalue().strip()}")


def reported(ended, number):
    """Passes pairs of job and result on, with a line for each."""
    begun = time.perf_counter()
    for count, (job, result) in enumerate(ended, start=1):
        end = ", diverged" if result["diverged"] else ""
        print(
            f"[{count}/{number}, {time.perf_counter() - begun:.0f} s] {job.loss}, "
            f"seed {job.seed}, rate {job.rate:g}: {100 * result['accuracy']:.2f} % of "
            f"{result['data']['scored_on']}{end}",
            flush=True,
        )
        yield job, result


def summarise(results, rates, args):
    """The numbers of the table: a row for each loss, and what they depend on."""
    any_result = next(iter(results.values()))
    shared = shared_settings(results)
    return {
        "dataset": args.dataset,
        "command": args.command,
        "seeds": args.seeds,
        "learning_rates": args.learning_rates,
        "rows": {
            loss: {"learning_rate": rates[loss], **row_of(loss, results, args, shared)}
            for loss in args.losses
        },
        "settings": shared,
        "data": any_result["data"],
        "environment": environment_of(results),
    }


def row_of(loss, results, args, shared):
    """The numbers of a loss, and its settings that not all losses share."""
    own = of_seeds(loss, results)
    seconds = [result["seconds"] / result["epochs"] for result in own.values()]
    accuracy = accuracy_of(own)
    base = None if loss == BASELINE else accuracy_of(of_seeds(BASELINE, results))
    left_out = {"seed", "learning_rate", *shared}  # they have places of their own
    chosen = own[args.seeds[0]]["settings"]
    return {
        "accuracy": [accuracy[seed] for seed in args.seeds],
        **spread(accuracy.values()),
        "difference": difference(accuracy, base, args.seeds),
        "seconds_per_epoch": statistics.median(seconds),
        "settings": {k: v for k, v in chosen.items() if k not in left_out},
    }


def of_seeds(loss, results):
    return {job.seed: result for job, result in results.items() if job.loss == loss}


def accuracy_of(results):
    return {seed: 100 * result["accuracy"] for seed, result in results.items()}


def shared_settings(results):
    """The settings that have one value in all runs."""
    first, *others = [result["settings"] for result in results.values()]
    return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}


def diverged(results):
    """The runs whose loss became NaN, which ended their training; for JSON."""
    return [
        {
            "loss": job.loss,
            "learning_rate": job.rate,
            "seed": job.seed,
            "scored_on": result["data"]["scored_on"],
        }
        for job, result in results.items()
        if result["diverged"]
    ]


def spread(values):
    """Mean and standard deviation."""
    values = list(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std}


def difference(accuracy, base, seeds):
    """Accuracy minus the baseline's, paired by seed, with its 95 % t interval."""
    if not base or base is accuracy:
        return None
    values = [accuracy[seed] - base[seed] for seed in seeds]
    mean, std = spread(values).values()
    if std is None:
        return {"mean": mean, "interval": None}
    half = stats.t.ppf(0.975, len(values) - 1) * std / math.sqrt(len(values))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def as_markdown(summary):
    """The table, best first, with its conditions below."""
    lines = [
        "| loss | test accuracy (%) | minus cross entropy (95 % interval) | "
        "learning rate | seconds per epoch |",
        "|---|---|---|---|---|",
    ]
    rows = sorted(summary["rows"].items(), key=lambda item: -item[1]["mean"])
    for loss, row in rows:
        accuracy = f"{row['mean']:.2f}"
        accuracy += "" if row["std"] is None else f" +- {row['std']:.2f}"
        cells = [loss, accuracy, as_text(row["difference"])]
        cells += [f"{row['learning_rate']:g}", f"{row['seconds_per_epoch']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    data = summary["data"]
    lines += [
        "",
        f"{summary['dataset']} ({data['training_images']:,} training images, "
        f"{data.get('scored_pairs') or data['scored_images']:,} {data['scored_on']}), "
        f"{summary['settings']['epochs']} epochs, seeds "
        f"{', '.join(map(str, summary['seeds']))}; {place_of(summary['environment'])}. "
        f"Command: `{summary['command']}`",
        *note_of(summary.get("diverged")),
        "",
    ]
    return "\n".join(lines)


def note_of(diverged):
    """Lines below a table that name these runs; none if there are none."""
    if not diverged:
        return []
    runs = [
        f"{run['loss']}, rate {run['learning_rate']:g}, seed {run['seed']} "
        f"({run['scored_on']})"
        for run in diverged
    ]
    return ["", f"Diverged, so that training stopped early: {'; '.join(runs)}."]


def as_text(difference, digits=2):
    if difference is None:
        return "-"
    text = f"{difference['mean']:+.{digits}f}"
    if difference["interval"]:
        low, high = difference["interval"]
        text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return text


def draw(summary, path):
    """Accuracy of each loss, one dot per seed and a bar at the mean."""
    from image_experiment.figures import OTHER, OWN, TRAINING, plt, save

    rows = sorted(summary["rows"].items(), key=lambda item: item[1]["mean"])
    figure, axis = plt.subplots(
        figsize=(7, 0.5 + 0.36 * len(rows)), layout="constrained"
    )
    for place, (loss, row) in enumerate(rows):
        color = OWN if loss.startswith("pedcc") else TRAINING
        color = OTHER if loss == BASELINE else color
        axis.plot(
            row["accuracy"], [place] * len(row["accuracy"]), "o", color=color, ms=4
        )
        axis.plot([row["mean"]], [place], "|", color=color, ms=16, mew=2)
    axis.set_yticks(range(len(rows)), [loss for loss, _ in rows])
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel=f"test accuracy on {summary['dataset']} (%)")
    save(figure, path)


if __name__ == "__main__":
    raise SystemExit(main())
