"""An HSM that fails under callers who want JWT-SVIDs: they come again, and get nothing wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from support.hsm_shim import DEVICE, Ckr, Shim
from support.service import Service
from support.softhsm import require_module

AUDIENCE = "https://api.example.org"


class Faulty:
    """A service that issues JWT-SVIDs, and the faults of its HSM."""

    def __init__(self, directory: Path, built_shim: Path) -> None:
        self.shim = Shim(built_shim, require_module(), directory / "control")
        self.service = Service(
            directory / "service",
            workers=1,
            shim=self.shim,
            keys={"sign_timeout": 3.0},
            jwt_svid={"enabled": True},
        )
        self.service.start()
        self.role = self.service.put_role(
            {"spiffe": "own", "key_type": "ec", "jwt_svid": {"audiences": [AUDIENCE]}}
        )
        until(self.answers)

    def ask(self) -> pb.IssueJwtSvidResponse:
        return self.service.stub.IssueJwtSvid(
            pb.IssueJwtSvidRequest(role=self.role, audiences=[AUDIENCE]),
            timeout=20,
            metadata=self.service.metadata(self.service.token()),
        )

    def answers(self) -> bool:
        try:
            return bool(self.ask().token)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        self.shim.heal()
        self.service.stop()
        self.shim.close()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, built_shim: Path) -> Iterator[Faulty]:
    faulty = Faulty(tmp_path_factory.mktemp("hsm"), built_shim)
    yield faulty
    faulty.close()


@pytest.mark.parametrize(
    "begin",
    [
        lambda shim: shim.fail(*DEVICE, with_=Ckr.DEVICE_REMOVED),
        lambda shim: shim.hang("C_Sign"),
        lambda shim: shim.flip_signatures(),
    ],
    ids=["is removed", "hangs", "signs wrongly"],
)
def test_callers_are_told_to_come_again_and_the_service_recovers(
    faulty: Faulty, begin: Callable[[Shim], None]
) -> None:
    until(faulty.answers)
    begin(faulty.shim)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            faulty.ask()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        metadata = dict(caught.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert any(detail.Unpack(info) for detail in status.details)
        assert info.reason == "KEY_UNAVAILABLE"
        assert retry.retry_delay.ToTimedelta()
        chain = faulty.service.stub.GetChain(pb.GetChainRequest(), timeout=10)
        assert '"use":"jwt-svid"' in chain.jwt_keys  # published, whatever the token does
    finally:
        faulty.shim.heal()
    until(faulty.answers)
