"""What can go wrong, by what has to be done. Each text is one line, `what; next step`, without secrets."""

ENROLL = "enrol this host again: ansible-playbook playbooks/deploy.yml -e vault_agent_enroll=true"


class AgentError(Exception):
    """A failure with an exit code of its own."""

    code = 1


class ConfigurationError(AgentError):
    """The command line, the configuration file or what systemd was to provide is wrong."""

    code = 2


class EnrolmentError(AgentError):
    """The host has no credential, or Vault does not accept the one it has."""

    code = 3


class UnavailableError(AgentError):
    """Vault cannot be used now: not reachable, sealed, TLS refused, no answer. May pass by itself."""

    code = 4


class PathError(AgentError):
    """Something in Vault is not there or not allowed: path denied, missing, deleted, or without the key."""

    code = 5


class TokenLostError(AgentError):
    """The token is no longer accepted; a new login is needed."""

    code = 3
