"""The YAML file of an agent, and what is said of it when it is wrong."""

import re

import pytest
import yaml

from mllm_sched import paths
from mllm_sched.edge.config import AgentConfig, ConfigError, FrontConfig, read_config
from mllm_sched.edge.run_agent import open_device_of

GOOD = {
    "name": "edge-1",
    "server": "127.0.0.1:50051",
    "scheduler": {"limit_s": 0.2},
    "journal": {"path": "edge-1.journal"},
}


TLS = {name: f"{name}.pem" for name in ("certificate", "key", "authority")}
PAGE = (paths.ROOT / "docs" / "running.md").read_text()


def read(folder, **changes):
    file = folder / "agent.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return read_config(file, AgentConfig)


def test_the_least_a_file_needs_listens_on_this_machine_alone(tmp_path):
    config = read(tmp_path)
    assert config.host == "127.0.0.1" and config.metrics is None
    assert config.scheduler.name == "adaptive-safe-gp"


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path):
    config = read(tmp_path, users_file="people/users.yaml", token_file="/etc/token", tls=TLS)
    assert config.journal.path == tmp_path / "edge-1.journal"
    assert config.users_file == tmp_path / "people" / "users.yaml"
    assert str(config.token_file) == "/etc/token"
    assert config.tls.key == tmp_path / "key.pem"
    assert read(tmp_path, device="trace:tables/a.csv").device == f"trace:{tmp_path}/tables/a.csv"
    assert read(tmp_path, device="trace:/tables/a.csv").device == "trace:/tables/a.csv"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": {"limit_s": -1}}, r"scheduler\.limit_s: -1: .*greater than 0"),
        ({"scheduler": {"limit_s": float("nan")}}, r"scheduler\.limit_s: nan"),
        ({"sheduler": {}}, "sheduler: .*Extra inputs are not permitted"),
        ({"name": "two words"}, "name: 'two words'"),
        ({"listen": "127.0.0.1:99999"}, "listen: '127.0.0.1:99999': expected HOST:PORT"),
        (
            {"wire": "float8", "server": "nowhere"},
            "server: 'nowhere': expected HOST:PORT.*; wire: 'float8': expected one of float32",
        ),
        ({"server": "llm.example:50051"}, "server: 'llm.example:50051': .*others can reach it"),
        ({"siblings": ["192.0.2.7:50061"]}, r"siblings\.0: '192.0.2.7:50061': .*others can reach"),
        ({"queue": {"batch": 3}}, r"queue\.batch: 3"),
        ({"queue": {"waiting": 257}}, r"queue\.waiting: 257: .*less than or equal to 256"),
        ({"listen": "0.0.0.0:50061"}, "others can reach it, and nothing is encrypted"),
        ({"tls": {"certificate": "a.pem"}}, r"tls\.key: Field required"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        read(tmp_path, **changes)
    assert str(tmp_path / "agent.yaml") in str(error.value)


SECRET = "c29tZSBzZWNyZXQ"


@pytest.mark.parametrize(
    "changes",
    [
        {"token": SECRET},
        {"scheduler": {"limit_s": 1.0, "token": SECRET}},
        {"tls": {"token": SECRET}},
        {"queue": [SECRET]},
        {"name": {"token": SECRET}},
    ],
)
def test_a_secret_in_a_place_where_none_belongs_is_not_shown(tmp_path, changes):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, **changes)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, r"agent\.yaml: (not YAML|expected fields)") for text in ("- a list", "{", "\x00")),
        (f"name: edge-1\ntoken: *{SECRET}\n", "not YAML in line 2"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, said):
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_config(file, AgentConfig)
    assert SECRET not in str(error.value)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        read_config(tmp_path / "nowhere.yaml", AgentConfig)


def test_beyond_this_machine_only_if_it_is_meant(tmp_path):
    assert read(tmp_path, listen="0.0.0.0:50061", open=True).host == "0.0.0.0"
    asked = {"server": "llm.example:50051", "siblings": ["edge.example:50061"]}
    assert read(tmp_path, **asked, open=True).server == "llm.example:50051"
    assert read(tmp_path, **asked, tls=TLS).server == "llm.example:50051"


def test_the_configurations_of_the_page_are_what_agents_and_fronts_read(tmp_path):
    blocks = re.findall(r"```yaml\n# (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in blocks] == ["agent.yaml", "front.yaml"]
    assert PAGE.count("```yaml") == len(blocks)
    for (name, text), kind in zip(blocks, (AgentConfig, FrontConfig), strict=True):
        (tmp_path / name).write_text(text)
        config = read_config(tmp_path / name, kind)
        assert config.token_file and config.users_file and config.metrics
    agent = read_config(tmp_path / "agent.yaml", AgentConfig)
    open_device_of(agent).close()
    assert agent.listen in config.agents and agent.siblings[0] in config.agents
