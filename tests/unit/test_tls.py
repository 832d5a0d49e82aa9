"""TLS: which files are refused and why; the self-signed certificate is private, kept, renewed, and usable."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from app.server import tls
from app.server.tls import TlsFiles, add_tls_options, check_files, self_signed, tls_files
from pipelines.core.errors import InputError

NOW = datetime.now(UTC)


@pytest.fixture
def pair(tmp_path: Path) -> TlsFiles:
    return self_signed(tmp_path / "pair", "127.0.0.1")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_tls_options(parser)
    return parser.parse_args(arguments)


def handshake(files: TlsFiles, name: str) -> str:
    """Trust the certificate and connect by `name`. Returns the SHA-256 that the client saw."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.cert, files.key)
    client = ssl.create_default_context(cafile=str(files.cert))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                try:
                    with server.wrap_socket(accepted, server_side=True) as secure:
                        secure.sendall(b"hello")
                except (ssl.SSLError, ConnectionError):
                    pass  # the client did not like the name

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                assert secure.recv(5) == b"hello"
                seen = secure.getpeercert(binary_form=True)
                assert seen is not None
                return hashlib.sha256(seen).hexdigest().upper()
        finally:
            thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_real_handshake(pair: TlsFiles, name: str) -> None:
    assert handshake(pair, name) == pair.fingerprint.replace(":", "")


def test_another_name_is_not_covered(pair: TlsFiles) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pair, "evil.example")


def test_the_given_host_and_own_addresses_are_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "own_addresses", lambda: ["192.0.2.9", "2001:db8::9"])
    files = self_signed(tmp_path, "studio.example")
    for name in ("studio.example", "192.0.2.9", "2001:db8::9"):
        handshake(files, name)


def test_the_key_is_private_and_the_pair_is_kept(tmp_path: Path) -> None:
    first = self_signed(tmp_path / "tls", "127.0.0.1")
    assert stat.S_IMODE(first.key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["cert.pem", "key.pem"]
    again = self_signed(tmp_path / "tls", "0.0.0.0")
    assert (first.made, again.made) == (True, False)
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize("why", ["near its end", "other host", "readable key", "broken", "other key"])
def test_a_pair_that_will_not_do_is_made_anew(tmp_path: Path, why: str) -> None:
    first = self_signed(tmp_path / "tls", "127.0.0.1")
    host, now = "127.0.0.1", NOW
    match why:
        case "near its end":
            now = NOW + timedelta(days=370)
        case "other host":
            host = "studio.example"
        case "readable key":
            first.key.chmod(0o644)
        case "broken":
            first.cert.write_text("nothing", encoding="utf-8")
        case "other key":
            shutil.copy(self_signed(tmp_path / "other", host).key, first.key)
    second = self_signed(tmp_path / "tls", host, now)
    assert second.made
    assert second.fingerprint != first.fingerprint
    assert stat.S_IMODE(second.key.stat().st_mode) == 0o600
    check_files(second.cert, second.key, now)


def test_given_files(pair: TlsFiles, tmp_path: Path) -> None:
    found = tls_files(parsed("--ssl-cert", str(pair.cert), "--ssl-key", str(pair.key)), tmp_path, "0.0.0.0")
    assert found == TlsFiles(cert=pair.cert, key=pair.key, fingerprint=pair.fingerprint)
    assert tls_files(parsed(), tmp_path, "127.0.0.1") is None
    made = tls_files(parsed("--ssl-self-signed"), tmp_path, "127.0.0.1")
    assert made is not None
    assert (made.self_signed, made.cert.parent) == (True, tmp_path / "tls")


def test_options_that_make_no_pair(pair: TlsFiles, tmp_path: Path) -> None:
    cert, key = f"--ssl-cert={pair.cert}", f"--ssl-key={pair.key}"
    for arguments, message in (
        ((cert,), "--ssl-key is missing"),
        ((key,), "--ssl-cert is missing"),
        ((cert, key, "--ssl-self-signed"), "were both given"),
        ((f"--ssl-cert={tmp_path / 'no'}", key), r"--ssl-cert .*no cannot be read \(No such file"),
        ((cert, f"--ssl-key={tmp_path / 'no'}"), r"--ssl-key .*no cannot be read \(No such file"),
        ((f"--ssl-cert={pair.key}", key), "has no PEM certificate"),
        ((cert, f"--ssl-key={pair.cert}"), "has no PEM private key"),
    ):
        with pytest.raises(InputError, match=message):
            tls_files(parsed(*arguments), tmp_path, "127.0.0.1")


def test_mismatched_late_and_early_pairs(pair: TlsFiles, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other", "127.0.0.1")
    with pytest.raises(InputError, match="is not the key of"):
        check_files(pair.cert, other.key)
    with pytest.raises(InputError, match=r"expired on \d{4}-\d\d-\d\d"):
        check_files(pair.cert, pair.key, NOW + timedelta(days=400))
    with pytest.raises(InputError, match=r"is not valid before \d{4}-\d\d-\d\d"):
        check_files(pair.cert, pair.key, NOW - timedelta(days=3))


def test_a_key_with_a_password_says_how_to_take_it_off(pair: TlsFiles, tmp_path: Path) -> None:
    key = load_pem_private_key(pair.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(InputError, match=r"is encrypted\. Remove the password: openssl pkey"):
        check_files(pair.cert, locked)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="--data"):
        self_signed(tmp_path / "file" / "tls", "127.0.0.1")
