"""The rules of reconstruction evaluations by name, for --protocol; `evaluations.protocols.presets` has all records."""

from __future__ import annotations

from evaluations.protocols.adm import ADMProtocol
from evaluations.protocols.ibq import IBQProtocol
from evaluations.protocols.reconstruction import ReconstructionProtocol
from evaluations.protocols.var import VARProtocol
from evaluations.protocols.wetok import WeTokProtocol

PROTOCOLS: dict[str, type[ReconstructionProtocol]] = {
    ADMProtocol.name: ADMProtocol,
    WeTokProtocol.name: WeTokProtocol,
    IBQProtocol.name: IBQProtocol,
    VARProtocol.name: VARProtocol,
}
DEFAULT_PROTOCOL = ADMProtocol.name
