"""What is wrong with the files that authenticators depend on: for `meshmintd doctor`.

Nothing is fetched: of keys behind a URL, only the roots that it is trusted with are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from meshmint_server.authn.key_set import InvalidKeys, KeySet, parse_jwks, parse_pem
from meshmint_server.authn.settings import JwtSettings, KubernetesSettings
from meshmint_server.authn.watched_file import WatchedFile

__all__ = ["FileExamination", "examine_files", "urls_of"]


@dataclass(frozen=True, slots=True)
class FileExamination:
    """What was found about one file.

    Attributes:
        purpose: What the file is for.
        fault: Why it cannot be used; None if it can.
        warnings: What is odd about it.
    """

    path: Path
    purpose: str
    fault: str | None = None
    warnings: tuple[str, ...] = ()


def examine_files(settings: KubernetesSettings | JwtSettings) -> Iterator[FileExamination]:
    """Reads and parses every file that an authenticator uses."""
    if settings.jwks_file is not None:
        yield _keys(settings.jwks_file, parse_jwks, settings.algorithms)
    if isinstance(settings, JwtSettings):
        for path in settings.public_key_files:
            yield _keys(path, lambda content: parse_pem([content]), settings.algorithms)
        if settings.ca_file is not None:
            yield _roots(settings.ca_file)
        return
    if settings.jwks_ca_file is not None:
        yield _roots(settings.jwks_ca_file)
    if settings.mode != "jwks" or not (settings.jwks_file or settings.jwks_url):
        yield _roots(settings.ca_file)
    if settings.mode != "jwks":
        yield _credential(settings.reviewer_token_file)


def urls_of(settings: KubernetesSettings | JwtSettings) -> tuple[str, ...]:
    """Where an authenticator asks while it works."""
    if isinstance(settings, JwtSettings):
        return tuple(filter(None, (settings.discovery_url, settings.jwks_url)))
    asks = settings.mode != "jwks" or not (settings.jwks_file or settings.jwks_url)
    return tuple(filter(None, (settings.jwks_url, settings.api_server if asks else None)))


def _keys(
    path: Path, parse: Callable[[bytes], KeySet], algorithms: Sequence[str]
) -> FileExamination:
    purpose = "keys"
    try:
        keys = parse(WatchedFile(path).read())
    except OSError as error:
        return FileExamination(path, purpose, _unreadable(error))
    except InvalidKeys as error:
        return FileExamination(path, purpose, f"it holds no keys that can be used: {error}")
    skipped = tuple(f"a key in it cannot be used and is left out: {why}" for why in keys.skipped)
    if not any(key.algorithms & set(algorithms) for key in keys.keys):
        fault = f"it holds no key for the algorithms {', '.join(algorithms)}"
        return FileExamination(path, purpose, fault, skipped)
    return FileExamination(path, purpose, None, skipped)


def _roots(path: Path) -> FileExamination:
    purpose = "roots of TLS"
    try:
        x509.load_pem_x509_certificates(WatchedFile(path).read())
    except OSError as error:
        return FileExamination(path, purpose, _unreadable(error))
    except ValueError:
        return FileExamination(path, purpose, "it holds no certificates in PEM")
    return FileExamination(path, purpose)


def _credential(path: Path) -> FileExamination:
    purpose = "credential at the API server"
    try:
        content = WatchedFile(path).read()
    except OSError as error:
        return FileExamination(path, purpose, _unreadable(error))
    return FileExamination(path, purpose, None if content.strip() else "it is empty")


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
