"""Issuers: which may sign, with which chain, below which roots."""

from meshmint_server.authority.issuers import Issuer, IssuerBook

__all__ = ["Issuer", "IssuerBook"]
