"""The reference pages that are made from the code: both configurations, errors, RPCs.

Run as a program (`make docs`) it writes them; a test fails if they are not what
it would write. What they say stands in docstrings and .proto comments, once.
"""

from __future__ import annotations

import ast
import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from grpc_tools import protoc
from meshmint.agent.config import (
    AgentConfig,
    AuthSettings,
    CertificateSettings,
    NamesSettings,
    RenewalSettings,
    ServerSettings,
    TemplateSettings,
    WindowSettings,
)
from meshmint.agent.config import LogSettings as AgentLogSettings
from meshmint.agent.outputs.settings import (
    CertificateFiles,
    DerOutput,
    FileSettings,
    JavaFiles,
    JavaOutput,
    KeystoreFiles,
    PasswordSource,
    PemFiles,
    PemOutput,
    Pkcs12Output,
    TemplateOutput,
)
from meshmint.agent.reactions.settings import CommandReaction, HttpReaction, SignalReaction
from meshmint.agent.sockets import SocketSettings
from meshmint_server import errors
from meshmint_server.authn import JwtSettings, KubernetesSettings, Refusal
from meshmint_server.config import (
    BundleEndpointSettings,
    Config,
    CrlSettings,
    FederationSettings,
    HttpSettings,
    IstioSettings,
    JwtSvidSettings,
    LinkerdSettings,
    LogSettings,
    OcspSettings,
    PublicationSettings,
    RootPublicationSettings,
    RotationSettings,
    TidySettings,
    TlsSettings,
    UpstreamSettings,
)
from meshmint_server.config.admission import AdmissionSettings, RateSettings
from meshmint_server.errors import MeshmintError
from meshmint_server.keys import KeySettings
from meshmint_server.policy import CallerMatcher
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SERVER = ROOT / "server" / "meshmint_server"

_MADE = "<!-- Made from the code by `make docs`; do not edit. -->\n"


def pages() -> dict[Path, str]:
    """Every page and its text."""
    return {
        REFERENCE / "config.md": _config_page(_CONFIG_INTRO, _SECTIONS),
        REFERENCE / "agent.md": _config_page(_AGENT_INTRO, _AGENT_SECTIONS),
        REFERENCE / "errors.md": _errors_page(),
        REFERENCE / "rpcs.md": _rpcs_page(),
    }


# --- configuration -------------------------------------------------------------------

_CONFIG_INTRO = """\
# Configuration

One YAML file, given to `meshmintd` with `-c`. `meshmintd config check -c FILE` says what is
wrong with it; unknown fields and keys that stand twice are refused. It never holds a secret,
only where one is. SIGHUP has a running service read it again; `listen`, `http.listen`,
`bundle_endpoint.listen` and `linkerd.listen` need a restart.

[deploy/config.example.yaml](../../deploy/config.example.yaml) is a whole file to begin with.
Durations are seconds, or text such as `30s`, `15m`, `72h`, `1h30m`, `7d`.
"""

_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", Config),
    ("`tls`", TlsSettings),
    ("`http`", HttpSettings),
    ("`bundle_endpoint`", BundleEndpointSettings),
    ("`federation`", FederationSettings),
    ("`publication`", PublicationSettings),
    ("`publication.root`", RootPublicationSettings),
    ("`admission`", AdmissionSettings),
    ("`admission.rates[]`", RateSettings),
    ("`crl`", CrlSettings),
    ("`tidy`", TidySettings),
    ("`ocsp`", OcspSettings),
    ("`keys`", KeySettings),
    ("`rotation`", RotationSettings),
    ("`rotation.upstream`", UpstreamSettings),
    ("`jwt_svid`", JwtSvidSettings),
    ("`authenticators`, kind `kubernetes`", KubernetesSettings),
    ("`authenticators`, kind `jwt`", JwtSettings),
    ("`istio`", IstioSettings),
    ("`linkerd`", LinkerdSettings),
    ("`admins`, and `callers` of roles", CallerMatcher),
    ("`log`", LogSettings),
)


# What the code leaves to the type.
_PLAIN = {
    "kind": "Says which kind it is.",
    "listen": "Address, `host:port`.",
    "files": "Which files there are, and what they are called: see below.",
    "keystore": "The private key, the certificate and its chain.",
    "format": "`json`, one object a line; or `console`, for people.",
    "level": "`debug`, `info`, `warning` or `error`.",
}


_AGENT_INTRO = """\
# Configuration of the agent

One YAML file, given to `meshmint agent` with `-c`. `meshmint agent -c FILE --check` looks at it and
at all that it refers to. Unknown fields, keys that stand twice and aliases are refused. It never
holds a secret, only where one is. SIGHUP has a running agent read it again; `state_dir` and
`health` need a restart.

[deploy/agent.example.yaml](../../deploy/agent.example.yaml) is a whole file to begin with, and
[the guide](../guide/agent.md) says how the agent behaves. Durations are seconds, or text such as
`30s`, `15m`, `72h`, `1h30m`, `7d`. Permissions are octal digits in quotes.
"""

_AGENT_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", AgentConfig),
    ("`server`", ServerSettings),
    ("`auth`", AuthSettings),
    ("`certificates[]`", CertificateSettings),
    ("`certificates[].names`", NamesSettings),
    ("`certificates[].renewal`", RenewalSettings),
    ("`certificates[].renewal.window`", WindowSettings),
    ("`certificates[].outputs[]`, format `pem`", PemOutput),
    ("`files` of format `pem`", PemFiles),
    ("`certificates[].outputs[]`, format `der`", DerOutput),
    ("`files` of format `der`", CertificateFiles),
    ("`certificates[].outputs[]`, format `pkcs12`", Pkcs12Output),
    ("`files` of format `pkcs12`", KeystoreFiles),
    ("`certificates[].outputs[]`, format `java`", JavaOutput),
    ("`files` of format `java`", JavaFiles),
    ("One of `files`", FileSettings),
    ("`password`", PasswordSource),
    ("`certificates[].outputs[]`, format `template`", TemplateOutput),
    ("`templates[]`", TemplateSettings),
    ("`after_change[]` with `command`", CommandReaction),
    ("`after_change[]` with `signal`", SignalReaction),
    ("`after_change[]` with `http`", HttpReaction),
    ("`sockets[]`", SocketSettings),
    ("`log`", AgentLogSettings),
)


def _config_page(intro: str, sections: tuple[tuple[str, type[BaseModel]], ...]) -> str:
    parts = [_MADE, intro]
    for title, model in sections:
        parts.append(f"\n## {title}\n\n{_summary(model)}\n\n| field | default | |\n|---|---|---|\n")
        meanings = _attributes(model)
        for name, field in model.model_fields.items():
            default = (
                "required"
                if field.is_required()
                else _shown(field.get_default(call_default_factory=True), name)
            )
            says_kind = len(get_args(field.annotation)) == 1 and name == "format"
            meaning = meanings.get(name) or (_PLAIN["kind"] if says_kind else _PLAIN[name])
            parts.append(f"| `{name}` | {default} | {_cell(meaning)} |\n")
    return "".join(parts)


def _shown(value: object, name: str) -> str:
    if isinstance(value, int) and name.endswith("mode"):
        return f'`"{value:04o}"`'
    if isinstance(value, str) and name.endswith("mode") and value.isdecimal():
        return f'`"{value}"`'
    if value is None or value in ("", {}):
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if hasattr(value, "total_seconds"):
        seconds = int(value.total_seconds())
        return f"`{seconds // 3600}h`" if seconds % 3600 == 0 else f"`{seconds}s`"
    return f"`{value}`"


def _summary(model: type[object]) -> str:
    text = re.split(r"(?:^|\n)Attributes:", inspect.cleandoc(model.__doc__ or ""))[0].strip()
    return _prose(text)


def _attributes(model: type[object]) -> dict[str, str]:
    """Meanings of the attributes, from the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
        pattern = r"^( {0,4})(\w+): (.*(?:\n\1 {4}.*)*)"
        for match in re.finditer(pattern, section, re.MULTILINE):
            found[match[2]] = " ".join(match[3].split())
    return found


# --- errors --------------------------------------------------------------------------

_ERRORS_INTRO = """\
# Errors

Every error has a gRPC status code and, in its details, a `google.rpc.ErrorInfo` with the domain
`meshmint` and a `reason` that is stable: programs decide by code and reason, people read the
message. What is wrong with a request comes as `google.rpc.BadRequest`, all violations at once.
Where a retry makes sense there is a `google.rpc.RetryInfo` that says when. A `reason` without a
row of its own has the meaning of its error.

INTERNAL is a bug: the log has it with the request id, which the reply's metadata has as well.

## By error

| error | gRPC code | reason | retry | |
|---|---|---|---|---|
"""

_REASONS_INTRO = """
## By reason

What an error's reason may be beside that of the table above.

| reason | error | gRPC code |
|---|---|---|
"""

_OPERATOR_INTRO = """
## Reasons that operators see

Of signing keys and issuers, from `meshmintd` and in the log. Callers get the reason of the
error, and no internals.

| reason | error | gRPC code |
|---|---|---|
"""


def _errors_page() -> str:
    rows = []
    classes: list[type[MeshmintError]] = [
        value
        for name in errors.__all__
        if inspect.isclass(value := getattr(errors, name))
        and issubclass(value, MeshmintError)
        and value is not MeshmintError
    ]
    order = list(dict.fromkeys(_tree(MeshmintError)))
    for error in sorted(classes, key=order.index):
        after = error.default_retry_after
        rows.append(
            f"| {error.__name__} | {error.code} | `{error.default_reason}` "
            f"| {'' if after is None else f'after {after:g} s'} "
            f"| {_cell(_prose(error.__doc__))} |\n"
        )
    callers, operators = _further_reasons({error.default_reason for error in classes})
    return "".join(
        (
            _MADE, _ERRORS_INTRO, *rows,
            _REASONS_INTRO, *(f"| `{r}` | {e} | {c} |\n" for r, e, c in callers),
            _OPERATOR_INTRO, *(f"| `{r}` | {e} | {c} |\n" for r, e, c in operators),
        )
    )  # fmt: skip


def _tree(error: type[MeshmintError]) -> Iterator[type[MeshmintError]]:
    yield error
    for below in error.__subclasses__():
        yield from _tree(below)


# In a room of the operators', and yet what watchers are told.
_FEED = "bundle_feed.py"

Reasons = list[tuple[str, str, str]]


def _further_reasons(known: set[str]) -> tuple[Reasons, Reasons]:
    """Reasons that stand in the source as ``SomeError(…, reason="…")``, callers' and operators'."""
    named = {error.__name__: error for error in _tree(MeshmintError)}
    callers = {(r.value, "Unauthenticated", errors.Unauthenticated.code) for r in Refusal}
    operators: set[tuple[str, str, str]] = set()
    for file in sorted(SERVER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            for keyword in node.keywords:
                value = keyword.value
                if (
                    keyword.arg == "reason"
                    and isinstance(value, ast.Constant)
                    and isinstance(value.value, str)
                    and value.value not in known
                    and (name in named or name == "KeyFault")
                ):
                    error = named.get(name, errors.KeyUnavailable)
                    is_for_operators = (
                        bool({"keys", "authority"} & set(file.parts)) and file.name != _FEED
                    )
                    (operators if is_for_operators else callers).add(
                        (value.value, error.__name__, error.code)
                    )
    return sorted(callers), sorted(operators)


# --- RPCs ----------------------------------------------------------------------------

_RPCS_INTRO = """\
# RPCs

The API is `meshmint.v1`; its sources, with the same words, are in
[proto/](../../proto/meshmint/v1). It only grows: a test freezes names, numbers and types.
Reflection (`grpc.reflection.v1alpha`) and health checks (`grpc.health.v1`, overall and per
service) are on the same port. A credential is a bearer token in the metadata: `authorization:
Bearer <token>`. `GetChain`, `WatchTrustBundle`, `Revoke` with a proof of possession, health and
reflection need none.

Where they are enabled, the protocols of [Istio](../guide/istio.md) and
[Linkerd](../guide/linkerd.md) are there as well. They are not ours to change.
"""

_FILES = ("certificate_service.proto", "admin_service.proto", "role.proto")

Comments = Mapping[tuple[int, ...], str]


def _rpcs_page() -> str:
    parts = [_MADE, _RPCS_INTRO]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        failed = protoc.main(
            [
                "protoc",
                f"-I{ROOT / 'proto'}",
                f"-I{Path(protoc.__file__).parent / '_proto'}",
                f"-I{Path(status_pb2.__file__).parents[2]}",
                "--include_source_info",
                f"--descriptor_set_out={out}",
                *(f"meshmint/v1/{name}" for name in _FILES),
            ]
        )
        assert not failed
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    by_name = {Path(file.name).name: file for file in files}
    for name in _FILES:
        parts += _file(by_name[name])
    return "".join(parts)


def _file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
    }
    for index, service in enumerate(file.service):
        yield f"\n## {service.name}\n\n{comments[6, index]}\n\n| RPC | takes | gives | |\n"
        yield "|---|---|---|---|\n"
        for number, method in enumerate(service.method):
            takes, gives = _type(method.input_type), _type(method.output_type)
            gives = f"stream of {gives}" if method.server_streaming else gives
            comment = _cell(comments[6, index, 2, number])
            yield f"| `{method.name}` | {takes} | {gives} | {comment} |\n"
    for index, message in enumerate(file.message_type):
        yield f"\n### {message.name}\n\n{comments[4, index]}\n"
        if not message.field:
            continue
        yield "\n| | field | type | |\n|---|---|---|---|\n"
        maps = {nested.name: nested for nested in message.nested_type}
        for number, field in enumerate(message.field):
            comment = _cell(comments[4, index, 2, number])
            yield f"| {field.number} | `{field.name}` | {_field_type(field, maps)} | {comment} |\n"
    for index, enum in enumerate(file.enum_type):
        yield f"\n### {enum.name}\n\n{comments[5, index]}\n\n| | value | |\n|---|---|---|\n"
        for number, value in enumerate(enum.value):
            yield f"| {value.number} | `{value.name}` | {_cell(comments[5, index, 2, number])} |\n"


def _field_type(
    field: descriptor_pb2.FieldDescriptorProto, maps: Mapping[str, descriptor_pb2.DescriptorProto]
) -> str:
    kinds = descriptor_pb2.FieldDescriptorProto.Type
    simple = kinds.Name(field.type).removeprefix("TYPE_").lower()
    if field.type_name.rpartition(".")[2] in maps:
        return "map of string to string"
    kind = _type(field.type_name) if field.type_name else simple
    repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {kind}" if repeated else kind


def _type(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})" if name.startswith(".meshmint.v1.") else name.lstrip(".")


# --- text ----------------------------------------------------------------------------


def _prose(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


def write(found: Mapping[Path, Any]) -> None:
    """Writes the pages."""
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(pages())
