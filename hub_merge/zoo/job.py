"""A build as a job on the Hub's own machines: a script with its dependencies in its head (PEP 723)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub_merge.errors import PublishError, RecipeError
from hub_merge.hub.failures import Asked, translated
from hub_merge.hub.references import is_model_id
from hub_merge.workspace import workspace

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["FLAVOR", "Submitted", "script", "submit"]

FLAVOR = "cpu-upgrade"
TIMEOUT = "24h"
SCRIPT = '''# /// script
# requires-python = ">=3.11"
# dependencies = ["{package}"]
# ///
"""Build the index of adapters of {base} and publish it as the dataset {target}.

    hf jobs uv run --flavor {flavor} --secrets HF_TOKEN build_zoo.py
"""

import subprocess
import sys

INDEX = "zoo"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "hub_merge", *arguments], check=True)


run("zoo", "pull", {target!r}, "--index", INDEX, "--if-there")
run({arguments}, "--index", INDEX)
run("zoo", "push", {target!r}, "--index", INDEX{push})
'''


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was submitted: its id, and the address of its page."""

    id: str
    url: str


def script(
    base: str,
    target: str,
    *,
    options: Sequence[str] = (),
    package: str = "hub-merge[zoo]",
    flavor: str = FLAVOR,
    create_pr: bool = False,
) -> str:
    """Return the script of a job that builds, or continues, the index in a dataset repository.

    Args:
        base: Hub id of the base model.
        target: ``owner/name`` of the dataset.
        options: Further options of ``hub-merge zoo build``.
        package: What pip installs.
        flavor: Machine that the script's own text names.
        create_pr: Publish as a pull request.

    Raises:
        RecipeError: A name is none of the Hub.
    """
    for name in (base, target):
        if not is_model_id(name):
            raise RecipeError(f"{name!r} is no name of the Hub.", remedy="Give owner/name.")
    if '"' in package or not package.isprintable():
        raise RecipeError(f"{package!r} is nothing that pip installs.", remedy="Give a requirement, or git+https://….")
    arguments = ", ".join(repr(argument) for argument in ("zoo", "build", base, *options))
    pushed = ', "--create-pr"' if create_pr else ""
    return SCRIPT.format(base=base, target=target, package=package, flavor=flavor, arguments=arguments, push=pushed)


def submit(text: str, *, hub: Hub, flavor: str = FLAVOR, namespace: str | None = None) -> Submitted:
    """Start the script as a job of the Hub, with the caller's token as its secret.

    Raises:
        PublishError: Nobody is logged in, or the Hub refused.
        HubUnavailable: The network is switched off.
    """
    from huggingface_hub import get_token

    token = hub.api.token if isinstance(hub.api.token, str) else None if hub.api.token is False else get_token()
    if token is None:
        raise PublishError("A job needs a login.", remedy="Log in with `hf auth login`, or set HF_TOKEN.")
    with workspace() as folder:
        path = folder / "build_zoo.py"
        path.write_text(text, encoding="utf-8")
        with translated(Asked("the job", "", hub.endpoint, token_sent=True)):
            job = hub.send(
                lambda: hub.api.run_uv_job(
                    str(path),
                    flavor=flavor,
                    timeout=TIMEOUT,
                    secrets={"HF_TOKEN": token},
                    namespace=namespace,
                )
            )
    return Submitted(job.id, job.url)
