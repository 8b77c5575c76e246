from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Card(_message.Message):
    __slots__ = ("model", "name", "encoders", "cuts", "max_bytes", "max_new_tokens", "limit", "boot", "markers")
    class MarkersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    MARKERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    encoders: _containers.RepeatedScalarFieldContainer[str]
    cuts: _containers.RepeatedScalarFieldContainer[str]
    max_bytes: int
    max_new_tokens: int
    limit: int
    boot: str
    markers: _containers.ScalarMap[str, int]
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., encoders: _Optional[_Iterable[str]] = ..., cuts: _Optional[_Iterable[str]] = ..., max_bytes: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., limit: _Optional[int] = ..., boot: _Optional[str] = ..., markers: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("start", "data", "times")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    start: Start
    data: bytes
    times: Times
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., data: _Optional[bytes] = ..., times: _Optional[_Union[Times, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("id", "bytes", "sha256", "have", "cut", "wire", "so_far")
    ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    SO_FAR_FIELD_NUMBER: _ClassVar[int]
    id: str
    bytes: int
    sha256: bytes
    have: int
    cut: str
    wire: str
    so_far: bytes
    def __init__(self, id: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., have: _Optional[int] = ..., cut: _Optional[str] = ..., wire: _Optional[str] = ..., so_far: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("token", "finished")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    token: Token
    finished: Finished
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "token", "logits")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    index: int
    token: int
    logits: bytes
    def __init__(self, index: _Optional[int] = ..., token: _Optional[int] = ..., logits: _Optional[bytes] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("tokens", "times", "runs")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    times: Times
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, tokens: _Optional[int] = ..., times: _Optional[_Union[Times, _Mapping]] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("agent", "arm", "latency_s", "energy_j", "evidence", "energy_evidence")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    agent: str
    arm: str
    latency_s: float
    energy_j: float
    evidence: str
    energy_evidence: str
    def __init__(self, agent: _Optional[str] = ..., arm: _Optional[str] = ..., latency_s: _Optional[float] = ..., energy_j: _Optional[float] = ..., evidence: _Optional[str] = ..., energy_evidence: _Optional[str] = ...) -> None: ...

class Times(_message.Message):
    __slots__ = ("receive_s", "wait_s", "encode_s", "llm_s")
    RECEIVE_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    LLM_S_FIELD_NUMBER: _ClassVar[int]
    receive_s: float
    wait_s: float
    encode_s: float
    llm_s: float
    def __init__(self, receive_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., llm_s: _Optional[float] = ...) -> None: ...
