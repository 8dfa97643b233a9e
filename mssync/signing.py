"""Content credentials (C2PA): a video signed with the user's own certificate, and reading such a signature.

The library `c2pa-python` (extra: c2pa) does the signing; this module checks what it is given beforehand. Nothing is
fetched from or sent to anywhere: no time-stamp authority is asked, no list of trusted issuers loaded. So a reader can
tell that a file is as it was signed, and by which certificate; whom to trust it must know itself.
"""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssync.errors import InputError, PathLike, input_file
from mssync.provenance import SOURCE_TYPES, Provenance, has_manifest

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ELLIPTIC = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}  # curve -> algorithm's name in C2PA
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


class Signer:
    """Signs videos with a certificate.

    Args:
        certificate: PEM file, the signer's certificate first, then those between it and its issuer's root. It has
            to be of C2PA's profile: for digital signatures, and an extended usage such as e-mail protection.
        key: PEM file with its private key (P-256, P-384, P-521, Ed25519 or RSA), not encrypted

    Raises InputError: c2pa-python is missing, no such PEM file, key and certificate do not belong together, expired,
    the library does not take them. All of that before any video is made.
    """

    def __init__(self, certificate: PathLike, key: PathLike) -> None:
        if importlib.util.find_spec("c2pa") is None:
            raise InputError('signing needs more packages; install them with: pip install "mssync[c2pa]"')
        self.certificate, self.key = input_file(certificate), input_file(key)
        self._algorithm = _algorithm(self.certificate, self.key)
        # The library looks at the certificate only when it signs; drawing a video first would waste minutes.
        self._embed(_manifest(Provenance("MS-Sync"), "check"), "image/png", io.BytesIO(_pixel()), io.BytesIO())

    def sign(self, source: Path, target: Path, made: Provenance, title: str) -> None:
        """Write the MP4 `source` with a signed manifest to `target`."""
        with source.open("rb") as original, target.open("w+b") as signed:
            self._embed(_manifest(made, title), "video/mp4", original, signed)

    def _embed(self, manifest: dict[str, Any], kind: str, source: Any, target: Any) -> None:
        import c2pa

        try:
            chain, key = self.certificate.read_bytes(), self.key.read_bytes()
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(self._algorithm.encode(), chain, key, None))
            c2pa.Builder(json.dumps(manifest)).sign(signer, kind, source, target)
        except c2pa.C2paError as error:
            raise InputError(f"{self.certificate}: cannot be signed with ({error})") from error


@dataclass(frozen=True)
class Signature:
    """A signature found in a file: the name in the signer's certificate, and whether the file is as it was signed."""

    signer: str
    intact: bool

    def words(self) -> str:
        """One line for people."""
        name = f"by {self.signer or 'somebody without a name'}"
        if self.intact:
            return f"{name}, unchanged since (who that is, is not verified)"
        return f"{name}, but the file or the signature was changed since"


def read_signature(path: Path) -> Signature | str | None:
    """The C2PA signature of an MP4; None: there is none; words: there is one, and why it cannot be checked."""
    if not has_manifest(path):
        return None
    if importlib.util.find_spec("c2pa") is None:
        return 'not checked; install what it takes with: pip install "mssync[c2pa]"'
    import c2pa

    try:
        context = c2pa.Context(c2pa.Settings.from_dict(OFFLINE))
        with c2pa.Reader(path, context=context) as reader:
            manifest: dict[str, Any] = reader.get_active_manifest() or {}
            state = reader.get_validation_state()
    except c2pa.C2paError:
        return "damaged"
    return Signature(manifest.get("signature_info", {}).get("common_name", ""), state in ("Valid", "Trusted"))


def _manifest(made: Provenance, title: str) -> dict[str, Any]:
    tool = {"name": made.tool, "version": made.version}
    created = {
        "action": "c2pa.created",
        "softwareAgent": tool,
        "digitalSourceType": SOURCE_TYPES + made.source_type,
        "parameters": {"com.mssync.model": made.model},
    }
    assertion = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [tool], "title": title, "assertions": [assertion]}


def _algorithm(certificate: Path, key: Path) -> str:
    """C2PA's name of the algorithm that a key signs with, after checking it against the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (ValueError, IndexError) as error:
        raise InputError(f"{certificate} is no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from error
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except TypeError as error:
        raise InputError(f"{key} is encrypted; give the key without a passphrase") from error
    except ValueError as error:
        raise InputError(f"{key} is no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from error
    if private.public_key() != leaf.public_key():
        raise InputError(f"{key} is not the key of the certificate {certificate}")
    _check_dates(certificate, leaf)
    if isinstance(private, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, RSAPrivateKey):
        return "ps256"
    if isinstance(private, EllipticCurvePrivateKey) and private.curve.name in ELLIPTIC:
        return ELLIPTIC[private.curve.name]
    raise InputError(f"{key}: give a key of P-256, P-384, P-521, Ed25519 or RSA")


def _check_dates(path: Path, certificate: Certificate) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.now(timezone.utc) <= end:
        raise InputError(f"{path} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d} only; give one that is valid now")


def _pixel() -> bytes:
    """A PNG of one pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
