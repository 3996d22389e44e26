"""Export one decoding step of a trained Image GPT, with its cache, as ONNX.

    igpt export onnx runs/synthetic --output step.onnx

Needs the extra `onnx`: pip install 'igpt_hf[onnx]'. For a model of L layers, H heads of D channels and V tokens:

    in   input_ids (B, S) int64: the prompt and all tokens so far; keys, values (L, B, H, S - 1, D) float32
    out  logits (B, V) of the next token; new_keys, new_values (L, B, H, S, D) for the next step

The first step has S = 1 (the prompt alone) and empty keys and values. `igpt_hf.hub.export.DecodingStep` is
the same in torch.
"""

import logging
import warnings
from pathlib import Path

from igpt_hf.cli import add_model_argument, check_output, command_parser, hide_library_bars, run_main
from igpt_hf.hub.export import export_onnx
from igpt_hf.hub.loading import load_pretrained


def main():
    parser = command_parser("export onnx", __doc__)
    add_model_argument(parser, is_optional=False)
    parser.add_argument("--output", type=Path, default=Path("step.onnx"))
    args = parser.parse_args()
    check_output(args.output, suffixes=(".onnx", ""))
    hide_library_bars()
    model, _ = load_pretrained(args.model)
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own names for axes
        export_onnx(model, args.output)
    print(f"one decoding step -> {args.output} ({args.output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    run_main(main)
