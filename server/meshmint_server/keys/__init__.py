"""Signing keys: in a PKCS#11 token, or in an encrypted file.

The private half is used only inside this package: by a service in a signing process
of its own, by a command on threads of its own. What other rooms get is a
``SigningKey`` that signs bytes, and the means to have cryptography's builders
prepare those bytes.
"""

from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    Scheme,
    SignatureAlgorithm,
    default_algorithm,
    key_algorithm_of,
    load_public_key,
    public_key_info,
)
from meshmint_server.keys.capture import ToBeSigned, capture, der_length
from meshmint_server.keys.holding import HoldingFault, faults_of_holding
from meshmint_server.keys.key import KeyAttributes, KeyFault, Keys, SigningKey
from meshmint_server.keys.remote import RemoteKeyRing
from meshmint_server.keys.ring import KeyRing
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.settings import KeySettings
from meshmint_server.keys.signer import SignerHealth
from meshmint_server.keys.uri import InvalidKeyUri, parse_key_uri, parse_token_uri

__all__ = [
    "HoldingFault",
    "InvalidKeyUri",
    "KeyAlgorithmName",
    "KeyAttributes",
    "KeyFault",
    "KeyRing",
    "KeySettings",
    "Keys",
    "PublicKey",
    "RemoteKeyRing",
    "Scheme",
    "SecretSource",
    "SignatureAlgorithm",
    "SignerHealth",
    "SigningKey",
    "ToBeSigned",
    "capture",
    "default_algorithm",
    "der_length",
    "faults_of_holding",
    "key_algorithm_of",
    "load_public_key",
    "parse_key_uri",
    "parse_token_uri",
    "public_key_info",
]
