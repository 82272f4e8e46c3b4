"""One replica of the recipe on a local Ray Serve: a picture, a stream, a client that leaves; told as JSON.

Needs ray[serve] beside lightgen[serve]: python integrations/ray_serve/try_it.py
"""

import base64
import contextlib
import io
import json
import sys
import time
from pathlib import Path

import httpx
import ray
from PIL import Image
from ray import serve

FOLDER = Path(__file__).parent
PORT = 8917
PROMPT = {"prompt": "a photo of a dog", "seed": 3, "num_inference_steps": 2, "size": "32x32"}
LONG = {"prompt": "a photo of a dog", "seed": 3, "preset": "exact", "num_inference_steps": 200}


def main() -> None:
    """Print what was seen."""
    sys.path.insert(0, str(FOLDER))
    import lightgen_app

    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(FOLDER)}})
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    settings = lightgen_app.Settings(insecure_no_keys=True, min_replicas=1, max_replicas=1, num_cpus=1)
    serve.run(lightgen_app.app(settings), route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as client:
        seen = {"picture": picture(client), **stream(client), "running_after_leaving": leave(client)}
    serve.shutdown()
    ray.shutdown()
    sys.stdout.write(f"\n{json.dumps(seen)}\n")


def picture(client: httpx.Client) -> list[int]:
    """Size of a picture that was drawn."""
    answer = client.post("/v1/images/generations", json=PROMPT)
    answer.raise_for_status()
    return list(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))).size)


def stream(client: httpx.Client) -> dict[str, object]:
    """Events of a stream, and how many parts it came in before its end."""
    events, times = [], []
    asked = {**PROMPT, "num_inference_steps": 8, "stream": True, "partial_images": 3}
    with client.stream("POST", "/v1/images/generations", json=asked) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                events.append(line.removeprefix("event: "))
                times.append(time.monotonic())
    return {
        "events": events,
        "partial": events.count("image_generation.partial_image"),
        "s": times[-1] - times[0],
    }


def leave(client: httpx.Client) -> float:
    """Pictures that run some time after a client has left."""
    with contextlib.suppress(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=LONG, timeout=1.0)
    time.sleep(3.0)
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("lightgen_running ")))


if __name__ == "__main__":
    main()
