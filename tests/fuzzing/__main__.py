"""Fuzz one target after another; see ``--help``.

Only this project and the Python code that reads what clients send are instrumented: coverage of
torch or pydantic would tell the fuzzer nothing about us.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

_INSTRUMENTED = ["torchserve_ensemble", "tarfile", "zipfile", "gzip", "PIL", "safetensors"]
_EXTRA_SECONDS = 60


def main() -> int:
    """Run the targets that are named, or all; the exit code says whether something was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers; 0: by time")
    parser.add_argument("--corpus", type=Path, help="keep what was learnt here, and go on from it")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        _fuzz(arguments.alone, sys.argv[0], arguments)
    from fuzzing.targets import TARGETS

    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    unknown = sorted(set(arguments.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    failed = [name for name in arguments.targets or TARGETS if _run(name, arguments) != 0]
    if failed:
        print(f"findings in {', '.join(failed)}: see {arguments.findings}")
    return bool(failed)


def _run(name: str, arguments: argparse.Namespace) -> int:
    """A process for each target: libFuzzer ends its own."""
    command = [sys.executable, "-m", "fuzzing", "--alone", name]
    for option in ("seconds", "runs", "seed", "corpus", "findings"):
        value = getattr(arguments, option)
        command += [] if value is None else [f"--{option}={value}"]
    print(f"--- {name}", flush=True)
    return subprocess.run(command, check=False).returncode


def _fuzz(name: str, program: str, arguments: argparse.Namespace) -> None:
    """Fuzz until an input is a finding, or the inputs or the time are used up. Never returns."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from fuzzing.targets import MAX_CPU_SECONDS, MAX_INPUT_BYTES, TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = (arguments.corpus or Path(folder)) / name
        corpus.mkdir(parents=True, exist_ok=True)
        arguments.findings.mkdir(parents=True, exist_ok=True)
        for seed in target.corpus():
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        flags: dict[str, object] = {
            "runs": arguments.runs,
            "max_total_time": arguments.seconds,
            "seed": arguments.seed,
            "max_len": MAX_INPUT_BYTES,
            # Wall time, of a machine that may be busy; the target itself checks CPU time.
            "timeout": int(15 * MAX_CPU_SECONDS),
            "rss_limit_mb": 3000,
            "print_final_stats": 1,
            "artifact_prefix": f"{arguments.findings}/{name}-",
        }
        if target.words:
            dictionary = Path(folder) / "words"
            dictionary.write_text("".join(f'"{word}"\n' for word in target.words))
            flags["dict"] = dictionary

        def mutate(data: bytes, size: int) -> bytes:
            # Looked up anew: Atheris replaces it when the fuzzing begins.
            return bytes(atheris.Mutate(data, size))

        mutator = {"custom_mutator": target.mutator(mutate)} if target.mutator else {}
        atheris.Setup(
            [program, *(f"-{key}={value}" for key, value in flags.items()), str(corpus)],
            target.check,
            **mutator,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
