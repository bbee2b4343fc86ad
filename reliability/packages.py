"""What is in the wheel and the source distribution, and that they build alike twice.

    python reliability/packages.py --dist DIST --result FILE

Builds both twice with `python -m build` and compares every byte; looks for what must
and must not be inside, and at the ranges of the dependencies. `--audit` asks pip-audit
for known weaknesses of the dependencies, which needs the network.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

from recording import ROOT, Record

IN_SOURCE = {"keras_pedcc", "tests", "examples", "experiments", "benchmarks"}
IN_SOURCE |= {"reliability", "notebooks"}
FILES = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md"}
FILES |= {"SECURITY.md", "pyproject.toml", ".gitignore"}
LARGEST = 300_000  # bytes of one file: recorded results may have so many, no data set


def main(argv=None):
    args = parse_args(argv)
    record = Record("wheel and source distribution", "alike, and what they should hold")
    with tempfile.TemporaryDirectory() as folder:
        dist = args.dist or pathlib.Path(folder) / "dist"
        build(dist)
        build(pathlib.Path(folder) / "again")
        for path in sorted(dist.glob("keras_pedcc-*")):
            again = pathlib.Path(folder) / "again" / path.name
            check(record, f"{path.name} builds alike", same(path, again))
        look_into_wheel(record, next(dist.glob("*.whl")))
        look_into_source(record, next(dist.glob("*.tar.gz")))
    look_at_ranges(record)
    if args.audit:
        audit(record)
    record.write(args.result)
    return len(record.failures)


def check(record, what, right):
    record.add()
    if not right:
        record.fail(what)


def build(folder):
    command = [sys.executable, "-m", "build", "--quiet", "--outdir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def same(path, again):
    return again.exists() and path.read_bytes() == again.read_bytes()


def look_into_wheel(record, path):
    with zipfile.ZipFile(path) as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
    found = {name for name in sizes if not name.split("/")[0].endswith(".dist-info")}
    modules = (ROOT / "keras_pedcc").rglob("*.py")
    expected = {each.relative_to(ROOT).as_posix() for each in modules}
    expected.add("keras_pedcc/py.typed")
    check(
        record, f"wheel: {sorted(found ^ expected)} too many or few", found == expected
    )
    licences = [name for name in sizes if name.endswith("licenses/LICENSE")]
    check(record, "wheel: has its licence", len(licences) == 1)
    check(record, "wheel: no large file", max(sizes.values()) < LARGEST)


def look_into_source(record, path):
    with tarfile.open(path) as archive:
        sizes = {each.name.split("/", 1)[1]: each.size for each in archive}
    tops = {name.split("/")[0] for name in sizes}
    unknown = tops - IN_SOURCE - FILES
    check(record, f"source: {sorted(unknown)} not expected", not unknown)
    missing = (IN_SOURCE | FILES) - tops
    check(record, f"source: {sorted(missing)} missing", not missing)
    caches = [name for name in sizes if "__pycache__" in name or name.endswith(".pyc")]
    check(record, "source: no caches", not caches)
    check(record, "source: no large file", max(sizes.values()) < LARGEST)


def look_at_ranges(record):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    check(record, f"depends on {sorted(names)}", names == {"keras", "numpy"})
    extras = project["optional-dependencies"]
    backends = [*extras["tensorflow"], *extras["jax"], *extras["torch"]]
    for each in [*project["dependencies"], *backends]:
        check(record, f"{each}: a range", ">=" in each and "<" in each)


def audit(record):
    """Fails for each known weakness of what a user installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(project["dependencies"]))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--strict", "-r", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    check(record, f"pip-audit: {done.stdout}{done.stderr[-500:]}", not done.returncode)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dist", type=pathlib.Path, help="folder for the files, else they are deleted")
    add("--audit", action="store_true")
    add("--result", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
