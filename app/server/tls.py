"""TLS for the front: certificate files, or a self-signed certificate that is reused until it is about to expire.

A phone's camera needs https. Returns two paths and a fingerprint; independent of the server.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from app.disk.private import private_folder
from pipelines.core.errors import InputError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_VALIDITY = timedelta(days=397)  # browsers reject longer ones
_RENEW = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Files for uvicorn. fingerprint: SHA-256 of the certificate, as browsers show it. made: newly created."""

    cert: Path
    key: Path
    fingerprint: str
    self_signed: bool = False
    made: bool = False


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add --ssl-cert, --ssl-key and --ssl-self-signed."""
    group = parser.add_argument_group("https", "Browsers allow the camera only over https or on localhost.")
    group.add_argument("--ssl-cert", type=Path, metavar="FILE", help="certificate chain as PEM")
    group.add_argument("--ssl-key", type=Path, metavar="FILE", help="its private key as PEM, unencrypted")
    group.add_argument(
        "--ssl-self-signed", action="store_true", help="create a self-signed certificate; browsers warn about it"
    )


def tls_files(options: argparse.Namespace, data: Path, host: str) -> TlsFiles | None:
    """The TLS files for the options; None for plain http. data: folder for a self-signed one. Raises InputError."""
    cert, key = options.ssl_cert, options.ssl_key
    if (cert is None) != (key is None):
        missing = "--ssl-key" if key is None else "--ssl-cert"
        raise InputError(f"{missing} is missing.", "Give both the certificate and its private key.")
    if cert is not None and options.ssl_self_signed:
        raise InputError("--ssl-self-signed and --ssl-cert were both given.", "Choose one.")
    if cert is not None:
        return check_files(cert, key)
    return self_signed(data / "tls", host) if options.ssl_self_signed else None


def check_files(cert: Path, key: Path, now: datetime | None = None) -> TlsFiles:
    """The files, if they are a currently valid certificate and its key. Raises InputError saying what is wrong."""
    certificate = _read_cert(cert)
    now = now or datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise InputError(f"--ssl-cert {cert} expired on {certificate.not_valid_after_utc:%Y-%m-%d}.", "Renew it.")
    if now < certificate.not_valid_before_utc:
        since = f"{certificate.not_valid_before_utc:%Y-%m-%d}"
        raise InputError(f"--ssl-cert {cert} is not valid before {since}.", "Check this machine's clock.")
    if _public(_read_key(key)) != _public(certificate):
        raise InputError(f"--ssl-key {key} is not the key of --ssl-cert {cert}.", "Give a matching pair.")
    return TlsFiles(cert=cert, key=key, fingerprint=fingerprint(certificate))


def self_signed(folder: Path, host: str, now: datetime | None = None) -> TlsFiles:
    """A certificate for localhost, this machine's names and addresses, and `host`; reused as long as possible.

    folder: created with mode 0700, the key file with 0600. A new certificate is created within 30 days of expiry, if
    the old one lacks an IPv4 address or host, or if the files do not match. Raises InputError if not writable.
    """
    now = now or datetime.now(UTC)
    cert, key = folder / "cert.pem", folder / "key.pem"
    kept = _kept(cert, key, host, now)
    try:
        if kept is None:
            private_folder(folder)
            _make(cert, key, host, now)
    except OSError as error:
        raise InputError(
            f"The certificate cannot be stored in {folder} ({error.strerror}).", "Choose another folder with --data."
        ) from error
    sha256 = kept or fingerprint(_read_cert(cert))
    return TlsFiles(cert=cert, key=key, fingerprint=sha256, self_signed=True, made=kept is None)


def fingerprint(cert: x509.Certificate) -> str:
    """SHA-256 of the certificate: 'AB:CD:...', 32 pairs."""
    from cryptography.hazmat.primitives import hashes

    return cert.fingerprint(hashes.SHA256()).hex(":").upper()


def own_addresses() -> list[str]:
    """This machine's addresses that others can reach: IPv4 first, then IPv6."""
    import psutil

    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(entry.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local or address.is_unspecified):
                    found.append(address)
    return [str(address) for address in sorted(set(found), key=lambda address: (address.version, address.packed))]


def _kept(cert: Path, key: Path, host: str, now: datetime) -> str | None:
    """The fingerprint of the stored pair, if it can be reused."""
    if not (cert.is_file() and key.is_file()):
        return None
    if os.name != "nt" and key.stat().st_mode & 0o077:
        return None  # others could have read it
    try:
        files = check_files(cert, key, now)
    except InputError:
        return None  # an invalid pair of our own is replaced
    certificate = _read_cert(cert)
    required = {name for name in _names(host) if ":" not in name}  # IPv6 privacy addresses change daily
    return (
        files.fingerprint
        if certificate.not_valid_after_utc - now > _RENEW and required <= set(_covered(certificate))
        else None
    )


def _names(host: str) -> list[str]:
    name = socket.gethostname()
    names = ["localhost", "127.0.0.1", "::1", name, *([] if "." in name else [f"{name}.local"]), *own_addresses()]
    return list(dict.fromkeys([*names, *([] if host in ("", "0.0.0.0", "::") else [host])]))


def _covered(cert: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _make(cert: Path, key: Path, host: str, now: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Zoetrope on this machine")])
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=subject, public_key=public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now - timedelta(days=1) + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in _names(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=True, encipher_only=False, decipher_only=False, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    _write(key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), 0o600)
    _write(cert, builder.sign(private, hashes.SHA256()).public_bytes(pem), 0o600)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write atomically, with `mode` from the start."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    part.replace(path)


def _read_cert(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read(path, "--ssl-cert"))
    except ValueError as error:
        raise InputError(
            f"--ssl-cert {path} has no PEM certificate.", "A PEM file has a line BEGIN CERTIFICATE."
        ) from error


def _read_key(path: Path) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(_read(path, "--ssl-key"), None)
    except TypeError as error:
        raise InputError(
            f"--ssl-key {path} is encrypted.", f"Remove the password: openssl pkey -in {path.name} -out key.pem"
        ) from error
    except ValueError as error:
        raise InputError(
            f"--ssl-key {path} has no PEM private key.", "A PEM file has a line BEGIN PRIVATE KEY."
        ) from error


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read ({error.strerror}).", "Check the path.") from error


def _public(holder: x509.Certificate | PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
