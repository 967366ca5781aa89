"""One output of the configuration: makes the files of an identity, and writes them.

What is as it should be is not written again, and what somebody has changed is put right.
Everything blocks: it is for a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVarTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint.agent.identities import Bundle, Identity
from meshmint.agent.outputs.atomic_set import AtomicSet
from meshmint.agent.outputs.content import Content
from meshmint.agent.outputs.directories import Placement
from meshmint.agent.outputs.encodings import bundle_of, certificates, content_of, federated
from meshmint.agent.outputs.owners import group_number, user_number
from meshmint.agent.outputs.settings import (
    PRIVATE,
    DerOutput,
    FileSettings,
    JavaOutput,
    PemOutput,
    Pkcs12Output,
    SetOutput,
    TemplateOutput,
)
from meshmint.agent.outputs.single_file import SingleFile
from meshmint.agent.outputs.stores import (
    is_key_store,
    is_trust_store,
    key_store,
    read_password,
    trust_store,
)
from meshmint.agent.outputs.templates import render, variables_of, variables_of_all

__all__ = ["Output"]

Inputs = TypeVarTuple("Inputs")
_ENDINGS = {"pem": Encoding.PEM, "der": Encoding.DER}


class Output:
    """Where one certificate is written to.

    Args:
        settings: One of `OutputSettings`.
    """

    def __init__(self, settings: SetOutput | TemplateOutput) -> None:
        self.settings = settings
        self._stores: dict[str, tuple[object, bytes]] = {}
        self._place: AtomicSet | SingleFile | None = None
        self._digest = ""

    @property
    def digest(self) -> str:
        """Says what was written last, without telling it: the same for the same files."""
        return self._digest

    @property
    def path(self) -> Path:
        """The directory, or the file of a template."""
        if isinstance(self.settings, TemplateOutput):
            return self.settings.destination
        return self.settings.directory

    @property
    def directory(self) -> Path:
        """The directory that the files are in."""
        return self.path.parent if isinstance(self.settings, TemplateOutput) else self.path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other agent out until left.

        Without it each `write` does so by itself while it lasts.

        Raises:
            OutputInUse: Another process, or another output of this one, writes there.
            OutputError: The directory cannot be made or locked.
        """
        place = self._placed()
        with place.lock():
            self._place = place
            try:
                yield
            finally:
                self._place = None

    def write(self, identity: Identity, bundles: Mapping[str, Bundle]) -> bool:
        """Makes the output what it should be.

        Args:
            identity: The certificate, with its key.
            bundles: By trust domain.

        Returns:
            Whether anything on the disk had to be changed.

        Raises:
            OutputInUse: Another agent writes there.
            OutputError: It cannot be written; what was there before is still there, whole.
        """
        settings = self.settings
        if isinstance(settings, TemplateOutput):
            return self._write_file(settings, variables_of(identity, bundles))
        place = self._place or self._placed()
        assert isinstance(place, AtomicSet)  # noqa: S101 - by its settings
        match settings:
            case PemOutput() | DerOutput():
                made = self._encoded(settings, identity, bundles)
            case Pkcs12Output() | JavaOutput():
                made = self._stored(settings, identity, bundles, place)
            case _:
                raise TypeError(f"no output is made with {type(settings).__name__}")
        files = {file.name: self._content(kind, file, data) for kind, file, data in made}
        changed = place.write(files)
        self._digest = _digest(files)
        return changed

    def write_all(self, identities: Iterable[Identity], bundles: Mapping[str, Bundle]) -> bool:
        """Writes a template that sees every certificate; as `write`."""
        if not isinstance(self.settings, TemplateOutput):
            raise TypeError("only a template sees every certificate")
        return self._write_file(self.settings, variables_of_all(identities, bundles))

    def _placed(self) -> AtomicSet | SingleFile:
        """Where it is written, with owners as they are known now."""
        settings = self.settings
        owners = {settings.owner}
        if isinstance(settings, PemOutput | DerOutput | Pkcs12Output | JavaOutput):
            owners |= {file.owner for _, file in settings.files.present()}
        placement = Placement(
            mode=settings.directory_mode,
            group=group_number(settings.group, self.path),
            owners=frozenset(
                number for owner in owners if (number := user_number(owner, self.path)) is not None
            ),
            others_may_write=settings.others_may_write,
        )
        if isinstance(settings, TemplateOutput):
            return SingleFile(settings.destination, placement, replace=settings.replace)
        return AtomicSet(settings.directory, placement, replace=settings.replace)

    def _write_file(self, settings: TemplateOutput, variables: Mapping[str, object]) -> bool:
        place = self._place or self._placed()
        assert isinstance(place, SingleFile)  # noqa: S101 - by its settings
        content = Content(
            render(settings, variables),
            settings.mode,
            user_number(settings.owner, self.path),
            group_number(settings.group, self.path),
        )
        changed = place.write(content)
        self._digest = _digest({self.path.name: content})
        return changed

    def _content(self, kind: str, file: FileSettings, data: bytes) -> Content:
        settings = self.settings
        assert isinstance(settings, SetOutput)  # noqa: S101 - only sets have several files
        mode = settings.key_mode if kind in PRIVATE else settings.mode
        path = self.path / file.name
        return Content(
            data,
            mode if file.mode is None else file.mode,
            user_number(settings.owner if file.owner is None else file.owner, path),
            group_number(settings.group if file.group is None else file.group, path),
        )

    def _encoded(
        self, settings: PemOutput | DerOutput, identity: Identity, bundles: Mapping[str, Bundle]
    ) -> Iterator[tuple[str, FileSettings, bytes]]:
        encoding = _ENDINGS[settings.format]
        bundle = Bundle(identity.trust_domain, ())
        if settings.files.bundle is not None:
            bundle = bundle_of(identity, bundles, str(self.path / settings.files.bundle.name))
        for kind, file in settings.files.present():
            yield kind, file, content_of(kind, identity, bundle, encoding)
        for other in federated(settings.federated_bundles, identity.trust_domain, bundles):
            file = FileSettings(name=f"bundle-{other.trust_domain}.{settings.format}")
            yield "bundle", file, certificates(other.roots, encoding)

    def _stored(
        self,
        settings: Pkcs12Output | JavaOutput,
        identity: Identity,
        bundles: Mapping[str, Bundle],
        place: AtomicSet,
    ) -> Iterator[tuple[str, FileSettings, bytes]]:
        password, how = read_password(settings.password), settings.encryption
        alias = settings.alias or identity.name
        if isinstance(settings, JavaOutput):
            alias = alias.lower()  # as Java does itself
        for kind, file in settings.files.present():
            if kind == "keystore":
                key = (identity, alias, password, how)
                store = self._store(place, file.name, key, key_store, is_key_store)
            else:
                bundle = bundle_of(identity, bundles, str(self.path / file.name))
                trust = (_named(bundle), password, how)
                store = self._store(place, file.name, trust, trust_store, is_trust_store)
            yield kind, file, store

    def _store(
        self,
        place: AtomicSet,
        name: str,
        inputs: tuple[*Inputs],
        make: Callable[[*Inputs], bytes],
        is_right: Callable[[bytes, *Inputs], bool],
    ) -> bytes:
        """A store made anew only if its inputs have changed: no two of them are the same bytes."""
        known = self._stores.get(name)
        if known is not None and known[0] == inputs:
            return known[1]
        there = place.read().get(name)
        data = there if there is not None and is_right(there, *inputs) else make(*inputs)
        self._stores[name] = (inputs, data)
        return data


def _named(bundle: Bundle) -> tuple[tuple[str, x509.Certificate], ...]:
    """The roots, each with an alias that stays the same as long as the root does."""
    return tuple(
        (f"{bundle.trust_domain}-{root.fingerprint(hashes.SHA256()).hex()[:16]}", root)
        for root in bundle.roots
    )


def _digest(files: Mapping[str, Content]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content.data).digest())
    return digest.hexdigest()
