import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.stages import lora, lora_file
from lightgen.stages.lora import TARGETS, add_lora, load_lora, lora_names, save_lora
from lightgen.stages.pipeline import LightGenPipeline
from tests.stages.toy import toy_parts

FAST = {
    **{"prompt": "a dog", "height": 64, "width": 64, "num_inference_steps": 3, "num_head_steps": 2},
    **{"output_type": "latent", "return_dict": False},
}


def make():
    return LightGenPipeline.from_parts(toy_parts())


def draw(pipeline):
    return pipeline(**FAST)[0]


def trained(pipeline, seed=0, adapter_name="default", **settings):
    """The pipeline with a LoRA that does something."""
    arguments = {"rank": 4, "alpha": 8.0, **settings}
    random = torch.Generator().manual_seed(seed)
    for parameter in add_lora(pipeline.transformer, seed=seed, adapter_name=adapter_name, **arguments):
        parameter.data.normal_(std=0.2, generator=random)
    return pipeline


@pytest.fixture(scope="module")
def plain():
    return draw(make())


def test_a_new_lora_changes_nothing_and_is_all_that_trains(plain):
    pipeline = make()
    parameters = add_lora(pipeline.transformer, rank=4, alpha=8.0)
    torch.testing.assert_close(draw(pipeline), plain)
    trainable = [p for p in pipeline.transformer.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters}
    assert len(parameters) == 2 * len(TARGETS) * 2, "A and B of five maps in two blocks"
    assert sum(p.numel() for p in parameters) < sum(p.numel() for p in pipeline.transformer.parameters()) / 4


def test_start_weights_depend_on_the_seed_alone():
    def start(seed):
        transformer = make().transformer
        state = torch.random.get_rng_state()
        parameters = add_lora(transformer, rank=2, alpha=2.0, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in parameters])

    one = start(1)
    assert one.abs().max() > 0
    torch.manual_seed(5)  # whatever was drawn elsewhere
    assert torch.equal(start(1), one)
    assert not torch.equal(start(2), one)


@pytest.mark.parametrize(
    "target",
    [
        *("encoder_blocks.0.attn.q", "encoder_blocks.0.attn.kv", "encoder_blocks.0.attn.proj"),
        *("decoder_blocks.0.attn.q", "decoder_blocks.0.attn.kv", "decoder_blocks.0.attn.proj"),
        *("encoder_blocks.0.mlp.fc1", "decoder_blocks.0.mlp.fc2", "text_proj", "z_proj"),
        *("head.time_in", "head.cond_in", "head.token_in", "head.blocks.0.fc1", "head.modulation"),
        "head.token_out",
    ],
)
def test_every_linear_map_hears_its_lora(plain, target):
    pipeline = trained(make(), targets=[target])
    changed = draw(pipeline)
    assert (changed - plain).abs().max() > 1e-5
    pipeline.fuse_lora()
    torch.testing.assert_close(draw(pipeline), changed, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same(plain, tmp_path):
    pipeline = trained(make())
    wanted = draw(pipeline)
    assert (wanted - plain).abs().max() > 1e-2
    pipeline.save_lora_weights(tmp_path / "style")
    assert {path.name for path in (tmp_path / "style").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    other = make()
    other.load_lora_weights(tmp_path / "style", adapter_name="style")
    torch.testing.assert_close(draw(other), wanted)
    assert not any(p.requires_grad for name, p in other.transformer.named_parameters() if "lora" in name)
    file = make()
    file.load_lora_weights(tmp_path / "style" / "adapter_model.safetensors")
    torch.testing.assert_close(draw(file), wanted, msg="the config beside it says alpha")


def test_peft_reads_what_is_written_and_the_other_way_round(tmp_path):
    import peft

    pipeline = trained(make())
    wanted = draw(pipeline)
    pipeline.save_lora_weights(tmp_path / "ours")
    transformer = peft.PeftModel.from_pretrained(make().transformer, tmp_path / "ours").base_model.model
    assert isinstance(transformer, LightGenTransformer)
    parts = toy_parts()
    theirs = LightGenPipeline(transformer, parts.vae, parts.text_encoder, parts.tokenizer)
    torch.testing.assert_close(draw(theirs), wanted)

    model = peft.get_peft_model(
        make().transformer,
        peft.LoraConfig(r=2, lora_alpha=6, target_modules=["attn.q", "mlp.fc1"], alpha_pattern={"attn.q": 3}),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    model.save_pretrained(tmp_path / "theirs")
    wanted = draw(LightGenPipeline(model.base_model.model, parts.vae, parts.text_encoder, parts.tokenizer))
    ours = make()
    ours.load_lora_weights(tmp_path / "theirs")
    torch.testing.assert_close(draw(ours), wanted)


def test_tensors_of_several_ranks(tmp_path):
    shapes = {"encoder_blocks.0.attn.q": 2, "decoder_blocks.0.attn.q": 5, "head.cond_in": 2}
    random = torch.Generator().manual_seed(0)
    tensors, transformer = {}, make().transformer
    for name, rank in shapes.items():
        linear = transformer.get_submodule(name)
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, linear.in_features, generator=random)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(
            linear.out_features, rank, generator=random
        )
    pipeline = make()
    pipeline.load_lora_weights(tensors)
    for name in shapes:
        a, b = (tensors[f"transformer.{name}.lora_{letter}.weight"] for letter in "AB")
        linear, adapted = transformer.get_submodule(name), pipeline.transformer.get_submodule(name)
        x = torch.randn(3, linear.in_features, generator=random)
        torch.testing.assert_close(adapted(x), linear(x) + x @ a.T @ b.T, msg=f"{name}: alpha is the rank")
    wanted = draw(pipeline)
    pipeline.save_lora_weights(tmp_path)
    again = make()
    again.load_lora_weights(tmp_path)
    torch.testing.assert_close(draw(again), wanted)


def test_weights_and_adapters_are_switched(plain, tmp_path, recwarn):
    for seed in (1, 2):
        trained(make(), seed).save_lora_weights(tmp_path / str(seed))
    wanted = [draw(trained(make(), seed)) for seed in (1, 2)]
    pipeline = make()
    pipeline.load_lora_weights(tmp_path / "1", "one")
    pipeline.load_lora_weights(tmp_path / "2", "two")
    torch.testing.assert_close(draw(pipeline), wanted[1], msg="the last one is active, and alone")
    pipeline.set_adapters("one")
    torch.testing.assert_close(draw(pipeline), wanted[0])
    pipeline.set_adapters(["one", "two"], [0.0, 0.0])
    torch.testing.assert_close(draw(pipeline), plain)
    pipeline.set_adapters(["one", "two"])
    both = draw(pipeline)
    assert min((both - each).abs().max() for each in (*wanted, plain)) > 1e-3
    halved = make()
    halved.load_lora_weights(tmp_path / "1", weight=0.5)
    doubled = trained(make(), 1, alpha=4.0)
    torch.testing.assert_close(draw(halved), draw(doubled))
    pipeline.fuse_lora()
    torch.testing.assert_close(draw(pipeline), both, atol=1e-4, rtol=1e-4)
    assert not [each for each in recwarn if "peft_config" in str(each.message)]


def test_unloaded_it_is_as_before(plain, tmp_path):
    pipeline = make()
    before = pipeline.transformer.state_dict()
    trained(pipeline)
    trained(pipeline, 1, "other")
    pipeline.unload_lora_weights()
    after = pipeline.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(draw(pipeline), plain)
    pipeline.unload_lora_weights()  # there is nothing left to do


def test_a_pipeline_is_saved_without_or_fused(tmp_path):
    pipeline = trained(make())
    with pytest.raises(UserError, match="save_pretrained: got a loaded LoRA, 'default', allowed: none"):
        pipeline.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    wanted = draw(pipeline)
    pipeline.fuse_lora()
    pipeline.save_pretrained(tmp_path / "x")
    torch.testing.assert_close(
        draw(LightGenPipeline.from_pretrained(tmp_path / "x")), wanted, atol=1e-4, rtol=1e-4
    )


def test_a_narrow_transformer_takes_a_wide_lora(tmp_path):
    trained(make()).save_lora_weights(tmp_path)
    parts = toy_parts()
    parts.cast(torch.bfloat16)
    pipeline = LightGenPipeline.from_parts(parts)
    before = draw(pipeline)
    pipeline.load_lora_weights(tmp_path)
    assert (draw(pipeline) - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "got rank 0"),
        ({"rank": 5000}, "got rank 5000"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"targets": ["attn.qq"]}, r"targets \['attn.qq'\] name no linear map"),
        ({"targets": ["norm1"]}, "name no linear map"),
        ({"targets": []}, "name no linear map"),
        ({"adapter_name": "a.b"}, "adapter_name: got 'a.b', allowed: a new name"),
    ],
)
def test_which_new_ones_are_refused(settings, told):
    transformer = make().transformer
    with pytest.raises(UserError, match=told):
        add_lora(transformer, **{"rank": 2, "alpha": 2.0, **settings})
    assert lora_names(transformer) == []


def spoil(folder, name, make_damage):
    """The saved LoRA with one thing changed."""
    if name == "tensors":
        tensors = load_file(folder / lora_file.WEIGHTS)
        make_damage(tensors)
        save_file(tensors, folder / lora_file.WEIGHTS)
    else:
        config = json.loads((folder / lora_file.CONFIG).read_text())
        make_damage(config)
        (folder / lora_file.CONFIG).write_text(json.dumps(config))


KEY = "base_model.model.encoder_blocks.0.attn.q.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("tensors", lambda t: t.pop(KEY), "got one half of 'encoder_blocks.0.attn.q'"),
        ("tensors", lambda t: t.clear(), "got no tensors"),
        ("tensors", lambda t: t.update({"x.weight": torch.ones(1)}), "got tensor 'x.weight'"),
        ("tensors", lambda t: t.update({KEY: t[KEY].long()}), "got tensor 'base_model.model.enc"),
        ("tensors", lambda t: t.update({KEY: t[KEY][:, :3].clone()}), r"got \[4, 3\] and \[32, 4\], allowed"),
        ("tensors", lambda t: t.update({KEY: t[KEY][:3].clone()}), r"got \[3, 32\] and \[32, 4\], allowed"),
        ("tensors", lambda t: t.update({KEY: t[KEY] / 0}), "numbers that are not finite"),
        (
            "tensors",
            lambda t: t.update(
                {k.replace("encoder", "encodr"): t.pop(k) for k in list(t) if "der_blocks.0.attn.q." in k}
            ),
            "has no such linear map, did you mean",
        ),
        (
            "config",
            lambda c: c.update(peft_type="IA3"),
            "says peft_type 'IA3', bias 'none', allowed: plain LORA",
        ),
        ("config", lambda c: c.update(use_dora=True), "use_dora, allowed: plain LORA"),
        ("config", lambda c: c.update(bias="all"), "bias 'all'"),
        ("config", lambda c: c.update(lora_alpha="8"), "lora_alpha: got '8'"),
        ("config", lambda c: c.update(lora_alpha=float("inf")), "lora_alpha: got inf"),
        ("config", lambda c: c.pop("lora_alpha"), "lora_alpha: got None"),
    ],
)
def test_which_files_are_refused(tmp_path, name, damage, told):
    trained(make()).save_lora_weights(tmp_path)
    spoil(tmp_path, name, damage)
    pipeline = make()
    with pytest.raises(UserError, match=told) as error:
        pipeline.load_lora_weights(tmp_path)
    assert "\n" not in str(error.value)
    assert lora_names(pipeline.transformer) == []


def test_which_places_are_refused(tmp_path):
    pipeline = make()
    with pytest.raises(UserError, match="not found, allowed: a folder with adapter_model.safetensors"):
        pipeline.load_lora_weights(tmp_path / "nothing")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="not found"):
        pipeline.load_lora_weights(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="not found"):
        pipeline.load_lora_weights(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="no adapter_config.json"):
        pipeline.load_lora_weights(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        pipeline.load_lora_weights(tmp_path)
    trained(make()).save_lora_weights(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="damaged, allowed: a JSON object"):
        pipeline.load_lora_weights(tmp_path)


def test_which_names_and_weights_are_refused(tmp_path, monkeypatch):
    pipeline = trained(make())
    save_lora(pipeline.transformer, tmp_path)
    with pytest.raises(UserError, match="got 'default', allowed: a new name"):
        pipeline.load_lora_weights(tmp_path)
    for call in (pipeline.set_adapters, lambda name: pipeline.save_lora_weights(tmp_path / "x", name)):
        with pytest.raises(UserError, match="got 'other', allowed: default"):
            call("other")
    with pytest.raises(UserError, match="got 2 weights for"):
        pipeline.set_adapters("default", [1.0, 2.0])
    for weight in (float("nan"), 1e9, "1"):
        with pytest.raises(UserError, match="weight of a LoRA"):
            pipeline.set_adapters("default", [weight])
        with pytest.raises(UserError, match="weight of a LoRA"):
            make().load_lora_weights(tmp_path, weight=weight)
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft is not installed, allowed: pip install 'lightgen\[lora\]'"):
        load_lora(make().transformer, tmp_path)
