"""What this machine can do: the peak that utilisation is measured against, its memory, and where programs are kept."""

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

# Dense bfloat16 tensor FLOP/s of one device, from the vendors' data sheets; matched within jax's device_kind.
PEAK_BFLOAT16 = {
    "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
    "TPU v2": 45e12, "TPU v3": 123e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}  # fmt: skip


@functools.cache
def peak_flops(dtype: str) -> tuple[float, str]:
    """Peak FLOP/s of one device in this dtype, and how it is known: "looked up" by name, or "measured" here.

    Only bfloat16 is looked up; anything else, and any device not in the table, is measured by a matrix product.
    """
    kind = jax.local_devices()[0].device_kind
    longest = sorted((name for name in PEAK_BFLOAT16 if name in kind), key=len)
    if dtype == "bfloat16" and longest:
        return PEAK_BFLOAT16[longest[-1]], "looked up"
    return measure_matmul(dtype), "measured"


def matmul_program(dtype: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Compiled product of two matrices of this dtype, in the fastest way: a CPU's in bfloat16 has float32 sums."""
    sums = jnp.float32 if jax.default_backend() == "cpu" else dtype
    return jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=sums).astype(dtype))


def measure_matmul(dtype: str, size: int | None = None, seconds: float = 0.1) -> float:
    """FLOP/s of the fastest of several square matrix products made within about `seconds`."""
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a GPU is faster on constants
    product = matmul_program(dtype)
    product(a, a).block_until_ready()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
"""What a processor can do to many numbers at once, by the names that Linux has for it."""


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself, and which of INSTRUCTIONS it has: libraries differ in which they are good at.

    path: where Linux tells of processors; elsewhere Python is asked.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", "").split()
    has = [words for flag, words in INSTRUCTIONS.items() if flag in flags]
    return f"{name} with {', '.join(has)}" if has else name


def memory() -> int | None:
    """Bytes that can still be allocated here; None where that is not known.

    On an accelerator these are of its own memory; on a CPU, what the host can give without swapping.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None
    known = [_available(), *map(_container_limit, CONTAINER_LIMITS)]
    return min((count for count in known if count is not None), default=None)


CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may have: control groups of versions 2 and 1."""


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: all there is
        pages, size = (
            os.sysconf(name) if name in os.sysconf_names else 0 for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        )
        return pages * size or None


def _container_limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max": none


def keep_compiled_programs(folder: Path) -> None:
    """Compile each program once per machine: later processes read it from `folder`."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # even a small one is read faster
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
