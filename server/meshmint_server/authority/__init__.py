"""Issuers: how they come to be, which may sign, with which chain, below which roots."""

from meshmint_server.authority.bundle_feed import TrustBundleFeed
from meshmint_server.authority.bundle_fetch import FetchFailed
from meshmint_server.authority.ceremony import create_csr, import_chain
from meshmint_server.authority.crl_book import CrlBook, PublishedCrl
from meshmint_server.authority.crl_publisher import CrlPublisher
from meshmint_server.authority.crl_schedule import CrlTimes
from meshmint_server.authority.description import IssuerDescription, describe
from meshmint_server.authority.examination import Examination, Expiry, examine_issuer, expiry_of
from meshmint_server.authority.federation import (
    BundleFetcher,
    FederatedBundles,
    Federation,
    forget_removed,
    read_bundle_file,
)
from meshmint_server.authority.issuers import Issuer, IssuerBook
from meshmint_server.authority.jwt_key_book import JwtKeyBook, JwtSigningKey
from meshmint_server.authority.jwt_key_rotator import JwtKeyRotator
from meshmint_server.authority.jwt_key_succession import JwtKeySuccession
from meshmint_server.authority.jwt_rotation import (
    JwtKeyRules,
    JwtKeys,
    JwtKeyStep,
    decide_keys,
    known_from,
)
from meshmint_server.authority.locations import Locations, Publication
from meshmint_server.authority.path import has_signed
from meshmint_server.authority.rotation import Rotation, RotationRules, RotationStep, Term, decide
from meshmint_server.authority.rotation_words import describe_rotation
from meshmint_server.authority.rotator import Rotator
from meshmint_server.authority.sharding import shard_of
from meshmint_server.authority.succession import Succession
from meshmint_server.authority.upstream import UpstreamCommand

__all__ = [
    "BundleFetcher",
    "CrlBook",
    "CrlPublisher",
    "CrlTimes",
    "Examination",
    "Expiry",
    "FederatedBundles",
    "Federation",
    "FetchFailed",
    "Issuer",
    "IssuerBook",
    "IssuerDescription",
    "JwtKeyBook",
    "JwtKeyRotator",
    "JwtKeyRules",
    "JwtKeyStep",
    "JwtKeySuccession",
    "JwtKeys",
    "JwtSigningKey",
    "Locations",
    "Publication",
    "PublishedCrl",
    "Rotation",
    "RotationRules",
    "RotationStep",
    "Rotator",
    "Succession",
    "Term",
    "TrustBundleFeed",
    "UpstreamCommand",
    "create_csr",
    "decide",
    "decide_keys",
    "describe",
    "describe_rotation",
    "examine_issuer",
    "expiry_of",
    "forget_removed",
    "has_signed",
    "import_chain",
    "known_from",
    "read_bundle_file",
    "shard_of",
]
