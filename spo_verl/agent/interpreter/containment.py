"""What holds a program in: rlimits, dropped capabilities, Landlock, a seccomp filter, and namespaces where they exist.

Standard library only, and no import of this package: it runs in the server process of :mod:`.zygote`, which is started
bare. Kernel interfaces are called through ctypes; their numbers are those of the kernel's uapi headers for x86_64.

The seccomp filter is a list of what is allowed; all else gets ``EPERM``. A program is one thread in one process: what
would start another is not on the list, so that memory and CPU limits of the process are those of the program and
nothing can outlive it. Landlock lets it read Python and shared libraries, nothing else. Together they need no
privilege, so they hold in an ordinary container too. Namespaces are a second fence where the kernel gives them, and
bring the private folder (a tmpfs of the program's own).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

FOLDER = "/dev/shm"
"""Where a program finds its private folder. It exists wherever glibc does; the tmpfs hides what is really there."""

# --- namespaces and mounts ---

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_FENCES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1

# --- prctl and capabilities ---

PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_DROP = 1, 15, 16, 24
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_VMA = 38, 22, 2, 0x53564D41
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63

# --- Landlock ---

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE, _REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 1, 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_FIFO, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 10, 1 << 12, 1 << 13, 1 << 14
_OWN_FOLDER = (
    _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_FIFO | _MAKE_SYM
)  # fmt: skip
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file system rights that each version of the interface knows; they are the lowest bits."""

# --- seccomp ---

ALLOWED: dict[str, int] = {
    # files, by path (Landlock decides which) and by descriptor
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "pread64": 17,
    "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "dup": 32, "dup2": 33,
    "sendfile": 40, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "umask": 95,
    "statfs": 137, "fstatfs": 138, "getdents64": 217, "epoll_wait": 232, "epoll_ctl": 233, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "epoll_pwait": 281, "fallocate": 285, "epoll_create1": 291,
    "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "renameat2": 316, "copy_file_range": 326, "statx": 332,
    "close_range": 436, "faccessat2": 439,
    # memory
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "madvise": 28,
    # signals to itself, timers, clocks
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pause": 34, "nanosleep": 35, "getitimer": 36,
    "alarm": 37, "setitimer": 38, "gettimeofday": 96, "times": 100, "rt_sigpending": 127, "rt_sigtimedwait": 128,
    "rt_sigsuspend": 130, "sigaltstack": 131, "time": 201, "restart_syscall": 219,
    # about itself
    "getpid": 39, "uname": 63, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115, "getresuid": 118,
    "getresgid": 120, "gettid": 186, "getcpu": 309, "getrandom": 318, "wait4": 61, "waitid": 247,
    # what the C library and the interpreter do inside one thread
    "sched_yield": 24, "exit": 60, "futex": 202, "exit_group": 231,
}  # fmt: skip
"""System calls that are allowed whatever their arguments: what Python, its standard library and the usual packages ask
for. To find what another package needs, run it under ``strace -f``."""

OWN_FILES: dict[str, int] = {
    "truncate": 76, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "utime": 132, "utimes": 235,
    "fchownat": 260, "futimesat": 261, "fchmodat": 268, "utimensat": 280, "fchmodat2": 452,
}  # fmt: skip
"""What changes a file without opening it for writing. Landlock does not ask for most of it, so it is allowed only where
everything but the private folder is mounted read-only."""

_EPERM, _ENOTTY, _ENOSYS, _EOPNOTSUPP = 1, 25, 38, 95
_ABSENT: dict[int, int] = {
    # openat2 and clone3 have their arguments in memory, where no filter sees them; libraries fall back on older calls.
    437: _ENOSYS, 435: _ENOSYS,
    # getxattr, lgetxattr, fgetxattr, listxattr, llistxattr, flistxattr: as on a file system without attributes
    191: _EOPNOTSUPP, 192: _EOPNOTSUPP, 193: _EOPNOTSUPP, 194: _EOPNOTSUPP, 195: _EOPNOTSUPP, 196: _EOPNOTSUPP,
}  # fmt: skip
"""Refused with another error than ``EPERM``, one after which libraries know how to continue."""

_AUDIT_ARCH_X86_64 = 0xC000003E
_RET_KILL, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN, _AND = 0x20, 0x15, 0x35, 0x06, 0x54


@dataclass(frozen=True)
class Argument:
    """What an argument of a system call must be: ``(argument & mask) in values``, of its lower or upper 32 bits."""

    position: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    upper: bool = False


def _null(position: int) -> tuple[Argument, Argument]:
    return Argument(position, (0,)), Argument(position, (0,), upper=True)


def _opening(position: int) -> tuple[Argument, Argument]:
    """Flags of ``open``: none but the usual ones; no access mode 3, for which Landlock asks for no right; no truncating
    of what is opened for reading, which Landlock lets pass before its third version. ``O_PATH`` is not among them."""
    create = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_TMPFILE | os.O_APPEND
    usual = os.O_ACCMODE | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_SYNC
    large_file = 0o100000
    ways = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC)
    return (
        Argument(position, (0,), mask=0xFFFFFFFF & ~(create | usual | large_file)),
        Argument(position, ways, mask=os.O_ACCMODE | os.O_TRUNC),
    )


def _conditional(pid: int) -> dict[int, tuple[tuple[Argument, ...], int]]:
    """System calls that are allowed for some arguments: number -> (what must hold of them all, the error otherwise).

    Args:
        pid: of the process that is held in.
    """
    itself, itself_or_zero = (Argument(0, (pid,)),), (Argument(0, (0, pid)),)
    clocks = (Argument(0, tuple(range(12))),)  # the system's and its own; negative ones are of other processes
    # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TIOCGWINSZ: what opening and printing ask for
    requests = (Argument(1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451, 0x5413)),)
    # F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ; no F_SETOWN or F_SETSIG, which make the kernel send any signal
    # to any process of the user
    commands = (Argument(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),)
    # asyncio wakes itself through a pair of stream sockets. A datagram socket of a pair can be sent from to any socket
    # of the machine; a stream socket cannot, and sending with an address or with descriptors (sendmsg) is not allowed.
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    pair = (
        Argument(0, (socket.AF_UNIX,)),
        Argument(1, (socket.SOCK_STREAM,), mask=0xFFFFFFFF & ~flags),
        Argument(2, (0,)),
    )
    return {
        2: (_opening(1), _EPERM),  # open
        257: (_opening(2), _EPERM),  # openat
        16: (requests, _ENOTTY),  # ioctl
        72: (commands, _EPERM),  # fcntl
        157: ((Argument(0, (PR_SET_NAME, PR_GET_NAME, PR_SET_VMA)),), _EPERM),  # prctl
        53: (pair, _EPERM),  # socketpair
        44: (_null(4), _EPERM),  # sendto
        45: (_null(4), _EPERM),  # recvfrom
        51: ((), _EPERM),  # getsockname: Python asks it of a socket that it is given
        62: (itself, _EPERM),  # kill
        234: (itself, _EPERM),  # tgkill
        302: (itself_or_zero, _EPERM),  # prlimit64
        204: (itself_or_zero, _EPERM),  # sched_getaffinity
        121: (itself_or_zero, _EPERM),  # getpgid
        124: (itself_or_zero, _EPERM),  # getsid
        228: (clocks, _EPERM),  # clock_gettime
        229: (clocks, _EPERM),  # clock_getres
        230: (clocks, _EPERM),  # clock_nanosleep
    }


class ContainmentError(OSError):
    """A fence that this machine has could not be put up for a program."""


@dataclass(frozen=True)
class ProgramLimits:
    """What one program may use; units in the names."""

    cpu_seconds: int
    memory_mb: int
    disk_mb: int
    readable: tuple[str, ...]
    """Folders and files that a program may read."""


@dataclass(frozen=True)
class Fences:
    """What this machine has, found by trying."""

    namespaces: bool
    landlock: int
    """Version of its interface; 0: none."""
    seccomp: bool


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise ContainmentError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, *arguments: int) -> int:
    return int(_libc.prctl(option, *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4])))


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _check(_prctl(PR_SET_PDEATHSIG, 9), "prctl(PR_SET_PDEATHSIG)")


def enter_namespaces() -> bool:
    """Leave for user, mount, network, IPC, host name and (for children) process namespaces of their own.

    Returns:
        False, and nothing changed, where the kernel or the container forbids it, or forbids what they are for. It may
        do so halfway (root without CAP_SETFCAP gets the namespace, but may not map itself into it), so a child tries.
    """

    def all_of_it() -> None:
        _enter()
        _private_folder(1)

    if not _succeeds(all_of_it):
        return False
    _enter()
    return True


def _succeeds(attempt: Callable[[], None]) -> bool:
    """Whether a child process can do it."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _enter() -> None:
    uid, gid = os.getuid(), os.getgid()
    own_users = _libc.unshare(CLONE_NEWUSER | _FENCES) == 0
    if not own_users:
        _check(_libc.unshare(_FENCES), "unshare")
    else:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount(MS_PRIVATE)")


def available(namespaces: bool) -> Fences:
    """Try what does not last."""
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    return Fences(namespaces=namespaces, landlock=max(0, int(abi)), seccomp=_seccomp_works())


def _seccomp_works() -> bool:
    def install() -> None:
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        _install_filter(own_files=False)

    return platform.machine() == "x86_64" and _succeeds(install)


def contain(limits: ProgramLimits, fences: Fences) -> None:
    """Put up every fence around the calling process, for good.

    Raises:
        ContainmentError: one that the machine has could not be put up; the program must not run.
    """
    folder, read_only = None, False
    if fences.namespaces and limits.disk_mb:
        folder = FOLDER
        read_only = _private_folder(limits.disk_mb)
    os.chdir(folder or "/")
    _limit_resources(limits)
    _drop_capabilities()
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1), "prctl(PR_SET_NO_NEW_PRIVS)")
    if fences.landlock:
        _restrict_files(fences.landlock, limits.readable, folder)
    if fences.seccomp:
        _install_filter(own_files=read_only)


def _private_folder(size_mb: int) -> bool:
    """Mount the private folder. Returns whether all else could be made read-only."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    read_only = _libc.syscall(_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)) == 0
    options = f"size={size_mb}m,nr_inodes=4096,mode=0700".encode()
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    _check(_libc.mount(b"tmpfs", FOLDER.encode(), b"tmpfs", flags, options), f"mount(tmpfs, {FOLDER})")
    return bool(read_only)


def _limit_resources(limits: ProgramLimits) -> None:
    with open("/proc/self/statm") as statm:
        own = int(statm.read().split()[0]) * resource.getpagesize()
    values = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: own + (limits.memory_mb << 20),
        resource.RLIMIT_FSIZE: limits.disk_mb << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        if _prctl(PR_CAPBSET_DROP, capability) != 0:
            break  # beyond the last one, or not allowed to, which is as good once no new privileges are given
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _restrict_files(abi: int, readable: tuple[str, ...], folder: str | None) -> None:
    rights = (1 << _RIGHTS_OF_ABI[min(abi, max(_RIGHTS_OF_ABI))]) - 1
    network = 3 if abi >= 4 else 0  # bind and connect of TCP
    scoped = 3 if abi >= 6 else 0  # abstract unix sockets and signals to processes outside
    attributes = struct.pack("QQQ", rights, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    _check(ruleset, "landlock_create_ruleset")
    for path in readable:
        _allow_below(ruleset, path, _READ_FILE | _READ_DIR)
    if folder is not None:
        _allow_below(ruleset, folder, (_OWN_FOLDER | _REFER | _TRUNCATE) & rights)
    _allow_below(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE | (_TRUNCATE & rights))
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _allow_below(ruleset: int, path: str, access: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", access, opened)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule({path})")
    finally:
        os.close(opened)


def _install_filter(own_files: bool) -> None:
    program = build_filter(os.getpid(), own_files)
    data = ctypes.create_string_buffer(program)
    pointer = struct.pack("H6xQ", len(program) // 8, ctypes.addressof(data))
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0), "prctl(PR_SET_SECCOMP)")


def build_filter(pid: int, own_files: bool) -> bytes:
    """The filter as instructions of classic BPF.

    Args:
        pid: of the process that it is for.
        own_files: whether :data:`OWN_FILES` are allowed.
    """
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _RET_KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_GREATER_EQUAL, 0, 1, 0x40000000),  # numbers of the x32 ABI
        (_RETURN, 0, 0, _RET_ERRNO | _ENOSYS),
    ]
    for number in (*ALLOWED.values(), *(OWN_FILES.values() if own_files else ())):
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_ALLOW)]
    for number, error in _ABSENT.items():
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_ERRNO | error)]
    for number, (arguments, error) in _conditional(pid).items():
        block: list[tuple[int, int, int, int]] = []
        for argument in arguments:
            block += [(_LOAD, 0, 0, 16 + 8 * argument.position + 4 * argument.upper), (_AND, 0, 0, argument.mask)]
            left = len(argument.values)
            for value in argument.values:  # one that fits jumps over the others and the refusal
                block.append((_JUMP_EQUAL, left, 0, value))
                left -= 1
            block.append((_RETURN, 0, 0, _RET_ERRNO | error))
        block.append((_RETURN, 0, 0, _RET_ALLOW))
        lines += [(_JUMP_EQUAL, 0, len(block), number), *block]
    lines.append((_RETURN, 0, 0, _RET_ERRNO | _EPERM))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
