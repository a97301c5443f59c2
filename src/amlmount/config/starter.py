"""The commented file that `amlmount init` writes: lines with ## explain, lines with one # are examples to uncomment."""

import os
from pathlib import Path

from amlmount.errors import AmlmountError, UsageError

STARTER = """\
## What amlmount keeps mounted. Take the # away from what you need, then:
##   amlmount config check    is everything right?
##   amlmount up              mount it, and keep it mounted
## All keys: amlmount config schema, or docs/configuration.md

## Where data is. A secret never stands here, only where to find it.
#stores:
#  labels:
#    type: local                        # a folder of this machine; relative to this file
#    path: ./labels
#  mnist_data:
#    type: azure_blob                   # or azure_data_lake_gen2 (then filesystem: instead of container_name:)
#    account_name: mystorage
#    container_name: mnist-data
#    credentials:                       # one of these:
#      account_key: {file: secrets/mnist_data.key}   # a file that only you can read
##     account_key: {env: MNIST_KEY}                 # a variable in the environment of the daemon
##     managed_identity: {}                          # the identity of this virtual machine
##     azure_cli: {}                                 # whoever did `az login`
##     anonymous: {}                                 # a public container

## Folders to keep mounted. A mount is read-only unless it says read_only: false.
#mounts:
#  labels:
#    target: ~/data/labels
#    source: labels
#  mnist:
#    target: ~/data/mnist
#    source: mnist_data                 # or part of it: {store: mnist_data, path: train}
#    profile: epochs                    # standard, epochs, stream, random, fresh or checkpoint

## What every mount does that does not say otherwise.
#defaults:
#  profile: standard

## The cache on disk. Left out: a temporary disk if there is one, up to 80 % of it.
#cache:
#  max_size: 80%
#  keep_free: 10GiB
"""


def write_starter(path: Path, *, force: bool) -> None:
    """Write the starter file, and its folder if need be, as one step. Raises UsageError if one is there already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, force)
    except FileExistsError:
        raise UsageError(
            f"cannot write '{path}': it is there already", hint="--force replaces it with the starter file"
        ) from None
    except OSError as exc:
        raise AmlmountError(
            f"cannot write '{path}': {exc.strerror}", hint="`amlmount --config PATH init` writes it elsewhere"
        ) from None


def _write(path: Path, force: bool) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(STARTER, encoding="utf-8")
    try:
        if force:
            draft.replace(path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
