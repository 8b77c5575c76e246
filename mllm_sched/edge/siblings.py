"""What other agents have measured, for a scheduler that has nothing yet."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable

import grpc
import pandas as pd

from mllm_sched.edge.learner import Learner
from mllm_sched.edge.logs import say
from mllm_sched.edge.proto import agent_pb2 as pb
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.measurement import TableError, check_table
from mllm_sched.pipeline.options import Security

log = logging.getLogger(__name__)
PATIENCE_S = 5.0  # for each sibling; an agent that starts must not wait for one that hangs
MOST_BYTES = 64 << 20


def learn_once(
    siblings: Iterable[str], learner: Learner, scatter: float, security: Security
) -> None:
    """Let a scheduler that has learned nothing yet learn from its siblings; see ``learn_from``."""
    if not learner.has_learned:
        rows = learn_from(siblings, learner, scatter, security)
        say(log, "learned-from-siblings", rows=rows)


def learn_from(
    siblings: Iterable[str], learner: Learner, scatter: float, security: Security
) -> int:
    """Start a scheduler warm from the measurements of siblings; how many rows they gave.

    A sibling that does not answer, or measured other arms, is left out, and the log says so. The
    table is written to the journal before the scheduler learns from it.
    """
    asked = [_usable(address, learner, security) for address in siblings]
    tables = [table for table in asked if table is not None]
    if not tables:
        return 0
    together = pd.concat(tables, ignore_index=True)
    learner.warm_start(together, scatter)
    return len(together)


def _usable(address: str, learner: Learner, security: Security) -> pd.DataFrame | None:
    try:
        table = experience_of(address, security)
        if table.empty:
            return None
        table = check_table(table, address)
        _check_arms(table, learner)
    except (grpc.RpcError, TableError, ValueError) as error:
        why = error.details() if isinstance(error, grpc.Call) else str(error)
        say(log, "sibling-left-out", "warning", sibling=address, why=why)
        return None
    return table


def experience_of(address: str, security: Security) -> pd.DataFrame:
    """The table of an agent's measurements; empty if it has none.

    Raises
    ------
    grpc.RpcError
        If it does not answer.
    ValueError
        If the table is too large, or is none.
    """
    credentials = security.channel_credentials()
    channel = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    with channel:
        stub, received = rpc.AgentStub(channel), bytearray()
        call = stub.Experience(pb.Nothing(), timeout=PATIENCE_S, metadata=security.metadata)
        for rows in call:
            received += rows.csv
            if len(received) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes of experience")
    if not received.strip():
        return pd.DataFrame()
    return pd.read_csv(io.BytesIO(received), dtype={"failed": str})


def _check_arms(table: pd.DataFrame, learner: Learner) -> None:
    """Every row must be on an arm of ours, in a context of ours; ValueError says what is not."""
    joint = learner.scheduler.joint
    missing = [name for name in joint.names if name not in table]
    if missing:
        raise ValueError(f"its table lacks {', '.join(missing)}")
    for row in table[list(joint.names)].drop_duplicates().to_dict("records"):
        joint.arm(**row)
