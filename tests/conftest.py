"""What all tests share: no network, a cache of our own, one thread, and a tiny model in which every part counts."""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path


_home = tempfile.TemporaryDirectory(prefix="igpt_hf-tests-")  # removed when the process ends
os.environ.update(  # before the libraries read them; scripts inherit them
    HF_HUB_OFFLINE="1",
    HF_HOME=_home.name,
    HF_DATASETS_CACHE=os.path.join(_home.name, "datasets"),
    OMP_NUM_THREADS="1",
)
if os.environ.get("IGPT_TEST_WITHOUT_NUMBA"):  # here, and in the processes that tests start
    _hidden = str(Path(__file__).parent / "helpers" / "without_numba")
    sys.path.insert(0, _hidden)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_hidden, os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402
import torch  # noqa: E402

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor  # noqa: E402


pytest.register_assert_rewrite("helpers")  # their asserts explain themselves like those of tests
# 8x8 pixels are 16 tokens; the head size of 8 is the one that the reference model has.
TINY = {"image_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}


# Fixtures that launch a browser or a whole training: tests that ask for one are slow. Others have their own mark.
SLOW_FIXTURES = {"browser", "synthetic_run", "animals_run", "classifier_run"}


def pytest_collection_modifyitems(items):
    """Mark tests as slow by their fixtures: `make test-fast` leaves them out."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: results are the same each time, whatever a script has set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model():
    """Make a model with random weights everywhere, also in the head and the local mixing, which start at zero."""

    def make(seed: int = 0, **overrides) -> IGPTForCausalImageModeling:
        model = IGPTForCausalImageModeling(IGPTConfig(**TINY | overrides)).eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_processor() -> IGPTImageProcessor:
    return IGPTImageProcessor(image_size=TINY["image_size"], num_labels=TINY["num_labels"])


@pytest.fixture(scope="session")
def random_ids():
    """Make whole sequences: a class prompt and the tokens of an image, all random; (n, 1 + tokens)."""

    def make(config: IGPTConfig, n: int = 3, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        prompt = config.vocab_size + torch.randint(config.num_labels, (n, 1), generator=generator)
        tokens = torch.randint(config.vocab_size, (n, config.num_image_tokens), generator=generator)
        return torch.cat([prompt, tokens], dim=1)

    return make


@pytest.fixture
def library_warnings(caplog):
    """What transformers warns of; its logger does not pass records on by itself."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, as Debian packages it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install -e '.[test]'")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser):
    """Open addresses in windows of a given width; when the test ends, no console may show an error."""
    errors, pages = [], []

    def open_at(url: str, width: int = 1280, height: int = 900):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(90_000)  # a busy machine is no failure
        pages.append(page)
        page.goto(url)
        return page

    yield open_at
    for page in pages:
        page.close()
    assert errors == []
