"""The server of the page: one process on one port of this machine, which asks no other."""

import os
import socket
import tempfile
import webbrowser
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from mgen.utils.errors import MgenError, first_line, shown

if TYPE_CHECKING:
    from mgen.demo.models import Models

# What a browser may load: this page alone. Templates of gradio are compiled in the browser, hence unsafe-eval.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'"
FONTS = ("-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "Arial", "sans-serif")


class Policy:
    """ASGI middleware that sends POLICY with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, answer)


def check_gradio() -> None:
    """Raise MgenError unless gradio is installed; it isn't imported."""
    if find_spec("gradio") is None:
        raise MgenError('mgen demo needs gradio, which is not installed: pip install "mgen[demo]"')


def check_host(host: str) -> str:
    """The address of a host: "localhost" or an IP address; MgenError for anything else."""
    try:
        return str(ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError as error:
        raise MgenError(
            f"--host {shown(host)} is no address: give 127.0.0.1 (this machine alone), 0.0.0.0 (every network it is in) or one of its "
            "addresses"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; MgenError if the port is in use or the address is not this machine's."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        reason = error.strerror or first_line(error)
        raise MgenError(
            f"cannot listen on --host {host} --port {port} ({reason}): choose another port or address"
        ) from error
    return listening


def serve(models: "Models", listening: socket.socket, *, show: bool = False) -> None:
    """Serve the page until Ctrl-C, which is raised on. `show`: open it in the browser of this machine."""
    host, port = listening.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
    with tempfile.TemporaryDirectory(prefix="mgen-demo-") as folder:
        # Before gradio is imported, which reads them.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from mgen.demo.page import build_page
        from mgen.demo.style import CSS

        page = build_page(models).queue(api_open=False)
        app = FastAPI(openapi_url=None)
        app.add_middleware(Policy)

        app = gr.mount_gradio_app(
            app,
            page,
            path="/",
            server_name=host,
            server_port=port,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=("monospace",)).set(
                body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400"
            ),
            css=CSS,
        )
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        if show:
            webbrowser.open(url)
        # Pages that are open hold a connection: they are cut after a second, which uvicorn would log as errors.
        uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)).run(sockets=[listening])
