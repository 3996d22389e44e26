"""The models in the box: small trained checkpoints that come with the package, so that nothing need be downloaded."""

from pathlib import Path
from typing import overload

from ..errors import IGPTError


FOLDER = Path(__file__).resolve().parents[1] / "bundled"
DEFAULT_MODEL = "persian-digits"  # of the commands, where no model is named
SURE = 0.999  # `min_posterior` where people want to see good images, not the model as it is


@overload
def bundled() -> list[str]: ...
@overload
def bundled(name: str) -> str: ...
def bundled(name: str | None = None) -> list[str] | str:
    """List the names of the package's own models or, given a name, return the model's folder.

    ```python
    model = IGPTForCausalImageModeling.from_pretrained(bundled("persian-digits"))
    ```

    Raises:
        IGPTError: There is no model of this name; the message lists those that there are.
    """
    names = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
    if name is None:
        return names
    if name not in names:
        raise IGPTError(f"there is no bundled model {name!r}; there are: {', '.join(names) or 'none'}.")
    return str(FOLDER / name)


def find_bundled(name: str) -> str:
    """The folder of the bundled model of this name, unless something else here has the name; otherwise the name."""
    return bundled(name) if name in bundled() and not Path(name).exists() else name
