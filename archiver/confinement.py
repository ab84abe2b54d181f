"""Takes rights away from the process that runs it, for ever. `sandbox` starts such a process.

One mechanism does it: a filter of system calls (seccomp, classic BPF), which any user of Linux may
put on their own process and which nobody can take off again. It lists what is allowed, and that is
little: to read and write files that are open already, to ask for memory, and to end. Everything
else is refused, so that a later kernel's new calls are refused too. Limits of resources (rlimits)
bound what the filter allows: memory and time on the processor.

Landlock and namespaces would add nothing here. They restrict which files may be opened, and after
this filter none may be. The libraries for seccomp were left out: they need libseccomp, and
pyseccomp has had no release since 2021.

This module needs the standard library alone, since it runs in the confined process itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

READ_FILES = errno.EACCES
"""Error number of a refused call that opens, changes or looks for a file."""

USE_NETWORK = errno.ENETDOWN
"""Error number of a refused call of the network."""

START_PROCESSES = errno.ENOSYS
"""Error number of a refused call that starts a process or thread, or reaches another one."""

# Numbers of the system calls by architecture: x86_64, aarch64. None: the architecture lacks it.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}

# Calls whose refusal gets an error number of its own, so that a message can say what was tried. All
# calls that are in no list are refused with EPERM.
_REFUSED_BY_NAME: dict[int, dict[str, tuple[int | None, int | None]]] = {
    READ_FILES: {
        "open": (2, None),
        "stat": (4, None),
        "lstat": (6, None),
        "access": (21, None),
        "truncate": (76, 45),
        "chdir": (80, 49),
        "rename": (82, None),
        "mkdir": (83, None),
        "rmdir": (84, None),
        "creat": (85, None),
        "link": (86, None),
        "unlink": (87, None),
        "symlink": (88, None),
        "readlink": (89, None),
        "chmod": (90, None),
        "openat": (257, 56),
        "mkdirat": (258, 34),
        "newfstatat": (262, 79),
        "unlinkat": (263, 35),
        "renameat": (264, 38),
        "linkat": (265, 37),
        "symlinkat": (266, 36),
        "readlinkat": (267, 78),
        "fchmodat": (268, 53),
        "faccessat": (269, 48),
        "renameat2": (316, 276),
        "statx": (332, 291),
        "openat2": (437, 437),
        "faccessat2": (439, 439),
    },
    USE_NETWORK: {
        "socket": (41, 198),
        "connect": (42, 203),
        "sendto": (44, 206),
        "sendmsg": (46, 211),
        "bind": (49, 200),
        "socketpair": (53, 199),
    },
    START_PROCESSES: {
        # Pipes to a new process are made before the process is.
        "pipe": (22, None),
        "clone": (56, 220),
        "fork": (57, None),
        "vfork": (58, None),
        "execve": (59, 221),
        "kill": (62, 129),
        "ptrace": (101, 117),
        "tgkill": (234, 131),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "pipe2": (293, 59),
        "execveat": (322, 281),
        "clone3": (435, 435),
    },
}

# The architecture's number in the filter's data (AUDIT_ARCH_*), and the number of the call seccomp.
_ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SIGKILL = 9
_SECCOMP_SET_MODE_FILTER = 1
# All threads of the process get the filter; libraries may have started some when imported.
_SECCOMP_FILTER_FLAG_TSYNC = 1
_KILL_PROCESS = 0x80000000
_REFUSE = 0x00050000
_ALLOW = 0x7FFF0000
# Instructions of classic BPF: load a word of the data, compare, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_OFFSET_OF_CALL, _OFFSET_OF_ARCHITECTURE = 0, 4
# Calls of the x32 interface have numbers from here on, on x86_64.
_X32_BIT = 0x40000000


class NoSandboxError(Exception):
    """This machine cannot confine a process; the text says what is missing."""


def end_with_parent() -> None:
    """Let the kernel end this process when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def limit_resources(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Bound the memory and the processor time of this process, and let it open no further file.

    Args:
        memory_bytes: memory that the process may ask for, beyond what it has already.
        cpu_seconds: processor time from now on.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_seconds
    limits = {
        "RLIMIT_AS": _address_space() + memory_bytes,
        "RLIMIT_CPU": seconds,
        "RLIMIT_CORE": 0,
        # Bytes of a file; a pipe has no such limit.
        "RLIMIT_FSIZE": 0,
        # Numbers of file descriptors that a newly opened file may get: none.
        "RLIMIT_NOFILE": 0,
        "RLIMIT_NPROC": 0,
    }
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (lowest, lowest))


def forbid_system_calls() -> None:
    """Put the filter on all threads of this process.

    Raises:
        NoSandboxError: the system is not Linux on x86_64 or aarch64, or its kernel has no seccomp.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        raise NoSandboxError(f"no filter of system calls for {sys.platform} on {machine}")
    code = _filter(machine)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: number of instructions of 8 bytes, address.
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise NoSandboxError("the kernel does not let a process give up privileges")
    call = _ARCHITECTURES[machine][1]
    if libc.syscall(call, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, program) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise NoSandboxError(f"the kernel takes no filter of system calls (seccomp: {reason})")
    try:
        os.stat("/")  # noqa: PTH116
    except OSError as error:
        if error.errno == READ_FILES:
            return
    raise NoSandboxError("the kernel does not apply the filter of system calls")


def _filter(machine: str) -> bytes:
    """Return the program that decides on each system call, as an array of ``sock_filter``."""
    column = list(_ARCHITECTURES).index(machine)
    program = [
        _instruction(_LOAD, _OFFSET_OF_ARCHITECTURE),
        _instruction(_IF_EQUAL, _ARCHITECTURES[machine][0], skip_if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _OFFSET_OF_CALL),
        _instruction(_IF_AT_LEAST, _X32_BIT, skip_if_false=1),
        _instruction(_RETURN, _KILL_PROCESS),
    ]
    verdicts: list[tuple[int | None, int]] = [
        (numbers[column], _ALLOW) for numbers in _ALLOWED.values()
    ]
    for error_number, calls in _REFUSED_BY_NAME.items():
        verdicts += [(numbers[column], _REFUSE | error_number) for numbers in calls.values()]
    for number, verdict in verdicts:
        if number is not None:
            program.append(_instruction(_IF_EQUAL, number, skip_if_false=1))
            program.append(_instruction(_RETURN, verdict))
    program.append(_instruction(_RETURN, _REFUSE | errno.EPERM))
    return b"".join(program)


def _instruction(code: int, value: int, *, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if_true, skip_if_false, value)


def _address_space() -> int:
    """Return the bytes of address space that this process has now; 0 where that is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 40
