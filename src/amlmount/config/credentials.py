"""How a store logs in, and where a secret is to be found: references only, resolved by `amlmount.secrets`.

A secret written into the file itself is refused: files are copied, committed and shared, and on an
Azure ML compute instance the folder they usually stand in is readable by the whole workspace.
"""

from typing import Annotated, Any, NoReturn, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from amlmount.config.fields import AlsoTakes
from amlmount.config.spec import Frozen


class KeyVaultSecret(Frozen):
    """A secret of Azure Key Vault, read with the identity found on the machine."""

    vault: str = Field(min_length=1, description="name of the vault, or its URL")
    secret: str = Field(min_length=1, description="name of the secret")
    version: str | None = Field(default=None, description="left out: the newest")

    @property
    def vault_url(self) -> str:
        """URL of the vault, without a slash at its end."""
        return self.vault.rstrip("/") if "://" in self.vault else f"https://{self.vault}.vault.azure.net"


class SecretRef(Frozen):
    """Where a secret is: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    # A key pasted here would be printed by whoever looks for a variable of that name.
    env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="name of an environment variable of the daemon"
    )
    file: str | None = Field(default=None, min_length=1, description="path of a file only its owner can read")
    credential: str | None = Field(default=None, min_length=1, description="name of a systemd credential")
    keyvault: KeyVaultSecret | None = Field(default=None, description="a secret of Azure Key Vault")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("a secret is one of {env: NAME}, {file: PATH}, {credential: NAME}, {keyvault: {...}}")
        return self

    @property
    def description(self) -> str:
        """The reference as `env:NAME`, for messages; never the secret."""
        kind = next(iter(self.model_fields_set))
        what = self.keyvault.secret if self.keyvault else getattr(self, kind)
        return f"{kind}:{what}"


def _refuse_inline(value: object) -> object:
    if isinstance(value, dict | SecretRef):
        return value
    raise PydanticCustomError("inline_secret", "a secret must not stand in the configuration itself")


Secret = Annotated[SecretRef, BeforeValidator(_refuse_inline)]


class AccountKey(Frozen):
    """A key of the storage account."""

    account_key: Secret


class SasToken(Frozen):
    """A shared access signature; a leading `?` does no harm."""

    sas_token: Secret


class ConnectionString(Frozen):
    """The connection string that the portal shows."""

    connection_string: Secret


class ServicePrincipal(Frozen):
    """An application registered in Entra ID."""

    tenant_id: str = Field(min_length=1)
    client_id: str = Field(min_length=1)
    client_secret: Secret
    authority_url: str | None = Field(default=None, description="as in an Azure ML file; left out: the public cloud's")
    resource_url: str | None = Field(default=None, description="as in an Azure ML file; no effect")


class _ClientId(Frozen):
    client_id: str | None = Field(default=None, description="needed if the machine has several identities")


class _Nothing(Frozen):
    pass


def _empty(value: object) -> object:
    return {} if value is None else value


class ManagedIdentity(Frozen):
    """The identity of the virtual machine or compute instance."""

    managed_identity: Annotated[_ClientId, BeforeValidator(_empty), AlsoTakes({"type": "null"})]


class AzureCli(Frozen):
    """Whoever has done `az login`."""

    azure_cli: Annotated[_Nothing, BeforeValidator(_empty), AlsoTakes({"type": "null"})]


class WorkloadIdentity(Frozen):
    """The federated identity of a Kubernetes pod."""

    workload_identity: Annotated[_ClientId, BeforeValidator(_empty), AlsoTakes({"type": "null"})]


class Anonymous(Frozen):
    """No login: public containers."""

    anonymous: Annotated[_Nothing, BeforeValidator(_empty), AlsoTakes({"type": "null"})]


# The key that tells each kind; order as in the documentation.
CREDENTIAL_KINDS: dict[str, type[Frozen]] = {
    "account_key": AccountKey,
    "sas_token": SasToken,
    "connection_string": ConnectionString,
    "client_secret": ServicePrincipal,
    "managed_identity": ManagedIdentity,
    "azure_cli": AzureCli,
    "workload_identity": WorkloadIdentity,
    "anonymous": Anonymous,
}
BARE_KINDS = ("managed_identity", "azure_cli", "workload_identity", "anonymous")
_SERVICE_PRINCIPAL_KEYS = {"tenant_id", "client_id", "authority_url", "authority_uri", "resource_url"}
_CERTIFICATE_KEYS = {"certificate", "thumbprint"}


def _kinds(value: dict[str, Any]) -> list[str]:
    found = [kind for kind in CREDENTIAL_KINDS if kind in value]
    return found or (["client_secret"] if _SERVICE_PRINCIPAL_KEYS & set(value) else [])


def _kind(value: object) -> str | None:
    if isinstance(value, dict):
        return next(iter(_kinds(value)), None)
    return next((kind for kind, model in CREDENTIAL_KINDS.items() if isinstance(value, model)), None)


def _prepare(value: object) -> object:
    """Accept a bare name (`azure_cli`) and Azure ML's other spelling; refuse none or several kinds at once."""
    if isinstance(value, str) and value in BARE_KINDS:
        return {value: {}}
    if not isinstance(value, dict):
        return value if isinstance(value, Frozen) else _say_how("is a plain value")
    if _CERTIFICATE_KEYS & set(value):
        raise ValueError("a certificate cannot be used; write client_secret, or another kind of credentials")
    kinds = _kinds(value)
    if len(kinds) != 1:
        return _say_how(f"has {' and '.join(kinds)} at once" if kinds else "does not say how to log in")
    return {("authority_url" if key == "authority_uri" else key): item for key, item in value.items()}


def _say_how(what: str) -> NoReturn:
    raise ValueError(f"{what}; write one of {', '.join(CREDENTIAL_KINDS)} below credentials")


Credentials = Annotated[
    Annotated[AccountKey, Tag("account_key")]
    | Annotated[SasToken, Tag("sas_token")]
    | Annotated[ConnectionString, Tag("connection_string")]
    | Annotated[ServicePrincipal, Tag("client_secret")]
    | Annotated[ManagedIdentity, Tag("managed_identity")]
    | Annotated[AzureCli, Tag("azure_cli")]
    | Annotated[WorkloadIdentity, Tag("workload_identity")]
    | Annotated[Anonymous, Tag("anonymous")],
    Discriminator(_kind),
    BeforeValidator(_prepare),
    AlsoTakes({"enum": list(BARE_KINDS)}),
]
