"""What importing the package does, each time in a fresh interpreter."""

import pytest

from helpers.scripts import run_python


def run(code: str) -> str:
    return run_python("-c", code).stdout.strip()


def test_importing_loads_nothing_that_is_not_needed_yet():
    slow = ["datasets", "evaluate", "matplotlib", "gradio", "numba", "sklearn", "transformers.modeling_utils"]
    assert run(f"import igpt_hf, sys; print([name for name in {slow} if name in sys.modules])") == "[]"


@pytest.mark.slow
def test_every_public_name_can_be_fetched_and_others_cannot():
    run("from igpt_hf import *; import igpt_hf; assert set(igpt_hf.__all__) <= set(dir(igpt_hf))")
    assert run("import igpt_hf; print(hasattr(igpt_hf, 'nothing'))") == "False"


AUTO = "from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM\n"


@pytest.mark.slow
@pytest.mark.parametrize("imports", [AUTO + "import igpt_hf\n", "import igpt_hf\n" + AUTO], ids=["after", "before"])
def test_the_auto_classes_know_the_model_whatever_is_imported_first(imports, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    from igpt_hf import IGPTImageProcessor

    IGPTImageProcessor().save_pretrained(tmp_path)
    load = "print(type({}.from_pretrained({!r})).__name__)\n"
    names = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor"]
    output = run(imports + "".join(load.format(name, str(tmp_path)) for name in names))
    assert output.split() == ["IGPTConfig", "IGPTModel", "IGPTForCausalImageModeling", "IGPTImageProcessor"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AutoImageProcessor", "AutoModelForCausalLM"])
def test_one_auto_class_alone_is_enough(name, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    from igpt_hf import IGPTImageProcessor

    IGPTImageProcessor().save_pretrained(tmp_path)
    code = f"import igpt_hf, transformers; print(transformers.{name}.from_pretrained({str(tmp_path)!r}).__module__)"
    assert run(code).startswith("igpt_hf.")
