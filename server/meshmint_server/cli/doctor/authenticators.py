"""Authenticators: the files that they depend on. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator

from meshmint_server.authn import Authenticators, examine_files, shared_identities, urls_of
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.permissions import check_trusted_file
from meshmint_server.config import Config

__all__ = ["SHARED_IDENTITIES_ADVICE", "check_authenticators"]

SHARED_IDENTITIES_ADVICE = (
    "Give each a 'spiffe_id' of its own, such as "
    "spiffe://{trust_domain}/cluster/NAME/ns/{namespace}/sa/{service_account}"
)


def check_authenticators(config: Config) -> Iterator[Finding]:
    """Every authenticator."""
    if not config.authenticators:
        yield error(
            "authenticators",
            "There is no authenticator: nobody can ask for a certificate.",
            "Configure one; docs/guide/callers.md shows how.",
        )
        return
    try:
        Authenticators.build(config.authenticators, config.trust_domain)
    except ValueError as fault:
        yield error("authenticators", f"{fault}.", "Correct it: the service does not start.")
    for text in shared_identities(config.authenticators):
        yield warning("authenticators", text, f"{SHARED_IDENTITIES_ADVICE}.")
    for settings in config.authenticators:
        subject = f"authenticator {settings.name}"
        is_well = True
        for file in examine_files(settings):
            yield from check_trusted_file(subject, file.path)
            for text in file.warnings:
                yield warning(subject, f"{file.path}: {text}.", "Have its issuer look at it.")
            if file.fault is not None:
                is_well = False
                yield error(
                    subject,
                    f"The file with its {file.purpose}, {file.path}, cannot be used: {file.fault}.",
                    "Write it anew; the service reads it again without a restart.",
                )
        if is_well:
            urls = urls_of(settings)
            beside = f" It also needs {', '.join(urls)}, which was not asked." if urls else ""
            yield ok(subject, f"Its files can be used.{beside}")
