"""Which of its issuer's CRLs a certificate belongs to."""

from __future__ import annotations

__all__ = ["shard_of"]


def shard_of(serial: int, shards: int) -> int:
    """The shard that lists the certificate if it is revoked.

    For life: the certificate names its distribution point, and so the number of shards
    belongs to the issuer. Serial numbers end in random bits, so all shards grow alike.

    Args:
        serial: Serial number of the certificate.
        shards: Into how many its issuer's CRL is split, at least 1.
    """
    return serial % shards
