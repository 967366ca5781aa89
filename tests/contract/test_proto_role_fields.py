"""A role means the same in YAML and over gRPC: the same fields in both."""

from __future__ import annotations

from meshmint.v1 import role_pb2
from meshmint_server.policy import CallerMatcher, JwtSvidRules, PolicyIdentifier, Role


def test_the_policy_role_has_the_fields_of_the_api_role() -> None:
    for message, model in (
        (role_pb2.Role, Role),
        (role_pb2.CallerMatcher, CallerMatcher),
        (role_pb2.PolicyIdentifier, PolicyIdentifier),
        (role_pb2.JwtSvidRules, JwtSvidRules),
    ):
        assert set(model.model_fields) == {field.name for field in message.DESCRIPTOR.fields}
