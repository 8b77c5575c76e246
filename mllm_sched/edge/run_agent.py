"""An agent as a process: opened from its configuration, explained, served."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from contextlib import ExitStack, closing
from typing import cast

import grpc

from mllm_sched.devices import LIVE, open_device, settings_of
from mllm_sched.devices.base import ModelDevice, trusted_arms
from mllm_sched.devices.live import LiveDevice
from mllm_sched.devices.model_encoders import ModelEncoders
from mllm_sched.edge.admission import expected_of
from mllm_sched.edge.agent import Agent
from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import ClosedLoop, contexts_of
from mllm_sched.edge.config import AgentConfig, ConfigError
from mllm_sched.edge.encoder_stage import EncoderStage
from mllm_sched.edge.fair_queue import FairQueue
from mllm_sched.edge.journal import (
    AsyncJournal,
    Journal,
    JournalError,
    count_measured,
    read_spec,
)
from mllm_sched.edge.learner import Learner, SchedulerSpec, differences
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import Metrics
from mllm_sched.edge.proto import agent_pb2_grpc as agent_rpc
from mllm_sched.edge.siblings import AgentTalk, learn_from
from mllm_sched.edge.users import Users
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.subprocess_worker import OPEN_TIMEOUT_S
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import NodeError
from mllm_sched.pipeline.options import Limits
from mllm_sched.pipeline.service import SERVICE, serve

log = logging.getLogger(__name__)
AGENT_SERVICE = "mllm_sched.edge.Agent"
SPARE = 64  # requests beyond those that wait: being uploaded, encoded or answered
WATCH_S = 2.0  # between two reports of the journal's size
PRUNE_S = 60.0  # between two times that old answers are dropped
TIMEOUTS = ("timeout_s", "open_timeout_s")  # settings of a device that its encoders take
FOR_PROGRAMS = {"open_meter", "noise", "throttling", "drift", "background", "outages"}  # objects
ASK_SERVER_S = 2.0  # how long --check waits for the LLM server


def run_agent(config: AgentConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun.

    Raises ConfigError if the configuration asks for what is not there, and OSError if the device,
    the journal or an address cannot be had.
    """
    with ExitStack() as opened:
        device = open_device_of(config)
        opened.callback(device.close)
        device.encoders.start()
        users = config.read_users()
        spec = spec_of(config, device)
        journal = opened.enter_context(Journal(**dict(config.journal)))
        learner = Learner(journal, spec)
        learn_from(config.siblings, learner, config.scatter, config.client_security)
        metrics = Metrics(device.space, config.scheduler.violations)
        opened.callback(metrics.close)
        if config.metrics:
            host, _, port = config.metrics.rpartition(":")
            metrics.serve(host, int(port), open_to_all=config.open)
        try:
            device.load(spec.seeds)
        except HarnessError as error:  # it fails again with the first task, and is learned then
            say(log, "encoders-not-loaded", "error", why=str(error))
        asyncio.run(_serve(config, device, learner, users, metrics))


async def _serve(
    config: AgentConfig, device: ModelDevice, learner: Learner, users: Users, metrics: Metrics
) -> None:
    client = EdgeClient(config.server, config.client_security)
    half = device.encoders.half
    answering = Answering(client, half.identity, config.wire, config.answers_at_once)
    loop = ClosedLoop(config.name, device, learner, config.scheduler.limit_s, metrics)
    queue = FairQueue(config.queue.waiting, config.queue.per_user)
    stage = EncoderStage(loop, queue, sizes_of(config), answering, metrics)
    for one in expected_of(learner.scheduler, half.modalities):
        stage.admission.expect(one.modality, one.latency_s, one.energy_j)
    limits = Limits(config.queue.waiting + SPARE)
    agent = Agent(
        *(config.name, stage, answering, learner.journal, users),
        *(limits, config.server_security, metrics),
    )

    def add(server: grpc.aio.Server) -> None:
        agent_rpc.add_AgentServicer_to_server(AgentTalk(agent), server)

    works = stage.dispatch(), stage.shed(), agent.journal.watch(), _watch(agent.journal, metrics)
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_must_not_end)
    say(log, "agent-started", agent=config.name, device=config.device, boot=agent.boot)
    try:
        await serve(agent, config.host, config.port, add=add, names=(SERVICE, AGENT_SERVICE))
    finally:
        for task in tasks:
            task.cancel()
        _close(loop)


async def _watch(journal: AsyncJournal, metrics: Metrics) -> None:
    """Report the size of the journal, and drop old answers from it, for ever."""
    pruned_s = 0.0
    while True:
        metrics.journal(journal.journal.size_bytes(), not journal.why_not)
        if time.monotonic() > pruned_s + PRUNE_S and not journal.why_not:
            try:
                await asyncio.to_thread(journal.journal.prune)
                pruned_s = time.monotonic()
            except JournalError as error:
                say(log, "journal-not-pruned", "warning", why=str(error))
        await asyncio.sleep(WATCH_S)


def _close(loop: ClosedLoop) -> None:
    """Write what is left. All that users were answered is in the journal already."""
    try:
        loop.write_pending()
        loop.learner.close()
    except JournalError as error:
        say(log, "journal-left-open", "warning", why=str(error), reason=error.reason)


def _must_not_end(task: asyncio.Task[None]) -> None:
    """End the process: without its dispatcher it would take tasks and encode none."""
    if not task.cancelled():
        log.critical("an agent's own task ended", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


def open_device_of(config: AgentConfig) -> ModelDevice:
    """The device of a configuration; ConfigError names the field that it does not like."""
    try:
        _check_settings(config)
        settings = dict(config.device_settings)
        timeouts = {name: settings.pop(name) for name in TIMEOUTS if name in settings}
        if config.device == "agx-orin":
            timeouts = {"open_timeout_s": OPEN_TIMEOUT_S, **timeouts}  # TensorRT builds engines
        model = ModelEncoders(config.model, config.seed, config.modalities, config.cut, **timeouts)
        return cast(ModelDevice, open_device(config.device, model=model, **settings))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"device {config.device}, model {config.model}: {error}") from error


def _check_settings(config: AgentConfig) -> None:
    """Refuse what this device would ignore, or what a file cannot hold."""
    known = (settings_of(config.device, with_model=True) - FOR_PROGRAMS).union(TIMEOUTS)
    if config.device not in LIVE:
        known.add("seed")
    for name in config.device_settings:
        if name == "noise_seed" and "seed" in known:
            raise ValueError("device_settings: noise_seed: it is called seed now")
        if name not in known:
            raise ValueError(
                f"device_settings: unknown setting {name!r}; expected some of "
                f"{', '.join(sorted(known))}"
            )


def sizes_of(config: AgentConfig) -> tuple[int, ...]:
    """How many items may be encoded in one call: powers of two."""
    return tuple(size for size in (1, 2, 4, 8) if size <= config.queue.batch)


def spec_of(config: AgentConfig, device: ModelDevice) -> SchedulerSpec:
    """The scheduler that the configuration asks for, over the device's arms."""
    scheduler = config.scheduler
    try:
        given = [device.space.arm(**levels) for levels in scheduler.trusted]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheduler.trusted: {error}") from error
    return SchedulerSpec(
        name=scheduler.name,
        space=device.space,
        limits={"latency_s": scheduler.limit_s},
        seeds=given or trusted_arms(device),
        rng=scheduler.seed,
        contexts=contexts_of(device.encoders.half.modalities, sizes_of(config)),
        settings=scheduler.settings,
    )


def explain(config: AgentConfig) -> str:
    """What an agent of this configuration would do, in words.

    Raises as ``run_agent``, but listens nowhere, and only reads the journal.
    """
    with closing(open_device_of(config)) as device:
        spec = spec_of(config, device)
        scheduler = spec.make()
        encoders = [f"{takes} by {name}" for name, takes in device.modalities.items()]
        return "\n".join(
            [
                f"agent {config.describe()}",
                ", ".join([f"device {device.name}: {device.space!r}", *_device_state(device)]),
                f"latency {device.evidence}, energy {device.energy_evidence}: "
                f"{device.meter_source}",
                f"model {config.model} ({device.encoders.half.identity[:12]}): "
                f"{', '.join(encoders)}",
                f"scheduler {spec.name}: least {spec.objective}, encoding within "
                f"{config.scheduler.limit_s:g} s; {scheduler.cells} cells to learn",
                f"  trusted: {'; '.join(map(str, spec.seeds)) or 'none'}",
                f"queue: {config.queue.waiting} may wait, {config.queue.per_user} of a user; "
                f"up to {config.queue.batch} items of a kind in one call",
                f"journal {config.journal.path}: {_journal_state(config, spec)}",
                f"LLM server {config.server}: {_server_state(config, device)}",
            ]
        )


def _device_state(device: ModelDevice) -> list[str]:
    """Mode and clocks of a board, and its temperature."""
    state = [f"{name} {value}" for name, value in device.state().items()]
    if isinstance(device, LiveDevice) and math.isfinite(hottest_c := device.thermals.hottest_c()):
        state.append(f"temperature {hottest_c:.1f} C")
    return state


def _journal_state(config: AgentConfig, spec: SchedulerSpec) -> str:
    path = config.journal.path
    if not path.exists():
        return "none yet"
    count, before = count_measured(path), read_spec(path)
    state = f"{count} measurement{'' if count == 1 else 's'}"
    if before and (found := differences(before, spec.to_json())):
        return f"{state} of another scheduler, so it will be refused ({'; '.join(found)})"
    return state


def _server_state(config: AgentConfig, device: ModelDevice) -> str:
    try:
        with EdgeClient(config.server, config.client_security) as client:
            card = client.describe(ASK_SERVER_S)
    except NodeError as error:
        return f"does not answer now ({error})"
    if card.model != device.encoders.half.identity:
        raise ConfigError(
            f"server {config.server} holds another model ({card.name}) than {config.model}; "
            "give both the same model and seed"
        )
    if config.cut not in card.cuts:
        raise ConfigError(f"server {config.server} takes {', '.join(card.cuts)}, not {config.cut}")
    return f"answers, holds {card.name}"
