"""Sessions apart from one another, jobs, the queue before the model, sessions in files; no browser."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

import lvlm_probe as lp
from lvlm_probe.app.cache import Cache
from lvlm_probe.app.inputs import choice, fraction, whole
from lvlm_probe.app.jobs import Cancelled, Job, Report
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.app.sessions_on_disk import load_session, save_session
from lvlm_probe.app.turnstile import Turnstile
from lvlm_probe.conversation import Turn


@pytest.fixture
def service(probe: lp.Probe, tmp_path: Path) -> Iterator[Service]:
    service = Service(probe, folder=tmp_path / "app", traces=2)
    yield service
    service.close()
    assert not (tmp_path / "app").exists(), "nothing is left behind"


def asked(service: Service, seed: int = 0) -> Asked:
    question = service.ask([tiny.picture(seed)], "what is this", "a red circle")
    return Asked(question, Turn("what is this", question.answer, question.images))


def test_front_is_first_come_first_served_and_jobs_wait() -> None:
    turnstile, order = Turnstile(), list[str]()
    entered = threading.Event()

    def front(name: str) -> None:
        with turnstile.front():
            order.append(name)
            entered.wait()

    first = threading.Thread(target=front, args=("first",))
    first.start()
    while not order:
        time.sleep(0.001)
    others = [threading.Thread(target=front, args=(f"{n}",)) for n in range(4)]
    for other in others:
        other.start()
        time.sleep(0.02)  # they come in this order
    behind = threading.Thread(target=lambda: (turnstile.give_way(), order.append("job")))
    behind.start()
    time.sleep(0.05)
    assert order == ["first"]
    entered.set()
    for thread in (first, *others, behind):
        thread.join()
    assert order == ["first", "0", "1", "2", "3", "job"]


def test_an_error_does_not_block_the_queue() -> None:
    turnstile = Turnstile()
    with pytest.raises(RuntimeError), turnstile.front():
        raise RuntimeError
    with turnstile.front():
        pass
    turnstile.give_way(timeout=0.0)


def test_jobs() -> None:
    def work(report: Report) -> int:
        for done in range(1000):
            report(done, 1000)
            time.sleep(0.002)
        return 7

    job = Job(work, Turnstile())
    seen = []
    for progress in job.watch(0.01):
        seen.append(progress.done)
        if len(seen) == 3:
            job.cancel()
    assert job.ended
    with pytest.raises(Cancelled):
        job.result()
    assert seen == sorted(seen)
    assert seen[-1] > 0
    assert Job(lambda _: 7, Turnstile()).result() == 7

    def failing(_: Report) -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        Job(failing, Turnstile()).result()


def test_a_second_job_of_a_tab_ends_the_first() -> None:
    def work(report: Report) -> None:
        while True:
            report(0, 0)
            time.sleep(0.001)

    session, turnstile = Session(), Turnstile()
    first, second = Job(work, turnstile), Job(work, turnstile)
    session.begin("ablation", first)
    session.begin("ablation", second)
    with pytest.raises(Cancelled):
        first.result()
    assert not second.ended
    session.close()
    with pytest.raises(Cancelled):
        second.result()


def test_cache_drops_the_least_recently_used() -> None:
    gone: list[int] = []
    cache = Cache(2, dropped=gone.append)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert gone == [2]
    assert cache.get("b") is None
    assert len(cache) == 2


def test_results_are_cached_by_content(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = asked(service), asked(service), asked(service, seed=1)
    assert first.question.key == again.question.key != other.question.key
    found = service.explain(first.question, "relevancy", 1)
    monkeypatch.setattr(lp.Case, "record", None)  # nothing is recorded twice
    assert service.explain(again.question, "relevancy", 1) is found
    assert service.explain(again.question, "attention", 1) is not found


def test_traces_are_bounded_and_their_files_go(service: Service) -> None:
    questions = [asked(service, seed).question for seed in range(4)]
    for question in questions:
        service.trace(question)
    assert len(list((service.folder / "traces").iterdir())) == 2
    expected = questions[0].need_case().explain("relevancy", 0)
    found = service.explain(questions[0], "relevancy", 0)  # recorded anew
    assert found.tokens.allclose(expected.tokens, atol=1e-6)


def test_other_kinds_run_live(service: Service) -> None:
    question = asked(service).question
    aim = lp.Target(1, "logprob")
    found = service.explain(question, "relevancy", aim)
    assert found.tokens.allclose(question.need_case().explain("relevancy", aim).tokens)


def test_saved_and_loaded(service: Service, tmp_path: Path) -> None:
    session = Session()
    session.add(asked(service))
    one = save_session(service, session)
    assert one.suffix == ".safetensors"
    session.add(asked(service, seed=1))
    several = save_session(service, session)
    assert several.suffix == ".zip"
    back = load_session(service, several)
    assert [a.question.answer for a in back] == ["a red circle", "a red circle"]
    assert all(a.question.case is not None for a in back), "bound to the model it was recorded with"
    for old, new in zip(session.asked, back, strict=True):
        assert old.question.images[0].tobytes() == new.question.images[0].tobytes()
        expected = service.explain(old.question, "relevancy", 1)
        assert service.explain(new.question, "relevancy", 1).tokens.allclose(expected.tokens)
    bare = Service(None, folder=tmp_path / "bare")
    (only,) = load_session(bare, one)
    assert only.question.case is None
    found = bare.explain(only.question, "relevancy", 1)
    expected = service.explain(session.asked[0].question, "relevancy", 1)
    assert found.tokens.allclose(expected.tokens)
    with pytest.raises(lp.LvlmProbeError, match="only a trace"):
        bare.explain(only.question, "relevancy", lp.Target(0, "logit"))


def test_archives_of_strangers(service: Service, tmp_path: Path) -> None:
    session = Session()
    session.add(asked(service))
    trace = save_session(service, session)
    out = tmp_path / "out.zip"
    with zipfile.ZipFile(out, "w") as file:
        file.write(trace, "../../outside.safetensors")
    (inside,) = load_session(service, out)
    assert inside.question.answer == "a red circle"
    assert not list(tmp_path.rglob("outside*"))
    wrong = tmp_path / "wrong.zip"
    with zipfile.ZipFile(wrong, "w") as file:
        file.writestr("notes.txt", "no trace")
    with pytest.raises(lp.LvlmProbeError, match="1 of them no traces"):
        load_session(service, wrong)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no archive")
    with pytest.raises(lp.LvlmProbeError, match="no archive"):
        load_session(service, broken)


def test_inputs() -> None:
    assert whole(3.0, "n", 0, 5) == 3
    assert fraction(1, "x", 0, 2) == 1.0
    assert choice("a", "c", ["a", "b"]) == "a"
    for wrong in (None, float("nan"), 6, 2.5):
        with pytest.raises(lp.LvlmProbeError, match="whole number from 0 to 5"):
            whole(wrong, "n", 0, 5)
    with pytest.raises(lp.LvlmProbeError, match="x is empty"):
        fraction(None, "x", 0, 2)
    with pytest.raises(lp.LvlmProbeError, match="choose a, b"):
        choice("z", "c", ["a", "b"])


def test_no_trace_there(tmp_path: Path) -> None:
    with pytest.raises(lp.LvlmProbeError, match="no trace at"):
        Service(None, folder=tmp_path, shelf=tmp_path / "nothing")


def test_eight_sessions_at_once_do_not_mix(service: Service) -> None:
    """Each thread is a session with pictures of its own, and a game runs behind them all."""
    probe = service.need_probe()
    wrong: list[str] = []

    def one(number: int) -> None:
        session = Session()
        for turn in range(3):
            seed = 100 * number + turn
            session.add(asked(service, seed))
            question = session.question
            assert question is not None
            found = service.explain(question, "relevancy", 1)
            if question.images[0].tobytes() != tiny.picture(seed).tobytes():
                wrong.append(f"session {number} has another's picture")
            with service.turnstile.front():
                alone = probe.case(tiny.picture(seed), "what is this", "a red circle")
                expected = alone.explain("relevancy", 1)
            if not found.tokens.allclose(expected.tokens, atol=1e-6):
                wrong.append(f"session {number} has another's map")

    behind = asked(service, seed=999).question.need_case()
    game = service.start(
        lambda report: behind.explain(
            "shapley", 0, players="patches", evaluations=400, progress=report
        )
    )
    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    expected = behind.explain("shapley", 0, players="patches", evaluations=400)
    assert game.result().tokens.equal(expected.tokens), "a game that gave way is the same game"


def test_drawings_of_a_tab_come_in_order() -> None:
    """The first is slow: the second, of a later question, must still be the last to be done."""
    session, done = Session(), list[int]()
    began = threading.Event()

    def draw(number: int, seconds: float) -> None:
        with session.turnstile("chat").front():
            began.set()
            time.sleep(seconds)
            done.append(number)

    slow = threading.Thread(target=draw, args=(1, 0.3))
    slow.start()
    began.wait()
    quick = threading.Thread(target=draw, args=(2, 0.0))
    quick.start()
    slow.join()
    quick.join()
    assert done == [1, 2]


def test_a_drawing_is_of_one_moment(service: Service) -> None:
    """Whoever asks on while a tab is drawn changes nothing of that drawing."""
    session, first = Session(), asked(service)
    session.add(first)
    drawn = session.snapshot()
    session.add(asked(service, 1))
    session.picked, session.kind = (2,), "prob"
    assert (drawn.at, drawn.question, drawn.target) == (0, first.question, lp.Target(0))
    drawn.shelf["chat"] = "kept"
    assert session.shelf["chat"] == "kept"
    session.close()
    assert drawn.question is first.question


def test_of_quick_picks_the_last_counts() -> None:
    session = Session()
    assert session.newest("map", 5)
    assert not session.newest("map", 4)
    assert session.newest("words", 4), "places are apart"
    assert session.newest("map", 5)
    assert session.newest("map", 6)
    assert not session.newest("map", 5)
