"""How well centroids are spread, in how much time and memory.

    python benchmarks/centroids.py --thomson THOMSON.json

Each case runs in a process of its own and prints a line of JSON: seconds (imports not
counted, compiling counted, the cache off), the most memory that the process has held
beyond what it held before, and the largest cosine beside the lower bound, over all
pairs or, where that is said, over the pairs of 500 rows with all others. THOMSON.json
holds least known Coulomb energies, `{"2": 0.5, ...}`; without it that case is left out.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

CASES = {
    "simplex (47, 512)": (47, 512, {}),
    "simplex (513, 512)": (513, 512, {}),
    "simplex (2048, 2048)": (2048, 2048, {}),
    "max_angle (100, 32)": (100, 32, {"steps": 48_000, "starts": 4}),
    "max_angle (200, 64)": (200, 64, {"steps": 48_000}),
    "max_angle (1000, 64)": (1000, 64, {"method": "max_angle"}),
    "max_angle (1000, 128)": (1000, 128, {}),
    "auto (1000, 64)": (1000, 64, {}),
    "auto (4000, 128)": (4000, 128, {}),
    "auto (10000, 512)": (10_000, 512, {}),
    "kerdock (66048, 256)": (66_048, 256, {}),
    "kerdock (1000000, 512), bfloat16": (1_000_000, 512, {"dtype": "bfloat16"}),
    "kerdock (1000000, 1024), bfloat16": (1_000_000, 1024, {"dtype": "bfloat16"}),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, "thomson"], help="only this one")
    parser.add_argument("--thomson", help="file of least known Coulomb energies")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np

import keras_pedcc


def measure(name):
    """Makes the centroids of one case and reports on them."""
    num_classes, dim, options = CASES[name]
    before = peak_memory()
    begun = time.perf_counter()
    made = keras_pedcc.generate_pedcc(num_classes, dim, cache=False, **options)
    keras.ops.convert_to_numpy(made[:1])  # waits for the backend
    seconds = time.perf_counter() - begun
    used = peak_memory() - before
    result = {"case": name, "seconds": round(seconds, 3), "peak_gib": round(used, 2)}
    size = 2 if options.get("dtype") else 4
    result["result_gib"] = round(size * num_classes * dim / 2**30, 3)
    if num_classes <= 10_000:
        report = keras_pedcc.centroid_report(made)
        result |= {key: report[key] for key in ("largest_cosine", "mean_norm")}
        result["spread"] = report["cosine_spread"]
    else:
        result["largest_cosine"] = largest_cosine_of_rows(made, 500)
        result["sampled_rows"] = 500
    result["bound"] = keras_pedcc.centroids.quality.largest_cosine_bound(
        num_classes, dim
    )
    return result | {"backend": keras.backend.backend()}


def peak_memory():
    """GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def largest_cosine_of_rows(made, number, block=50_000):
    """Largest cosine of some rows with all others."""
    rows = np.random.default_rng(0).choice(len(made), number, replace=False)

    def part(index):
        taken = keras.ops.take(made, index, axis=0)
        return keras.ops.convert_to_numpy(keras.ops.cast(taken, "float32"))

    mine, largest = part(rows), -1.0
    for first in range(0, len(made), block):
        others = np.arange(first, min(first + block, len(made)))
        cosines = mine @ part(others).T
        cosines[rows[:, None] == others] = -1
        largest = max(largest, float(cosines.max()))
    return largest


def measure_thomson(path):
    """Coulomb energies of n points on the sphere against a table."""
    with open(path) as file:
        table = {int(n): energy for n, energy in json.load(file).items()}
    begun, errors = time.perf_counter(), {}
    for n, least in table.items():
        made = keras_pedcc.generate_pedcc(n, 3, method="energy", cache=False)
        energy = keras_pedcc.centroid_report(made)["coulomb_energy"]
        errors[n] = energy / least - 1
    return {
        "case": f"energy ({min(table)}..{max(table)}, 3)",
        "seconds": round(time.perf_counter() - begun, 1),
        "within_1e-6": sum(error < 1e-6 for error in errors.values()),
        "of": len(table),
        "missed": [n for n, error in errors.items() if error >= 1e-6],
        "largest_relative_error": max(errors.values()),
        "backend": keras.backend.backend(),
    }


def main():
    args = parse_args()
    if args.case:
        thomson = args.case == "thomson"
        result = measure_thomson(args.thomson) if thomson else measure(args.case)
        print(json.dumps(result), flush=True)
        return
    for case in [*CASES, *(["thomson"] if args.thomson else [])]:
        command = [sys.executable, __file__, "--case", case]
        command += ["--thomson", args.thomson] if args.thomson else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
