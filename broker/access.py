"""Who may speak to a broker: the permissions of public keys, and what they say of a hello."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..protocol.messages import Hello, Role

ADMIN = "admin"

# What a key may be. An admin may do all that a client may.
ROLES = (Role.CLIENT.value, Role.WORKER.value, ADMIN)


@dataclass(frozen=True, slots=True)
class Permission:
    """What one key may be. ``llms`` are the names that it may serve as a worker, None for any."""

    key: str
    name: str
    roles: frozenset[str]
    llms: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions by key; ``is_open`` where there are no keys and everyone who can connect may do everything."""

    permissions: Mapping[str, Permission] = field(default_factory=dict[str, Permission])
    is_open: bool = False

    def refusal(self, key: str, hello: Hello) -> str | None:
        """Why who has this key may not be what the hello says; None when it may."""
        if self.is_open:
            return None
        permission = self.permissions.get(key)
        if permission is None:
            return "its key is not allowed at this broker (any more)"
        roles = permission.roles
        if hello.role not in roles and not (hello.role == Role.CLIENT and ADMIN in roles):
            return f"its key ({permission.name}) may be {' or '.join(sorted(roles))} here, and no {hello.role}"
        if hello.role == Role.WORKER and permission.llms is not None and hello.llm not in permission.llms:
            known = ", ".join(map(repr, sorted(permission.llms))) or "nothing"
            return f"its key ({permission.name}) may serve {known} here, and not {hello.llm!r}"
        return None

    def refusal_to_dismiss(self, key: str) -> str | None:
        """Why who has this key may not send others away; None when it may."""
        permission = self.permissions.get(key)
        if self.is_open or (permission is not None and ADMIN in permission.roles):
            return None
        name = "none" if permission is None else permission.name
        return f"only an admin may drain workers and kick clients, and this key ({name}) is none"


OPEN = Access(is_open=True)
