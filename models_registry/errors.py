"""What can be wrong with an artifact. The store's API gives each the HTTP answer of the same name."""


class RegistryError(Exception):
    """The message is fit for the person who sent the artifact."""


class TooLarge(RegistryError):
    """More bytes than the caller may store."""


class StorageFull(RegistryError):
    """The disk is (nearly) full; nothing was left behind."""


class UnknownArtifact(RegistryError):
    """No artifact of this digest is in the store."""


class IntegrityError(RegistryError):
    """A stored file no longer has the sha256 that its manifest names."""


class UnsafeFormat(RegistryError):
    """Pickle, or anything else that could run code when opened."""


class InvalidSafetensors(RegistryError):
    """Not a well-formed safetensors file."""


class NonFiniteWeights(RegistryError):
    """A weight is NaN or infinite."""


class InvalidAdapterConfig(RegistryError):
    """The adapter does not fit its base, or asks for something that the store does not serve."""


class UnsupportedModel(RegistryError):
    """A base that the engine could not serve; the message says why."""


class PromptError(RegistryError):
    """The base's chat template refuses these messages."""
