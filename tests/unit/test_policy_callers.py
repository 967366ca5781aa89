"""Who may use a role, and which role a call is about."""

from __future__ import annotations

import pytest
from meshmint_server.errors import RoleAmbiguous, RoleDenied
from meshmint_server.policy import CallerMatcher, choose_role
from support.policy import make_caller, make_role

CART = make_caller(attributes={"claims.groups": ("dev", "ops"), "claims.email": "a@example.com"})


@pytest.mark.parametrize(
    ("fields", "does_match"),
    [
        ({}, True),
        ({"authenticator": "cluster"}, True),
        ({"authenticator": "other"}, False),
        ({"namespace": "shop"}, True),
        ({"namespace": "sh*"}, True),
        ({"namespace": "sho"}, False),
        ({"namespace": "shop\n"}, False),
        ({"namespace": "shop", "service_account": "cart"}, True),
        ({"namespace": "shop", "service_account": "web"}, False),
        ({"subject": "system:serviceaccount:shop:*"}, True),
        ({"subject": "*:web:*"}, False),
        ({"spiffe_id": "spiffe://example.org/ns/shop/sa/cart"}, True),
        ({"spiffe_id": "spiffe://example.org/ns/*/sa/cart"}, True),
        ({"spiffe_id": "spiffe://example.org/ns/*"}, True),
        ({"spiffe_id": "spiffe://example.org/*/cart"}, False),
        ({"spiffe_id": "spiffe://example.com/*"}, False),
        ({"spiffe_id": "*"}, True),
        ({"attributes": {"claims.email": "*@example.com"}}, True),
        ({"attributes": {"claims.email": "*@example.net"}}, False),
        ({"attributes": {"claims.groups": "ops"}}, True),
        ({"attributes": {"claims.groups": "admin"}}, False),
        ({"attributes": {"claims.groups": "dev,ops"}}, False),
        ({"attributes": {"claims.absent": "*"}}, False),
        ({"attributes": {"claims.email": ""}}, False),
    ],
)
def test_every_field_that_is_set_must_fit(fields: dict[str, object], does_match: bool) -> None:
    assert CallerMatcher.model_validate(fields).matches(CART) is does_match


def test_namespace_of_a_caller_without_one_never_fits() -> None:
    caller = make_caller(spiffe_id=None)
    object.__setattr__(caller, "attributes", {})
    assert not CallerMatcher(namespace="*").matches(caller)
    assert not CallerMatcher(spiffe_id="*").matches(caller)


def test_role_without_callers_is_for_nobody() -> None:
    assert not make_role(callers=[]).is_for(CART)


def test_any_one_matcher_is_enough() -> None:
    assert make_role(callers=[{"namespace": "web"}, {"namespace": "shop"}]).is_for(CART)


ROLES = {
    name: make_role(name=name, callers=[{"namespace": namespace}])
    for name, namespace in {"shop": "shop", "web": "web", "db": "db"}.items()
}


def test_named_role_is_chosen() -> None:
    assert choose_role(ROLES, CART, "shop") is ROLES["shop"]


def test_unknown_role_and_one_for_others_get_the_same_answer() -> None:
    answers = []
    for name in ("web", "nope", "shop\n", "SHOP"):
        with pytest.raises(RoleDenied) as caught:
            choose_role(ROLES, CART, name)
        answers.append((caught.value.message, caught.value.reason, caught.value.violations))
    assert len(set(answers)) == 1


def test_only_fitting_role_is_chosen_when_none_is_named() -> None:
    assert choose_role(ROLES, CART, "") is ROLES["shop"]
    with pytest.raises(RoleDenied):
        choose_role(ROLES, make_caller(namespace="other"), "")


def test_several_fitting_roles_are_named_to_the_caller() -> None:
    roles = {**ROLES, "all": make_role(name="all")}
    with pytest.raises(RoleAmbiguous, match="all, shop"):
        choose_role(roles, CART, "")
