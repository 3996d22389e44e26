"""Where things are: the repository, its folders, and the real data beside it, which only some machines have."""

from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, BENCHMARKS, UTILS, EXAMPLES = ROOT / "scripts", ROOT / "benchmarks", ROOT / "utils", ROOT / "examples"
CONFIGS, DOCS = ROOT / "configs", ROOT / "docs"
HODA_FILE = ROOT.parent / "shared" / "data" / "hoda" / "RemainingSamples.cdb"
MNIST = ROOT.parent / "shared" / "data" / "mnist"
