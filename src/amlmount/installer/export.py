"""What carries a configuration to other machines: cloud-init user data, and a systemd mount unit for one mount.

cloud-init: its module write_files and runcmd; mount units: systemd.mount(5), names as `systemd-escape --path`.
"""

import base64
import gzip
import os
import re
from collections.abc import Mapping
from importlib.resources import files

import yaml

from amlmount.errors import AmlmountError
from amlmount.installer import paths

# Azure's limit of custom data, before base64.
MAX_CUSTOM_DATA_BYTES = 64 << 10
SCRIPT = "/var/lib/cloud/amlmount-install.sh"
UNIT_TEMPLATE = """\
# {target} as a unit, for `RequiresMountsFor=` and `Requires=` of others. The daemon does the work.
[Unit]
Description=amlmount: {name}
# Not Requires=: restarting the service leaves its mounts as they are, and this unit would unmount it.
Wants=amlmount.service
After=amlmount.service network-online.target

[Mount]
What={name}
Where={target}
Type=amlmount
# Not among the local file systems, which everything else waits for.
Options=_netdev
TimeoutSec=150

[Install]
WantedBy=multi-user.target
"""


def cloud_init(config_files: Mapping[str, str], *, options: tuple[str, ...] = ()) -> str:
    """Return user data that installs amlmount with `options` of install.sh, writes the files (text by path), mounts.

    Raises AmlmountError if it is more than Azure takes.
    """
    script = (files("amlmount") / "installer" / "install.sh").read_bytes()
    written = [{"path": path, "permissions": "0644", "content": text} for path, text in config_files.items()]
    packed = base64.b64encode(gzip.compress(script, mtime=0)).decode()
    written.append({"path": SCRIPT, "permissions": "0700", "encoding": "gz+b64", "content": packed})
    # `up` as a step of its own: what cannot be mounted yet is in cloud-init's report, and the daemon goes on trying.
    commands = [["sh", SCRIPT, *options], [paths.PROGRAM, "--system", "up", "--timeout", "5m"]]
    data = {"package_update": False, "write_files": written, "runcmd": commands}
    text = "#cloud-config\n" + yaml.dump(data, Dumper=_Readable, sort_keys=False, width=1 << 20)
    if len(text.encode()) > MAX_CUSTOM_DATA_BYTES:
        raise AmlmountError(
            f"cannot export to cloud-init: {len(text.encode()) >> 10} KiB are more than the 64 KiB that Azure takes",
            hint="leave comments out of the configuration",
        )
    return text


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as people do."""


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _literal)


def systemd_mount(name: str, target: str) -> tuple[str, str]:
    """Return the name and the text of the mount unit of a mount."""
    return f"{escape_path(target)}.mount", UNIT_TEMPLATE.format(name=name, target=target.replace("%", "%%"))


def escape_path(path: str) -> str:
    """Escape a path for a unit's name: systemd.unit(5), "String Escaping for Inclusion in Unit Names"."""
    trimmed = re.sub("/+", "/", os.path.normpath(path)).strip("/")
    if not trimmed:
        return "-"
    plain = re.compile(rb"[A-Za-z0-9:_./]")
    raw = [bytes([byte]) for byte in os.fsencode(trimmed)]
    escaped = [_escaped(byte, first=not at, plain=plain) for at, byte in enumerate(raw)]
    return "".join(escaped)


def _escaped(byte: bytes, *, first: bool, plain: "re.Pattern[bytes]") -> str:
    if byte == b"/":
        return "-"
    if plain.fullmatch(byte) and not (first and byte == b"."):
        return byte.decode()
    return f"\\x{byte[0]:02x}"
