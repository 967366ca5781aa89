"""bench/peers/load.py: what h2load says is read right, and a run of refusals is no measurement."""

from __future__ import annotations

import re

import pytest
from meshmint.v1 import certificate_service_pb2 as pb
from peers.load import BadRun, check_summary, frame, read_log, read_stream_log

SUMMARY = """\
finished in 2.00s, 329.00 req/s, 831.85KB/s
requests: 658 total, 674 started, 658 done, 658 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 658 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.62MB (1703638) total, 53.68KB (54970) headers (space savings 69.14%), 1.56MB (1635752) data
                     min         max         mean         sd        +/- sd
time for request:     5.72ms    179.83ms     45.11ms     31.25ms    71.88%
"""  # noqa: E501
SIZE = 1635752 // 658
EPOCH = 1_795_523_563_000_000


def lines(*answers: tuple[float, float], status: int = 200) -> str:
    """A log of answers: seconds from the start when asked, seconds until answered."""
    return "".join(
        f"{EPOCH + round(asked * 1e6)}\t{status}\t{round(took * 1e6)}\n" for asked, took in answers
    )


def test_a_framed_message_has_its_length_before_it() -> None:
    message = pb.IssueRequest(role="r" * 300).SerializeToString()

    assert frame(message) == b"\x00\x00\x00\x01\x2f" + message
    assert frame(b"") == bytes(5)


def test_answers_are_good_if_they_have_the_size_of_a_good_one() -> None:
    check_summary(SUMMARY, SIZE + 9)


def test_refusals_over_grpc_spoil_the_run() -> None:
    # HTTP status 200 and trailers alone: no data.
    with pytest.raises(BadRun, match="0 bytes in place of 2485"):
        check_summary(SUMMARY.replace("(1635752) data", "(0) data"), SIZE)


@pytest.mark.parametrize("what", ["failed", "errored", "timeout"])
def test_a_request_that_failed_spoils_the_run(what: str) -> None:
    with pytest.raises(BadRun, match="failed"):
        check_summary(SUMMARY.replace(f" 0 {what}", f" 1 {what}"), SIZE)


def test_an_answer_that_is_no_success_spoils_the_run() -> None:
    with pytest.raises(BadRun, match="without a good answer"):
        check_summary(SUMMARY.replace("658 succeeded", "657 succeeded"), SIZE)


def test_a_run_without_answers_is_no_run() -> None:
    with pytest.raises(BadRun, match="without a good answer"):
        check_summary(re.sub(r"658 (total|done|succeeded)", r"0 \1", SUMMARY), SIZE)
    with pytest.raises(BadRun, match="nothing was answered"):
        read_log("")


def test_output_of_another_program_is_refused() -> None:
    with pytest.raises(BadRun, match="something else"):
        check_summary("finished in 2.00s, 329.00 req/s", SIZE)


def test_the_rate_is_that_of_answers_after_the_start() -> None:
    # One every 10 ms for two seconds, after a slow first one.
    steady = [(0.2 + 0.01 * number, 0.01) for number in range(200)]
    measured = read_log(lines((0, 0.19), *steady), settling=0.3)

    assert measured.answers == 201
    assert measured.rate == pytest.approx(100, rel=0.01)
    assert measured.p50 == measured.p99 == pytest.approx(0.01)


def test_percentiles_are_of_nearest_rank() -> None:
    # 98 fast ones and two slow ones: the 99th of a hundred is slow.
    measured = read_log(
        lines((0, 0.001), *[(0.5 + 0.01 * n, 0.005) for n in range(98)], (1, 0.5), (1.1, 0.7)),
        settling=0.3,
    )

    assert measured.p50 == pytest.approx(0.005)
    assert measured.p99 == pytest.approx(0.5)


def test_answers_with_another_status_spoil_the_run() -> None:
    with pytest.raises(BadRun, match="1 of 2 answers"):
        read_log(lines((0, 0.5)) + lines((0, 0.5), status=503))


def test_a_run_that_ends_before_it_has_settled_is_no_run() -> None:
    with pytest.raises(BadRun, match="within the first"):
        read_log(lines((0, 0.1), (0.1, 0.1)), settling=0.3)


def test_a_stream_counts_for_its_items_and_from_the_start() -> None:
    # Two connections with two streams each, one after the other.
    measured = read_log(lines((0, 0.5), (0, 0.4), (0.5, 0.5), (0.4, 0.6)), items=128)

    assert measured.answers == 4 * 128
    assert measured.rate == pytest.approx(4 * 128)
    assert measured.p50 == pytest.approx(0.5)


def test_one_refusal_in_each_stream_spoils_the_run() -> None:
    # 128 answers of 3,500 bytes, of which one is an error of 300; the framing varies by less.
    whole = 128 * 3500
    summary = SUMMARY.replace("674 started", "658 started")
    one_refused = summary.replace("(1635752) data", f"({658 * (whole - 3200)}) data")
    split_otherwise = summary.replace("(1635752) data", f"({658 * (whole + 100 * 5)}) data")

    check_summary(split_otherwise, whole, items=128)
    with pytest.raises(BadRun, match="no certificates"):
        check_summary(one_refused, whole, items=128)


def test_streams_that_were_cut_off_have_had_a_part_of_their_answers() -> None:
    whole = 128 * 3500
    some_more = SUMMARY.replace("(1635752) data", f"({666 * whole}) data")
    too_many = SUMMARY.replace("(1635752) data", f"({680 * whole}) data")

    check_summary(some_more, whole, items=128)
    with pytest.raises(BadRun, match="no certificates"):
        check_summary(too_many, whole, items=128)


def test_the_rate_of_streams_follows_from_how_long_they_take() -> None:
    # One connection at a worker that takes half a second, one at another that takes one; the
    # last stream of the former, which was cut off, counts neither as work nor as time.
    fast = [(0.5 * number, 0.5) for number in range(3)]
    slow = [(1.0 * number, 1.0) for number in range(2)]
    measured = read_stream_log(lines(*fast, *slow), items=64, in_flight=2)

    assert measured.answers == 5 * 64
    assert measured.rate == pytest.approx(2 * 64 / (3.5 / 5))


def test_a_run_of_too_few_streams_is_no_run() -> None:
    with pytest.raises(BadRun, match="3 streams in a run are too few"):
        read_stream_log(lines((0, 0.5), (0, 0.5), (0.5, 0.5)), items=64, in_flight=2)
