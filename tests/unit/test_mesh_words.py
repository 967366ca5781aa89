"""Codes and texts that Istio's and Linkerd's clients hear, and CSRs that name one thing alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server import errors
from meshmint_server.errors import MeshmintError, PolicyViolated, PreconditionFailed, Violation
from meshmint_server.grpc_api.istio_service import _in_istios_words as istio
from meshmint_server.grpc_api.linkerd_service import _in_linkerds_words as linkerd
from meshmint_server.policy import (
    CsrContents,
    Names,
    OtherName,
    only_dns_name,
    only_spiffe_id,
    parse_csr,
)
from meshmint_server.spiffe import SpiffeId
from support.csr import make_csr, pem

EVERY_ERROR = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, MeshmintError) and hasattr(one, "code")
]
# After which pilot-agent asks again, and after which it does not.
ASKS_AGAIN = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "ABORTED"}
TRANSIENT = (
    errors.Unavailable,
    errors.Overloaded,
    errors.DeadlineTooShort,
    errors.IssuerNotReady,
    errors.IssuerExpired,
)


@pytest.mark.parametrize("words", [istio, linkerd])
@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_what_may_pass_is_asked_for_again_and_nothing_else(
    kind: type[MeshmintError], words: object
) -> None:
    told = words(kind("secret words"))  # type: ignore[operator]

    assert (told.code in ASKS_AGAIN) is issubclass(kind, TRANSIENT)


@pytest.mark.parametrize("kind", [errors.Unauthenticated, errors.ImpersonationDenied])
def test_who_is_asking_is_answered_with_constants(kind: type[MeshmintError]) -> None:
    first, second = (
        istio(kind(text, reason=text.upper(), violations=[Violation("token", text)]))
        for text in ("expired", "of another audience")
    )

    assert (first.message, first.reason, first.violations) == (
        second.message,
        second.reason,
        second.violations,
    )
    assert "expired" not in first.message


OWN_ID = SpiffeId.parse("spiffe://example.org/ns/shop/sa/cart")
OWN_NAME = "cart.shop.serviceaccount.identity.linkerd.cluster.local"
TEXTS = [str(OWN_ID), OWN_NAME, "other", OWN_NAME + ".", str(OWN_ID) + "\n"]
LISTS = st.lists(st.sampled_from(TEXTS), max_size=2).map(tuple)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "common_name": st.sampled_from(["", *TEXTS]),
    "dns_names": LISTS,
    "ip_addresses": LISTS,
    "uris": LISTS,
    "email_addresses": LISTS,
    "other_names": st.sampled_from([(), (OtherName("1.2.3", "x"),)]),
    "subject_serial_number": st.sampled_from(["", *TEXTS]),
    "user_ids": LISTS,
}
# What is right, with a field or two made otherwise: most of the rest is refused anyhow.
NAMES = st.builds(
    lambda base, changes: replace(base, **changes),
    st.sampled_from([Names(), Names(uris=(str(OWN_ID),)), Names(dns_names=(OWN_NAME,))]),
    st.lists(st.sampled_from(sorted(FIELDS)), max_size=2).flatmap(
        lambda chosen: st.fixed_dictionaries({name: FIELDS[name] for name in chosen})
    ),
)
CSR = parse_csr(pem(make_csr()))


def csr_of(names: Names) -> CsrContents:
    return replace(CSR, names=names)


@given(NAMES)
def test_an_istio_csr_names_the_own_id_or_nothing(names: Names) -> None:
    csr = csr_of(names)
    if names in (Names(), Names(uris=(str(OWN_ID),))):
        assert only_spiffe_id(csr, OWN_ID) == csr
    else:
        with pytest.raises(PolicyViolated) as caught:
            only_spiffe_id(csr, OWN_ID)
        assert caught.value.violations


@given(NAMES)
def test_a_linkerd_csr_names_the_own_name_once(names: Names) -> None:
    alone = Names(dns_names=(OWN_NAME,))
    if names in (alone, replace(alone, common_name=OWN_NAME)):
        assert only_dns_name(csr_of(names), OWN_NAME).names == alone
    else:
        with pytest.raises(PreconditionFailed) as caught:
            only_dns_name(csr_of(names), OWN_NAME)
        assert caught.value.violations


@given(NAMES)
def test_a_caller_without_an_identity_can_name_nothing(names: Names) -> None:
    csr = csr_of(names)
    if names == Names():
        assert only_spiffe_id(csr, None) == csr
    else:
        with pytest.raises(PolicyViolated):
            only_spiffe_id(csr, None)
