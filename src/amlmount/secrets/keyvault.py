"""One secret out of Azure Key Vault, by REST: GET on the secret's own address with a bearer token.

The token is the machine's or the logged-in user's (`identity.automatic`); no Key Vault library is needed.
"""

import json
import re
import urllib.error
import urllib.request

from amlmount.config.credentials import KeyVaultSecret
from amlmount.errors import AccessDeniedError, AmlmountError, ConfigError, NetworkError, NotFoundError

# A token goes to nothing but a Key Vault of one of Azure's clouds.
_VAULT = re.compile(r"https://[a-z0-9-]{3,24}\.(vault\.(?:azure\.net|azure\.cn|usgovcloudapi\.net))", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9-]+")
_API_VERSION = "7.4"
_TIMEOUT_S = 15.0


def secret_url(secret: KeyVaultSecret) -> tuple[str, str]:
    """Return the secret's address and the scope of the token for its vault.

    Raises ConfigError when that is no Key Vault or no name of a secret.
    """
    vault = _VAULT.fullmatch(secret.vault_url)
    names = [secret.secret, *([secret.version] if secret.version else [])]
    if vault is None or not all(_NAME.fullmatch(name) for name in names):
        raise ConfigError(
            f"cannot use secret {_label(secret)}: it is no secret of a Key Vault",
            hint="write {vault: NAME, secret: NAME}; a name has letters, digits and dashes",
        )
    return "/".join([secret.vault_url, "secrets", *names]), f"https://{vault[1].lower()}/.default"


def fetch_secret(secret: KeyVaultSecret) -> str:
    """Return the value of a Key Vault secret, got with the identity found on the machine.

    Raises AccessDeniedError, NotFoundError, NetworkError, and ConfigError for a malformed reference.
    """
    from amlmount.secrets.identity import automatic

    url, scope = secret_url(secret)
    return read_secret(url, automatic(scope).get().value, _label(secret))


def read_secret(url: str, token: str, label: str) -> str:
    """GET one secret with a token; proxies and SSL_CERT_FILE of the environment hold."""
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}?api-version={_API_VERSION}", headers=headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as reply:
            return str(json.load(reply)["value"])
    except urllib.error.HTTPError as error:
        raise _refusal(label, error) from None
    except (OSError, ValueError, KeyError) as error:
        raise NetworkError(
            f"cannot read secret {label}: {error}", hint="check the vault's name and its firewall"
        ) from None


def _label(secret: KeyVaultSecret) -> str:
    return f"keyvault:{secret.vault}/{secret.secret}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def _refusal(label: str, error: urllib.error.HTTPError) -> AmlmountError:
    with error:
        message = f"cannot read secret {label}: HTTP {error.code}"
    if error.code == 404:
        return NotFoundError(message, hint="look for its name with az keyvault secret list --vault-name VAULT")
    if error.code in (401, 403):
        return AccessDeniedError(
            message,
            hint="grant this identity the role Key Vault Secrets User, or let this network through its firewall",
        )
    return NetworkError(message, hint="try again in a minute")
