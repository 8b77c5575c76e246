"""The page on existing engines: its sketch is one that an agent and a cluster could read."""

import re

import pytest
import yaml

from mllm_sched import paths
from mllm_sched.edge.config import AgentConfig

PAGE = (paths.ROOT / "docs" / "going_further.md").read_text()


@pytest.fixture(scope="module")
def objects():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def agent(objects):
    return yaml.safe_load(objects["ConfigMap"]["data"]["agent.yaml"])


@pytest.fixture(scope="module")
def container(objects):
    (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_agent_of_the_sketch_is_configured_as_agents_are(agent):
    assert AgentConfig.model_validate(agent).device == "agx-orin"


def test_whatever_the_agent_reads_and_writes_is_mounted(objects, agent, container):
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {each["name"] for each in objects["DaemonSet"]["spec"]["template"]["spec"]["volumes"]}
    assert set(mounts) == volumes
    for path in (container["args"][-1], agent["users_file"], agent["journal"]["path"]):
        assert any(path.startswith(f"{folder}/") for folder in mounts.values()), path


def test_each_engine_is_said_to_have_never_run_here():
    assert "None of it ever ran here" in PAGE
    for engine in ("Ray Serve", "Kubernetes", "KubeEdge", "Dynamo", "Triton"):
        assert engine in PAGE
    assert len(PAGE.splitlines()) <= 120
