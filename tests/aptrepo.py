"""Signed apt repositories for tests: made from nothing with dpkg-deb and gpg, served in a box on its loopback."""

import gzip
import hashlib
import os
import subprocess
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

PROGRAM = """\
#!/bin/sh
# The stand-in: says its version, and can do nothing.
echo "blobfuse2 version {version}"
"""


def call(*argv: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program that must succeed."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False, env=env, cwd=cwd
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def architecture() -> str:
    """The architecture of this machine."""
    return call("dpkg", "--print-architecture").strip()


def make_deb(folder: Path, name: str, version: str, *, payload_bytes: int = 0, depends: str = "fuse3") -> Path:
    """Make a real package of a few files; `payload_bytes` of it cannot be compressed."""
    tree = folder / f"tree-{name}-{version}"
    for part in ("DEBIAN", "usr/bin", "usr/share/blobfuse2", "etc/logrotate.d"):
        (tree / part).mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: {architecture()}\nMaintainer: x <x@x.invalid>\n"
    (tree / "DEBIAN/control").write_text(f"{control}Depends: {depends}\nDescription: stand-in\n")
    (tree / "DEBIAN/conffiles").write_text("/etc/logrotate.d/blobfuse2\n")
    (tree / "etc/logrotate.d/blobfuse2").write_text("/var/log/blobfuse2.log {\n}\n")
    (tree / "usr/share/blobfuse2/baseConfig.yaml").write_bytes(os.urandom(payload_bytes) or b"allow-other: true\n")
    program = tree / "usr/bin/blobfuse2"
    program.write_text(PROGRAM.format(version=version))
    program.chmod(0o755)
    deb = folder / f"{name}_{version}_{architecture()}.deb"
    call("dpkg-deb", "--root-owner-group", "-Znone" if payload_bytes else "-Zgzip", "-b", tree, deb)
    return deb


@dataclass(frozen=True)
class Key:
    """A signing key in a keyring of its own."""

    home: Path
    fingerprint: str

    @property
    def public(self) -> bytes:
        """The armoured public key."""
        return call("gpg", "--homedir", self.home, "--armor", "--export", self.fingerprint).encode()

    def sign(self, text: Path, to: Path) -> None:
        """Write the clear-signed form of a file."""
        argv = ("gpg", "--homedir", self.home, "--batch", "--yes", "-u", self.fingerprint, "--digest-algo", "SHA256")
        call(*argv, "--clearsign", "-o", to, text)


def make_key(home: Path, name: str) -> Key:
    """Make a key without a passphrase."""
    home.mkdir(mode=0o700)
    quick = ("--passphrase", "", "--quick-generate-key", name, "rsa2048", "sign", "never")
    call("gpg", "--homedir", home, "--batch", *quick)
    listed = call("gpg", "--homedir", home, "--with-colons", "--list-keys")
    fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
    call("gpgconf", "--homedir", home, "--kill", "all")
    return Key(home, fingerprint)


def publish(top: Path, path: str, suite: str, debs: list[Path], key: Key) -> None:
    """Put a signed repository with one component into `top`/`path`."""
    root, arch = top / path, architecture()
    pool, index = root / "pool", root / "dists" / suite / "main" / f"binary-{arch}"
    pool.mkdir(parents=True, exist_ok=True)
    index.mkdir(parents=True)
    stanzas = []
    for deb in debs:
        held = pool / deb.name
        if not held.exists():
            os.link(deb, held)
        size, digest = deb.stat().st_size, hashlib.sha256(deb.read_bytes()).hexdigest()
        fields = call("dpkg-deb", "-f", deb).strip()
        stanzas.append(f"{fields}\nFilename: pool/{deb.name}\nSize: {size}\nSHA256: {digest}\n")
    packages = "\n".join(stanzas).encode()
    files = {"Packages": packages, "Packages.gz": gzip.compress(packages, mtime=0)}
    sums = []
    for name, data in files.items():
        (index / name).write_bytes(data)
        sums.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-{arch}/{name}")
    head = f"Origin: test\nSuite: {suite}\nCodename: {suite}\nDate: {formatdate(usegmt=True)}\n"
    text = f"{head}Architectures: {arch}\nComponents: main\nSHA256:\n" + "\n".join(sums) + "\n"
    release = root / "dists" / suite / "Release"
    release.write_text(text.replace("GMT", "UTC"))
    key.sign(release, release.with_name("InRelease"))
    call("gpgconf", "--homedir", key.home, "--kill", "all")
