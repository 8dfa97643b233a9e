"""The marks of generated videos: written, read back, kept by a re-mux, drawn, signed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from typer.testing import CliRunner

import mssync
from mssync import animate, cli, provenance
from mssync.errors import InputError
from mssync.provenance import TRAINED_MEDIA, badged
from mssync.video import probe, write_video

TODAY = datetime.now(timezone.utc).strftime("%Y-%m-%d")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    picture = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    write_video(tmp_path / "a.mp4", [picture] * 10, speech(0.4), model="my model/2", precision="bfloat16")
    return tmp_path / "a.mp4"


def remux(source: Path, target: Path) -> Path:
    """Copy the streams and the tags of a video into another container, packet by packet."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        new.metadata.update(old.metadata)
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def test_marks_are_written_and_read_back(video):
    found = probe(video).provenance
    assert found == provenance.Provenance(
        "MS-Sync", mssync.__version__, "my-model-2", TODAY, "trainedAlgorithmicMedia", ("tags", "XMP"), "bfloat16"
    )
    assert found.words() == f"by MS-Sync {mssync.__version__}, model my-model-2 in bfloat16, on {TODAY}"
    with av.open(str(video)) as container:
        assert TRAINED_MEDIA in container.metadata["comment"]
        assert TRAINED_MEDIA in container.metadata["description"]
        assert len(container.metadata["description"].encode()) < 256  # the longest that iTunes shows


def test_the_xmp_packet_is_where_tools_look_for_it(video):
    boxes = list(provenance._uuid_boxes(video))
    assert [kind for kind, *_ in boxes] == [provenance.XMP_BOX]
    _, start, length = boxes[0]
    content = video.read_bytes()
    assert start + length == len(content)
    root = ET.fromstring(content[start:])
    iptc, xmp = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}", "{http://ns.adobe.com/xap/1.0/}"
    assert root.findtext(f".//{iptc}DigitalSourceType") == TRAINED_MEDIA
    assert root.findtext(f".//{iptc}AISystemUsed") == "MS-Sync, model my-model-2"
    assert root.findtext(f".//{xmp}CreatorTool") == f"MS-Sync {mssync.__version__}"
    assert root.findtext(f".//{xmp}CreateDate") == TODAY


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_remux_keeps_the_marks(video, tmp_path, suffix):
    found = probe(remux(video, tmp_path / f"b.{suffix}")).provenance
    before = probe(video).provenance
    assert found.words() == before.words()
    assert found.source_type == "trainedAlgorithmicMedia"
    assert found.marks == ("tags",)


def test_a_comment_of_ones_own_leaves_the_marks(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 2, None, comment="take 3")
    assert probe(tmp_path / "a.mp4").provenance.model == "unknown"
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == "take 3"


def test_a_copy_of_a_recording_is_not_marked(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 2, None, generated=False)
    assert probe(tmp_path / "a.mp4").provenance is None


def test_marks_of_others_and_of_first_versions(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0")
    assert provenance.read(tmp_path / "a.mp4", {}) is None
    found = provenance.read(tmp_path / "a.mp4", {"comment": provenance.SOURCE_TYPES + "algorithmicMedia"})
    assert found.words() == "marked as algorithmicMedia, not by MS-Sync"
    found = provenance.read(tmp_path / "a.mp4", {"comment": provenance.GENERATED_NOTE})
    assert found.words() == "by MS-Sync"


@pytest.mark.parametrize("length", [0, 1, 7, 8, 23, 24, 2**31, 2**32 - 1])
def test_damaged_boxes_end_the_search(tmp_path, length):
    box = length.to_bytes(4, "big") + b"uuid" + provenance.XMP_BOX
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x08ftyp" + box)
    assert provenance.read(tmp_path / "a.mp4", {}) is None


@pytest.mark.parametrize("shape", [(64, 64, 3), (256, 256, 3), (1080, 1920, 3)])
def test_the_badge_is_small_visible_and_in_its_corner(shape):
    for grey in (0, 128, 255):
        frame = np.full(shape, grey, np.uint8)
        (marked,) = badged([frame])
        changed = np.abs(marked.astype(int) - frame).max(axis=2)
        rows, columns = np.nonzero(changed > 2)
        assert (frame == grey).all()  # the caller's own
        assert changed.max() > 90
        assert 0.0005 < (changed > 2).mean() < (0.05 if min(shape[:2]) < 100 else 0.01)
        assert rows.min() > 0.7 * shape[0]
        assert columns.min() > 0.65 * shape[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = animate.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())
    monkeypatch.setattr(animate, "load", lambda *_, **__: pipeline)
    write_video(tmp_path / "speech.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 10, speech(0.4))
    picture = np.random.default_rng(0).integers(1, 255, (200, 260, 3), np.uint8)
    from PIL import Image

    Image.fromarray(picture).save(tmp_path / "face.png")
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def test_info_tells(run):
    result = run("animate", "face.png", "speech.mp4", "-o", "out.mp4", "--badge")
    assert result.exit_code == 0, result.output
    told = " ".join(run("info", "out.mp4").output.split())
    assert f"generated by MS-Sync {mssync.__version__}, model layered in float32, on {TODAY}" in told
    assert "source type trainedAlgorithmicMedia" in told
    assert "signed" not in told


# Signatures


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """identity(kind, days=30, usage=True) -> files of a certificate chain and its key, made by ourselves."""
    pytest.importorskip("c2pa")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(timezone.utc)

    def name(words):
        attributes = [(NameOID.COMMON_NAME, words), (NameOID.ORGANIZATION_NAME, "Tests")]
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])

    def certificate(subject, issuer, key, days, authority):
        unused = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
        usage = dict.fromkeys([*unused, "encipher_only", "decipher_only"], False)
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(min(0, days) - 1))
            .not_valid_after(now + timedelta(days))
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(x509.KeyUsage(**usage), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
        )

    def make(kind="ec", days=30, usage=True):
        folder = tmp_path_factory.mktemp("identity")
        root = ec.generate_private_key(ec.SECP256R1())
        make_key = {
            "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
            "ed25519": ed25519.Ed25519PrivateKey.generate,
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
        }
        key = make_key[kind]()
        issuer = certificate("Test root", "Test root", root.public_key(), 60, True).sign(root, hashes.SHA256())
        leaf = certificate("Test signer", "Test root", key.public_key(), days, False).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False
        )
        if usage:
            leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        chain = [leaf.sign(root, hashes.SHA256()), issuer]
        (folder / "cert.pem").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return folder / "cert.pem", folder / "key.pem"

    return make


@pytest.mark.parametrize("kind", ["ec", "ed25519", "rsa"])
def test_signed_videos_say_who_signed_and_whether_they_were_changed(identity, tmp_path, kind):
    from mssync.signing import Signer, read_signature

    certificate, key = identity(kind)
    pictures = np.random.default_rng(0).integers(0, 255, (10, 64, 80, 3), np.uint8)
    path = tmp_path / "out" / "a.mp4"
    path.parent.mkdir()
    write_video(path, pictures, speech(0.4), model="compact", signer=Signer(certificate, key))
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    signature = read_signature(path)
    assert (signature.signer, signature.intact) == ("Test signer", True)
    assert probe(path).provenance.marks == ("tags", "XMP")
    assert probe(path).frames == 10

    import c2pa

    manifest = c2pa.Reader(path).get_active_manifest()
    actions = next(a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2")["data"]["actions"]
    assert actions[0]["action"] == "c2pa.created"
    assert actions[0]["digitalSourceType"] == TRAINED_MEDIA

    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 200] ^= 1
    path.write_bytes(content)
    assert not read_signature(path).intact
    assert "changed since" in read_signature(path).words()


def test_a_remux_drops_the_signature(identity, tmp_path):
    from mssync.signing import Signer, read_signature

    picture = np.zeros((64, 64, 3), np.uint8)
    write_video(tmp_path / "a.mp4", [picture] * 3, None, signer=Signer(*identity()))
    assert read_signature(remux(tmp_path / "a.mp4", tmp_path / "b.mp4")) is None


def test_signing_from_the_command_line(identity, run, tmp_path):
    certificate, key = identity()
    result = run("animate", "face.png", "speech.mp4", "-o", "out.mp4", "--sign", certificate, "--key", key)
    assert result.exit_code == 0, result.output
    assert "signed (C2PA) by Test signer, unchanged since" in " ".join(run("info", "out.mp4").output.split())
    result = run("animate", "face.png", "speech.mp4", "-o", "b.mp4", "--sign", certificate)
    assert (result.exit_code, "go together" in result.stderr) == (2, True)
    assert not (tmp_path / "b.mp4").exists()


def test_bad_certificates_are_refused_before_any_work(identity, tmp_path):
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    from mssync.signing import Signer

    certificate, key = identity()
    (tmp_path / "text.pem").write_text("no certificate")
    locked = load_pem_private_key(key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    for chain, secret, words in [
        (tmp_path / "text.pem", key, "no certificate in PEM form"),
        (certificate, tmp_path / "text.pem", "no private key in PEM form"),
        (certificate, tmp_path / "locked.pem", "is encrypted"),
        (certificate, identity()[1], "is not the key of"),
        (certificate, tmp_path / "none.pem", "does not exist"),
        (*identity(days=-1), "is valid from"),
        (*identity(usage=False), "cannot be signed with"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            Signer(chain, secret)
        assert "\n" not in str(caught.value)


def test_signing_needs_its_extra(monkeypatch, tmp_path):
    from mssync import signing

    monkeypatch.setattr(signing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mssync\[c2pa\]"):
        signing.Signer(tmp_path / "a.pem", tmp_path / "b.pem")
