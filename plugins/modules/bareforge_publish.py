#!/usr/bin/python
"""Documentation of bareforge_publish: the action plugin of the same name does it all, on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bareforge_publish
short_description: Publish a signed bundle of a fleet for hosts that converge by themselves
description:
  - Builds the application, copies playbooks, roles and inventories, signs a manifest of their hashes with an SSH key,
    and writes all of it to a directory on the controller, with the user data that starts a host from it.
  - Nothing is done on a host.
options:
  name: {description: Name of the application., type: str, required: true}
  store: {description: Directory on the controller., type: path, required: true}
  url: {description: "How hosts reach the store: a path, or an http, https or s3 URL.", type: str, default: the store}
  key: {description: "Private SSH key, or a public one whose private half ssh-agent has.", type: path, required: true}
  source: {description: "What to release, as for bareforge_release.", type: str, required: true}
  lock: {description: "Hashed lock file, absolute or relative to the source.", type: str, required: true}
  inventories: {description: What the hosts are configured by., type: list, elements: path, required: true}
  agent: {description: Whether the hosts have secrets from Vault., type: bool, required: true}
  target: {description: "python_version, machine and libc_version of the hosts.", type: dict, required: true}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Publish
  bareforge_publish:
    name: shop
    store: /srv/bareforge
    key: ~/.ssh/publish
    source: "{{ asgi_app_source }}"
    lock: requirements.lock
    inventories: "{{ ansible_inventory_sources }}"
    agent: true
    target: {python_version: 3.13.5, machine: x86_64, libc_version: "2.41"}
"""

RETURN = r"""
release: {description: The application's release., type: str, returned: always}
manifest: {description: Path of the signed manifest., type: str, returned: always}
sequence: {description: Number of the bundle; hosts take no older one., type: int, returned: always}
"""
