"""The pages as a person uses them. The Realtime door is a fake that speaks the GA order; the microphone is a file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("selenium", reason="the browser's tests need selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from aula.servers.callers import Caller
from tests.servers.pages.browser import (
    Classroom,
    Page,
    chromium,
    classroom,
    wanted_axe,
    wanted_programs,
    write_voice,
)
from tests.servers.pages.fake_realtime import ANSWER, HEARD, RATE
from tests.servers.pages.people import turn
from tests.servers.pages.test_words import words

PITCH = 220.0
EN, ZH = words("en"), words("zh")
KEYS = {
    "sk-pupil": Caller("class-5b", abilities=frozenset({"ask"}), key="pupil"),
    "sk-teacher": Caller("class-5b", abilities=frozenset({"ask", "teach"}), key="teacher"),
    "sk-school": Caller("school", abilities=frozenset({"*"}), key="school"),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classroom]:
    wanted_programs()
    with classroom(tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder / "profile", microphone=write_voice(folder / "voice.wav", pitch=PITCH)) as page:
        yield page


@pytest.fixture
def page(browser: Page, room: Classroom) -> Iterator[Page]:
    """A fresh tab's worth of memory; at the end nothing may have been complained of."""
    browser.driver.get(f"{room.url}/pages/files/icon.svg")
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.complaints()
    room.do(room.house.turns.turns.clear)
    room.realtime.events.clear()
    yield browser
    assert browser.complaints() == []


def _student(page: Page, room: Classroom) -> None:
    page.open(f"{room.url}/")
    page.until("document.body.dataset.line === 'open'")


def _ask(page: Page, text: str, answers: int = 1) -> None:
    page.find("#question").send_keys(text + "\n")
    page.until(f"document.querySelectorAll('.turn .meta').length >= {answers}")


def test_hold_speak_release_hear(page: Page, room: Classroom) -> None:
    _student(page, room)
    with page.holding("#hold"):
        page.until("document.querySelector('#hold').dataset.state === 'listening'")
        page.until("document.querySelector('.asked.partial')?.textContent.includes('what is')")
        page.until("new Date() - (window.since ??= new Date()) > 1500")
    page.until("document.querySelector('#hold').dataset.state === 'speaking'")
    pitch, loud = page.until("window.loudest()[1] > -60 && window.loudest()")
    assert pitch == pytest.approx(440, abs=8), "what the server sent is what sounds"
    assert loud > -60
    page.until("document.querySelector('.turn .meta') !== null")
    assert HEARD in page.text(".turn .asked")
    assert page.text(".turn .answer") == ANSWER
    assert "ms" in page.text(".latency")
    page.until("document.querySelector('#hold').dataset.state === 'idle'")
    kinds = room.realtime.types()
    assert kinds[-2:] == ["input_audio_buffer.commit", "response.create"]
    session = next(event["session"] for event in room.realtime.events if event["type"] == "session.update")
    assert session["audio"]["input"]["turn_detection"] is None
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}


def test_what_the_server_hears_is_what_was_said(page: Page, room: Classroom) -> None:
    """Through the browser's own processing, our resampling and base64: the pitch of the file and its overtones."""
    _student(page, room)
    with page.holding("#hold"):
        page.until("document.querySelector('#hold').dataset.state === 'listening'")
        page.until("new Date() - (window.since ??= new Date()) > 2500")
    page.until("document.querySelector('.turn .meta') !== null")
    samples = np.frombuffer(bytes(room.realtime.sound), "<i2").astype(float)
    assert len(samples) > 2 * RATE
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
    loudest = frequency[np.argmax(spectrum)] / PITCH
    assert abs(loudest - round(loudest)) < 0.05
    assert 1 <= round(loudest) <= 8


def test_the_space_bar_does_what_the_button_does(page: Page, room: Classroom) -> None:
    _student(page, room)
    page.run("document.activeElement.blur()")
    ActionChains(page.driver).key_down(Keys.SPACE).perform()
    page.until("document.querySelector('#hold').dataset.state === 'listening'")
    page.until("document.querySelector('.asked.partial')?.textContent.includes('what is')")
    ActionChains(page.driver).key_up(Keys.SPACE).perform()
    page.until("document.querySelector('.turn .answer')?.textContent.length > 20")


def test_a_tap_begins_and_another_ends_for_those_who_cannot_hold(page: Page, room: Classroom) -> None:
    """A screen reader's click has no pointer."""
    _student(page, room)
    page.click_without_pointer("#hold")
    page.until("document.querySelector('#hold').dataset.state === 'listening'")
    page.until(f"document.querySelector('#hint').textContent === {EN['student.hint_tap']!r}")
    page.until("document.querySelector('.asked.partial')?.textContent.includes('what is')")
    page.click_without_pointer("#hold")
    page.until("document.querySelector('.turn .meta') !== null")


def test_a_question_can_be_typed_and_its_citation_opened(page: Page, room: Classroom) -> None:
    _student(page, room)
    _ask(page, "What is inertia?")
    assert room.realtime.types()[-2:] == ["conversation.item.create", "response.create"]
    page.run("document.querySelector('.cite').focus(); document.querySelector('.cite').click()")
    page.until("document.querySelector('#passage mark') !== null")
    assert page.text("#passage mark").startswith("Inertia is the tendency")
    assert page.text("#passage-title") == "Inertia"
    page.run("document.querySelector('#passage-close').click()")
    page.until("document.activeElement.classList.contains('cite')")
    page.run("document.querySelector('.latency').click()")
    assert EN["stage.transcribe"] in page.text(".stages")


def test_asking_again_interrupts_what_sounds(page: Page, room: Classroom) -> None:
    _student(page, room)
    page.find("#question").send_keys("What is inertia?\n")
    page.until("document.querySelector('#hold').dataset.state === 'speaking'")
    with page.holding("#hold"):
        page.until("document.querySelector('#hold').dataset.state === 'listening'")
        page.until("window.loudest()[1] < -100")
        page.until("document.querySelector('.asked.partial')?.textContent.includes('what is')")
    page.until("document.querySelectorAll('.turn .meta').length === 2")
    truncated = next(event for event in room.realtime.events if event["type"] == "conversation.item.truncate")
    assert truncated["item_id"] == "item_resp_1"
    assert 0 < truncated["audio_end_ms"] <= 1200
    assert EN["student.stopped"] in page.text(".turn .meta")


def test_what_goes_wrong_is_said_in_the_page(page: Page, room: Classroom) -> None:
    _student(page, room)
    page.find("#question").send_keys("fail please\n")
    page.until(f"document.querySelector('.turn .notice')?.textContent === {EN['fail.busy']!r}")
    page.find("#question").send_keys("drop please\n")
    page.until(f"[...document.querySelectorAll('.turn .notice')].at(-1)?.textContent === {EN['fail.unknown']!r}")
    page.until("document.body.dataset.line === 'open'")
    _ask(page, "and now?")
    with page.holding("#hold"):
        page.until("document.querySelector('#hold').dataset.state === 'listening'")
    page.until("document.querySelector('#hold').dataset.state !== 'thinking'")


def test_answers_can_be_read_alone(page: Page, room: Classroom) -> None:
    _student(page, room)
    page.find("#aloud").click()
    page.until("document.querySelector('#aloud').getAttribute('aria-pressed') === 'false'")
    _ask(page, "What is inertia?")
    assert page.text(".turn .answer") == ANSWER
    assert page.run("return document.querySelector('.replay')") is None
    page.until("document.querySelector('#hold').dataset.state === 'idle'")


def test_the_switch_of_language_changes_every_word_and_is_remembered(page: Page, room: Classroom) -> None:
    _student(page, room)
    _ask(page, "What is inertia?")
    page.find("#language").click()
    page.until("document.documentElement.lang === 'zh-CN'")
    assert page.text("#hint") in (ZH["student.hint"], ZH["student.hint_speaking"])
    assert page.find("#question").get_attribute("placeholder") == ZH["student.type"]
    assert ZH["student.replay"] in page.text(".turn .meta")
    page.open(f"{room.url}/teacher")
    assert page.text("#questions-title") == ZH["teacher.questions"]
    page.find("#language").click()


def test_captions_of_what_the_microphone_hears(page: Page, room: Classroom) -> None:
    page.open(f"{room.url}/teacher")
    page.find("#begin").click()
    page.until("document.querySelector('#captions-state').hasAttribute('data-on')")
    page.until("document.querySelector('#words').textContent.includes('force')")
    page.find("#project").click()
    page.until("document.body.classList.contains('projecting')")
    assert page.run("return getComputedStyle(document.querySelector('#questions')).display") == "none"
    page.find("#project").click()
    page.find("#begin").click()
    page.until("document.querySelectorAll('#lines p').length >= 1")
    page.until(f"document.querySelector('#begin-name').textContent === {EN['teacher.go_on']!r}")
    assert room.models.opened == room.models.closed


def test_questions_appear_while_the_teacher_looks(page: Page, room: Classroom) -> None:
    page.open(f"{room.url}/teacher")
    page.until("document.querySelector('.nothing') !== null")
    page.run("const s = document.querySelector('#since'); s.value = ''; s.dispatchEvent(new Event('change'))")
    page.until("document.querySelector('#asked').getAttribute('aria-busy') === 'false'")
    for question in ("When is the exam?", "the exam, when?", "who was on the moon"):
        room.do(partial(room.house.turns.add, turn(question, refused=True)))
    page.until("document.querySelectorAll('.topic').length === 2")
    assert page.text(".topic h4") == "When is the exam?"
    assert page.text(".topic .count [aria-hidden]") == "2"
    assert EN["teacher.unanswered"] in page.text("#asked")


def test_an_operator_sees_turns_and_sets_a_ladder(page: Page, room: Classroom) -> None:
    room.do(lambda: room.house.turns.add(turn("not to be seen")))
    page.open(f"{room.url}/operator")
    page.until("document.querySelectorAll('.falls tbody tr').length === 1")
    room.do(lambda: room.house.turns.add(turn("nor this", drafted=True)))
    page.until("document.querySelectorAll('.falls tbody tr').length === 2")
    assert "not to be seen" not in page.run("return document.body.innerText")
    page.run("document.querySelector('[data-act=\"embed spare only\"]').click()")
    page.until("document.querySelector('#confirm').open")
    page.find("#confirm-no").click()
    assert room.do(room.house.runtime.ladders)[3].overridden is None
    page.run("document.querySelector('[data-act=\"embed spare only\"]').click()")
    page.until("document.querySelector('#confirm').open")
    page.find("#confirm-yes").click()
    page.until("document.querySelector('[data-act=\"embed free\"]') !== null")
    page.run("document.querySelector('[data-act=\"embed free\"]').click()")
    page.until("document.querySelector('[data-act=\"embed free\"]') === null")
    assert all(ladder.overridden is None for ladder in room.do(room.house.runtime.ladders))


def test_a_server_with_keys_asks_for_one(tmp_path: Path) -> None:
    wanted_programs()
    with classroom(tmp_path / "home", KEYS) as room, chromium(tmp_path / "profile") as page:
        page.open(f"{room.url}/")
        page.until("document.querySelector('#gate') !== null")
        page.find("#key").send_keys("sk-wrong\n")
        page.until("document.querySelector('#gate-error') !== null")
        assert page.find("#key").get_attribute("aria-invalid") == "true"
        page.find("#key").send_keys("sk-pupil\n")
        page.until("document.body.dataset.line === 'open'")
        assert room.realtime.protocols == ["realtime", "openai-insecure-api-key.sk-pupil"]
        assert page.run("return [sessionStorage.getItem('aula.key'), localStorage.getItem('aula.key')]") == [
            "sk-pupil",
            None,
        ]
        assert page.find("#pages").get_attribute("hidden") is not None, "no page but this is for a pupil"
        page.find("#leave").click()
        page.until("document.querySelector('#gate') !== null")
        page.driver.get(f"{room.url}/operator")
        page.until("document.querySelector('#gate') !== null")
        page.find("#key").send_keys("sk-school\n")
        page.until("document.querySelector('#ladders .rung') !== null")
        refused = [one for one in page.complaints() if "401" not in one]
        assert refused == []


def test_a_class_comes_in_with_its_teachers_code(tmp_path: Path) -> None:
    """The key comes behind "#" and leaves the address at once; the code opens the student's page and no other."""
    wanted_programs()
    with classroom(tmp_path / "home", KEYS) as room, chromium(tmp_path / "profile") as page:
        page.open(f"{room.url}/teacher#key=sk-teacher")
        page.until("!document.querySelector('#invite').hidden")
        assert page.driver.current_url == f"{room.url}/teacher"
        page.find("#invite").click()
        page.until("document.querySelector('#invitation').open")
        page.find("#invite-acts .main").click()
        code = str(page.until("document.querySelector('.invite .code')?.textContent"))
        assert page.run("return document.activeElement.textContent") == EN["close"], "Enter ends nothing by mistake"
        page.run("sessionStorage.clear()")
        page.open(f"{room.url}/")
        page.find("#key").send_keys(code.lower() + "\n")
        page.until("document.body.dataset.line === 'open'")
        _ask(page, "What is inertia?")
        page.run("document.querySelector('.cite').click()")
        page.until("document.querySelector('#passage mark') !== null")
        page.driver.get(f"{room.url}/teacher")
        page.until("document.querySelector('#gate-error') !== null")
        assert page.text("#gate-error") == EN["error.NotAllowedError"]
        room.do(lambda: room.house.doorman.end(KEYS["sk-teacher"]))  # type: ignore[attr-defined]
        page.open(f"{room.url}/#code={code}")
        page.until("document.querySelector('#gate-error') !== null")
        assert page.text("#gate-error") == EN["error.KeyRefusedError"]
        assert [one for one in page.complaints() if "401" not in one and "403" not in one] == []


def test_a_server_that_is_not_ready_says_so_until_it_is(page: Page, room: Classroom) -> None:
    room.house.traffic.is_warm = False
    room.realtime.is_silent = True
    try:
        page.open(f"{room.url}/")
        page.until("document.querySelector('#lost') !== null")
        assert EN["line.warming"] in page.text("#lost")
    finally:
        room.house.traffic.is_warm = True
        room.realtime.is_silent = False
    page.open(f"{room.url}/")
    page.until("document.body.dataset.line === 'open'")
    assert page.run("return document.querySelector('#lost')") is None


def test_everything_is_reached_by_the_keyboard_in_the_order_of_the_page(page: Page, room: Classroom) -> None:
    _student(page, room)
    _ask(page, "What is inertia?")
    page.until("document.querySelector('#hold').dataset.state === 'idle'")
    page.run("document.querySelector('.skip').focus()")
    seen: list[str] = []
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        name = "const one = document.activeElement; return one.id || one.className || one.getAttribute('href')"
        seen.append(str(page.run(name)))
        if seen[-1] == "question":
            break
    wanted = ["language", "theme", "cite", "latency", "replay", "clear", "hold", "aloud", "question"]
    assert [one for one in seen if one in wanted] == wanted
    page.run("document.querySelector('.cite').focus()")
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.until("document.querySelector('#passage').open && document.querySelector('#passage mark') !== null")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until("document.activeElement.classList.contains('cite')")


def test_nothing_is_asked_of_any_other_server(page: Page, room: Classroom) -> None:
    page.asked_for()
    _student(page, room)
    _ask(page, "What is inertia?")
    page.run("document.querySelector('.cite').click()")
    page.until("document.querySelector('#passage mark') !== null")
    page.open(f"{room.url}/teacher")
    page.until("document.querySelector('#asked').getAttribute('aria-busy') === 'false'")
    page.open(f"{room.url}/operator")
    page.until("document.querySelector('.rung') !== null")
    assert page.asked_for() == {room.url.removeprefix("http://")}


@pytest.mark.parametrize("look", ["en light", "en dark", "zh light"])
def test_axe_finds_nothing_that_keeps_anybody_out(page: Page, room: Classroom, look: str) -> None:
    axe = wanted_axe()
    language, theme = look.split()
    page.run("localStorage['aula.language'] = arguments[0]; localStorage['aula.theme'] = arguments[1]", language, theme)
    room.do(partial(room.house.turns.add, turn("When is the exam?", refused=True)))
    room.do(partial(room.house.turns.add, turn("What is it?", drafted=True)))

    def judge(where: str) -> None:
        page.rest(0.4)  # what fades in has its colours then
        page.run(axe)
        found = page.driver.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
        bad = [
            (where, one["id"], node["target"], node.get("failureSummary", ""))
            for one in found["violations"]
            if one["impact"] in ("moderate", "serious", "critical")
            for node in one["nodes"]
        ]
        assert bad == []

    _student(page, room)
    judge("welcome")
    _ask(page, "What is inertia?")
    page.run("document.querySelector('.latency').click()")
    judge("answer")
    page.run("document.querySelector('.cite').click()")
    page.until("document.querySelector('#passage mark') !== null")
    judge("passage")
    page.open(f"{room.url}/teacher")
    page.run("const s = document.querySelector('#since'); s.value = ''; s.dispatchEvent(new Event('change'))")
    page.until("document.querySelectorAll('.topic').length > 0")
    judge("teacher")
    page.open(f"{room.url}/operator")
    page.until("document.querySelector('.rung') !== null")
    judge("operator")


def test_without_a_microphone_a_question_is_typed(tmp_path: Path, room: Classroom) -> None:
    with chromium(tmp_path / "profile", language="zh-CN", dark=True, size=(390, 844)) as page:
        _student(page, room)
        page.click_without_pointer("#hold")
        page.until("document.querySelector('#notices .notice') !== null")
        told = page.text("#notices")
        assert any(ZH[f"microphone.{why}"] in told for why in ("absent", "denied", "busy"))
        assert page.run("return document.activeElement.id") == "question"
        _ask(page, "What is inertia?")
        for path in ("/", "/teacher", "/operator"):
            page.open(f"{room.url}{path}")
            width = page.run("return document.documentElement.scrollWidth")
            assert width <= 390, f"nothing of {path} stands beside a phone's screen"
