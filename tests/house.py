"""The rooms of service/, their lines, and the imports between them. `python -m tests.house` prints them."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SERVICE = Path(__file__).parents[1] / "service"

# Which rooms a room may import. The files beside the folders are rooms of their own.
MAY_IMPORT = {
    "telemetry": set[str](),
    "settings": set[str](),
    "machine": set[str](),
    "database": {"telemetry", "settings"},
    "web": {"telemetry", "settings", "database"},
    "users": {"web", "database", "machine"},
    "startup": {"settings", "database", "web"},
    "extras": {"telemetry", "settings", "machine", "database", "web", "users"},
    "app": {"telemetry", "settings", "machine", "database", "web", "users", "startup", "extras"},
    "__main__": {"telemetry", "settings", "database", "web", "startup", "extras", "app"},
}


def room_of(module: str) -> str:
    """Return the room of a module such as `service.web.endpoint`."""
    return module.split(".")[1]


def modules() -> dict[str, Path]:
    """Return every module of the service, by its name."""
    files = sorted(SERVICE.rglob("*.py"))
    names = (".".join(file.relative_to(SERVICE.parent).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imports(module: str) -> Iterator[str]:
    """Return the modules of the service that a module imports."""
    known = modules()
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "service":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)


def forbidden() -> list[str]:
    """Return each import that points the wrong way, in words."""
    return [
        f"{module} imports {imported}"
        for module in modules()
        if module != "service"
        for imported in imports(module)
        if room_of(imported) not in {room_of(module), *MAY_IMPORT[room_of(module)]}
    ]


def main() -> None:
    """Print the rooms and what each imports; fail on an import that is forbidden."""
    lines, files, arrows = defaultdict[str, int](int), defaultdict[str, int](int), defaultdict[str, set[str]](set)
    for module, file in modules().items():
        if module != "service":
            room = room_of(module)
            lines[room] += len(file.read_text().splitlines())
            files[room] += file.name != "__init__.py"
            arrows[room] |= {room_of(imported) for imported in imports(module)} - {room}
    print("room        files  lines  imports")
    for room in MAY_IMPORT:
        print(f"{room:10} {files[room]:6} {lines[room]:6}  {', '.join(sorted(arrows[room]))}")
    extras = lines["extras"]
    print(
        f"outside extras: {sum(files.values()) - files['extras']} files, {sum(lines.values()) - extras} lines;", end=" "
    )
    print(f"in all: {sum(files.values())} files, {sum(lines.values())} lines")
    if wrong := forbidden():
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
