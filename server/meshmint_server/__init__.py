"""Meshmint's service: X.509 certificates with SPIFFE identities, signed in an HSM."""

__version__ = "0.1.0"
