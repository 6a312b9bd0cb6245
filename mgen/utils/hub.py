"""The Hugging Face hub: models by "owner/name", fetched into its cache, and uploads. huggingface_hub does the work, imported on use."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.files import write_text
from mgen.utils.schema import PathText, Text, build, schema

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SECONDS = 10  # to wait for the first answer; huggingface_hub itself would wait for minutes
# What a model is made of; never pickles.
FILES = ("*.json", "*.safetensors", "*.md", "*.txt")
STEM = "*diffusion_pytorch_model"


@schema
class HubOptions:
    """How a model is fetched, by the names of diffusers and huggingface_hub.

    Args:
        revision: branch, tag or commit. token: of the hub, by default that of `hf auth login`. cache_dir: in the place of the usual cache.
        local_files_only: from the cache alone. force_download: although it is in the cache.
    """

    revision: Text | None = None
    token: bool | Text | None = None
    cache_dir: PathText | None = None
    local_files_only: bool = False
    force_download: bool = False


HUB_KEYS = tuple(HubOptions.__dataclass_fields__)
LOCAL = ("models", "runs", "caches", "samples", "data", "checkpoints", "output", "outputs")  # no owners of models


def take_options(arguments: dict[str, Any]) -> HubOptions:
    """Remove the options of the hub from keyword arguments, and check them."""
    taken = {key: arguments.pop(key) for key in HUB_KEYS if key in arguments}
    given = {key: value for key, value in taken.items() if value is not None}
    if isinstance(given.get("cache_dir"), Path):
        given["cache_dir"] = str(given["cache_dir"])
    return build(HubOptions, given)


def is_hub_id(name: str | Path) -> bool:
    """Whether a text means a model on the hub: "owner/name", where there is no such path, nor a folder called "owner".

    Folders of the documentation's examples are nobody's: a path that is mistyped, or of another working directory, asks no server.
    """
    text = os.fspath(name)
    if text.partition("/")[0] in LOCAL:
        return False
    if not HUB_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        return False
    return not os.path.lexists(text) and not os.path.lexists(text.partition("/")[0])


def fetch(repo: str, options: HubOptions, *, subfolder: str = "", variant: str | None = None) -> Path:
    """The folder of a model on the hub, in the cache; files that are there are not fetched again, and serve without a connection.

    Args:
        repo: "owner/name". subfolder: fetch this part alone. variant: of the weights, such as "fp16".

    Raises:
        MgenError: there is no such model or revision, no access or no connection, and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    inside = f"{subfolder.strip('/')}/" if subfolder else ""
    # Variants are called STEM.fp16.safetensors, and shards STEM-00001-of-00002.safetensors.
    others = (
        (f"{STEM}.safetensors*", f"{STEM}-*")
        if variant
        else (f"{STEM}.*.safetensors", f"{STEM}.*-*", f"{STEM}*.index.*.json")
    )
    wanted: dict[str, Any] = {
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "allow_patterns": [inside + pattern for pattern in FILES] + ["pipeline.py"],
        "ignore_patterns": list(others),
    }
    why: Exception | None = None
    try:
        if not options.local_files_only:
            HfApi(token=options.token).model_info(repo, revision=options.revision, timeout=SECONDS)
            return Path(snapshot_download(repo, force_download=options.force_download, **wanted))
    except RevisionNotFoundError as error:
        raise _explained(error, repo, options) from error
    except Exception as error:  # the HTTP client below huggingface_hub is another one in each of its versions
        why = error
    try:
        return Path(snapshot_download(repo, local_files_only=True, **wanted))
    except (OSError, ValueError) as error:
        raise _explained(why or error, repo, options) from (why or error)


def push(
    save: Callable[[Path], None],
    card: str,
    repo: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> Any:
    """Upload what `save` writes into a folder to a model on the hub, which is made if there is none; returns its CommitInfo.

    Args:
        card: README.md, in a model that has none; not with a `subfolder`.

    Raises:
        MgenError: no access, no connection, or `repo` cannot be a name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if not isinstance(repo, str) or not repo:
        raise MgenError(f"repo_id is {shown(repo)}: expected the name of a model on the hub, such as owner/name")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        try:
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if subfolder is None and not api.file_exists(repo, "README.md"):
                write_text(Path(folder) / "README.md", card)
            return api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                path_in_repo=subfolder,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        except HFValidationError as error:
            raise MgenError(f"repo_id {shown(repo)} can't be a name on the hub: {first_line(error)}") from error
        except Exception as error:  # as above
            raise _explained(error, repo, None) from error


def model_card(title: str, about: str, code: str) -> str:
    """A README.md for the hub. The license is left to whoever uploads."""
    tags = "library_name: mgen\ntags:\n- mgen\n- diffusers\n- image-generation\n- masked-image-generation"
    return f"---\n{tags}\n---\n\n# {title}\n\n{about}\n\n```python\n{code.strip()}\n```\n"


def _explained(error: Exception, repo: str, options: HubOptions | None) -> MgenError:
    """What the hub answered, in a sentence. `options`: of a download, None: of an upload."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    hub, absent = constants.ENDPOINT, "" if options is None else f", and {repo} is neither a folder nor in the cache"
    if isinstance(error, errors.GatedRepoError):
        return MgenError(
            f"{repo} is on {hub} for users with permission: ask for it there, then `hf auth login` or token=…"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return MgenError(f"{repo} on {hub} has no revision {shown(options.revision if options else None)}")
    if options is None and status in (401, 403):
        return MgenError(f"{hub} lets you not write to {repo}: `hf auth login`, or give a token that may")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return MgenError(
            f"no model {repo!r}, neither a folder here nor on {hub}: check the name; if it is private, `hf auth login` or token=…"
        )
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return MgenError(
            f"no model {repo!r}, neither a folder here nor in the cache of {hub}, which is switched off (HF_HUB_OFFLINE or "
            "local_files_only)"
        )
    if status is not None:
        return MgenError(f"{hub} answered {status}{absent}: try again later")
    return MgenError(f"cannot reach {hub} ({first_line(error, 120)}){absent}: check the connection")
