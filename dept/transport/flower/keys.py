"""Certificates and keys of a federation: `python -m dept.transport.flower.keys --help`.

`server` makes a certificate authority and the certificate of the SuperLink (TLS), `silo` a key pair
by which the SuperLink knows a SuperNode (ECDSA P-384). Private keys are readable by this user
alone, and never leave the machine that made them.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dept.log import log

CA, CERTIFICATE, KEY = "ca.crt", "server.crt", "server.key"


def make_server(hosts: Sequence[str], folder: Path, days: int = 365) -> None:
    """Make ``ca.crt``, which silos get, and ``server.crt`` with ``server.key``.

    The key of the authority is not kept, so nobody can make another certificate with it; for other
    hosts, make all of them again.

    Args:
        hosts: names and addresses at which silos reach the server. Those at which it reaches
            itself are added.
        folder: folder of the files.
        days: days until they expire.

    Raises:
        FileExistsError: the folder has such files.
    """
    hosts = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    authority, own = (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP384R1()),
    )
    of_authority = _named("DEPT federation authority")
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    root = (
        _builder(of_authority, of_authority, authority.public_key(), days)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA384())
    )
    server = (
        _builder(_named(hosts[0]), of_authority, own.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA384())
    )
    _write(folder / CA, root.public_bytes(Encoding.PEM), private=False)
    _write(folder / CERTIFICATE, server.public_bytes(Encoding.PEM), private=False)
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(folder / KEY, pem, private=True)


def make_silo(name: str, folder: Path) -> None:
    """Make ``<name>.key``, which stays here, and ``<name>.pub``, which the server registers.

    Args:
        name: name of the silo.
        folder: folder of the files.

    Raises:
        FileExistsError: the folder has such files.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write(folder / f"{name}.key", private, private=True)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(folder / f"{name}.pub", public + b"\n", private=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parties = parser.add_subparsers(dest="party", required=True)
    server = parties.add_parser("server", help="certificates of the SuperLink")
    server.add_argument("hosts", nargs="+", help="names and addresses of the server")
    server.add_argument("--days", type=int, default=365, help="days until they expire (365)")
    silo = parties.add_parser("silo", help="key pair of a SuperNode")
    silo.add_argument("name", help="name of the silo")
    for each in (server, silo):
        each.add_argument("--to", type=Path, default=Path("keys"), help="folder (keys)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.party == "server":
            make_server(chosen.hosts, chosen.to, chosen.days)
            log.info(f"{chosen.to}: send {CA} to the silos, and keep {KEY} here")
        else:
            make_silo(chosen.name, chosen.to)
            log.info(f"{chosen.to}: send {chosen.name}.pub to the server, keep the key here")
    except FileExistsError as error:
        log.error(f"{error.filename} exists: remove it first, or choose another folder with --to")
        return 2
    return 0


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**dict.fromkeys(names.split(), False) | allowed)


def _write(path: Path, content: bytes, *, private: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
