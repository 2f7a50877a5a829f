"""Who made codes: a tokenizer, told apart by what its codes depend on and not by its decoder.

A decoder can be trained alone, on a frozen encoder and quantizer. The tokenizer is another network then, with another
fingerprint, but an image has the same codes: what was extracted before, and the generators of these codes, stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys of stamps: of a generator (the tokenizer of its codes), and of a tokenizer whose decoder was trained alone.
TOKENIZER_FINGERPRINT = "tokenizer_fingerprint"
CODES_FINGERPRINT = "codes_fingerprint"
DECODER_OF = "decoder_of"


@dataclass(frozen=True)
class CodeMaker:
    """The identity of a tokenizer that makes codes."""

    fingerprint: str  # of the whole network
    codes_fingerprint: str = ""  # of encoder and quantizer; empty where an older program wrote the facts
    decoder_of: tuple[str, ...] = ()  # `fingerprint` of the tokenizers whose encoder and quantizer it has kept

    def makes_codes_of(self, other: CodeMaker) -> bool:
        """Whether it is a tokenizer that makes the codes that `other` makes.

        Older facts name whole networks alone. They fit the same network, and one that was trained on from it with a
        frozen encoder.
        """
        if other.codes_fingerprint and self.codes_fingerprint:
            return other.codes_fingerprint == self.codes_fingerprint
        return other.fingerprint in (self.fingerprint, *self.decoder_of)

    def why_not(self) -> str:
        """Why a tokenizer that does not make these codes was refused, for a message."""
        if self.codes_fingerprint:
            return "its encoder or quantizer is another one"
        return (
            "what is on record is of an older version, which names whole tokenizers alone, and the given one does not "
            "name that as the one whose decoder was trained on"
        )

    def stamp(self) -> dict[str, str]:
        """What a generator of its codes says of it."""
        return {TOKENIZER_FINGERPRINT: self.fingerprint, CODES_FINGERPRINT: self.codes_fingerprint}

    @classmethod
    def of_stamp(cls, stamp: Mapping[str, Any]) -> CodeMaker | None:
        """The maker of the codes that a generator with this stamp was trained on; None where it does not say."""
        fingerprint = stamp.get(TOKENIZER_FINGERPRINT)
        return None if fingerprint is None else cls(fingerprint, stamp.get(CODES_FINGERPRINT, ""))
