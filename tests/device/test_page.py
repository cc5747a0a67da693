"""The owner's page: it answers one browser on this computer, escapes what others chose, and its buttons work."""

import http.client
import re
import threading
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest

from covey.device.choices import Choices
from covey.device.consent import Owner
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger, LedgerEntry
from covey.device.page import OwnerPage

from . import world

EVIL = "<script>alert(1)</script>'\"&"


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    with DeviceHome(path) as h:
        h.examples.add_many("points", world.points(12), world.SCHEMA)
    facts = {"population": EVIL, "task": EVIL, "summary": EVIL, "session": "s1", "round": 7, "mode": "secure"}
    for kind in ("session_started", "sending", "gave_up"):
        entry = LedgerEntry(
            at_s=100.0, kind=kind, min_cohort=20, bytes_up=1500, bytes_down=2500, num_examples=12, reason=EVIL, **facts
        )
        Ledger.of_home(path).append(entry)
    return path


class Client:
    def __init__(self, page):
        self.host, self.token = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/([\w-]{40,})/", page.url).groups()

    def __call__(self, path="", *, token=None, form=None, method=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=10)
        body = None if form is None else urlencode(form)
        method = method or ("GET" if form is None else "POST")
        sent = {"Host": self.host, **headers}
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, f"/{self.token if token is None else token}/{path}", body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text

    def csrf(self):
        return re.search(r"name='csrf' value='([\w-]+)'", self()[1]).group(1)

    def press(self, act, **fields):
        return self(act, form={"csrf": self.csrf(), **fields})[0]


@pytest.fixture
def client(home):
    with OwnerPage(Owner(home, clock=lambda: 1000.0)) as page:
        thread = threading.Thread(target=page.serve)
        thread.start()
        yield Client(page)
        page.stop()
        thread.join()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_what_left_and_escapes_what_others_chose(client):
    answer, text = client()
    assert answer.status == 200
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "script" not in tags.seen
    assert EVIL in tags.text and f"{EVIL}/{EVIL}" in tags.text and f"given up: {EVIL}" in tags.text
    for words in ("1.5 kB", "2.5 kB", "masked: only a sum over at least 20 devices", "Training is allowed", "points"):
        assert words in tags.text, words
    assert f"value='{EVIL}'" not in text


def test_nothing_is_cached_framed_scripted_or_shared(client):
    headers = client()[0].headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert not [h for h in headers if h.lower().startswith("access-control")]
    assert client(Origin="https://evil.example")[0].status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_foreign_host_is_refused_even_with_the_token(client, host):
    answer, text = client(Host=host)
    assert answer.status == 403 and "points" not in text


def test_localhost_is_this_host(client):
    assert client(Host=client.host.replace("127.0.0.1", "localhost"))[0].status == 200


@pytest.mark.parametrize("token", ["", "x", "x" * 43, "..", "%00", "%C3%A9%FF"])
def test_without_the_token_there_is_no_page(client, token):
    answer, text = client(token=token)
    assert answer.status == 404 and "points" not in text
    assert client("pause", token=token, form={"csrf": client.csrf()})[0].status == 404
    assert client("elsewhere")[0].status == 404


def test_buttons_work(client, home):
    choices = Choices.of_home(home)
    answer = client.press("pause", for_s="7200")
    assert answer.status == 303 and answer.headers["Location"].endswith("?done=pause")
    assert choices.read().paused_until_s == 8200.0
    assert "Paused." in client("?done=pause")[1] and "Paused until" in client()[1]
    assert client.press("pause").status == 303 and choices.read().paused_until_s == float("inf")
    client.press("resume")
    client.press("refuse", population=EVIL)
    assert choices.read().refused == {EVIL} and choices.allows("other", 0.0)
    client.press("accept", population=EVIL)
    assert choices.read().refused == frozenset()
    assert client.press("forget", what="examples", sure="yes").status == 303
    assert "There are none." in client()[1]
    assert client.press("forget", what="population", population="p", sure="yes").status == 303
    assert choices.read().refused == {"p"}
    assert client.press("forget", what="everything", sure="yes").status == 303
    kinds = [e.kind for e in Ledger.of_home(home).entries()]
    assert kinds[3:] == ["paused", "paused", "resumed", "refused", "accepted", "forgot", "refused", "forgot", "paused",
                         "forgot", "forgot"]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({}, {}),
        ({"csrf": ""}, {}),
        ({"csrf": "x" * 43}, {}),
        ({"csrf": "\u00e9"}, {}),
        (None, {"Origin": "https://evil.example"}),
        (None, {"Origin": "null"}),
        (None, {"Origin": "http://127.0.0.1:1"}),
    ],
)
def test_a_foreign_page_cannot_press_a_button(client, home, form, headers):
    answer, _ = client("pause", form={"csrf": client.csrf()} if form is None else form, **headers)
    assert answer.status == 403
    assert Choices.of_home(home).allows("p", 1000.0)


def test_forms_that_are_too_large_or_none_are_refused(client):
    assert client("pause", form={"csrf": client.csrf(), "x": "y" * 5000})[0].status == 403
    assert client("pause", method="POST")[0].status == 403
    assert client("pause", form={"csrf": client.csrf(), **{f"f{i}": "" for i in range(20)}})[0].status == 403


def test_a_button_that_there_is_not_and_one_without_its_tick(client, home):
    assert client.press("explode").status == 404
    assert client.press("forget", what="everything").status == 404
    assert client.press("forget", what="nothing", sure="yes").status == 404
    assert Owner(home).overview().collections


def test_what_does_not_work_is_said(client):
    answer, text = client("refuse", form={"csrf": client.csrf(), "population": ""})
    assert answer.status == 500 and "a name of 1 to 200 characters" in text


def test_other_methods_are_not_served(client):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert client(method=method)[0].status == 501


def test_a_broken_ledger_is_shown_as_broken(client, home):
    (home / "ledger.jsonl").write_bytes(b"broken\n")
    text = client()[1]
    assert "The chain of the ledger is broken." in text and "ledger.jsonl: line 1" in text
