"""How the scripts of this folder keep what they have tried."""

import json
import pathlib
import shlex
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


class Record:
    """What was tried, how often, and what went wrong; written as one JSON file.

    Args:
        what: What is tried, as a phrase for a table.
        claim: What must hold every time.
    """

    def __init__(self, what, claim):
        self.what, self.claim = what, claim
        self.tried, self.failures, self.details = 0, [], {}
        self._begun = time.perf_counter()

    def add(self, number=1):
        """Counts what was tried."""
        self.tried += number

    def fail(self, message):
        """Keeps what went wrong, in words that let it be tried again."""
        self.failures.append(message)
        print(f"FAILED: {message}", file=sys.stderr, flush=True)

    def write(self, path):
        """Writes the file, if there is a path, and says the result in one line."""
        seconds = time.perf_counter() - self._begun
        print(f"{self.what}: {len(self.failures)} of {self.tried} failed")
        if path is None:
            return
        from benchmarks.environment import environment

        flags = sys.argv[1:]
        if "--result" in flags:
            at = flags.index("--result")
            flags = flags[:at] + flags[at + 2 :]
        script = pathlib.Path(sys.argv[0]).name
        result = {
            "what": self.what,
            "claim": self.claim,
            "command": shlex.join(["python", f"reliability/{script}", *flags]),
            "tried": self.tried,
            "failed": len(self.failures),
            "failures": self.failures[:20],
            "details": self.details,
            "seconds": round(seconds, 1),
            "environment": environment(),
        }
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(json.dumps(result, indent=1) + "\n")
