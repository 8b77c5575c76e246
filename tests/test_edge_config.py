"""The YAML file of an agent, and what is said of it when it is wrong."""

import pytest
import yaml

from mllm_sched.edge.config import AgentConfig, ConfigError, read_config

GOOD = {
    "name": "edge-1",
    "server": "127.0.0.1:50051",
    "scheduler": {"limit_s": 0.2},
    "journal": {"path": "edge-1.journal"},
}


def read(folder, **changes):
    file = folder / "agent.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return read_config(file, AgentConfig)


def test_the_least_a_file_needs_listens_on_this_machine_alone(tmp_path):
    config = read(tmp_path)
    assert config.host == "127.0.0.1" and config.metrics is None
    assert config.scheduler.name == "adaptive-safe-gp"


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path):
    config = read(tmp_path, users_file="people/users.yaml", token_file="/etc/token")
    assert config.journal.path == tmp_path / "edge-1.journal"
    assert config.users_file == tmp_path / "people" / "users.yaml"
    assert str(config.token_file) == "/etc/token"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": {"limit_s": -1}}, r"scheduler\.limit_s: -1: .*greater than 0"),
        ({"scheduler": {"limit_s": float("nan")}}, r"scheduler\.limit_s: nan"),
        ({"scheduler": {}}, r"scheduler\.limit_s: Field required"),
        ({"sheduler": {}}, "sheduler: .*Extra inputs are not permitted"),
        ({"name": "two words"}, "name: 'two words'"),
        ({"server": "nowhere"}, "server: expected HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "listen: expected HOST:PORT"),
        ({"wire": "float8"}, "wire: expected one of float32"),
        ({"queue": {"batch": 3}}, r"queue\.batch: 3"),
        ({"queue": {"waiting": 0}}, r"queue\.waiting: 0"),
        ({"journal": {"path": "x", "durability": "none"}}, r"journal\.durability: 'none'"),
        ({"listen": "0.0.0.0:50061"}, "others can reach it, and nothing is encrypted"),
        ({"tls": {"certificate": "a.pem"}}, r"tls\.key: Field required"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        read(tmp_path, **changes)
    assert str(tmp_path / "agent.yaml") in str(error.value)


def test_every_fault_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, server="nowhere", wire="float8")
    assert "server" in str(error.value) and "wire" in str(error.value)


@pytest.mark.parametrize("text", ["- a list", "{", "just words", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"agent\.yaml: (not YAML|expected fields)"):
        read_config(file, AgentConfig)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        read_config(tmp_path / "nowhere.yaml", AgentConfig)


def test_beyond_this_machine_only_if_it_is_meant(tmp_path):
    assert read(tmp_path, listen="0.0.0.0:50061", open=True).host == "0.0.0.0"
