"""A folder that is a Space of the Hub: the app, its package, a model, and the Space's settings."""

import shutil
from importlib.metadata import requires, version
from pathlib import Path

from ..errors import IGPTError
from ..model.image_processing_igpt import IGPTImageProcessor
from ..model.modeling_igpt import IGPTForCausalImageModeling


# The settings at its head: https://huggingface.co/docs/hub/spaces-config-reference
README = Path(__file__).with_name("space_readme.md")
APP = """from pathlib import Path

from igpt_hf.app.page import launch
from igpt_hf.hub.loading import load_pretrained


launch(*load_pretrained(str(Path(__file__).with_name("model")))).block_thread()
"""


def write_space(model: IGPTForCausalImageModeling, processor: IGPTImageProcessor, folder: Path):
    """Fill a new folder with everything that a Space needs; nothing outside it is used.

    Raises:
        IGPTError: The folder is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise IGPTError(f"{folder} is not an empty folder: name a new one for the Space.")
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    needed = [line for line in requires("igpt_hf") if "extra ==" not in line]
    # Without this index pip would install the CUDA build of torch (several GB).
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *needed]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text(README.read_text(encoding="utf-8").format(gradio=version("gradio")))
    (folder / "app.py").write_text(APP)
