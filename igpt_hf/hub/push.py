"""Sharing on the Hub: which files are uploaded, retries after a lost connection, and errors that a user can act on."""

import json
import logging
import re
import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from ..errors import IGPTError


logger = logging.getLogger(__name__)

PATTERNS = ("*.json", "*.safetensors", "*.py", "*.png", "README.md")  # no checkpoints and training arguments
STAYS = ("trainer_state.json", "data.png")  # the log, and training images as they are, which may not be given away
SOURCES = ("data", "model", "model_name_or_path")  # what results say of where things were
ATTEMPTS = 4


def push_folder(
    folder: Path,
    repo: str,
    private: bool | None = None,
    message: str = "Upload Image GPT",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload the model in a folder in one commit; returns the commit's address. The folder stays as it is.

    Args:
        folder: Of a finished run, or wherever a model was saved.
        repo: `user/name`; created if it does not exist.
        private: Whether a new repository is.
        message: Of the commit.
        revision: Branch; the main one unless given.
        token: Of the Hub; the one that is logged in unless given.

    Raises:
        IGPTError: No token, no permission, a bad name, or no connection.
    """
    if Path(repo).is_absolute() or repo.startswith((".", "~")) or repo.count("/") > 1:
        raise IGPTError(
            f"{repo} is a path and no repository of the Hub (user/name): to have the model there, copy it."
        )
    api = HfApi(token=token)
    name = retry_hub_request(lambda: api.create_repo(repo, private=private, exist_ok=True), repo, token).repo_id

    def commit():
        return api.create_commit(name, _additions(folder, name), commit_message=message, revision=revision)

    return retry_hub_request(commit, repo, token).commit_url


def _additions(folder: Path, repo: str) -> list[CommitOperationAdd]:
    """The files to upload; the card says how to load the model from its new place, and no file where others were."""
    paths = sorted({path for pattern in PATTERNS for path in folder.glob(pattern)} - {folder / name for name in STAYS})
    return [CommitOperationAdd(path.name, _content(path, repo)) for path in paths]


def _content(path: Path, repo: str) -> Path | bytes:
    if path.name == "README.md":
        return _card_for(path, repo)
    return _without_folders(path) if path.suffix == ".json" else path


def _without_folders(path: Path) -> Path | bytes:
    """The results of a run or an evaluation, with the names of local files and folders but not the way to them."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return path
    if not isinstance(results, dict):
        return path
    sources = {name: _name_of(results[name]) for name in SOURCES if isinstance(results.get(name), str)}
    if all(results[name] == shown for name, shown in sources.items()):
        return path
    return json.dumps(results | sources, indent=2, ensure_ascii=False).encode()


def _name_of(source: str) -> str:
    """A source as `load_splits` takes it, without folders; an id on the Hub stays as it is."""
    parts = [part.strip() for part in source.split(",")]
    is_local = [part.startswith(("/", "~", ".")) or "\\" in part or Path(part).exists() for part in parts]
    return ",".join(Path(part).resolve().name if local else part for part, local in zip(parts, is_local, strict=True))


def _card_for(path: Path, repo: str) -> bytes:
    text = path.read_text(encoding="utf-8")
    local = re.search(r'from_pretrained\(("[^"]+")', text)
    return (text if local is None else text.replace(local[1], f'"{repo}"')).encode()


def retry_hub_request(request, repo: str, token: str | None = None):
    """Return what a request to the Hub returns; do it again, after a pause, if the connection breaks in the middle.

    Raises:
        IGPTError: No token, no permission, a bad name, or no connection after four attempts.
    """
    if (token or get_token()) is None:
        raise IGPTError("no token was found: log in with `hf auth login`, or set HF_TOKEN.")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except ConnectionError as error:  # the client is told to stay offline
            raise IGPTError(f"the Hub is out of reach: {error}") from error
        except HFValidationError as error:
            raise IGPTError(f"{repo} is not a valid repository name (user/name): {error}") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise IGPTError(
                    f"the Hub refused ({status}): this token may not write to {repo}. Check the name and the token's "
                    "permissions (hf auth whoami)."
                ) from error
            raise IGPTError(f"the Hub answered {status}: {' '.join(str(error).split())}") from error
        except ValueError as error:  # what the Hub says of a card's metadata
            raise IGPTError(f"README.md was not accepted: {' '.join(str(error).split())}") from error
        except HTTPError as error:  # there was no answer; the class is httpx's or, from huggingface_hub 2 on, httpx2's
            if attempt == ATTEMPTS:
                raise IGPTError(f"the Hub cannot be reached ({error}); nothing was lost, try again later.") from error
            logger.warning("connection lost (%s); attempt %d of %d", error, attempt + 1, ATTEMPTS)
            time.sleep(2 ** (attempt - 1))
