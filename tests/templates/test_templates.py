"""The three files whose contract is shared, and what one must be able to rely on between them."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.template import trust_as_template

from plugins.modules.bareforge import Paths, sandbox
from tests.templates.render import ROOT, render, templar

GIVEN: dict[str, Any] = {
    "asgi_app_name": "shop",
    "asgi_app_module": "shop.main:create_app()",
    "asgi_app_source": "/src/shop",
    "asgi_app_required_units": ["bareforge-agent.service"],
}
SITE: dict[str, Any] = {
    "nginx_site_name": "shop",
    "nginx_site_upstream": "unix:/run/shop/app.sock",
    "nginx_site_server_names": ["shop.example"],
}


def gunicorn(**given: Any) -> dict[str, Any]:
    text = render(ROOT / "templates/gunicorn.conf.py.j2", "asgi_app", **{**GIVEN, **given})
    settings: dict[str, Any] = {}
    exec(compile(text, "gunicorn.conf.py", "exec"), settings)
    return settings


def unit(**given: Any) -> dict[str, list[str]]:
    text = render(ROOT / "templates/asgi-app.service.j2", "asgi_app", **{**GIVEN, **given})
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.M):
        found.setdefault(name, []).append(value)
    return found


def site(**given: Any) -> str:
    return render(ROOT / "templates/nginx-site.conf.j2", "nginx_site", **{**SITE, **given})


TLS = {"nginx_site_certificate": "/c.pem", "nginx_site_certificate_key": "/c.key"}


def test_gunicorn_carries_every_setting_of_the_practice() -> None:
    settings = gunicorn()
    assert settings["bind"] == "unix:/run/shop/app.sock"
    assert settings["wsgi_app"] == "shop.main:create_app()"
    assert settings["chdir"] == str(Path(sys.prefix).parent / "app")
    assert settings["workers"] == 2
    assert settings["worker_class"] == "bareforge_runtime.worker.Worker"
    assert settings["timeout"] == 60
    assert settings["graceful_timeout"] == 30
    assert settings["keepalive"] == 75
    assert settings["max_requests"] == 10000
    assert settings["max_requests_jitter"] == 5000
    assert settings["preload_app"] is False
    assert settings["reuse_port"] is False
    assert settings["proc_name"] == "shop"
    assert settings["accesslog"] == settings["errorlog"] == "-"


def test_gunicorn_takes_the_file(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "shop.py").write_text("async def app(scope, receive, send): ...\n")
    text = render(ROOT / "templates/gunicorn.conf.py.j2", "asgi_app", **{**GIVEN, "asgi_app_module": "shop:app"})
    # the directory beside the environment exists on a host only
    text = re.sub(r"^chdir = .*$", f"chdir = {str(tmp_path)!r}", text, flags=re.M)
    (tmp_path / "gunicorn.conf.py").write_text(text)
    command = [sys.executable, "-m", "gunicorn", "--check-config", "-c", str(tmp_path / "gunicorn.conf.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime/src")}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path).returncode == 0


def test_extra_lines_reach_gunicorn() -> None:
    assert gunicorn(asgi_app_gunicorn_extra="limit_request_line = 8190")["limit_request_line"] == 8190


def test_socket_path_is_the_same_everywhere() -> None:
    path = "/run/shop/app.sock"
    socket = render(ROOT / "roles/asgi_app/templates/socket.j2", "asgi_app", **GIVEN)
    assert f"ListenStream={path}" in socket
    assert gunicorn()["bind"] == f"unix:{path}"
    assert f"--socket {path} " in unit()["ExecStartPost"][0]
    assert f"server unix:{path} " in site()


@pytest.mark.parametrize(("timeout", "graceful"), [(60, 30), (120, 100)])
def test_timeouts_form_a_ladder(timeout: int, graceful: int) -> None:
    given = {"asgi_app_timeout": timeout, "asgi_app_graceful_timeout": graceful}
    settings, service = gunicorn(**given), unit(**given)
    assert settings["graceful_timeout"] < int(service["TimeoutStopSec"][0])
    assert int(service["TimeoutStartSec"][0]) > settings["graceful_timeout"] + 60


def test_the_application_keeps_connections_longer_than_nginx() -> None:
    seconds = re.search(r"keepalive_timeout (\d+)s;", site())
    assert seconds
    assert gunicorn()["keepalive"] > int(seconds[1])


def test_a_worker_drains_longer_than_nginx_keeps_an_idle_connection() -> None:
    environment = render(ROOT / "roles/asgi_app/templates/environment.j2", "asgi_app", **GIVEN)
    drain = re.search(r'^BAREFORGE_DRAIN_SECONDS="([\d.]+)"$', environment, re.M)
    idle = re.search(r"keepalive_timeout (\d+)s;", site())
    assert drain
    assert idle
    assert int(idle[1]) < float(drain[1]) < gunicorn()["graceful_timeout"]


def test_nginx_waits_longer_than_the_application() -> None:
    seconds = re.search(r"proxy_read_timeout (\d+)s;", site())
    assert seconds
    assert int(seconds[1]) > gunicorn()["timeout"]


def test_without_upstream_keepalive_every_request_has_its_own_connection() -> None:
    text = site(nginx_site_upstream_keepalive=0)
    assert "keepalive" not in text
    assert 'proxy_set_header Connection "close";' in text
    assert 'proxy_set_header Connection "";' in site()


def test_the_unit_follows_current_and_never_one_release() -> None:
    service = unit()
    assert service["ExecStart"] == [
        "/srv/shop/current/venv/bin/python /srv/shop/current/venv/bin/gunicorn -c /etc/shop/active/gunicorn.conf.py"
    ]
    assert "releases" not in str(service)
    assert service["PIDFile"] == ["/run/shop/gunicorn/gunicorn.pid"]
    assert service["KillMode"] == ["control-group"]


def test_the_unit_names_no_secret_and_no_setting() -> None:
    assert "Environment" not in unit()
    assert unit()["EnvironmentFile"] == ["/etc/shop/active/environment"]


def test_the_candidate_runs_in_the_sandbox_of_the_service() -> None:
    service = unit()
    text = render(ROOT / "templates/asgi-app.service.j2", "asgi_app", **GIVEN)
    properties = {item.removeprefix("--property=").split("=")[0] for item in sandbox(text)}
    assert {"User", "Group", "ProtectSystem", "SystemCallFilter", "PrivateTmp", "StateDirectory"} <= properties
    # what is about running the service must not leak into a transient unit
    left_out = set(service) - properties
    about_running = (
        "Description Requires After Wants StartLimitIntervalSec Type NotifyAccess PIDFile EnvironmentFile ExecStart "
        "ExecStartPost ExecReload KillMode TimeoutStartSec TimeoutStopSec Restart RestartSec RuntimeDirectory "
        "RuntimeDirectoryPreserve WantedBy"
    )
    assert left_out == set(about_running.split())


def test_a_reload_is_a_hand_over_by_the_engine() -> None:
    assert unit()["ExecReload"] == ["/usr/bin/python3 -I /usr/local/lib/bareforge/bareforge.py handover shop"]


def test_role_and_engine_agree_on_every_path() -> None:
    paths = Paths("shop")
    assert unit()["PIDFile"] == [str(paths.runtime / "gunicorn.pid")]
    assert unit()["EnvironmentFile"] == [str(paths.active / "environment")]
    assert unit()["ExecStart"][0].startswith(str(paths.current / "venv/bin/python"))
    environment = render(ROOT / "roles/asgi_app/templates/environment.j2", "asgi_app", **GIVEN)
    assert f'BAREFORGE_MARKERS="{paths.runtime}/workers"' in environment
    files = templar("asgi_app", **GIVEN).evaluate_expression(trust_as_template("__asgi_app_files"))
    assert set(files) == set(paths.files())


@pytest.mark.parametrize(
    "value",
    ["plain", "two words", 'quo"te', "back\\slash", "dol$lar", "tick`", "#hash", "trailing ", "'single'", "ünï"],
)
def test_systemd_reads_back_every_setting(value: str) -> None:
    text = render(
        ROOT / "roles/asgi_app/templates/environment.j2",
        "asgi_app",
        **{**GIVEN, "asgi_app_environment": {"SETTING": value}},
    )
    line = next(line for line in text.splitlines() if line.startswith("SETTING="))
    # the rules of systemd.exec(5): inside double quotes a backslash escapes " \ $ `
    quoted = line.removeprefix("SETTING=")
    assert quoted.startswith('"')
    assert quoted.endswith('"')
    assert re.sub(r'\\(["\\$`])', r"\1", quoted[1:-1]) == value


def test_site_with_certificate_redirects_http() -> None:
    text = site(**TLS)
    assert "return 308 https://$host$request_uri;" in text
    assert "listen 443 ssl;" in text
    assert "https://$host:8443$request_uri;" in site(**TLS, nginx_site_https_port=8443)
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text


def test_site_without_certificate_serves_http() -> None:
    text = site()
    assert "ssl" not in text
    assert text.count("listen 80;") == 1


def test_only_declared_proxies_are_believed() -> None:
    assert "set_real_ip_from" not in site()
    assert "set_real_ip_from 10.0.0.9;" in site(nginx_site_trusted_proxies=["10.0.0.9"])
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in site()


def test_the_scheme_that_the_client_used_reaches_the_application() -> None:
    header = "proxy_set_header X-Forwarded-Proto"
    assert f"{header} $scheme;" in site()
    assert f"{header} $scheme;" in site(**TLS, nginx_site_trusted_proxies=["10.0.0.9"])
    # a balancer that ends TLS says which scheme it was asked by
    assert f"{header} $http_x_forwarded_proto;" in site(nginx_site_trusted_proxies=["10.0.0.9"])


def test_posts_are_never_sent_twice() -> None:
    assert "non_idempotent" not in site()
    assert "proxy_http_version 1.1;" in site()


def test_socket_unit_belongs_to_the_web_servers_group() -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(render(ROOT / "roles/asgi_app/templates/socket.j2", "asgi_app", **GIVEN))
    assert dict(parser["Socket"]) == {
        "ListenStream": "/run/shop/app.sock",
        "SocketUser": "shop",
        "SocketGroup": "www-data",
        "SocketMode": "0660",
        "Backlog": "2048",
    }
