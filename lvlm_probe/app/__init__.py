"""The app: chat about images, and see in the page what made each word of the answer.

It is a thin face: what it shows is computed by recipes, and drawn by :mod:`lvlm_probe.viewer`. One module a tab, in
:mod:`lvlm_probe.app.tabs`. Needs the extra ``app``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_probe.errors import MissingExtraError

if TYPE_CHECKING:
    from lvlm_probe.app.service import Service

__all__ = ["check_extra", "serve"]

M_ARENA_MAX = -8  # of glibc's malloc.h


def check_extra() -> None:
    """Make sure that gradio is there.

    Raises:
        MissingExtraError: If it is not.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError(
            "the app needs gradio, which is not installed: pip install 'lvlm-probe[app]'"
        )


def serve(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    share: bool = False,
    block: bool = True,
    told: Callable[[str], None] | None = None,
) -> Any:
    """Serve the app until it is interrupted.

    Args:
        service: Whose model is asked.
        host: Address to listen on; only this machine by default.
        port: To listen on; 0 for any free one.
        share: Make it public through gradio's relay: whoever has the address can ask the model.
        block: Return only when it was interrupted; else at once, with the page, whose ``close()`` ends it.
        told: Called with the page's address once it is served.

    Raises:
        MissingExtraError: If gradio is not installed.
        OutputError: If the port is taken.
    """
    check_extra()
    _share_heaps()
    # Where gradio keeps uploads; read as components are made.
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(Path(service.folder) / "files")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from gradio.themes import Soft

    from lvlm_probe.app.page import CSS, HEAD, build_page
    from lvlm_probe.app.uploads import MOST_BYTES
    from lvlm_probe.errors import OutputError

    page = build_page(service)
    # Tabs draw side by side; the model itself is asked one at a time, by the service's turnstile.
    page.queue(default_concurrency_limit=32, max_size=512)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or _free(host),
            share=share,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            head=HEAD,
            css=CSS,
            theme=Soft(),
            quiet=True,
            footer_links=[],
        )
    except OSError as error:
        # Another app of this process goes on with its own folder.
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        service.close()
        raise OutputError(
            f"cannot listen on {host}:{port} ({error}): choose another --port, or 0 for any free one"
        ) from error
    if told is not None:
        told(url)
    if block:
        try:
            page.block_thread()
        finally:
            service.close()
    return page


def _free(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _share_heaps() -> None:
    """Let threads share two heaps: glibc gives each its own, and keeps what was freed in it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
