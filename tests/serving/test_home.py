"""GET /: where a stranger learns what is here."""

from __future__ import annotations

import re
from typing import Any


def test_a_program_gets_the_paths(server: Any) -> None:
    answer = server.client.get("/")
    found = answer.json()
    assert answer.headers["vary"] == "accept" and found.pop("console") is None
    assert (found.pop("object"), found.pop("name")) == ("endpoint", "sparsehub")
    for path in found.values():
        assert server.client.get(path).status_code == 200, path


def test_a_browser_gets_a_page_with_links_that_work(server: Any) -> None:
    page = server.client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and page.headers["vary"] == "accept"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    links = re.findall(r'href="([^"]+)"', page.text)
    assert "/docs" in links and "/console/" not in links and "sparsehub serve --console" in page.text
    for path in links:
        assert server.client.get(path).status_code == 200, path


def test_it_says_nothing_of_what_is_served(server: Any) -> None:
    for accept in ("text/html", "application/json"):
        text = server.client.get("/", headers={"accept": accept, "host": "evil.example"}).text
        assert "three" not in text and "tiny/bert" not in text and "evil" not in text
