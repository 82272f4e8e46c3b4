"""The recipe for Ray Serve: its settings, and a replica without Ray; with Ray where `ray[serve]` is there."""

import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from lightgen.core.errors import UserError

FOLDER = Path(__file__).parents[2] / "integrations" / "ray_serve"
PROMPT = {"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 2, "size": "32x32"}


def load_recipe():
    spec = importlib.util.spec_from_file_location("lightgen_app", FOLDER / "lightgen_app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def test_settings_are_checked_and_become_a_config():
    config = recipe.Settings(max_running=4, max_waiting=8, allowed_hosts=["pictures.example"]).server()
    assert config.queue.max_running == 4 and config.queue.max_waiting == 8
    assert config.allowed_hosts == ("pictures.example",) and not config.insecure_no_keys
    with pytest.raises(ValidationError, match="max_replica"):
        recipe.Settings(max_replica=2)


def test_replicas_are_given_enough_to_refuse_and_are_added_before_they_are_full():
    settings = recipe.Settings(max_running=4, max_waiting=8, drain_s=20)
    told = settings.deployment()
    scaling = told["autoscaling_config"]
    assert told["max_ongoing_requests"] > settings.max_running + settings.max_waiting
    assert scaling["target_ongoing_requests"] <= settings.max_running
    assert scaling["min_replicas"] == 1 and scaling["max_replicas"] == 4
    assert told["graceful_shutdown_timeout_s"] > settings.drain_s
    assert told["ray_actor_options"] == {"num_cpus": 2.0, "num_gpus": 0.0}


def test_the_config_file_says_what_the_recipe_takes():
    told = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    (application,) = told["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (FOLDER / f"{module}.py").is_file() and callable(vars(recipe)[name])
    settings = recipe.Settings(**application["args"])
    assert told["http_options"]["host"] == "127.0.0.1"
    assert told["http_options"]["request_timeout_s"] > settings.deadline_s


def test_the_app_is_bound_with_plain_values(monkeypatch, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    seen = {}

    def deployment(**options):
        seen["options"] = options
        return lambda made: SimpleNamespace(bind=lambda settings: (made, settings))

    ray = SimpleNamespace(serve=SimpleNamespace(deployment=deployment, ingress=lambda: lambda made: made))
    monkeypatch.setitem(sys.modules, "ray", ray)
    made, settings = recipe.app(recipe.Settings(api_key_file=keys))
    assert made is recipe.Replica and seen["options"]["name"] == "LightGen"
    assert recipe.Settings(**json.loads(json.dumps(settings))).api_key_file == keys
    with pytest.raises(UserError, match="api-key-file"):
        recipe.app(recipe.Settings(api_key_file=tmp_path / "none"))


def test_a_replica_without_keys_does_not_start(monkeypatch):
    monkeypatch.delenv("LIGHTGEN_API_KEYS", raising=False)
    with pytest.raises(UserError, match="insecure_no_keys"):
        recipe.Replica({})


def test_a_replica_draws_tells_its_health_and_keeps_no_jobs_beside_others():
    replica = recipe.Replica({"insecure_no_keys": True, "num_cpus": 1})
    with pytest.raises(RuntimeError):
        replica.check_health()
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        replica.check_health()
        answer = client.post("/v1/images/generations", json=PROMPT)
        assert answer.status_code == 200
        picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        assert picture.size == (32, 32)
        refused = client.post("/v1/images/generations?async=1", json=PROMPT)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "async"
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["nano"]
    with pytest.raises(RuntimeError):
        replica.check_health()
