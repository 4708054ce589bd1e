#!/usr/bin/python
"""Write several small files, directories and links of a host in one execution."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bareforge_files
short_description: Write several small files, directories and links at once
description:
  - One execution where M(ansible.builtin.file) and M(ansible.builtin.copy) take one or two for each path.
  - A file is replaced as a whole, after its content has reached the disk.
  - Directories come first, then files, then links, each in the order given.
options:
  directories:
    description: Absolute paths, created with their parents with mode 0755.
    type: list
    elements: path
    default: []
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole content., type: str, required: true}
      mode: {description: Mode in octal., type: str, default: "0644"}
  links:
    description: Symbolic links, path to target. A file or directory in the place of a link is refused.
    type: dict
    default: {}
  owner: {description: Owner of all of them., type: str, default: root}
  group: {description: Group of all of them., type: str, default: root}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Configure the service
  bareforge_files:
    directories: [/etc/forge]
    files:
      - {path: /etc/forge/config.json, content: "{{ lookup('ansible.builtin.template', 'config.json.j2') }}"}
    links: {/usr/local/bin/forge: /opt/forge/current/bin/forge}
"""

RETURN = r"""
paths: {description: The paths that were not as declared., type: list, returned: success}
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class Files:
    """Brings paths to what is declared and remembers what was not."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._owner = {key: module.params[key] for key in ("owner", "group")}
        self.paths: list[str] = []
        self.diff: list[dict[str, str]] = []

    def directory(self, path: str) -> None:
        """Create a directory with its parents, with mode 0755."""
        missing = [parent for parent in (Path(path), *Path(path).parents) if not parent.is_dir()]
        if missing:
            self._note(path, "absent\n", "directory\n")
            if self._module.check_mode:
                return
        for parent in reversed(missing):
            parent.mkdir()
            # not by mkdir, which asks the umask
            parent.chmod(0o755)
        self._attributes(path, "0755")

    def file(self, path: str, content: str, mode: str) -> None:
        """Replace a file whose content differs; the new one is on the disk before it takes the name."""
        place, wanted = Path(path), content.encode()
        held = place.read_bytes() if place.exists() else None
        if held != wanted:
            self._note(path, (held or b"").decode(errors="replace"), content)
            if self._module.check_mode:
                return
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".bareforge-", delete=False) as new:
                new.write(wanted)
                new.flush()
                os.fsync(new.fileno())
            # with the mode it is to have: nobody may see it with another one
            Path(new.name).chmod(int(mode, 8))
            self._module.atomic_move(new.name, path, keep_dest_attrs=False)
        self._attributes(path, mode)

    def link(self, path: str, target: str) -> None:
        """Point a symbolic link to its target."""
        place = Path(path)
        if not place.is_symlink() and place.exists():
            kind = "directory" if place.is_dir() else "file"
            self._module.fail_json(
                msg=f"{path} is to be a link to {target} but is a {kind}; move it away and run again"
            )
        held = str(place.readlink()) if place.is_symlink() else ""
        if held == target:
            return
        self._note(path, f"{held}\n" if held else "absent\n", f"{target}\n")
        if not self._module.check_mode:
            beside = Path(f"{path}.bareforge-new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(target)
            beside.replace(path)

    def _note(self, path: str, before: str, after: str) -> None:
        self.paths.append(path)
        self.diff.append({"before_header": path, "before": before, "after_header": path, "after": after})

    def _attributes(self, path: str, mode: str) -> None:
        declared: dict[str, Any] = {"path": path, "mode": mode, **self._owner}
        arguments = self._module.load_file_common_arguments(declared)
        if self._module.set_fs_attributes_if_different(arguments, False) and path not in self.paths:
            self._note(path, "other owner or mode\n", f"{':'.join(self._owner.values())} {mode}\n")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "default": []},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "links": {"type": "dict", "default": {}},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
        },
        supports_check_mode=True,
    )
    files = Files(module)
    try:
        for path in module.params["directories"]:
            files.directory(path)
        for entry in module.params["files"]:
            files.file(entry["path"], entry["content"], entry["mode"])
        for path, target in module.params["links"].items():
            files.link(path, target)
    except OSError as failure:
        module.fail_json(
            msg=f"cannot write {failure.filename}: {failure.strerror}; correct it on the host and run again"
        )
    module.exit_json(changed=bool(files.paths), paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
