"""Export a trained Image GPT into a page that samples and completes in the browser, without a server.

    igpt export demo runs/synthetic page    # then open page/index.html
    igpt export demo runs/letters letters --subject "Arabic letters"

Makes the folder, or replaces the model in an existing page. Only weights.js depends on the model: configuration,
and the weights in base64. docs/demo has such a page, of the bundled "persian-digits".
"""

from pathlib import Path

from igpt_hf import IGPTError
from igpt_hf.cli import add_model_argument, command_parser, hide_library_bars, run_main
from igpt_hf.hub.export import copy_page, page_script
from igpt_hf.hub.loading import load_pretrained


def main():
    parser = command_parser("export demo", __doc__)
    add_model_argument(parser, is_optional=False)
    parser.add_argument("page", type=Path, help="folder of the page: a new one, or one that has igpt.js")
    parser.add_argument("--subject", default="images", help='what the model draws, for the text: "Arabic letters"')
    args = parser.parse_args()
    is_new = not args.page.exists()
    if not is_new and not (args.page / "igpt.js").is_file():
        raise IGPTError(f"{args.page} exists but holds no page (igpt.js): name a new folder.")
    hide_library_bars()
    model, _ = load_pretrained(args.model)
    script = page_script(model, args.subject)  # or an error, before there is a folder
    if is_new:
        copy_page(args.page)
    weights = args.page / "weights.js"
    weights.write_text(script)
    print(f"{model.num_parameters():,} weights -> {weights} ({weights.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    run_main(main)
