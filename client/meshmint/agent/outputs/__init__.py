"""Writes certificates, keys and bundles where programs read them.

An output is one directory whose files change together, or one file made from a
template. Whatever fails, what was there before is still there, whole; no private key is
ever readable by more than the configuration says, not for an instant.

It knows nothing of the service, and never prints.
"""

from meshmint.agent.outputs.atomic_set import AtomicSet
from meshmint.agent.outputs.content import Content
from meshmint.agent.outputs.directories import Placement
from meshmint.agent.outputs.errors import OutputError, OutputInUse
from meshmint.agent.outputs.output import Output
from meshmint.agent.outputs.settings import (
    DerOutput,
    JavaOutput,
    OutputSettings,
    PasswordSource,
    PemOutput,
    Pkcs12Output,
    TemplateOutput,
)

__all__ = [
    "AtomicSet",
    "Content",
    "DerOutput",
    "JavaOutput",
    "Output",
    "OutputError",
    "OutputInUse",
    "OutputSettings",
    "PasswordSource",
    "PemOutput",
    "Pkcs12Output",
    "Placement",
    "TemplateOutput",
]
