from __future__ import annotations

import pytest
from yarl import URL

from cache.registry.origin import check_target, is_loopback, registry_url
from spec.errors import InvalidReference, RegistryGarbage

PUBLIC = URL("https://registry.example")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("registry.example", "https://registry.example"),
        ("registry.example:5000", "https://registry.example:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("plain.example", "http://plain.example"),
        ("localhost:6000", "https://localhost:6000"),
    ],
)
def test_http_is_for_loopback_and_for_whom_the_user_names(host: str, url: str) -> None:
    assert registry_url(host, {"plain.example": "http", "localhost:6000": "https"}) == URL(url)


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidReference):
        registry_url("host:99999", {})


@pytest.mark.parametrize("host", ["localhost", "a.localhost.", "127.0.0.1", "127.9.9.9", "::1", "2130706433", "127.1"])
def test_loopback_in_all_its_spellings(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "target",
    [
        "http://auth.example/token",
        "ftp://auth.example/token",
        "/token",
        "https://user:secret@auth.example/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://169.254.169.254/latest",
        "https://10.1.2.3/",
        "https://192.168.1.1:8443/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1]/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0.0.0.0/",
    ],
)
def test_a_registry_cannot_send_us_everywhere(target: str) -> None:
    with pytest.raises(RegistryGarbage) as caught:
        check_target(URL(target), PUBLIC, "its token service")
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("https://auth.example/token", "https://registry.example"),
        ("https://8.8.8.8/", "https://registry.example"),
        ("https://auth.example/token", "http://localhost:5000"),
        ("http://10.0.0.1:5001/token", "http://10.0.0.1:5000"),
        ("http://localhost:1/token", "http://localhost:2"),
    ],
)
def test_other_hosts_and_its_own_are_fine(target: str, source: str) -> None:
    check_target(URL(target), URL(source), "its token service")
