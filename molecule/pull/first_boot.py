"""What cloud-init does with user data of write_files and runcmd."""

import base64
import gzip
import json
import subprocess
import sys
from pathlib import Path

head, _, data = Path(sys.argv[1]).read_text().partition("\n")
if head != "#cloud-config":
    sys.exit(f"{sys.argv[1]} begins with {head!r}, which cloud-init takes for no configuration")
given = json.loads(data)
for file in given["write_files"]:
    path = Path(file["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = file["content"].encode()
    path.write_bytes(gzip.decompress(base64.b64decode(content)) if file.get("encoding") == "gz+b64" else content)
    path.chmod(int(file["permissions"], 8))
for command in given["runcmd"]:
    subprocess.run(command, check=True)
