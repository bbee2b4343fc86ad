"""Tables 1 and 2 of the paper for PEDCC-Loss, at full size, in one command.

    python benchmarks/paper_tables.py --data-dir FOLDER --jobs 4

Runs every row, several at once; those that train the centroids late branch from the
run with fixed centroids, whose first 70 epochs they share. May be stopped at any time
(or by `--minutes`) and goes on where it was. The `result.json` of each finished run
is copied to `benchmarks/results/images/`; then `python benchmarks/results_table.py
--write` puts them into the README.

The rows "modern" are not the paper's: cosine decay, label smoothing and longer
training on the same network, to be chosen with `--held-out 5000` first.
"""

import argparse
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "images"


@dataclasses.dataclass
class Row:
    """One run: which example, its flags, and the run it branches from."""

    name: str
    example: str
    flags: list
    parent: str | None = None


def make_rows(experiments, seeds):
    """All rows, each after the one it branches from."""
    rows = []
    for example in experiments:
        for seed in seeds:
            rows += _rows_of(example, seed)
    return rows


def _rows_of(example, seed):
    def row(name, *flags, parent=None):
        parent = parent and f"{example}_{parent}_seed{seed}"
        name = f"{example}_{name}_seed{seed}"
        return Row(name, example, [*flags, "--seed", str(seed)], parent)

    rows = [row("cross_entropy", "--loss", "cross_entropy")]
    for n in ("1", "2", "3"):
        root = ["--mse-root", n]
        rows.append(row(f"pedcc_n{n}_fixed", *root, "--fixed"))
        rows.append(row(f"pedcc_n{n}_tuned", *root, parent=f"pedcc_n{n}_fixed"))
    modern = ["--schedule", "cosine", "--epochs", "200", "--label-smoothing", "0.1"]
    return [*rows, row("modern_n1_fixed", *modern, "--fixed")]


def run_all(rows, args):
    """Runs the rows, at most `args.jobs` at once; returns the names of the failed."""
    deadline = time.monotonic() + 60 * args.minutes
    waiting, running, done, failed = list(rows), {}, set(), []
    while (waiting or running) and time.monotonic() < deadline:
        ready = [r for r in waiting if r.parent is None or r.parent in done]
        for row in ready[: args.jobs - len(running)]:
            waiting.remove(row)
            running[row.name] = row, start(row, args)
        time.sleep(1)
        for name, (row, process) in list(running.items()):
            if process.poll() is not None:
                del running[name]
                finish(row, process, args, done, failed)
        waiting = [r for r in waiting if r.parent not in failed]
    for _, process in running.values():
        process.kill()
    print(f"{len(done)} of {len(rows)} runs are finished, {len(failed)} failed.")
    return failed


def start(row, args):
    """Starts a run, or goes on with it; its output goes to a log of its own."""
    folder = args.output_dir / row.name
    begun = (folder / "settings.json").exists()
    branch = ["--branch-from", str(args.output_dir / row.parent)] if row.parent else []
    command = [sys.executable, str(ROOT / "examples" / f"{row.example}.py")]
    command += ["--output-dir", str(folder), "--verbose", "2", *row.flags, *args.flags]
    command += ["--resume"] if begun else branch
    if args.data_dir:
        command += ["--data-dir", str(args.data_dir)]
    print(f"{row.name}: {'goes on' if begun else 'starts'}", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with (args.output_dir / f"{row.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(row, process, args, done, failed):
    """Takes in the result of a run that ended."""
    if process.returncode:
        log = args.output_dir / f"{row.name}.log"
        print(f"{row.name}: failed with code {process.returncode}, see {log}")
        failed.append(row.name)
        return
    args.results_dir.mkdir(parents=True, exist_ok=True)
    result = args.output_dir / row.name / "result.json"
    shutil.copy(result, args.results_dir / f"{row.name}.json")
    done.add(row.name)
    print(f"{row.name}: finished", flush=True)


def parse_args(argv):
    """Settings; flags that are not known here go to every run."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further flags go to every run, as --mixed-precision.",
    )
    add = parser.add_argument
    names = ("cifar100", "emnist")
    add("--experiments", nargs="+", default=list(names), choices=names)
    add("--seeds", type=int, nargs="+", default=[0], help="of every row")
    add("--only", nargs="+", help="rows whose name has one of these in it")
    add("--jobs", type=int, default=1, help="runs at once")
    add("--minutes", type=float, default=float("inf"), help="stop after so many")
    add("--data-dir", type=pathlib.Path, help="as of the examples")
    add("--output-dir", type=pathlib.Path, default=pathlib.Path("runs/paper_tables"))
    add("--results-dir", type=pathlib.Path, default=RESULTS, help="for result.json")
    args, args.flags = parser.parse_known_args(argv)
    return args


def chosen_rows(args):
    """The rows asked for, and those they branch from."""
    rows = make_rows(args.experiments, args.seeds)
    if not args.only:
        return rows
    wanted = {r.name for r in rows if any(part in r.name for part in args.only)}
    parents = {r.parent for r in rows if r.name in wanted}
    return [r for r in rows if r.name in wanted | parents]


def main(argv=None):
    args = parse_args(argv)
    return 1 if run_all(chosen_rows(args), args) else 0


if __name__ == "__main__":
    raise SystemExit(main())
