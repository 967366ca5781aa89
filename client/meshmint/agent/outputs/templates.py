"""Files made from a template (Jinja2), in a sandbox.

A template sees values and nothing of the agent: no environment, no files but those of
its own folder, no code. An undefined name is an error, and never an empty place in a
configuration file.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from jinja2 import (
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meshmint.agent.identities import Bundle, Identity
from meshmint.agent.outputs.encodings import certificates, content_of
from meshmint.agent.outputs.errors import OutputError
from meshmint.agent.outputs.settings import TemplateOutput

__all__ = ["render", "variables_of", "variables_of_all"]

_MOST_BYTES = 1024 * 1024
_HARMLESS = re.compile(
    r"'[A-Za-z_][A-Za-z0-9_. ]{0,40}' (is undefined|has no attribute '[A-Za-z_][A-Za-z0-9_]{0,30}')"
)
_INLINE = "<template>"


def render(settings: TemplateOutput, variables: Mapping[str, object]) -> bytes:
    """What the template makes of the variables, in UTF-8.

    Raises:
        OutputError: It cannot be read, is wrong, uses what is not there, or makes too much.
    """
    where = str(settings.source or settings.destination)
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        loader=None if settings.source is None else FileSystemLoader(settings.source.parent),
    )
    try:
        template = _template(settings, environment)
        return _bounded(template.generate(variables), where)
    except OutputError:
        raise
    except TemplateSyntaxError as error:
        raise OutputError(where, f"line {error.lineno} is no template: {error.message}") from error
    except TemplateNotFound as error:
        raise OutputError(
            where, f"there is no template {error.name!r} in its folder: make it, or name another"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(where, f"cannot read the template: {type(error).__name__}") from error
    except Exception as error:  # noqa: BLE001
        # Whatever an expression can raise; its text may hold what it was given, such as the key.
        text = str(error) if _HARMLESS.fullmatch(str(error)) else type(error).__name__
        raise OutputError(
            where, f"cannot fill in the template{_line(error, settings)}: {text}"
        ) from None


def _template(settings: TemplateOutput, environment: ImmutableSandboxedEnvironment) -> Template:
    if settings.source is not None:
        return environment.get_template(settings.source.name)
    return environment.from_string(settings.template or "")


def _bounded(parts: Iterable[str], where: str) -> bytes:
    data = bytearray()
    for part in parts:
        data += part.encode("utf-8")
        if len(data) > _MOST_BYTES:
            raise OutputError(where, f"the template makes more than {_MOST_BYTES} bytes")
    return bytes(data)


def _line(error: BaseException, settings: TemplateOutput) -> str:
    files = (str(settings.source), _INLINE)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f", line {frame.lineno}"
    return ""


def variables_of(identity: Identity, bundles: Mapping[str, Bundle]) -> dict[str, Any]:
    """What a template of one certificate sees; PEM where nothing else is said."""
    own = identity.certificate
    bundle = bundles.get(identity.trust_domain, Bundle(identity.trust_domain, ()))
    kinds = ("certificate", "chain", "fullchain", "key", "combined", "bundle")
    return {
        "name": identity.name,
        **{
            kind: content_of(kind, identity, bundle, Encoding.PEM).decode("ascii") for kind in kinds
        },
        "bundles": _bundles(bundles),
        "spiffe_id": identity.spiffe_id,
        "trust_domain": identity.trust_domain,
        "serial_number": f"{own.serial_number:x}",
        "fingerprint": own.fingerprint(hashes.SHA256()).hex(),
        "not_before": own.not_valid_before_utc,
        "not_after": own.not_valid_after_utc,
        "dns_names": _dns_names(own),
    }


def variables_of_all(
    identities: Iterable[Identity], bundles: Mapping[str, Bundle]
) -> dict[str, Any]:
    """What a template of all certificates sees: `certificates`, by name, and `bundles`."""
    return {
        "certificates": {one.name: variables_of(one, bundles) for one in identities},
        "bundles": _bundles(bundles),
    }


def _bundles(bundles: Mapping[str, Bundle]) -> dict[str, str]:
    return {
        name: certificates(bundle.roots, Encoding.PEM).decode("ascii")
        for name, bundle in sorted(bundles.items())
    }


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)
