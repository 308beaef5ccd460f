"""The packages of the Fastify peer: npm installs the locked versions into a folder that git ignores."""

import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "peers" / "fastify"
LOCK = FOLDER / "package-lock.json"
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"  # npm writes it last


def install() -> str:
    """Install them unless they are there already; return why they cannot be had, or nothing."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not installed"
    if INSTALLED.exists() and INSTALLED.stat().st_mtime > LOCK.stat().st_mtime:
        return ""
    npm = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=FOLDER, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"npm ci failed: {npm.stderr.strip()}" if npm.returncode else ""
