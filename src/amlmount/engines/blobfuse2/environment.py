"""The environment blobfuse2 gets: what it needs to reach the store, and nothing that could change where that is.

An `AZURE_STORAGE_*` variable beats its configuration file, even an empty one, so none ever reaches it.
"""

import os
from collections.abc import Mapping

from amlmount.run import base_env

# azidentity and MSAL read these: Azure ML and App Service identities, and Azure CLI's own directory.
IDENTITY = ("MSI_ENDPOINT", "MSI_SECRET", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT")
AZURE_CLI = ("AZURE_CONFIG_DIR",)
# Go's net/http, either spelling; and where Go looks for certificates.
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PASSED = (*AZURE_CLI, *NETWORK, *CERTIFICATES)
WITH_IDENTITY = ("msi", "azcli")  # a login of the Azure CLI may be the machine's identity


def scrubbed(mode: str, work_dir: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a blobfuse2 whose storage mode is `mode`; HOME is its working directory.

    Only `azcli` gets the real HOME, because the login lies there; who logs in otherwise has no use for an identity.
    """
    names = (*PASSED, *IDENTITY) if mode in WITH_IDENTITY else PASSED
    passed = {name: env[name] for name in names if name in env}
    home = env.get("HOME", "/") if mode == "azcli" else work_dir
    return base_env(**passed) | {"HOME": home}
