"""``genpool keys``: makes keys, shows them, and says who may come in."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ..protocol.address import KEYS
from ..protocol.errors import ConfigurationError
from ..protocol.keys import is_key, read_pair
from ..protocol.logs import say
from ..protocol.messages import Role
from ..protocol.option import UserPath
from .access import ROLES, Permission
from .allowed import add_access, read_access
from .keyring import ALLOWED, BROKER_KEY, key_files, new_keyring, new_peers, peer_file

_FOLDER = UserPath(file_okay=False)


@click.group()
def keys() -> None:
    """Make keys, show them, and say who may come in.

    A broker with keys (genpool broker --keys DIR) encrypts, and lets in only keys that its list allows. Each peer needs
    one key file, which holds the broker's public key, too: name it in GENPOOL_KEYS.

    \b
    genpool keys new keys
    genpool broker --bind tcp://0.0.0.0:5555 --keys keys
    GENPOOL_KEYS=keys/worker.key genpool worker --broker HOST:5555 --llm NAME …
    GENPOOL_KEYS=keys/client.key genpool generate --broker HOST:5555 …
    """


@keys.command(short_help="Make keys: a broker's and its peers', or more peers'.")
@click.argument("folder", type=_FOLDER, metavar="DIR")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def new(folder: Path, names: tuple[str, ...]) -> int:
    """Make the keys of a new broker in DIR, or more peers' keys beside them.

    A new DIR gets broker.key, and client.key, worker.key and admin.key, which are allowed to be what they are called.
    With NAMEs, an existing DIR gets NAME.key for each; `genpool keys allow` says what they may be.
    """
    files = new_peers(folder, names) if names else new_keyring(folder)
    for path in files:
        click.echo(path)
    if names:
        allow_it = shlex.join(["genpool", "keys", "allow", str(folder), names[0], "--as", "worker"])
        say(f"Now say what each may be: {allow_it}", lead="")
    else:
        say(f"Start the broker with --keys {shlex.quote(str(folder))}, and give each peer its file in {KEYS}", lead="")
    return 0


@keys.command(short_help="Show public keys, and what they may be.")
@click.argument("path", type=UserPath(), metavar="DIR|FILE")
def show(path: Path) -> int:
    """Show the public keys in DIR or FILE, and what they may be. Secrets are never shown."""
    files = key_files(path) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"there are no key files in {str(path)!r}: make some with `genpool keys new {path}`")
    listed = path / ALLOWED if path.is_dir() else path.parent / ALLOWED
    permissions = dict(read_access(listed).permissions) if listed.exists() else {}
    for file in files:
        public = read_pair(file).public
        what = "the broker's" if file.name == BROKER_KEY else _said(permissions.pop(public, None))
        click.echo(f"{public}  {file.name}: {what}")
    if path.is_dir():
        for permission in permissions.values():
            click.echo(f"{permission.key}  {permission.name}, whose file is elsewhere: {_said(permission)}")
    return 0


def _said(permission: Permission | None) -> str:
    if permission is None:
        return "not allowed"
    llms = "" if permission.llms is None else f" of {', '.join(sorted(permission.llms)) or 'nothing'}"
    return " and ".join(sorted(permission.roles)) + llms


@keys.command(short_help="Allow a key to be a client, a worker or an admin.")
@click.argument("folder", type=_FOLDER, metavar="DIR")
@click.argument("key", metavar="NAME|KEY")
@click.option("--as", "roles", required=True, multiple=True, type=click.Choice(ROLES), help="What it may be; repeat.")
@click.option("--llm", "llms", multiple=True, metavar="NAME", help="An LLM that it may serve; repeat.  [default: any]")
@click.option("--name", help="Who that is, for the log.  [default: NAME]")
def allow(folder: Path, key: str, roles: tuple[str, ...], llms: tuple[str, ...], name: str | None) -> int:
    """Allow a key at the broker of DIR: that of NAME.key in DIR, or a public KEY from elsewhere.

    A broker that runs sees it within a second. To take it back, remove its entry in DIR/allowed.toml: who is connected
    with it must go.
    """
    if llms and Role.WORKER not in roles:
        raise ConfigurationError("--llm is for workers: say --as worker, too")
    public = key if is_key(key) else read_pair(peer_file(folder, key)).public
    called = name or (f"{public[:8]}…" if is_key(key) else key.removesuffix(".key"))
    if not called.isprintable():
        raise ConfigurationError(f"{called!r} cannot be a name: it has characters that cannot be printed")
    permission = Permission(public, called, frozenset(roles), frozenset(llms) if llms else None)
    add_access(folder / ALLOWED, permission)
    click.echo(f"{called} may be {_said(permission)}")
    return 0
