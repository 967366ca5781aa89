"""One certificate as the agent keeps it: with its key, and what it was asked for with.

What comes from the disk is checked like what comes from the network: key, chain and
SPIFFE ID must fit together, or it is not used at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from pydantic import BaseModel, ConfigDict, ValidationError

from meshmint.agent.config import CertificateSettings
from meshmint.agent.identities import Identity
from meshmint.agent.plan import Validity
from meshmint.errors import AnswerRefused
from meshmint.keys import PrivateKey, private_key_pem
from meshmint.results import IssuedCertificate
from meshmint.verify import check_chain, check_public_key, spiffe_id_of

__all__ = ["KeptCertificate", "Unusable"]


class Unusable(Exception):
    """What is kept cannot be used; the text says why, without anything secret."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    version: int
    wanted: str
    obtained_at: float
    certificate: str
    chain: tuple[str, ...]
    roots: tuple[str, ...]
    private_key: str


@dataclass(frozen=True, slots=True)
class KeptCertificate:
    """A certificate, its key and its chain.

    Attributes:
        wanted: What it was asked for with; see CertificateSettings.wanted.
        obtained_at: When the agent got it, by its own clock.
        certificate: The certificate.
        chain: Its issuers upwards, root left out.
        roots: The trust bundle that it came with, and that its chain was checked against.
        key: The private key.
    """

    wanted: str = field(repr=False)
    obtained_at: datetime
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...] = field(repr=False)
    key: PrivateKey = field(repr=False)

    @classmethod
    def issued(
        cls, issued: IssuedCertificate, settings: CertificateSettings, now: datetime
    ) -> KeptCertificate:
        """Takes what the service has answered, which the client has checked.

        Raises:
            AnswerRefused: Something that was asked for is not in it, or it is over already.
        """
        _check_end(issued.certificate, now)
        _check_names(issued.certificate, settings)
        return cls(
            settings.wanted(),
            now,
            issued.certificate,
            issued.chain,
            issued.trust_bundle,
            issued.private_key,
        )

    @classmethod
    def from_text(cls, text: bytes) -> KeptCertificate:
        """Reads what `to_text` wrote, and checks it.

        Raises:
            Unusable: It is something else, or damaged.
        """
        try:
            document = _Document.model_validate_json(text)
            if document.version != 1:
                raise Unusable(f"it has the unknown version {document.version}")
            key = load_pem_private_key(document.private_key.encode("ascii"), None)
            if not isinstance(key, PrivateKey):
                raise Unusable("its key is of an unknown kind")
            kept = cls(
                document.wanted,
                datetime.fromtimestamp(document.obtained_at, UTC),
                _parse(document.certificate),
                tuple(map(_parse, document.chain)),
                tuple(map(_parse, document.roots)),
                key,
            )
            check_public_key(kept.certificate, key.public_key())
            check_chain(kept.certificate, kept.chain, kept.roots)
        except AnswerRefused as error:
            raise Unusable(error.message) from error
        except ValidationError as error:
            raise Unusable("it is not what the agent writes, or only a part of it") from error
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise Unusable("it cannot be parsed") from error
        return kept

    def to_text(self) -> str:
        """Everything in one document, so that one rename replaces it; it holds the key."""
        return _Document(
            version=1,
            wanted=self.wanted,
            obtained_at=self.obtained_at.timestamp(),
            certificate=_pem(self.certificate),
            chain=tuple(map(_pem, self.chain)),
            roots=tuple(map(_pem, self.roots)),
            private_key=private_key_pem(self.key),
        ).model_dump_json()

    @property
    def serial_number(self) -> str:
        """Lower-case hexadecimal."""
        return f"{self.certificate.serial_number:x}"

    @property
    def spiffe_id(self) -> str | None:
        """The SPIFFE ID, if it is an X509-SVID."""
        return spiffe_id_of(self.certificate) or None

    @property
    def not_after(self) -> datetime:
        """Its end."""
        return self.certificate.not_valid_after_utc

    def validity(self, now: datetime) -> Validity:
        """How long it is good for, as the agent counts."""
        certificate = self.certificate
        return Validity.of(
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            self.obtained_at,
            now,
        )

    def is_expired(self, now: datetime) -> bool:
        """Whether its end has come."""
        return now >= self.not_after

    def identity(self, name: str, trust_domain: str) -> Identity:
        """What is handed out."""
        return Identity(name, self.spiffe_id, self.certificate, self.chain, self.key, trust_domain)


def _check_end(certificate: x509.Certificate, now: datetime) -> None:
    """One that is over would be due again at once, and the next one, too, without any pause."""
    end = certificate.not_valid_after_utc
    if now >= end:
        raise AnswerRefused(
            f"the certificate in the answer ended at {end:%Y-%m-%d %H:%M:%S} UTC, and it is "
            f"{now:%Y-%m-%d %H:%M:%S} here: set this machine's clock, or else see whether the "
            "service's issuer is at its end"
        )


def _check_names(certificate: x509.Certificate, settings: CertificateSettings) -> None:
    """The client has checked key and chain; a name that is missing would be noticed by users."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
        ips = {str(address) for address in found.get_values_for_type(x509.IPAddress)}
        uris = set(found.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, ValueError):
        dns, ips, uris = set(), set(), set()
    missing = [
        *(name for name in settings.names.dns_names if name.lower() not in dns),
        *(address for address in settings.names.ip_addresses if address not in ips),
        *(uri for uri in settings.names.uris if uri not in uris),
    ]
    if missing:
        raise AnswerRefused(
            f"the certificate in the answer lacks {', '.join(missing)}: "
            "see which names the role takes from a CSR"
        )


def _parse(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode("ascii"))


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
