"""The rules of the xDS protocol, without a network: who gets what, when, and how often."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meshmint.agent.identities import Bundle
from meshmint.agent.sockets.feed import View
from meshmint.agent.sockets.refusals import Refusal
from meshmint.agent.sockets.sds_secrets import TYPE_URL, Secrets
from meshmint.agent.sockets.sds_subscriptions import DeltaSubscription, WholeSubscription
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from meshmint.third_party.envoy.service.discovery.v3 import discovery_pb2
from support.agent_identities import Domain, picture

DOMAIN = Domain()
OTHER = Domain("other.example")
WEB, WEB_RENEWED = DOMAIN.identity(), DOMAIN.identity()
API = DOMAIN.identity("api", "/ns/shop/sa/api")
WEB_ID, API_ID = "spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/api"


def secrets_of(*identities: object, bundles: tuple[Bundle, ...] | None = None) -> Secrets:
    made = picture(*identities, bundles=(DOMAIN.bundle(),) if bundles is None else bundles)  # type: ignore[arg-type]
    return Secrets(View.of(made, None))


BEFORE, AFTER = secrets_of(WEB, API), secrets_of(WEB_RENEWED, API)


def whole(*names: str, nonce: str = "", version: str = "", error: str | None = None) -> object:
    return discovery_pb2.DiscoveryRequest(
        resource_names=names,
        response_nonce=nonce,
        version_info=version,
        type_url=TYPE_URL,
        error_detail=None if error is None else status_pb2.Status(code=3, message=error),
    )


def delta(
    *names: str,
    drop: tuple[str, ...] = (),
    has: dict[str, str] | None = None,
    nonce: str = "",
    error: str | None = None,
) -> object:
    return discovery_pb2.DeltaDiscoveryRequest(
        resource_names_subscribe=names,
        resource_names_unsubscribe=drop,
        initial_resource_versions=has,
        response_nonce=nonce,
        type_url=TYPE_URL,
        error_detail=None if error is None else status_pb2.Status(code=3, message=error),
    )


class Talk:
    """One stream, as its client sees it."""

    def __init__(self, kind: type, secrets: Secrets = BEFORE) -> None:
        self.subscription = kind()
        self.secrets = secrets
        self.nonce = ""
        self.version = ""
        self.last: object = None

    def say(self, request: object) -> object:
        return self.subscription.take(request)

    def hear(self) -> list[str] | None:
        """Names of the secrets in the response that is due; None if none is."""
        response = self.last = self.subscription.respond(self.secrets)
        if response is None:
            return None
        self.nonce = response.nonce
        if isinstance(response, discovery_pb2.DeltaDiscoveryResponse):
            return [one.name for one in response.resources]
        self.version = response.version_info
        return [named(one).name for one in response.resources]

    @property
    def removed(self) -> list[str]:
        assert isinstance(self.last, discovery_pb2.DeltaDiscoveryResponse)
        return list(self.last.removed_resources)


def named(packed: object) -> Secret:
    secret = Secret()
    assert packed.Unpack(secret)  # type: ignore[attr-defined]
    return secret


# State of the world


def test_first_request_is_answered_once_and_its_ack_is_not() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("default"))
    assert talk.hear() == ["default"]

    assert talk.say(whole("default", nonce=talk.nonce, version=talk.version)) is None

    assert talk.hear() is None


def test_renewal_is_pushed_with_another_version_and_nonce() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("default"))
    talk.hear()
    nonce, version = talk.nonce, talk.version
    talk.say(whole("default", nonce=nonce, version=version))

    talk.secrets = AFTER

    assert talk.hear() == ["default"]
    assert talk.nonce != nonce
    assert talk.version != version


def test_renewal_of_one_leaves_the_others_of_the_stream_alone() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("web", "api"))
    assert talk.hear() == ["api", "web"]

    talk.secrets = AFTER

    assert talk.hear() == ["web"]


def test_what_was_refused_is_told_once_and_not_sent_again_until_it_changes() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("default", "api"))
    talk.hear()

    nack = talk.say(whole("default", "api", nonce=talk.nonce, error="no\nsuch\x1b[31m key" * 99))
    again = talk.say(whole("default", "api", nonce=talk.nonce, error="no such key"))

    assert nack is not None
    assert nack.names == ("api", "default")  # type: ignore[attr-defined]
    error = nack.error  # type: ignore[attr-defined]
    assert error.startswith("no such ")
    assert error.isprintable()
    assert len(error) < 500
    assert again is None
    assert talk.hear() is None
    talk.secrets = AFTER
    assert talk.hear() == ["default"]


def test_request_with_a_stale_nonce_changes_nothing() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("default"))
    talk.hear()
    stale = talk.nonce
    talk.secrets = AFTER
    talk.hear()

    assert talk.say(whole("api", nonce=stale)) is None
    assert talk.say(whole("api", nonce="never sent", error="bad")) is None
    assert talk.say(whole("api")) is None

    assert talk.hear() is None
    talk.say(whole("api", nonce=talk.nonce))
    assert talk.hear() == ["api"]


@pytest.mark.parametrize(
    ("kind", "request_of"), [(WholeSubscription, whole), (DeltaSubscription, delta)]
)
def test_refusal_that_comes_after_the_next_response_is_still_told(
    kind: type, request_of: Any
) -> None:
    talk = Talk(kind)
    talk.say(request_of("default"))
    talk.hear()
    refused = talk.nonce
    talk.secrets = AFTER
    talk.hear()

    nack = talk.say(request_of("api", nonce=refused, error="late"))

    assert nack is not None
    assert nack.error == "late"  # type: ignore[attr-defined]
    assert talk.say(request_of("api", nonce=refused, error="late")) is None


def test_no_more_responses_are_remembered_than_a_few_however_many_go_unanswered() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("default"))
    talk.hear()
    first = talk.nonce
    for secrets in (AFTER, BEFORE) * 10:
        talk.secrets = secrets
        talk.hear()

    assert talk.say(whole("default", nonce=first, error="very late")) is None


def test_names_may_change_in_an_ack_and_only_what_is_new_is_sent() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("web"))
    talk.hear()

    talk.say(whole("web", "ROOTCA", nonce=talk.nonce, version=talk.version))

    assert talk.hear() == ["ROOTCA"]


def test_name_given_up_and_asked_for_again_is_sent_again() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole("web", "api"))
    talk.hear()
    talk.say(whole("api", nonce=talk.nonce))
    assert talk.hear() is None

    talk.say(whole("web", "api", nonce=talk.nonce))

    assert talk.hear() == ["web"]


def test_name_of_nothing_is_answered_as_soon_as_it_stands_for_something() -> None:
    talk = Talk(WholeSubscription, secrets_of(WEB))
    talk.say(whole(API_ID))
    assert talk.hear() is None
    assert talk.subscription.missing(talk.secrets) == [API_ID]

    talk.secrets = BEFORE

    assert talk.hear() == [API_ID]
    assert talk.subscription.missing(talk.secrets) == []


def test_names_may_change_before_there_was_any_response() -> None:
    talk = Talk(WholeSubscription, secrets_of())
    talk.say(whole("web"))
    assert talk.hear() is None
    talk.say(whole("web", "api"))

    talk.secrets = BEFORE

    assert talk.hear() == ["api", "web"]


def test_first_request_of_a_new_stream_may_carry_the_nonce_and_version_of_the_one_before() -> None:
    talk = Talk(WholeSubscription)

    assert talk.say(whole("default", nonce="of before", version="of before", error="late")) is None

    assert talk.hear() == ["default"]


def test_no_names_at_first_are_everything_and_later_nothing() -> None:
    talk = Talk(WholeSubscription)
    talk.say(whole())
    assert set(talk.hear() or ()) == {"api", "web", API_ID, WEB_ID, "spiffe://example.org"}
    talk.say(whole("web", nonce=talk.nonce))
    assert talk.hear() is None

    talk.say(whole(nonce=talk.nonce))
    talk.secrets = AFTER

    assert talk.hear() is None


@pytest.mark.parametrize("kind", [WholeSubscription, DeltaSubscription])
def test_nothing_is_sent_to_who_has_not_asked(kind: type) -> None:
    assert Talk(kind).hear() is None


@pytest.mark.parametrize(
    ("kind", "request_of"),
    [(WholeSubscription, whole), (DeltaSubscription, delta)],
    ids=["whole", "delta"],
)
class TestBounds:
    @pytest.mark.parametrize(
        "type_url", ["type.googleapis.com/envoy.config.cluster.v3.Cluster", f"{TYPE_URL}\n"]
    )
    def test_another_type_is_refused_and_none_is_taken_for_ours(
        self, kind: type, request_of: object, type_url: str
    ) -> None:
        request = request_of("default")  # type: ignore[operator]
        request.type_url = type_url
        with pytest.raises(Refusal, match="there are no resources of the type") as refused:
            kind().take(request)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT

        talk = Talk(kind)
        request.type_url = ""
        talk.say(request)
        assert talk.hear() == ["default"]

    @pytest.mark.parametrize("names", [[str(n) for n in range(4097)], ["x" * 2049]])
    def test_too_many_or_too_long_names_are_refused(
        self, kind: type, request_of: object, names: list[str]
    ) -> None:
        with pytest.raises(Refusal, match="at most"):
            kind().take(request_of(*names))  # type: ignore[operator]


def test_names_subscribed_to_one_after_the_other_are_bounded_as_well() -> None:
    subscription = DeltaSubscription()
    for start in range(0, 4096, 1024):
        subscription.take(delta(*(str(n) for n in range(start, start + 1024))))  # type: ignore[arg-type]

    with pytest.raises(Refusal, match="at most"):
        subscription.take(delta("one more"))  # type: ignore[arg-type]


# Incremental


def test_subscription_is_answered_and_then_only_changes_are_sent() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("web", "api"))
    assert talk.hear() == ["api", "web"]
    talk.say(delta(nonce=talk.nonce))
    assert talk.hear() is None

    talk.secrets = AFTER

    assert talk.hear() == ["web"]
    assert talk.removed == []


def test_what_the_client_has_already_is_not_sent_to_it() -> None:
    first = Talk(DeltaSubscription)
    first.say(delta("web", "api"))
    first.hear()
    has = {one.name: one.version for one in first.last.resources}  # type: ignore[attr-defined]

    # As after a restart of the agent: the same content has the same version.
    again = Talk(DeltaSubscription, secrets_of(WEB_RENEWED, API))
    again.say(delta("web", "api", has=has))

    assert again.hear() == ["web"]


def test_resource_that_goes_is_said_to_be_removed_once() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("web", "api"))
    talk.hear()

    talk.secrets = secrets_of(WEB)

    assert talk.hear() == []
    assert talk.removed == ["api"]
    assert talk.hear() is None
    talk.secrets = BEFORE
    assert talk.hear() == ["api"]


def test_resource_that_went_while_the_client_was_away_is_said_to_be_removed() -> None:
    talk = Talk(DeltaSubscription, secrets_of(WEB))
    talk.say(delta("web", "api", has={"api": "old", "never asked for": "x"}))

    assert talk.hear() == ["web"]
    assert talk.removed == ["api"]


def test_name_of_nothing_is_held_and_not_said_to_be_removed() -> None:
    talk = Talk(DeltaSubscription, secrets_of(WEB))
    talk.say(delta("api"))
    assert talk.hear() is None

    talk.secrets = BEFORE

    assert talk.hear() == ["api"]


def test_who_subscribes_again_gets_it_again_and_who_unsubscribed_gets_nothing() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("web", "api"))
    talk.hear()

    talk.say(delta("web"))
    assert talk.hear() == ["web"]

    talk.say(delta(drop=("web",)))
    talk.secrets = AFTER
    assert talk.hear() is None


def test_delta_nack_is_told_once_and_what_was_refused_waits_for_a_change() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("web"))
    talk.hear()

    assert talk.say(delta(nonce="of nobody", error="bad")) is None
    nack = talk.say(delta(nonce=talk.nonce, error="bad"))
    assert talk.say(delta(nonce=talk.nonce, error="bad")) is None

    assert nack is not None
    assert nack.names == ("web",)  # type: ignore[attr-defined]
    assert talk.hear() is None
    talk.secrets = AFTER
    assert talk.hear() == ["web"]


def test_subscription_in_a_request_with_an_old_nonce_counts() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("web"))
    talk.hear()
    old = talk.nonce
    talk.secrets = AFTER
    talk.hear()

    talk.say(delta("api", nonce=old))

    assert talk.hear() == ["api"]


@pytest.mark.parametrize("request_of_all", [delta(), delta("*")], ids=["nothing", "star"])
def test_wildcard_brings_everything_and_what_is_new_and_what_is_gone(
    request_of_all: object,
) -> None:
    talk = Talk(DeltaSubscription, secrets_of(WEB))
    talk.say(request_of_all)
    assert set(talk.hear() or ()) == {"web", WEB_ID, "spiffe://example.org"}

    talk.secrets = secrets_of(API, bundles=(DOMAIN.bundle(), OTHER.bundle()))

    assert set(talk.hear() or ()) == {"api", API_ID, "spiffe://other.example"}
    assert talk.removed == [WEB_ID, "web"]


def test_wildcard_can_be_given_up_and_names_asked_for_stay() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("*", "web"))
    talk.hear()

    talk.say(delta(drop=("*",)))
    talk.secrets = secrets_of(WEB_RENEWED, DOMAIN.identity("api", "/ns/shop/sa/api"))

    assert talk.hear() == ["web"]


def test_name_given_up_under_a_wildcard_is_sent_again_or_said_to_be_removed() -> None:
    talk = Talk(DeltaSubscription)
    talk.say(delta("*", "web", "default"))
    talk.hear()

    talk.say(delta(drop=("web", "default")))

    assert talk.hear() == ["web"]
    assert talk.removed == ["default"]
    assert talk.hear() is None


# What is in it


def test_names_stand_for_what_the_spire_agent_has_them_stand_for() -> None:
    secrets = secrets_of(API, WEB, bundles=(OTHER.bundle(), DOMAIN.bundle()))

    def content(name: str) -> Secret:
        found = secrets.get(name)
        assert found is not None, name
        secret = named(found.packed)
        assert secret.name == name
        return secret

    chain = content("default").tls_certificate.certificate_chain.inline_bytes
    assert chain == content(API_ID).tls_certificate.certificate_chain.inline_bytes
    assert chain.count(b"BEGIN CERTIFICATE") == 2
    assert content("web").tls_certificate.private_key.inline_bytes.startswith(
        b"-----BEGIN PRIVATE KEY-----\n"
    )
    rootca = content("ROOTCA").validation_context
    assert rootca.trusted_ca.inline_bytes.count(b"BEGIN CERTIFICATE") == 1
    assert not rootca.HasField("custom_validator_config")
    for name, domains in (
        ("ALL", ["example.org", "other.example"]),
        ("spiffe://other.example", ["other.example"]),
    ):
        validator = content(name).validation_context.custom_validator_config
        assert validator.name == "envoy.tls.cert_validator.spiffe"
        assert [one.name for one in config_of(validator).trust_domains] == domains


def config_of(validator: object) -> object:
    from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3 import (
        tls_spiffe_validator_config_pb2,
    )

    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    assert validator.typed_config.Unpack(config)  # type: ignore[attr-defined]
    return config


@pytest.mark.parametrize("name", ["ALL", "ROOTCA", "spiffe://example.org"])
def test_bundle_without_roots_is_never_a_validation_context(name: str) -> None:
    # Envoy takes one without roots for leave to trust anybody.
    secrets = secrets_of(WEB, bundles=(Bundle("example.org", ()),))

    assert secrets.get(name) is None
    assert secrets_of(WEB).get(name) is not None


def test_certificate_called_like_a_reserved_name_does_not_take_its_place() -> None:
    trap = DOMAIN.identity("ROOTCA", "/trap")
    secrets = secrets_of(WEB, trap)

    found = secrets.get("ROOTCA")

    assert found is not None
    assert named(found.packed).HasField("validation_context")


def test_version_changes_with_every_certificate_and_root_and_with_nothing_else() -> None:
    more = DOMAIN.bundle(OTHER.root, sequence=2)

    for name, changed in {
        "web": secrets_of(WEB_RENEWED),
        "ROOTCA": secrets_of(WEB, bundles=(more,)),
        "ALL": secrets_of(WEB, bundles=(DOMAIN.bundle(), OTHER.bundle())),
    }.items():
        before, same, after = (
            secrets_of(WEB).get(name),
            secrets_of(WEB).get(name),
            changed.get(name),
        )
        assert before == same
        assert before is not None
        assert after is not None
        assert before.version != after.version, name


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ack", "nack", "stale", "push", "renew", "names"]),
            st.sets(st.sampled_from(["web", "api", "default", "ALL", "nothing"]), max_size=4),
        ),
        max_size=30,
    )
)
@settings(max_examples=100, deadline=None)
def test_client_ends_with_the_newest_of_all_it_asked_for_whatever_was_said(
    steps: list[tuple[str, set[str]]],
) -> None:
    talk = Talk(WholeSubscription)
    wanted = {"web"}
    talk.say(whole(*wanted))
    has: dict[str, bytes] = {}

    def hear() -> None:
        if talk.hear() is not None:
            for one in talk.last.resources:  # type: ignore[attr-defined]
                has[named(one).name] = one.value

    for step, names in steps:
        if step == "push":
            hear()
        elif step == "renew":
            talk.secrets = AFTER if talk.secrets is BEFORE else BEFORE
        elif step == "stale":
            talk.say(whole(*names, nonce="stale"))
        else:
            if step == "names":
                wanted = names or {"web"}
            hear()
            talk.say(whole(*wanted, nonce=talk.nonce, error="no" if step == "nack" else None))
    hear()

    for name in wanted - {"nothing"}:
        newest = talk.secrets.get(name)
        assert newest is not None
        assert has[name] == newest.packed.value
    assert talk.hear() is None


@example(steps=[("add", {"api"}), ("hear", set()), ("lose", set()), ("add", {"api"})])
@example(steps=[("add", {"*"}), ("hear", set()), ("drop", {"*"}), ("add", {"*"})])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "drop", "renew", "lose", "hear", "nack", "reconnect"]),
            st.sets(st.sampled_from(["web", "api", "default", "ALL", "nothing", "*"]), max_size=4),
        ),
        max_size=30,
    )
)
@settings(max_examples=150, deadline=None)
def test_incremental_client_has_all_it_wants_and_nothing_that_is_gone(
    steps: list[tuple[str, set[str]]],
) -> None:
    pictures = {"renew": AFTER, "lose": secrets_of(WEB)}
    talk = Talk(DeltaSubscription)
    wanted = {"web"}
    talk.say(delta("web"))
    has: dict[str, tuple[str, bytes]] = {}

    def hear() -> None:
        if talk.hear() is not None:
            for one in talk.last.resources:  # type: ignore[attr-defined]
                has[one.name] = (one.version, one.resource.value)
            for name in talk.removed:
                has.pop(name, None)

    for step, names in steps:
        if step == "add":
            wanted |= names
            talk.say(delta(*names, nonce="any"))
        elif step == "drop":
            wanted -= names
            talk.say(delta(drop=tuple(names)))
            if "*" not in wanted:
                for name in set(has) - wanted:
                    has.pop(name)
        elif step in pictures:
            talk.secrets = BEFORE if talk.secrets is pictures[step] else pictures[step]
        elif step == "reconnect" and wanted:
            again = Talk(DeltaSubscription, talk.secrets)
            again.say(delta(*wanted, has={name: version for name, (version, _) in has.items()}))
            talk = again
        else:
            hear()
            if step == "nack":
                talk.say(delta(nonce=talk.nonce, error="no"))
    hear()

    covered = wanted | (set(talk.secrets.everything) if "*" in wanted else set())
    newest = {name: found for name in covered if (found := talk.secrets.get(name))}
    assert {name: value for name, (_, value) in has.items()} == {
        name: found.packed.value for name, found in newest.items()
    }
    assert talk.hear() is None


def test_of_a_new_picture_only_what_has_changed_is_made_again() -> None:
    before = secrets_of(WEB, API)
    names = [*before.everything, "default", "ROOTCA", "ALL"]
    made = {name: before.get(name) for name in names}

    after = Secrets(View.of(picture(WEB_RENEWED, API, bundles=[DOMAIN.bundle()]), None), before)

    again = {name for name in names if after.get(name) is not made[name]}
    assert again == {"web", WEB_ID, "default"}
    assert all(after.get(name) == secrets_of(WEB_RENEWED, API).get(name) for name in names)


def test_a_new_root_and_another_default_are_in_what_is_made_of_them() -> None:
    root = Domain("second").root
    before = secrets_of(WEB, API)
    for name in (*before.everything, "default", "ROOTCA", "ALL"):
        before.get(name)
    view = View.of(picture(API, bundles=[DOMAIN.bundle(root)]), None)

    after, fresh = Secrets(view, before), Secrets(view)

    assert after.everything == fresh.everything
    for name in (*after.everything, "default", "ROOTCA", "ALL"):
        assert after.get(name) == fresh.get(name)
    assert after.get("web") is None
    assert after.get("ROOTCA") != before.get("ROOTCA")
