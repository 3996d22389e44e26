"""Try a trained Image GPT in a browser: it samples images, completes any part of one, and reads drawings.

    igpt app                           # the model that comes with the package, at http://127.0.0.1:7860
    igpt app runs/hoda --port 8000
    igpt app runs/hoda --space FOLDER  # fills a folder for a Space of the Hub instead: docs/space.md

Needs the extra `demo`: pip install 'igpt_hf[demo]'.
"""

import importlib.util
import socket
from pathlib import Path

from igpt_hf import IGPTError
from igpt_hf.cli import add_model_argument, command_parser, hide_library_bars, run_main
from igpt_hf.hub.loading import load_pretrained


def check_port(port: int):
    """Raise IGPTError unless `port` is free."""
    if port < 1:
        raise IGPTError(f"--port {port} cannot be used: name one from 1 to 65535, such as --port 7861.")
    with socket.socket() as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            test.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise IGPTError(f"--port {port} cannot be used ({error}): name another, such as --port 7861.") from error


def main():
    parser = command_parser("app", __doc__)
    add_model_argument(parser)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--space", type=Path, metavar="FOLDER", help="write a Space there, and serve nothing")
    args = parser.parse_args()
    if importlib.util.find_spec("gradio") is None:
        raise IGPTError(
            "the app needs Gradio: `make app` brings it, or pip install 'igpt_hf[demo]' (checkout: '.[demo]')."
        )
    hide_library_bars()
    if args.space is None:
        check_port(args.port)
    model, processor = load_pretrained(args.model)
    if args.space is not None:
        from igpt_hf.hub.space import write_space

        write_space(model, processor, args.space)
        print(f"a Space -> {args.space}; docs/space.md says how to push it")
        return
    from igpt_hf.app.page import launch

    app = launch(model, processor, server_port=args.port)
    print(f"the app is at {app.local_url} (Ctrl-C ends it)", flush=True)
    app.block_thread()


if __name__ == "__main__":
    run_main(main)
