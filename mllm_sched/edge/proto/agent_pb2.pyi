from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AgentStatus(_message.Message):
    __slots__ = ("name", "boot", "model", "taking", "why_not", "waiting", "running", "backlog_s", "answer_s", "limit_s", "predictions", "draining")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TAKING_FIELD_NUMBER: _ClassVar[int]
    WHY_NOT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_S_FIELD_NUMBER: _ClassVar[int]
    ANSWER_S_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    boot: str
    model: str
    taking: bool
    why_not: str
    waiting: int
    running: int
    backlog_s: float
    answer_s: float
    limit_s: float
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    draining: bool
    def __init__(self, name: _Optional[str] = ..., boot: _Optional[str] = ..., model: _Optional[str] = ..., taking: _Optional[bool] = ..., why_not: _Optional[str] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., backlog_s: _Optional[float] = ..., answer_s: _Optional[float] = ..., limit_s: _Optional[float] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., draining: _Optional[bool] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("modality", "latency_s", "energy_j", "infeasible")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    INFEASIBLE_FIELD_NUMBER: _ClassVar[int]
    modality: str
    latency_s: float
    energy_j: float
    infeasible: bool
    def __init__(self, modality: _Optional[str] = ..., latency_s: _Optional[float] = ..., energy_j: _Optional[float] = ..., infeasible: _Optional[bool] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("user", "id")
    USER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    user: str
    id: str
    def __init__(self, user: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class HeldReply(_message.Message):
    __slots__ = ("held",)
    HELD_FIELD_NUMBER: _ClassVar[int]
    held: bool
    def __init__(self, held: _Optional[bool] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("csv",)
    CSV_FIELD_NUMBER: _ClassVar[int]
    csv: bytes
    def __init__(self, csv: _Optional[bytes] = ...) -> None: ...
