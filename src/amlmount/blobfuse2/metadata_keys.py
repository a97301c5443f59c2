"""The keys of the metadata caches, and of two components that are not in ordinary use: stream and loopbackfs.

Source: component/{attr_cache,entry_cache,block_cache,loopback}/ of Azure/azure-storage-fuse.
"""

from amlmount.blobfuse2.key import UINT32_MAX, Key, section

ATTR_CACHE = section(
    "attr_cache",
    Key(
        "timeout-sec",
        "int",
        "How long attributes are kept in the process. A blob replaced meanwhile is read cut or padded with zeros.",
        default=120,
        unit="s",
        minimum=0,
        maximum=UINT32_MAX,
        flag="--attr-cache-timeout",
    ),
    Key("no-cache-on-list", "bool", "Do not keep what a listing told.", default=False),
    Key("no-symlinks", "bool", "Treat symbolic links as files.", default=False, flag="--no-symlinks"),
    Key(
        "max-size-mb",
        "int",
        "Memory of the cache; 0 = 1 % of the RAM, 64 to 1024 MB.",
        default=0,
        unit="MB",
        minimum=0,
        maximum=UINT32_MAX,
        since="2.5.4",
        flag="--attr-cache-max-size-mb",
    ),
    Key(
        "max-files",
        "int",
        "Old form of max-size-mb.",
        minimum=0,
        maximum=UINT32_MAX,
        since="2.0.4",
        status="v1",
        instead="attr_cache.max-size-mb",
    ),
    Key(
        "cache-on-list",
        "bool",
        "v1 name, the inverse.",
        status="v1",
        instead="attr_cache.no-cache-on-list",
        flag="--cache-on-list",
    ),
)

ENTRY_CACHE = section(
    "entry_cache",
    Key(
        "timeout-sec",
        "int",
        "How long listings are kept in the process; read-only mounts only.",
        default=30,
        unit="s",
        minimum=0,
        maximum=UINT32_MAX,
        since="2.4.0",
        flag="--list-cache-timeout",
    ),
)

STREAM = section(
    "stream",
    Key(
        "block-size-mb",
        "int",
        "Deprecated.",
        unit="MB",
        minimum=0,
        status="v1",
        instead="block_cache.block-size-mb",
        flag="--block-size-mb",
    ),
    Key("buffer-size-mb", "int", "Deprecated.", unit="MB", minimum=0, status="v1", instead="block_cache.mem-size-mb"),
    Key("max-buffers", "int", "Deprecated.", minimum=0, status="v1", instead="block_cache.mem-size-mb"),
    Key("file-caching", "bool", "Deprecated.", status="v1", instead="block_cache"),
    Key(
        "stream-cache-mb",
        "int",
        "v1 name.",
        unit="MB",
        minimum=0,
        status="v1",
        instead="block_cache.mem-size-mb",
        flag="--stream-cache-mb",
    ),
    Key(
        "max-blocks-per-file",
        "int",
        "v1 name.",
        minimum=0,
        status="v1",
        instead="block_cache.prefetch",
        flag="--max-blocks-per-file",
    ),
)

LOOPBACKFS = section(
    "loopbackfs",
    Key(
        "path",
        "path",
        "A local directory in the store's place; for trying and for tests.",
        status="testing",
        owner="`path` of a store of type local",
    ),
)
