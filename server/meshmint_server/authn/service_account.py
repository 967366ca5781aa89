"""The service account that a Kubernetes token speaks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshmint_server.authn.refusal import Refusal, refuse
from meshmint_server.authn.token import Json
from meshmint_server.policy.caller import Attribute

__all__ = ["ServiceAccount", "is_namespace", "is_object_name"]

# RFC 1123 as Kubernetes reads it. Always used with fullmatch.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_UID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_SUBDOMAIN = 253


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What the claim ``kubernetes.io`` of a bound token says.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        uid: Its UID, which tells it from a namesake that was deleted.
        pod: Name of the pod that the token is bound to, if any.
        pod_uid: The pod's UID.
        node: The node that the pod is on; clusters before 1.30 do not say.
    """

    namespace: str
    name: str
    uid: str
    pod: str | None = None
    pod_uid: str | None = None
    node: str | None = None

    @property
    def username(self) -> str:
        """The name under which the API server knows it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def attributes(self) -> dict[str, Attribute]:
        """What roles match and templates use."""
        named: dict[str, str | None] = {
            "kubernetes.namespace": self.namespace,
            "kubernetes.service_account": self.name,
            "kubernetes.service_account_uid": self.uid,
            "kubernetes.pod": self.pod,
            "kubernetes.pod_uid": self.pod_uid,
            "kubernetes.node": self.node,
        }
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_claims(cls, claims: Mapping[str, Json]) -> ServiceAccount:
        """Reads the claims.

        Raises:
            Unauthenticated: They are not those of a bound service-account
                token, or ``sub`` and ``kubernetes.io`` differ.
        """
        details = claims.get("kubernetes.io")
        if not isinstance(details, dict):
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED,
                "not a projected service-account token: it has no claim 'kubernetes.io'; "
                "mount one with a serviceAccountToken volume",
            )
        account = _reference(details, "serviceaccount")
        pod = _reference(details, "pod") if "pod" in details else None
        node = _reference(details, "node") if "node" in details else None
        if account is None:
            raise _malformed("serviceaccount")
        found = cls(
            namespace=_matched(details.get("namespace"), _LABEL, "namespace"),
            name=account[0],
            uid=account[1],
            pod=pod[0] if pod else None,
            pod_uid=pod[1] if pod else None,
            node=node[0] if node else None,
        )
        if claims.get("sub") != found.username:
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED,
                "the token's 'sub' is not the service account of its claim 'kubernetes.io'",
            )
        return found


def is_namespace(text: str) -> bool:
    """Whether it can be a namespace's name."""
    return _LABEL.fullmatch(text) is not None


def is_object_name(text: str) -> bool:
    """Whether it can be the name of a service account, a pod or a node."""
    return len(text) <= MAX_SUBDOMAIN and _SUBDOMAIN.fullmatch(text) is not None


def _reference(details: dict[str, Json], what: str) -> tuple[str, str] | None:
    """Name and UID of an object that the claim refers to."""
    value = details.get(what)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _malformed(what)
    return (
        _matched(value.get("name"), _SUBDOMAIN, f"{what}.name"),
        _matched(value.get("uid"), _UID, f"{what}.uid"),
    )


def _matched(value: Json, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_SUBDOMAIN or not pattern.fullmatch(value):
        raise _malformed(what)
    return value


def _malformed(what: str) -> Exception:
    return refuse(
        Refusal.CREDENTIAL_MALFORMED,
        f"the token's claim 'kubernetes.io' has no valid '{what}'",
    )
