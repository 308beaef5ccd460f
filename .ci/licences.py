"""List name, version and licence of each component in the CycloneDX file that is named on the command line."""

import json
import sys
from pathlib import Path

for component in json.loads(Path(sys.argv[1]).read_text())["components"]:
    # An SPDX expression, an SPDX id, or a name of the package's own.
    found = [
        each.get("expression") or each["license"].get("id") or each["license"].get("name")
        for each in component.get("licenses", [])
    ]
    print(f"{component['name']:45}{component['version']:16}{' / '.join(found) or 'not declared'}")
