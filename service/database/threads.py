"""Work in the background for as long as the process lives."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

RESTART_DELAY = 0.5  # seconds


def start_thread(name: str, work: Callable[[], object]) -> threading.Thread:
    """Call `work` on a daemon thread. When it raises an exception, log that and call it again."""

    def run() -> object:
        while True:
            try:
                return work()
            except Exception:
                logger.exception("the thread %s failed and is started again", name)
                time.sleep(RESTART_DELAY)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
