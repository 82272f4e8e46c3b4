"""What deploys the server: images, compose file, unit and proxies say nothing that is not so."""

import configparser
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SECRET = re.compile(r"key|secret|token|password", re.IGNORECASE)


def instructions(text):
    """(Word, rest) of each instruction of a Dockerfile, continued lines joined, comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


DOCKERFILE = instructions((DEPLOY / "Dockerfile").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def last(word):
    return [rest for each, rest in DOCKERFILE if each == word][-1]


def ignored(name):
    """Whether the image's build context leaves a file out; of several patterns the last counts."""
    is_out = False
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.strip().lstrip("!").removeprefix("**/")
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(name, pattern):
            is_out = not line.startswith("!")
    return is_out


def served(arguments, monkeypatch, tmp_path):
    """(Config, models) that `lightgen serve` would run with these arguments, whose files are stood in for."""
    from lightgen.cli.main import main

    keys, found = tmp_path / "keys", []
    keys.write_text("0123456789abcdef0123\n")
    monkeypatch.setattr(
        "lightgen.serve.run.serve", lambda config, models, safety: found.append((config, models))
    )
    told = [str(keys) if each.endswith("api_keys") else each for each in arguments]
    assert main(["serve", *told]) == 0
    return found[0]


def test_the_image_copies_what_is_there_and_nothing_secret():
    words = {word for word, _ in DOCKERFILE}
    assert words >= {"FROM", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"} and "ADD" not in words
    for word, rest in DOCKERFILE:
        if word == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists() and not ignored(source), source
        if word in ("ENV", "ARG"):
            assert not SECRET.search(rest), rest
        if word == "RUN" and "pip install" in rest:
            assert "-c constraints.txt" in rest
    for name in (".git", "runs", "deploy", ".venv", "tests", ".env"):
        assert ignored(name), name


def test_the_image_runs_as_nobody_special_and_writes_below_tmp():
    user, _, group = last("USER").partition(":")
    assert int(user) > 0 and int(group) > 0
    assert f"--uid {user}" in " ".join(rest for word, rest in DOCKERFILE if word == "RUN")
    environment = dict(part.split("=", 1) for part in shlex.split(last("ENV")))
    assert environment["HOME"] == "/tmp" and environment["XDG_CACHE_HOME"].startswith("/tmp/")
    assert environment["HF_HUB_OFFLINE"] == environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert last("WORKDIR") == "/tmp"


def test_the_image_has_the_files_that_the_server_gives():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "lightgen"
    named = {each for pattern in told["lightgen"] for each in package.glob(pattern)}
    page = [each for each in (package / "serve" / "page").rglob("*") if each.is_file()]
    assert page and [each.name for each in page if each not in named and each.suffix != ".py"] == []


def test_the_images_commands_are_ones_that_the_command_line_takes(monkeypatch, tmp_path):
    program = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    assert program[:2] == ["lightgen", "serve"]
    config, models = served(program[2:], monkeypatch, tmp_path)
    assert models == {"nano": "nano"} and config.api_key_file is not None
    assert config.host == "0.0.0.0" and not config.insecure_no_keys
    assert str(config.port) == last("EXPOSE")


def test_the_health_check_asks_the_server_itself():
    _, _, command = last("HEALTHCHECK").partition(" CMD ")
    program = json.loads(command)
    assert program[:2] == ["python3", "-c"]
    compile(program[2], "healthcheck", "exec")
    assert f"127.0.0.1:{last('EXPOSE')}/ready" in program[2]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_each_service_is_closed_up(name, monkeypatch, tmp_path):
    service = COMPOSE["services"][name]
    assert service["profiles"] == [name]
    assert [each.rpartition(":")[0] for each in service["ports"]] == ["127.0.0.1:8000"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["pids_limit"] and service["restart"] == "unless-stopped"
    assert all(each["read_only"] for each in service["volumes"])
    assert any(each.startswith("/tmp:") for each in service["tmpfs"])
    assert service["secrets"] == ["api_keys"] and set(COMPOSE["secrets"]) == {"api_keys"}
    assert not any(SECRET.search(each) for each in service["environment"])
    arguments = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", each) for each in service["command"]]
    assert "/run/secrets/api_keys" in arguments
    config, _ = served(arguments, monkeypatch, tmp_path)
    assert float(service["stop_grace_period"].removesuffix("s")) > config.drain_s
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]) == DEPLOY / ".." / "deploy" / "Dockerfile"
    known = {rest.split("=")[0] for word, rest in DOCKERFILE if word == "ARG"}
    assert set(build["args"]) <= known


def test_only_the_gpu_service_reserves_one():
    devices = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in COMPOSE["services"]["cpu"]


def test_keys_are_kept_out_of_version_control():
    path = COMPOSE["secrets"]["api_keys"]["file"]
    run = subprocess.run(["git", "-C", str(DEPLOY), "check-ignore", "-q", path], check=False)
    assert run.returncode in (0, 128)  # 128: outside a checkout
    assert not (DEPLOY / path).exists() or run.returncode == 0


@pytest.fixture
def unit():
    found = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    found.optionxform = str  # systemd's names have capitals
    found.read(DEPLOY / "lightgen.service")
    return found


def test_the_unit_starts_a_server_that_the_command_line_takes(unit, monkeypatch, tmp_path):
    program = shlex.split(unit["Service"]["ExecStart"])
    assert program[0].endswith("/lightgen") and program[1] == "serve"
    config, _ = served(program[2:], monkeypatch, tmp_path)
    assert config.host == "127.0.0.1"
    assert float(unit["Service"]["TimeoutStopSec"]) > config.drain_s
    name = unit["Service"]["LoadCredential"].partition(":")[0]
    assert f"%d/{name}" in program


def test_systemd_understands_the_unit(unit, tmp_path):
    text = (DEPLOY / "lightgen.service").read_text()
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    path = tmp_path / "lightgen.service"
    path.write_text(text.replace(shlex.split(unit["Service"]["ExecStart"])[0], sys.executable))
    if shutil.which("systemd-analyze"):  # where there is none, the rest of the test still holds
        command = ["systemd-analyze", "verify", "--man=no", str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0 and "lightgen.service" not in run.stderr, run.stderr


def test_proxies_pass_streams_on_and_keep_metrics_to_themselves():
    nginx = (DEPLOY / "nginx.conf").read_text()
    assert nginx.count("{") == nginx.count("}")
    assert "proxy_buffering off;" in nginx and nginx.count("proxy_set_header Host $http_host;") == 2
    assert re.search(r"location = /metrics \{[^}]*deny all;", nginx)
    caddy = (DEPLOY / "Caddyfile").read_text()
    assert caddy.count("{") == caddy.count("}")
    assert "\tflush_interval" not in caddy and "respond @metrics 404" in caddy
