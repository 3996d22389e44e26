"""Share a trained Image GPT on the Hub: weights, code, card and pictures, in one commit.

    hf auth login                                           # once; or set HF_TOKEN
    python scripts/push_to_hub.py runs/hoda user/persian-digits [--private]

Others then load it in one line, with this package installed or not:

    AutoModelForCausalLM.from_pretrained("user/persian-digits", trust_remote_code=True)

Nothing in the local folder is changed. Checkpoints, logs and the training arguments are not uploaded.
"""

import argparse
import sys
import time
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from igpt_hf import DataError
from igpt_hf.loading import load_pretrained


PATTERNS = ("*.json", "*.safetensors", "*.py", "*.png", "README.md")
ATTEMPTS = 4


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("repo", metavar="user/name", help="where it goes on the Hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload Image GPT", help="of the commit")
    return parser.parse_args()


def operations(folder: Path, repo: str) -> list[CommitOperationAdd]:
    """The files to upload; the card tells how to load the model from its new place."""
    adds = []
    for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}):
        content = path.read_bytes()
        if path.name == "README.md":
            content = content.replace(f'from_pretrained("{folder}")'.encode(), f'from_pretrained("{repo}")'.encode())
        adds.append(CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=content))
    return adds


def with_retries(request):
    """Do it again, after a pause, if the connection breaks in the middle."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except httpx2.TransportError as error:
            if attempt == ATTEMPTS:
                raise DataError(f"the Hub cannot be reached ({error}); nothing was lost, try again later.") from error
            print(f"connection lost ({error}); attempt {attempt + 1} of {ATTEMPTS}", file=sys.stderr)
            time.sleep(2 ** (attempt - 1))


def push(folder: Path, repo: str, private: bool, message: str) -> str:
    """Upload a model; returns the address of the commit.

    Raises:
        DataError: No model in the folder, no token, no permission, or no connection.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.")
    load_pretrained(str(folder))  # an error here is better than a broken repository there
    if get_token() is None:
        raise DataError("there is no token: log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    try:
        name = with_retries(lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
        commit = with_retries(
            lambda: api.create_commit(name, operations=operations(folder, name), commit_message=message)
        )
    except HFValidationError as error:
        raise DataError(f"{repo} is no name for a repository (user/name): {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise DataError(
                f"the Hub refused ({status}): this token may not write to {repo}. Check the name and the token's "
                "permissions (hf auth whoami)."
            ) from error
        raise DataError(f"the Hub answered {status}: {error}") from error
    return commit.commit_url


def main():
    args = parse_arguments()
    print(push(args.model, args.repo, args.private, args.message))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
