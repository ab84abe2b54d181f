"""Fuzzes one target after another; ``--help`` lists the options.

The fuzzer sees the coverage of this project, and of the libraries in Python that read what clients
send. The coverage of torch or pydantic would not lead it to new paths in this project.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

_INSTRUMENTED = ["torchserve_ensemble", "tarfile", "zipfile", "gzip", "PIL", "safetensors"]


def main() -> int:
    """Fuzz the targets that are named, or all; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="targets to fuzz; default all")
    parser.add_argument(
        "--seconds", type=int, default=60, help="seconds for each target (default 60)"
    )
    parser.add_argument(
        "--runs", type=int, default=-1, help="inputs for each target; default: until time is up"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the random numbers; 0 takes the time"
    )
    parser.add_argument(
        "--corpus", type=Path, help="folder that keeps the inputs that reached new code"
    )
    parser.add_argument(
        "--findings",
        type=Path,
        default=Path("fuzz-findings"),
        help="folder for inputs that are findings",
    )
    parser.add_argument("--list", action="store_true", help="list the targets and end")
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
        parser.error(f"unknown target {', '.join(unknown)}; choose from {', '.join(TARGETS)}")
    failed = [name for name in arguments.targets or TARGETS if _run(name, arguments) != 0]
    if failed:
        print(f"findings in {', '.join(failed)}: see {arguments.findings}")
    return bool(failed)


def _run(name: str, arguments: argparse.Namespace) -> int:
    """Fuzz a target in a process of its own, because libFuzzer ends its process."""
    command = [sys.executable, "-m", "fuzzing", "--alone", name]
    for option in ("seconds", "runs", "seed", "corpus", "findings"):
        value = getattr(arguments, option)
        command += [] if value is None else [f"--{option}={value}"]
    print(f"--- {name}", flush=True)
    return subprocess.run(command, check=False).returncode


def _fuzz(name: str, program: str, arguments: argparse.Namespace) -> None:
    """Fuzz a target until there is a finding or the limits are reached; the process then ends."""
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
            # This is wall time, which may be long on a busy machine; the target checks CPU time.
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
            # Atheris replaces this function when the fuzzing begins, so it is looked up each time.
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
