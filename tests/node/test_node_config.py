from pathlib import Path

import pytest

from deaios.node.config import Config, load_config
from deaios.primitives.errors import ConfigError


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()


def test_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "deaios.toml").write_text('log_level = "debug"\n[chain]\nport = 1\n[network]\nproviders = 5\n')
    config = load_config(tmp_path)
    assert (config.log_level, config.chain.port, config.network.providers) == ("debug", 1, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[chain]\nprot = 1\n", "unknown key `chain.prot`; did you mean `chain.port`"),
        ("log_levle = 'x'\n", "did you mean `log_level`"),
        ("[chain]\nport = 'x'\n", "port"),
        ("[chain\n", "deaios.toml"),
        ("zzz = 1\n", "known keys"),
    ],
)
def test_mistakes_name_the_key_and_the_fix(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "deaios.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path)
