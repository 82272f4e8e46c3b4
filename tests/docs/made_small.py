"""How the commands of the documents are made small, and which of them only a reader's machine can run."""

_FEW_STEPS = "--fit.num-steps 2 --fit.global-batch-size 4 --fit.precision fp32 --run.save-every 2 "
_DRAW_LITTLE = "--prompts.num 6 --images-per-prompt 1 --student.preset fast --student.precision fp32 "
_JUDGE_LITTLE = _DRAW_LITTLE + "--judge.self-test.num-prompts 12 --bootstrap.resamples 100"
_ENCODE_LITTLE = "--sizes 64 --batch-size 4 --precision fp32 --text.length 48 --text.precision fp32"
_TINY_PIPELINE = "--teacher.model {pipeline} --teacher.dtype fp32 --height 32 --width 32"

# Options that follow the document's own, by command and recipe; a later option counts.
SMALLER = {
    "generate": "--steps 2 --head-steps 2",
    "inpaint": "--steps 2 --head-steps 2",
    "compare": "",
    "inspect": "--samples 4",
    "doctor": "",
    "doctor pretrain-nano": "",
    "doctor pretrain-256-24gb": "",
    "import-checkpoint": "--num-heads 2",
    "export-checkpoint": "",
    "caption grammar": "--source.num 8",
    "caption nano": "--source.num 12",
    "distill nano-teacher": "--prompts.num 12",
    "distill nano-teacher-imperfect": "--prompts.num 12",
    "distill student": "--prompts.num 8 --images-per-prompt 3 --teacher.preset fast --teacher.precision fp32",
    "distill flux-schnell": _TINY_PIPELINE,
    "curate nano": "",
    "curate public": "--limits.min-side 16 --limits.columns clip_score 0 None",
    "curate diverse": "--selection.num 8",
    "encode nano": "",
    "encode paper": _ENCODE_LITTLE,
    "encode paper-256": _ENCODE_LITTLE,
    "train finetune-nano": _FEW_STEPS + "--fit.schedule.warmup-steps 1",
    "train lora-nano": _FEW_STEPS + "--fit.schedule.warmup-steps 1",
    "train dpo-nano": _FEW_STEPS + "--fit.schedule.warmup-steps 1",
    "train pretrain-nano": "--fit.num-steps 4 --fit.global-batch-size 2 --fit.precision fp32 "
    "--fit.held-out 2 --fit.schedule.warmup-steps 1 --fit.schedule.decay-steps 1 --run.compile False "
    "--run.save-every 2 --run.keep-every 2 --run.held-out-every 2 --run.log-every 1",
    "rank verdict": "",
    "rank source": "",
    "rank clip-score": "--scorer.model {clip}",
    "rank pick-score": "--scorer.model {clip}",
    "align nano": "--rounds 1 --sample.prompts.num 6 --sample.images-per-prompt 3 --sample.teacher.preset "
    "fast --sample.teacher.precision fp32 --train.fit.num-steps 2 --train.fit.global-batch-size 2 "
    "--train.fit.precision fp32 --train.fit.schedule.warmup-steps 1 "
    + " ".join(f"--validate.{each}" for each in ("prompts.num 5", "images-per-prompt 1"))
    + " --validate.judge.self-test.num-prompts 12 --test.prompts.num 6 --test.images-per-prompt 1 "
    "--test.judge.self-test.num-prompts 12",
    "evaluate nano-geneval": _JUDGE_LITTLE,
    "evaluate nano-geneval-256": _JUDGE_LITTLE,
    "evaluate nano-report": _JUDGE_LITTLE + " --fidelity.subsets 2 --fidelity.neighbors 2",
    "evaluate nano-geneval2": _DRAW_LITTLE,
    "benchmarks/curve.py": "",
    "benchmarks/gpu_weights.py": "",
}

# By reason, to the letter: what this machine cannot run, or what another test runs.
ONLY_PARSED = {
    "tests/serve asks a server of every kind, and this one would listen until it is told to end": [
        ".venv/bin/lightgen serve",
        "lightgen serve",
        "lightgen serve --model runs/mine --model other=runs/other",
        "lightgen serve --host 0.0.0.0 --api-key-file keys.txt",
        "lightgen serve --allowed-host pictures.example --api-key-file keys.txt",
        "lightgen serve --model runs/my/preferred --model nano=nano",
    ],
    "needs several GPUs or machines; tests/training and tests/stages start ranks and workers of ray": [
        "torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m -- lightgen.cli.main train "
        "pretrain-256 --in runs/latents-256 --start runs/start --out runs/lightgen-256",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d "
        "--rdzv-endpoint $HEAD:29500 --rdzv-id lightgen-256 --max-restarts 3 -m -- lightgen.cli.main train "
        "pretrain-256 --in runs/latents-256 --start runs/start --out runs/lightgen-256",
        "torchrun --standalone --nproc-per-node 8 -m -- lightgen.cli.main evaluate geneval --in runs/student "
        "--out runs/geneval",
        "lightgen distill flux-schnell --in runs/captions --out runs/images --engine ray --workers 8 "
        "--worker-gpus 1",
        "lightgen distill flux-schnell --in /shared/captions --out /shared/images --engine ray --workers 64 "
        "--worker-gpus 1 --ray-address auto",
        "lightgen curate public --in /shared/images --out /shared/curated --engine ray --workers 256 "
        "--ray-address auto",
        "lightgen encode paper-256 --in /shared/curated --start /shared/start --out /shared/latents "
        "--engine ray --workers 64 --worker-gpus 1 --ray-address auto",
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray-token",
        "ray start --head --port 6379",
        "ray start --address $HEAD:6379",
    ],
    "stands for the line before it, which is run; docs/data.md runs such a teacher by a tiny stand-in": [
        "lightgen distill pipeline --in runs/my/captions --out runs/my/images --teacher.model FOLDER "
        "--height 512 --width 512",
        "lightgen distill endpoint --in runs/my/captions --out runs/my/images --teacher.base-url "
        "https://api.openai.com/v1 --teacher.model NAME --teacher.key-variable OPENAI_API_KEY",
    ],
    "needs weights of the Hub that no tiny stand-in can have the verdicts of": [
        "lightgen evaluate geneval --in runs/student --out runs/geneval",
        "lightgen rank hps-v2 --in runs/samples --out runs/ranked-hps --scorer.model HPS_v2.1_compressed.pt",
        "hf download facebook/mask2former-swin-small-coco-instance",
        "hf download openai/clip-vit-large-patch14",
    ],
    "has a student of 0.79B weights; tests/stages trains the released shape in small": [
        "lightgen encode paper-256 --in text-to-image-2M/data_512_2M --start runs/start "
        "--out runs/latents-256",
        "lightgen train pretrain-256 --in runs/latents-256 --start runs/start --out runs/lightgen-256",
        "lightgen train pretrain-512 --in runs/latents-512 --start runs/lightgen-256 --out runs/lightgen-512",
        "lightgen train pretrain-256-24gb --in runs/latents --start runs/start --out runs/lightgen-256",
        "lightgen encode paper-512 --in PICTURES --start runs/lightgen --out runs/mine",
        "lightgen train lora --in runs/mine --start runs/lightgen --out runs/my-lora",
        "lightgen train finetune --in runs/mine --start runs/lightgen --out runs/my-model",
        "lightgen train finetune --in runs/latents --start runs/lightgen --out runs/mine",
        'lightgen generate "PROMPT" --model runs/my-lora --out runs/pictures/',
        "lightgen distill student --in runs/kept-captions --start runs/lightgen-512 --out runs/own "
        "--height 512 --width 512 --images-per-prompt 1",
        "lightgen rank source --in runs/real runs/own --out runs/ranked",
        "lightgen encode paper-512 --in runs/ranked --start runs/lightgen-512 --out runs/ranked-latents "
        "--text.stored True",
        "lightgen train dpo-512 --in runs/ranked-latents --start runs/lightgen-512 --out runs/lightgen-dpo",
    ],
    "trains for half an hour and more; tests/stages runs a study in small": [
        "lightgen study diversity --out runs/diversity",
        "lightgen study diversity --out runs/diversity --seeds 3",
        "lightgen study design --out runs/design --tflop 200",
    ],
    "installs something, or changes the machine": [
        "make setup && . .venv/bin/activate",
        ".venv/bin/pre-commit install",
        "pip install 'lightgen[eval]'",
        "cp deploy/lightgen.service /etc/systemd/system/",
        "systemctl enable --now lightgen",
        "docker build -f deploy/Dockerfile -t lightgen:local .",
        'docker build -f deploy/Dockerfile -t lightgen:local --build-arg TORCH_PIP_ARGS="--index-url URL" .',
        "docker run --read-only --tmpfs /tmp --cap-drop ALL -p 127.0.0.1:8000:8000 "
        "-v ./keys.txt:/run/secrets/api_keys:ro lightgen:local",
        "docker compose -f deploy/compose.yaml --profile cpu up",
    ],
    "asks a server that runs; tests/serve sends the same requests": [
        "curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d "
        '\'{"prompt": "a photo of a red apple left of a blue car", "n": 2, "seed": 7}\' > answer.json',
        "curl http://127.0.0.1:8000/v1/images/edits -F image=@room.png -F mask=@mask.png "
        "-F prompt='a photo of a cat' > edited.json",
        "umask 077; python -c 'import secrets; print(secrets.token_urlsafe(32))' > keys.txt",
        'curl http://server:8000/v1/models -H "Authorization: Bearer $(head -n 1 keys.txt)"',
        "python benchmarks/serve_load.py load --seconds 300 --times 3",
        "python benchmarks/serve_load.py disconnects --count 1000",
        "python benchmarks/serve_load.py loris --slow 100",
        "python benchmarks/serve_load.py fuzz --count 10000",
    ],
}
