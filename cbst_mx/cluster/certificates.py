"""What the programs of a cluster know each other by: one certificate for all of them, of an authority made for it.

The authority's own key is not kept: nobody can make a further certificate that the cluster takes. Whoever can read the
folder can run programs as its user.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.files import atomic_folder, in_one_line, read_bounded, write_bytes

__all__ = ["AUTHORITY", "CERTIFICATE", "KEY", "check_certificates", "make_certificates", "security"]

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"
_LARGEST = 1 << 16  # bytes of each
_MOST_DAYS = 3650


def make_certificates(folder: Path, days: int) -> datetime.datetime:
    """Make the folder: ``ca.pem``, ``certificate.pem`` and ``key.pem``, which its owner alone may read.

    Parameters
    ----------
    folder : Path
        New.
    days : int
        How long they are valid, from now on; at most ten years.

    Returns
    -------
    datetime
        Until when, UTC.

    Raises
    ------
    ConfigError
        If `days` is not allowed.
    RunError
        If the folder is there already, or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    if not 1 <= days <= _MOST_DAYS:
        raise ConfigError(f"days must be from 1 to {_MOST_DAYS:,}, got {days}")
    if folder.exists():
        raise RunError(f"{folder} is there already: give a new folder, or remove it and what uses it first")
    now = datetime.datetime.now(tz=datetime.timezone.utc).replace(tzinfo=None, microsecond=0)
    end = now + datetime.timedelta(days=days)

    def signed(name: str, issuer: str, own: Any, by: Any, *, authority: bool) -> bytes:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer)]
        made = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(own.public_key())
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(end)  # clocks differ
        made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    above, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with atomic_folder(folder, durable=True, new=True) as begun:
        begun.chmod(0o700)
        write_bytes(begun / AUTHORITY, signed("cbst-mx authority", "cbst-mx authority", above, above, authority=True))
        write_bytes(begun / CERTIFICATE, signed("cbst-mx", "cbst-mx authority", own, above, authority=False))
        write_bytes(begun / KEY, private)
        (begun / KEY).chmod(0o600)
    return end


def check_certificates(folder: Path) -> None:
    """Refuse a folder without certificates, or with others than it may have today.

    Raises
    ------
    DataError
        If one cannot be read, or is not valid now.
    """
    from cryptography import x509

    content = {}
    for name in (AUTHORITY, CERTIFICATE, KEY):
        try:
            content[name] = read_bounded(folder / name, _LARGEST)
        except OSError as error:
            reason = in_one_line(error)
            raise DataError(
                f"{folder / name} cannot be read ({reason}): cbst-mx cluster certificates FOLDER makes it"
            ) from error
    try:
        found = x509.load_pem_x509_certificate(content[CERTIFICATE])
    except ValueError as error:
        raise DataError(f"{folder / CERTIFICATE} is no certificate: make the folder again") from error
    begin, end = _validity(found)
    now = datetime.datetime.now(tz=datetime.timezone.utc).replace(tzinfo=None)
    if not begin <= now < end:
        raise DataError(
            f"{folder / CERTIFICATE} is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now: make a "
            "new folder with cbst-mx cluster certificates"
        )


def _validity(found: Any) -> tuple[datetime.datetime, datetime.datetime]:
    """Return from when and until when a certificate is valid, UTC."""
    if hasattr(found, "not_valid_before_utc"):  # from cryptography 42 on, which warns of the other
        return tuple(t.replace(tzinfo=None) for t in (found.not_valid_before_utc, found.not_valid_after_utc))
    return found.not_valid_before, found.not_valid_after


def security(folder: Path | None) -> Any:
    """Return the certificates of a folder as ``distributed.Security``; None without one.

    Raises
    ------
    DataError
        As :func:`check_certificates`.
    """
    if folder is None:
        return None
    import distributed

    check_certificates(folder)
    certificate, key = str(folder / CERTIFICATE), str(folder / KEY)
    roles = {f"tls_{role}_{what}": path for role in ("client", "scheduler", "worker") for what, path in (
        ("cert", certificate), ("key", key))}  # fmt: skip
    return distributed.Security(require_encryption=True, tls_ca_file=str(folder / AUTHORITY), **roles)
