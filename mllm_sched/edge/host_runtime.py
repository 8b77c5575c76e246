"""Encoders on this machine, now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.host import thread_levels
from mllm_sched.edge.encoder_process import How, Prepared
from mllm_sched.edge.metered import metered
from mllm_sched.edge.runtime import CALL_TIMEOUT_S, OPEN_TIMEOUT_S, Encoded, Runtime
from mllm_sched.harness.meters import MendedMeter, PowerMeter, open_meter

PRECISIONS = ("float32", "bfloat16", "int8")
TRUSTED = ("float32", "int8")  # bfloat16 is slow where the processor has no instructions for it


class HostRuntime(Runtime):
    """This machine's processor, through PyTorch; its arms are precision x threads.

    All cores in float32 and in int8 are trusted. A rule that tries no kind of arm of which none is
    trusted, such as ``adaptive-safe-gp``, leaves bfloat16 alone unless one is named as trusted.

    Latency is that of the encoder's call, of inputs that are tensors already. Energy is of the same
    call: measured where the processor's counters can be read, and estimated from CPU time
    elsewhere. The counters see all that runs meanwhile, and move about once a millisecond.

    In float32 features are to the last bit those of ``EncoderHalf.encode`` with as many threads,
    and an arm gives the same bits for the same item whenever it is encoded alone. In a batch they
    may differ in the last bits.

    Parameters
    ----------
    device
        ``host``.
    model, seed, modalities, timeout_s, open_timeout_s
        See ``Runtime``.
    meter
        Opens what measures the energy; by default the best there is.
    """

    def __init__(
        self,
        device: str,
        model: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        meter: Callable[[], PowerMeter] = open_meter,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        super().__init__(device, model, seed, modalities, timeout_s, open_timeout_s)
        threads = thread_levels()
        self.space = ArmSpace(
            [Factor("precision", PRECISIONS), Factor("threads", threads, log=True)]
        )
        self.trusted = [self.space.arm(precision=p, threads=threads[-1]) for p in TRUSTED]
        self.meters = MendedMeter(meter)
        self.evidence = "measured"
        self.energy_evidence = self.meters.meter.evidence
        self.meter = self.meters.meter.source

    def precisions(self, arms: Sequence[Arm]) -> Sequence[str]:
        """Theirs, each once."""
        return tuple(dict.fromkeys(str(arm.levels["precision"]) for arm in arms))

    def close(self) -> None:
        """End the encoders' process and close the meter."""
        super().close()
        self.meters.close()

    def _encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str) -> Encoded:
        how = How(str(arm.levels["precision"]), int(arm.levels["threads"]))
        self.process.bring(prepared, cut, how)
        latency_s, energy_j, lost = metered(self.meters, self.process.pid, self.process.run)
        parts = self.process.features(prepared, cut)
        return Encoded(parts, latency_s, energy_j / len(prepared), meter_lost=lost)
