"""A real nginx or HAProxy before the service, as service/deploy/ sets them up."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.support.polling import until
from tests.support.postgres import free_port
from tests.support.process import CHECKOUT, Service

DEPLOY = CHECKOUT / "service" / "deploy"
LISTEN = {"nginx.conf": "listen 8080", "haproxy.cfg": "bind :8080"}


def deployed(name: str, services: Sequence[Service], port: int, mode: str = "http") -> str:
    """Return the text of nginx.conf or haproxy.cfg with the ports of this run. One service serves as both instances."""
    text = (DEPLOY / name).read_text()
    if mode != "http":
        text = replaced(text, "mode http\n", f"mode {mode}\n")
    one, two = services[0].url.removeprefix("http://"), services[-1].url.removeprefix("http://")
    text = replaced(text, LISTEN[name], LISTEN[name].replace("8080", str(port)))
    return replaced(replaced(text, "127.0.0.1:8000", one), "127.0.0.1:8001", two)


def replaced(text: str, old: str, new: str) -> str:
    """Replace what stands in a configuration once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


@contextmanager
def running(program: str, configuration: str, port: int, probe: str = "/livez") -> Iterator[str]:
    """Run nginx or haproxy until the `with` block ends, and yield its URL."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "conf")
        file.write_text(configuration)
        argv = {
            "nginx": ["nginx", "-c", str(file), "-p", folder, "-g", f"daemon off; pid {folder}/pid; error_log stderr;"],
            "haproxy": ["haproxy", "-f", str(file)],
        }[program]
        proxy = subprocess.Popen(argv)
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: proxy.poll() is None and _answers(f"{url}{probe}"), "the proxy answers")
            yield url
        finally:
            proxy.terminate()
            proxy.wait()


@contextmanager
def before(name: str, *services: Service, mode: str = "http") -> Iterator[str]:
    """Run nginx with nginx.conf or HAProxy with haproxy.cfg before one or two services, and yield its URL."""
    port = free_port()
    with running(name.partition(".")[0], deployed(name, services, port, mode), port) as url:
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
