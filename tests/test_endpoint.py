"""An endpoint's client: answers timed and counted, every fault by its name, nothing left behind."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import MODEL, serving
from systems import agents, generate_only, prepared_of

from hsim import cli
from hsim.backends.endpoint import EXCERPT, KEY_VARIABLE, Answer, EndpointSpec, _Stream, checked_url, opened, spec_of
from hsim.backends.prompts import Prompts
from hsim.drivers.endpoint import RemoteSpec
from hsim.drivers.live import LiveRun, Stand
from hsim.drivers.prepared import Prepared
from hsim.errors import BackendError, DescriptionError
from hsim.log import Outcome, Stage
from hsim.validate.quantities import accounted, as_clients_see, quantities

PATIENCE: dict[str, Any] = {"silence_timeout_s": 0.3, "backoff_s": 0.001, "connect_timeout_s": 2.0}


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def asked(url: str, tokens: int = 5, model: str = MODEL, **patience: Any) -> Answer:
    with opened(EndpointSpec(url, model, **PATIENCE | patience)) as endpoint:
        return endpoint.run(endpoint.ask("time year people", tokens))


# ---- answers


def test_an_answer_is_timed_by_its_pieces_and_counted_by_its_usage() -> None:
    with serving() as (url, how):
        answer = asked(url, 5)
    assert (answer.fault, answer.input_tokens, answer.output_tokens, answer.counted, answer.attempts) == (
        "",
        3,
        5,
        True,
        1,
    )
    assert len(answer.chunks_s) == 5
    assert answer.sent_s <= answer.chunks_s[0] <= answer.chunks_s[-1] <= answer.ended_s
    assert how.asked[0]["stream_options"] == {"include_usage": True}


def test_without_usage_tokens_are_pieces_and_the_answer_says_so() -> None:
    with serving(then="no-usage") as (url, _):
        answer = asked(url, 5)
    assert (answer.fault, answer.input_tokens, answer.output_tokens, answer.counted) == ("", None, 5, False)


SEPARATORS = "a\u2028b\u2029c\x85d"  # str.splitlines parts lines at them; servers send them as they are
END = b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n'
STREAMS = {
    "separators": f'data: {{"choices": [{{"text": "{SEPARATORS}"}}]}}\n\n'.encode() * 2 + END,
    "several lines of data": b'data: {"choices":\ndata: [{"text": "a"}]}\n\n' * 2 + END,
    "carriage returns": b': ping\r\n\r\nevent: x\r\ndata: {"choices": [{"text": "a"}]}\r\n\r\n' * 2 + END,
    "no blank lines": b'data: {"choices": [{"text": "a"}]}\n' * 2 + END,
    "empty data": b'data:\n\ndata: {"choices": [{"text": "a"}]}\n\n' * 2 + END,
    "no end of line": b'data: {"choices": [{"text": "a"}]}\n\n' * 2 + b"data: [DONE]",
    "usage alone": b'data: {"choices": [{"text": "a"}]}\n\n' * 2
    + END
    + b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n',
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_parted_as_server_sent_events_are_however_they_arrive(name: str) -> None:
    raw = STREAMS[name]
    for size in (1, 7, len(raw)):
        stream, heard = _Stream(lambda: None), 0.0
        for at in range(0, len(raw), size):
            stream.take(raw[at : at + size], heard := heard + 1)
        stream.check_whole(heard)
        assert len(stream.chunks_s) == 2
    assert (stream.usage == (3, 2)) == (name == "usage alone")
    with serving(raw=raw) as (url, _):
        answer = asked(url)
    assert (answer.fault, len(answer.chunks_s)) == ("", 2)


@pytest.mark.parametrize("rest", [b"dat", b'data: {"choi', b'data: {"choi\n'])
def test_an_event_that_is_cut_off_is_a_stream_that_closed_early_and_no_nonsense(rest: bytes) -> None:
    with serving(raw=b'data: {"choices": [{"text": "a"}]}\n\n' + rest) as (url, _):
        assert asked(url).fault == "closed early"


def test_a_stream_that_closes_before_its_first_token_is_asked_for_again() -> None:
    with serving(raw=b": ping\n\n") as (url, how):
        answer = asked(url)
    assert (answer.fault, answer.attempts, len(how.asked)) == ("closed early", 3, 3)


@pytest.mark.parametrize(
    ("manner", "kind", "said"),
    [
        ("stall", "stalled", "no token came for 0.3 s, after 2 pieces"),
        ("pings", "stalled", "no token came for 0.3 s, after 2 pieces"),
        ("silent", "stalled", "no token came for 0.3 s, after 0 pieces"),
        ("close", "closed early", "ended after 2 pieces"),
        ("nonsense", "nonsense", "no server-sent event: <html>"),
        ("no-json", "nonsense", "no JSON: {oh"),
        ("error", "error in the stream", "out of memory"),
        ("bad-usage", "nonsense", "usage does not count"),
        ("plain", "nonsense", "did not stream"),
    ],
)
def test_every_fault_has_its_name(manner: str, kind: str, said: str) -> None:
    with serving(then=manner) as (url, how):
        answer = asked(url)
    assert answer.fault == kind
    assert said in answer.problem
    assert len(how.asked) == 1  # what has begun to answer is not asked twice


def test_an_answer_that_never_ends_is_ended() -> None:
    with serving(then="silent") as (url, _):
        answer = asked(url, silence_timeout_s=20.0, request_timeout_s=0.2)
    assert (answer.fault, answer.problem) == ("took too long", "it was not over after 0.2 s")


@pytest.mark.parametrize(
    ("statuses", "attempts", "fault"), [([429, 500], 3, ""), ([503] * 9, 3, "HTTP 503"), ([400], 1, "HTTP 400")]
)
def test_passing_faults_are_tried_again_and_others_are_not(statuses: list[int], attempts: int, fault: str) -> None:
    with serving(first=statuses) as (url, how):
        answer = asked(url)
    assert (answer.attempts, answer.fault) == (attempts, fault)
    assert len(how.asked) == attempts


def test_nobody_there() -> None:
    answer = asked(closed_port(), retries=1)
    assert (answer.fault, answer.attempts, answer.chunks_s) == ("connection refused", 2, ())


# ---- getting to know it


def test_a_server_is_asked_as_it_wants_to_be() -> None:
    with (
        serving(refuses=("ignore_eos", "/v1/completions")) as (url, how),
        opened(EndpointSpec(url, MODEL, **PATIENCE)) as endpoint,
    ):
        told = endpoint.meet()
        assert endpoint.dialect.api == "chat"
    assert "/chat/completions, where an answer may end sooner" in told
    assert "messages" in how.asked[-1] and "ignore_eos" not in how.asked[-1]


def test_a_server_without_completions_is_asked_to_chat_whatever_it_calls_that() -> None:
    with (
        serving(refuses=("/v1/completions",), refusal=501) as (url, _),
        opened(EndpointSpec(url, MODEL, **PATIENCE)) as endpoint,
    ):
        assert "/chat/completions" in endpoint.meet()


def test_a_wrong_model_is_told_with_what_is_served() -> None:
    with (
        serving() as (url, _),
        opened(EndpointSpec(url, "tinny", **PATIENCE)) as endpoint,
        pytest.raises(BackendError, match="did you mean 'tiny'"),
    ):
        endpoint.meet()
    with serving() as (url, _):
        assert spec_of(url, None, "--base-url").model == MODEL


def test_nobody_there_is_told_before_anything_begins() -> None:
    with (
        opened(EndpointSpec(closed_port(), MODEL, retries=0)) as endpoint,
        pytest.raises(BackendError, match="is the server running"),
    ):
        endpoint.meet()


def test_without_a_model_to_ask_for_what_is_wrong_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"no connection.*is the server running"):
        spec_of(closed_port(), None, "--base-url")
    with serving(listing=404) as (url, _), pytest.raises(BackendError, match=r"does not say .*HTTP 404.*--model"):
        spec_of(url, None, "--base-url")
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
    with serving(key="sk-right") as (url, _), pytest.raises(BackendError, match=f"HTTP 401.*{KEY_VARIABLE}") as caught:
        spec_of(url, None, "--base-url")
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:abc", "http://h:0", "http://[::1", "http://:80", "h:80"])
def test_what_is_no_address_is_refused_with_its_option_and_one_that_is(url: str) -> None:
    with pytest.raises(BackendError, match=r"--base-url: .* is no address.*such as http://127.0.0.1:8000/v1") as caught:
        checked_url(url, "--base-url")
    assert url in str(caught.value)


@pytest.mark.parametrize("host", ["[v1.x]", "1.2.3.400", "xn--"])
def test_a_host_that_no_client_takes_is_refused(host: str) -> None:
    with pytest.raises(BackendError, match="this is no address"), opened(EndpointSpec(f"http://{host}/v1", MODEL)):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@host/v1", "http://host/v1?key=secret", "host:8000", "ftp://host", "me:secret@host:80",
        "http://me:secret#@host", "http://me:secret@[::1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_its_secrets_not_repeated(url: str) -> None:
    with pytest.raises(BackendError) as caught:
        checked_url(url, "--endpoint")
    assert "secret" not in str(caught.value)
    assert checked_url("http://host:8000", "x") == "http://host:8000/v1"


def test_a_key_comes_from_the_environment_and_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key="sk-right") as (url, _):
        monkeypatch.setenv(KEY_VARIABLE, "sk-right")
        assert asked(url).fault == ""
        monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
        answer = asked(url)
        with opened(EndpointSpec(url, MODEL)) as endpoint, pytest.raises(BackendError, match=KEY_VARIABLE) as caught:
            endpoint.meet()
    assert answer.fault == "HTTP 401"
    assert "sk-wrong" not in answer.problem + str(caught.value)
    assert "***" in answer.problem


def test_a_key_that_ends_its_line_is_the_key_without_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in ("\n", "\r\n", "\r"):
        monkeypatch.setenv(KEY_VARIABLE, "sk-right" + ending)
        with serving(key="sk-right") as (url, _):
            assert asked(url).fault == ""


@pytest.mark.parametrize("key", ["sk-\u00e9t\u00e9", "sk-one\nsk-two", "sk-\x07"])
def test_what_can_be_no_key_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(BackendError, match=f"{KEY_VARIABLE}.*printable ASCII") as caught:
        asked(closed_port())
    assert "sk-" not in str(caught.value)


def test_no_part_of_a_key_is_left_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, 'sk-"secret"')
    with opened(EndpointSpec(closed_port(), MODEL)) as endpoint:
        for before in range(2 * EXCERPT):
            for repeated in ('sk-"secret"', r"sk-\"secret\""):  # as it is, and as JSON has it
                assert "sk-" not in endpoint._shown("x" * before + repeated)
    for manners in ({"raw": b"x" * (EXCERPT - 50) + b'sk-"secret"' * 9 + b"\n"}, {"key": "sk-right"}):
        with serving(**manners) as (url, _):
            answer = asked(url)
        assert answer.fault and "sk-" not in answer.problem


def test_prompts_have_the_tokens_that_usage_counts() -> None:
    with serving() as (url, _), opened(EndpointSpec(url, MODEL)) as endpoint:
        prompts = Prompts(endpoint)
        texts = [prompts.of_length(n, n) for n in (8, 100, 333)]
        counts = [endpoint.run(endpoint.ask(text, 1)).input_tokens for text in texts]
    assert counts == [8, 100, 333]
    assert prompts.of_length(50, 1).split()[:8] != prompts.of_length(50, 2).split()[:8]


def test_prompts_of_a_tokenizer_are_exact(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")  # a token a letter
    words.save(str(tmp_path / "tokenizer.json"))
    with serving() as (url, _), opened(EndpointSpec(url, MODEL)) as endpoint:
        endpoint_words = Prompts(endpoint, tmp_path)
        with pytest.raises(BackendError, match="no such file"):
            Prompts(endpoint, tmp_path / "nothing")
    endpoint_words._overhead = 0.0
    assert abs(len(endpoint_words.of_length(400, 1)) - 400) <= 8  # words are up to 8 letters


# ---- live runs


def chat(tasks: int = 6, **more: Any) -> Prepared:
    data = generate_only()
    data["workload"]["tasks"] = tasks
    data["workload"]["arrivals"] = {"kind": "closed", "users": 3}
    data["workload"]["classes"]["chat"] |= {"input_tokens": 12, "output_tokens": 5, **more}
    return prepared_of(data)


def run_at(prepared: Prepared, url: str, **patience: Any) -> LiveRun:
    with Stand((prepared,), "endpoint", endpoint=RemoteSpec(EndpointSpec(url, MODEL, **PATIENCE | patience))) as stand:
        return stand.run(prepared)


MEEK = 5  # requests with which a stand gets to know a server


def outcomes(done: LiveRun, asked: int) -> dict[str, int]:
    told = vars(accounted(done.log, asked))
    return {name: count for name, count in told.items() if count and name != "asked"}


def test_visits_to_the_model_are_requests_and_all_else_is_as_ever() -> None:
    before = threading.active_count()
    with serving() as (url, how):
        prepared = chat()
        done = run_at(prepared, url)
    visits = done.log.visits.arrays()
    assert outcomes(done, 6) == {"served": 6}
    assert (visits["output_tokens"] == 5).all() and (visits["input_tokens"] == 12).all()
    assert (visits["ready_s"] <= visits["first_token_s"]).all() and (
        visits["first_token_s"] <= visits["served_s"]
    ).all()
    assert len(how.asked) == MEEK + 6
    assert threading.active_count() <= before + 1  # the fake server's own
    assert not done.record.failures
    assert {"ttft mean", "tpot mean", "e2e mean", "generate service mean"} <= set(quantities(done.log))
    assert "generate wait mean" not in quantities(as_clients_see(done.log))


@pytest.mark.parametrize("manner", ["stall", "close", "nonsense", "error", "plain"])
def test_requests_that_fail_take_their_tasks_along_and_the_result_says_so(manner: str) -> None:
    with serving(meek=MEEK, then=manner) as (url, _):
        done = run_at(chat(), url)
    assert outcomes(done, 6) == {"failed": 6}
    assert sum(done.record.failures.values()) == 6
    assert quantities(done.log) == {}


def test_a_server_that_dies_in_the_middle_fails_those_who_come_later() -> None:
    with serving(meek=MEEK + 2, first=[500] * 100) as (url, _):
        done = run_at(chat(), url, retries=0)
    assert outcomes(done, 6) == {"served": 2, "failed": 4}
    (why,) = done.record.failures
    assert "HTTP 500" in why


def test_retries_are_told_and_lengths_that_differ_too() -> None:
    with serving(meek=MEEK, first=[429]) as (url, _):
        done = run_at(chat(), url)
    assert outcomes(done, 6) == {"served": 6}
    assert any("1 of 6 requests were tried again" in note for note in done.notes)
    with serving(meek=MEEK, then="no-usage") as (url, _):
        done = run_at(chat(), url)
    assert any("6 answers gave no usage" in note for note in done.notes)


def test_a_deadline_closes_the_request() -> None:
    with serving(meek=MEEK, then="stall") as (url, _):
        done = run_at(chat(timeout_s=0.1), url, silence_timeout_s=20.0)
    assert outcomes(done, 6) == {"timed_out": 6}
    assert (done.log.visits.arrays()["outcome"] == Outcome.TIMED_OUT).all()


def test_ctrl_c_leaves_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (url, how):
        prepared = chat(30)
        stand = Stand((prepared,), "endpoint", endpoint=RemoteSpec(EndpointSpec(url, MODEL, **PATIENCE)))
        with stand:
            begin = stand.remote.endpoint.begin  # type: ignore[union-attr]

            def interrupted(work: Any) -> Any:
                if len(how.asked) > MEEK + 6:
                    work.close()
                    raise KeyboardInterrupt
                return begin(work)

            monkeypatch.setattr(stand.remote.endpoint, "begin", interrupted)  # type: ignore[union-attr]
            done = stand.run(prepared)
    assert done.stopped == "Ctrl-C"
    told = accounted(done.log, 30)
    assert told.served >= 4
    assert told.unfinished == 30 - told.served


def test_agents_use_tools_here_and_the_model_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = agents(split=False, cores=2)
    data["workload"] |= {"arrivals": {"kind": "closed", "users": 2}, "tasks": 4}
    data["tools"]["slow-api"]["outside_wait_s"] = {"kind": "constant", "value": 0.001}
    prepared = prepared_of(data)
    from test_live import CorePuppet

    from hsim.drivers import live

    monkeypatch.setattr(live, "_planned_workers", lambda *_: [("cores", 0, CorePuppet())] * prepared.cores["agents"])
    monkeypatch.setattr(live, "_warm_up", lambda *_: None)
    with serving() as (url, how):
        done = run_at(prepared, url)
    stages = done.log.visits.arrays()["stage"]
    assert outcomes(done, 4) == {"served": 4}
    assert (stages == Stage.TOOL).any()
    assert len(how.asked) - MEEK == (stages == Stage.GENERATE).sum() == sum(len(t.rounds) for t in prepared.drawn.tasks)


def test_what_an_endpoint_cannot_do_is_refused_before_it_is_asked() -> None:
    data = generate_only()
    data["pools"]["prompts"] = {"runs_on": "gpu-tier.gpu", "replicas": 1}
    data["stages"]["prefill"] = "prompts"
    data["links"] = {"prompts-decode": "nvlink4"}
    with pytest.raises(DescriptionError, match="an endpoint shows one pool"):
        Stand((prepared_of(data),), "endpoint", endpoint=RemoteSpec(EndpointSpec(closed_port(), MODEL)))


def test_the_commands_end_with_one_clear_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = closed_port()
    for command in (
        ["calibrate", "--endpoint", url, "--model", "tiny-12m"],
        ["live", "agents-split", "--base-url", url, "--model", "m"],
    ):
        monkeypatch.setattr(sys, "argv", ["hsim", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"hsim: endpoint {url}: ")
        assert "is the server running" in said


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["calibrate", "--endpoint", "http://h", "--model", "m", "--stages", "own.py"], "--stages"),
        (["live", "agents-split", "--base-url", "http://h", "--model", "m", "--sleep"], "--sleep"),
    ],
)
def test_options_that_an_endpoint_has_no_use_for_are_refused(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hsim", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"Invalid value for {option}" in capsys.readouterr().err


def test_lines_are_used_again_by_later_runs_and_closed_with_their_stand() -> None:
    prepared = chat()
    with serving() as (url, _):
        stand = Stand((prepared,), "endpoint", endpoint=RemoteSpec(EndpointSpec(url, MODEL, **PATIENCE)))
        with stand:
            assert stand.remote is not None
            for _ in range(2):
                assert outcomes(stand.run(prepared), 6) == {"served": 6}
            lines = list(stand.remote._lines)
            assert 1 <= len(lines) <= 3  # users of the scenario
            assert not any(line.connection.closed for line in lines)
    assert all(line.connection.closed and line._signal.closed for line in lines)


def test_a_stand_without_a_server_does_not_begin() -> None:
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match="is the server running"):
        run_at(chat(), closed_port(), retries=0)
    assert len(os.listdir("/proc/self/fd")) <= handles + 1
