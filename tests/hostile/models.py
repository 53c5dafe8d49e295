"""Odd folders of models and pipelines: what spoils a good one, and what must be said of it.

Each is a name, a function that spoils the folder, and a regular expression for the sentence; none where it is to
be loaded all the same.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


class Bomb:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("executed"), "code was run"))


@dataclass(frozen=True)
class Odd:
    """A folder and what must be said of it."""

    name: str
    spoil: Callable[[Path], None]
    said: str


def write(name: str, content: str | bytes, folder: Path) -> None:
    """Write a file of the folder, in place of what is there."""
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def configured(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Change settings in a file; None as a value stays a value, ``...`` removes the setting."""
    path = folder / file
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def setting(file: str = "config.json", **changes: Any) -> Callable[[Path], None]:
    """A function that changes settings."""
    return lambda folder: configured(folder, file, **changes)


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = WEIGHTS) -> None:
    """Change the tensors of the weights."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def sharded(folder: Path, rename: Callable[[str], str] = str, index: Any = None, name: str = WEIGHTS) -> None:
    """Save the weights as two shards with an index, which names what ``rename`` makes of their names."""
    tensors = load_file(folder / name)
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    stem = name.removesuffix(".safetensors")
    placed = {}
    for number, half in enumerate(halves, 1):
        file = f"{stem}-{number:05}-of-00002.safetensors"
        save_file({each: tensors[each] for each in half}, folder / file)
        placed |= dict.fromkeys(half, rename(file))
    (folder / name).unlink()
    content = {"metadata": {}, "weight_map": placed} if index is None else index
    (folder / f"{name}.index.json").write_text(json.dumps(content))


def bin_shard(folder: Path) -> None:
    """An index of shards whose second is pickled."""
    sharded(folder, lambda file: file.replace("00002-of-00002.safetensors", "2.bin"))
    (folder / "diffusion_pytorch_model-2.bin").write_bytes(pickle.dumps(Bomb()))
    for file in folder.glob("*00001-of-00002.bin"):
        file.unlink()


def linked_out(folder: Path) -> None:
    """A shard that is a link out of the folder."""
    sharded(folder)
    shard = next(folder.glob("*00002-of-00002.safetensors"))
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def outside(folder: Path) -> None:
    """Shards in the folder around it."""
    sharded(folder, lambda file: f"../{file}")
    for file in folder.glob("*-of-*.safetensors"):
        file.rename(folder.parent / file.name)


def header(folder: Path, text: bytes, length: int | None = None, name: str = WEIGHTS) -> None:
    """Weights with another header."""
    write(name, struct.pack("<Q", len(text) if length is None else length) + text, folder)


def fifo(folder: Path, name: str) -> None:
    """A named pipe in place of a file."""
    (folder / name).unlink()
    os.mkfifo(folder / name)


def link(folder: Path, name: str, to: str) -> None:
    """A link in place of a file."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(to)


def renamed(folder: Path, name: str, to: str) -> None:
    """A file under another name."""
    (folder / name).rename(folder / to)


JSONS: tuple[tuple[str, str | bytes, str], ...] = (
    ("empty", "", "cannot be read: Expecting value"),
    ("a list", "[]", "must be a JSON object, got list"),
    ("a number", "7", "must be a JSON object, got int"),
    ("null", "null", "must be a JSON object, got NoneType"),
    ("cut off", '{"_class_name": ', "cannot be read"),
    ("YAML", "_class_name: UNet2DModel", "cannot be read"),
    ("not UTF-8", b'{"_class_name": "\xff"}', "cannot be read: 'utf-8' codec"),
    ("UTF-16", '{"_class_name": "UNet2DModel"}'.encode("utf-16"), "cannot be read"),
    ("with a byte order mark", b"\xef\xbb\xbf{}", "cannot be read: Unexpected UTF-8 BOM"),
    ("nested deeply", "[" * 200_000, "nested too deeply|must be a JSON object"),
    ("nested mappings", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    ("of a huge integer", '{"_class_name": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
    ("null bytes", "\0" * 100, "cannot be read"),
)
"""What a file of JSON can be instead of a configuration."""

CLASSES: tuple[tuple[Any, str], ...] = (
    (None, "does not name the (model|pipeline)'s class"),
    (7, "does not name the (model|pipeline)'s class"),
    (["UNet2DModel"], "does not name the (model|pipeline)'s class"),
    ("", "names the class"),
    ("os.system", "names the class 'os.system'"),
    ("__class__", "names the class __class__"),
    ("Nothing", "names the class Nothing"),
    ("DDIMScheduler", "holds a DDIMScheduler|names the class DDIMScheduler"),
    ("UNet2DModel\n", "names the class"),
    ("../UNet2DModel", "names the class"),
)
"""What a class can be called."""

HUGE = 10**12

CONFIGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"in_channels": HUGE}, "no size of a network"),
    ({"in_channels": 10**6, "out_channels": 10**6}, "asks for more than|cannot be loaded"),
    ({"in_channels": -1, "out_channels": -1}, "must say in_channels"),
    ({"in_channels": 0, "out_channels": 0}, "must say in_channels"),
    ({"in_channels": "3"}, "must say in_channels"),
    ({"in_channels": 3.5}, "must say in_channels"),
    ({"in_channels": True}, "is given True channels"),
    ({"in_channels": None}, "must say in_channels"),
    ({"out_channels": 7}, "predicts 7"),
    ({"out_channels": "3"}, "cannot be loaded"),
    ({"sample_size": HUGE}, "no size of a network"),
    ({"sample_size": 10**5}, "no size of a network"),
    ({"sample_size": -8}, "must say in_channels and sample_size"),
    ({"sample_size": 0}, "must say in_channels and sample_size"),
    ({"sample_size": [8]}, "must say in_channels and sample_size"),
    ({"sample_size": [8, "8"]}, "must say in_channels and sample_size"),
    ({"sample_size": {}}, "must say in_channels and sample_size"),
    ({"sample_size": None}, "must say in_channels and sample_size"),
    ({"sample_size": float("nan")}, "no size of a network|must say in_channels"),
    ({"sample_size": float("inf")}, "no size of a network"),
    ({"layers_per_block": HUGE}, "no size of a network"),
    ({"layers_per_block": 10**6}, "config.json asks for more than"),
    ({"layers_per_block": -1}, "cannot be loaded|have|lack"),
    ({"layers_per_block": 2}, "the weights in .* lack"),
    ({"layers_per_block": "1"}, "cannot be loaded"),
    ({"block_out_channels": [HUGE, 8]}, "no size of a network"),
    ({"block_out_channels": [10**7, 10**7]}, "config.json asks for more than|cannot be loaded"),
    ({"block_out_channels": [2**15, 2**15]}, "config.json asks for more than"),
    ({"block_out_channels": [16, 16]}, "cannot be loaded|have other shapes"),
    ({"block_out_channels": []}, "cannot be loaded"),
    ({"block_out_channels": 8}, "cannot be loaded"),
    ({"block_out_channels": [8] * 5000}, "cannot be loaded|asks for more"),
    ({"down_block_types": ["os.system", "os.system"]}, "cannot be loaded"),
    ({"down_block_types": ["DownBlock2D"] * 50_000}, "cannot be loaded|asks for more"),
    ({"up_block_types": "UpBlock2D"}, "cannot be loaded"),
    ({"norm_num_groups": 0}, "cannot be loaded"),
    ({"norm_num_groups": 3}, "cannot be loaded"),
    ({"act_fn": "eval"}, "cannot be loaded"),
    ({"act_fn": 3}, "cannot be loaded"),
    ({"num_class_embeds": HUGE}, "no size of a network"),
    ({"num_class_embeds": 10**7}, "config.json asks for more than|cannot be loaded|have other shapes"),
    ({"num_class_embeds": -1}, "must have a number of classes as num_class_embeds, got -1"),
    ({"num_class_embeds": "4"}, "must have a number of classes as num_class_embeds, got '4'"),
    ({"num_class_embeds": 5}, "cannot be loaded|have other shapes"),
    ({"num_class_embeds": None}, "the weights in .* have class_embedding.weight"),
    ({"class_embed_type": "timestep"}, "embeds numbers in place of classes"),
    ({"time_embedding_type": "fourier"}, "cannot be loaded|lack|have"),
    ({"time_embedding_type": "none"}, "cannot be loaded"),
    ({"add_attention": "yes"}, "lack|cannot be loaded|"),
    ({"attention_head_dim": 0}, "cannot be loaded|"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "cannot be loaded"),
    ({"quantization_config": 3}, "cannot be loaded"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "has the setting auto_map"),
    ({"unknown_setting": 3}, ""),
    ({"_diffusers_version": "99.9"}, ""),
    ({"_diffusers_version": 3}, "|cannot be loaded"),
    ({"_name_or_path": "../../etc"}, ""),
)
"""Settings of a network."""

FILES: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("weights: missing tensor", lambda f: weights(f, lambda t: t.pop("conv_in.weight")), "lack conv_in.weight"),
    ("weights: all missing", lambda f: weights(f, lambda t: t.clear()), "lack|cannot be loaded"),
    (
        "weights: unexpected tensor",
        lambda f: weights(f, lambda t: t.update({"extra.weight": torch.zeros(3)})),
        "have extra.weight that UNet2DModel has not",
    ),
    (
        "weights: another shape",
        lambda f: weights(f, lambda t: t.update({"conv_in.weight": torch.zeros(3, 3)})),
        "cannot be loaded|have other shapes of conv_in.weight",
    ),
    (
        "weights: another dtype",
        lambda f: weights(f, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].double()})),
        "",
    ),
    ("weights: none", lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    ("weights: empty", partial(write, WEIGHTS, b""), "cannot be read as safetensors"),
    ("weights: text", partial(write, WEIGHTS, "hello"), "cannot be read as safetensors"),
    ("weights: pickled", partial(write, WEIGHTS, pickle.dumps(Bomb())), "cannot be read as safetensors"),
    ("weights: header too long", partial(header, text=b"{}", length=2**62), "cannot be read as safetensors"),
    ("weights: header no JSON", partial(header, text=b"{{{{{{{{"), "cannot be read as safetensors"),
    ("weights: header a list", partial(header, text=b"[]      "), "cannot be read as safetensors"),
    ("weights: header nested", partial(header, text=b'{"a":' * 5000 + b"1" + b"}" * 5000), "cannot be read as safet"),
    (
        "weights: terabytes by header",
        partial(header, text=b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
        "cannot be read as safetensors",
    ),
    (
        "weights: cut off",
        lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes()[:-10], f),
        "cannot be read as safetensors",
    ),
    (
        "weights: longer",
        lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes() + b"x", f),
        "cannot be read as safetensors",
    ),
    (
        "weights: a folder",
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "cannot be read|has no|no .*loaded",
    ),  # type: ignore[arg-type,return-value]
    ("weights: a pipe", partial(fifo, name=WEIGHTS), "has no|no file|which is what is loaded"),
    ("weights: a link to nothing", partial(link, name=WEIGHTS, to="/nowhere/x"), "has no|cannot be|no file"),
    ("weights: a link to itself", partial(link, name=WEIGHTS, to=WEIGHTS), "has no|cannot be|no file"),
    ("weights: a device", partial(link, name=WEIGHTS, to="/dev/zero"), "has no|no file|which is what is loaded"),
    (
        "weights: only of another precision",
        partial(renamed, name=WEIGHTS, to=WEIGHTS.replace(".s", ".fp16.s")),
        "which is what is loaded",
    ),
    (
        "weights: only pickled",
        lambda f: (renamed(f, WEIGHTS, "diffusion_pytorch_model.bin"), write("x.bin", pickle.dumps(Bomb()), f)),  # type: ignore[func-returns-value,arg-type,return-value]
        "pickled weights are not read|would be unpickled|has no",
    ),
    ("shards: good", sharded, ""),
    ("shards: one is pickled", bin_shard, "which is no safetensors file; other files are not read"),
    ("shards: around the folder", outside, "is no file in its own folder"),
    ("shards: a link out", linked_out, "is a link out of its folder"),
    ("shards: absolute", partial(sharded, rename=lambda _: "/etc/passwd.safetensors"), "no file in its own folder"),
    ("shards: in a folder", partial(sharded, rename=lambda n: f"x/{n}"), "no file in its own folder"),
    ("shards: of Windows", partial(sharded, rename=lambda n: f"..\\{n}"), "no file in its own folder"),
    ("shards: hidden", partial(sharded, rename=lambda n: f".{n}"), "no file in its own folder"),
    ("shards: missing", partial(sharded, rename=lambda n: f"x{n}"), "which is not there"),
    ("shards: null byte", partial(sharded, rename=lambda n: f"\0{n}"), "no file in its own folder"),
    ("shards: lines", partial(sharded, rename=lambda n: f"a\nb{n}"), "no file in its own folder"),
    ("shards: a long name", partial(sharded, rename=lambda n: "x" * 5000 + n), "which cannot be read|is not there"),
    ("shards: numbers", partial(sharded, index={"weight_map": {"a": 3}}), "must have a weight_map"),
    ("shards: a list", partial(sharded, index={"weight_map": ["a"]}), "must have a weight_map"),
    ("shards: none", partial(sharded, index={"weight_map": {}}), "must have a weight_map"),
    ("shards: no map", partial(sharded, index={}), "must have a weight_map"),
    ("shards: the index is a list", partial(sharded, index=[]), "must be a JSON object"),
    ("shards: the index is text", lambda f: (sharded(f), write(INDEX, "x", f)), "cannot be read"),  # type: ignore[func-returns-value,arg-type,return-value]
    (
        "shards: one short",
        lambda f: (sharded(f), weights(f, lambda t: t.popitem(), WEIGHTS.replace(".s", "-00002-of-00002.s"))),  # type: ignore[func-returns-value,arg-type,return-value]
        "the shards of .* lack .*, which it names",
    ),
    (
        "shards: beside whole weights",
        lambda f: (shutil.copy(f / WEIGHTS, f / "w"), sharded(f), renamed(f, "w", WEIGHTS)),
        "",
    ),  # type: ignore[func-returns-value,arg-type,return-value]
)
"""Weights and their shards."""

SCHEDULERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"_class_name": "os.system"}, "."),
    ({"_class_name": 3}, "."),
    ({"_class_name": "UNet2DModel"}, "."),
    ({"num_train_timesteps": HUGE}, "."),
    ({"num_train_timesteps": -1}, "."),
    ({"num_train_timesteps": 0}, "."),
    ({"num_train_timesteps": "1000"}, "."),
    ({"beta_start": float("nan")}, "."),
    ({"beta_start": "x"}, "."),
    ({"beta_end": 2.0}, "."),
    ({"beta_schedule": "rm -rf"}, "."),
    ({"trained_betas": [0.1]}, "."),
    ({"trained_betas": ["x"] * 1000}, "."),
    ({"prediction_type": "magic"}, "."),
    ({"prediction_type": None}, "."),
    ({"timestep_spacing": 3}, "."),
    ({"steps_offset": "many"}, "."),
    ({"clip_sample": "no"}, "."),
)
"""Settings of a scheduler; whether all of them are refused is the matter of other tests."""


def within(part: str, spoil: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """The same, done to a part of a pipeline."""
    return lambda folder: spoil(folder / part)


def named(**parts: Any) -> Callable[[Path], None]:
    """A function that changes the parts in ``model_index.json``."""
    return setting("model_index.json", **parts)


TEXT = "model.safetensors"

INDEXES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"unet": ["diffusers", "os.system"]}, "names the class os.system for the unet, which diffusers has not"),
    ({"unet": ["diffusers", ""]}, "names the class  for the unet"),
    ({"unet": ["os", "system"]}, "has a unet of the class system in os; parts are read"),
    ({"unet": ["../x", "UNet"]}, "in ../x; parts are read"),
    ({"unet": ["__class__", "mro"]}, "in __class__; parts are read|which __class__ has not"),
    ({"unet": ["__init__", "x"]}, "parts are read|has not"),
    ({"unet": ["stable_diffusion", "Nothing"]}, "names the class Nothing for the unet, which stable_diffusion has not"),
    ({"unet": ["diffusers", "DDIMScheduler"]}, "cannot be loaded"),
    ({"unet": ["diffusers", "StableDiffusionPipeline"]}, "cannot be loaded"),
    ({"unet": ["diffusers", "AutoencoderKL"]}, "cannot be loaded|lack|have"),
    ({"unet": [None, None]}, "cannot be loaded|"),
    ({"unet": None}, "cannot be loaded|"),
    ({"unet": 3}, "cannot be loaded|"),
    ({"unet": "UNet2DConditionModel"}, "cannot be loaded|"),
    ({"unet": ...}, "cannot be loaded"),
    ({"unet": ["diffusers", "UNet2DConditionModel", "x"]}, "unet must be a library and a class"),
    ({"unet": [["diffusers"], "UNet2DConditionModel"]}, "unet must be a library and a class"),
    ({"text_encoder": ["transformers", "AutoModel"]}, "names AutoModel for the text_encoder, which looks for a class"),
    ({"text_encoder": ["transformers", "pipeline"]}, "names the class pipeline for the text_encoder"),
    ({"text_encoder": ["transformers", "Nothing"]}, "names the class Nothing for the text_encoder, which transformers"),
    ({"text_encoder": ["transformers", "T5EncoderModel"]}, "cannot be loaded|lack|have"),
    ({"tokenizer": ["transformers", "AutoTokenizer"]}, "names AutoTokenizer for the tokenizer"),
    ({"tokenizer": ["transformers", "CLIPTextModel"]}, "has no weights|cannot be|there is no file"),
    ({"scheduler": ["diffusers", "UNet2DModel"]}, "has no weights|cannot be loaded|there is no file"),
    ({"scheduler": ["diffusers", "Nothing"]}, "names the class Nothing for the scheduler"),
    ({"../outside": ["diffusers", "UNet2DModel"]}, "has a part '../outside', which is no name of one"),
    ({"/etc": ["diffusers", "UNet2DModel"]}, "has a part '/etc', which is no name of one"),
    ({"further": ["diffusers", "UNet2DModel"]}, r"names a further \(UNet2DModel\), and has no folder further"),
    ({"_class_name": "DDPMPipeline"}, "cannot be loaded|"),
    ({"_class_name": "UNet2DModel"}, "which is no pipeline of diffusers"),
    ({"_class_name": "DiffusionPipeline"}, "cannot be loaded|"),
    ({"_class_name": "AutoPipelineForText2Image"}, "which is no pipeline of diffusers"),
    ({"_class_name": "StableDiffusionXLPipeline"}, "|cannot be loaded"),
    ({"requires_safety_checker": "no"}, "|cannot be loaded"),
    ({"_diffusers_version": [1]}, "|cannot be loaded"),
    ({"_module": "evil"}, "|cannot be loaded"),
)
"""Settings of ``model_index.json``."""

PARTS: tuple[tuple[str, Callable[[Path], Any], str], ...] = (
    ("text encoder: no weights", lambda f: (f / "text_encoder" / TEXT).unlink(), "has no weights in safetensors"),
    (
        "text encoder: missing tensor",
        within("text_encoder", lambda f: weights(f, lambda t: t.popitem(), TEXT)),
        "the weights in .*text_encoder lack",
    ),
    (
        "text encoder: unexpected tensor",
        within("text_encoder", lambda f: weights(f, lambda t: t.update({"more.weight": torch.zeros(2)}), TEXT)),
        "the weights in .*text_encoder have .*more.weight that CLIPTextModel has not",
    ),
    ("text encoder: shards", within("text_encoder", partial(sharded, name=TEXT)), ""),
    (
        "text encoder: pickled shard",
        within("text_encoder", partial(sharded, name=TEXT, rename=lambda n: n.replace(".safetensors", ".bin"))),
        "which is no safetensors file",
    ),
    (
        "text encoder: shard around the folder",
        within("text_encoder", partial(sharded, name=TEXT, rename=lambda n: f"../{n}")),
        "which is no file in its own folder",
    ),
    (
        "text encoder: adapter",
        within("text_encoder", partial(write, "adapter_config.json", '{"base_model_name_or_path": "/etc"}')),
        "has an adapter_config.json",
    ),
    (
        "text encoder: terabytes",
        within("text_encoder", setting(hidden_size=2**23)),
        "cannot be loaded: config.json asks",
    ),
    (
        "text encoder: many layers",
        within("text_encoder", setting(num_hidden_layers=10**6)),
        "config.json asks for more",
    ),
    ("text encoder: one more layer", within("text_encoder", setting(num_hidden_layers=9)), "lack"),
    ("text encoder: huge", within("text_encoder", setting(hidden_size=HUGE)), "no size of a network"),
    (
        "text encoder: words",
        within("text_encoder", setting(vocab_size=10**7)),
        "config.json asks|have other shapes|cannot",
    ),
    ("text encoder: negative", within("text_encoder", setting(hidden_size=-8)), "cannot be loaded"),
    ("text encoder: text", within("text_encoder", setting(hidden_size="x")), "cannot be loaded"),
    ("text encoder: no heads", within("text_encoder", setting(num_attention_heads=0)), "cannot be loaded"),
    ("text encoder: activation", within("text_encoder", setting(hidden_act="eval")), "cannot be loaded"),
    ("text encoder: of another kind", within("text_encoder", setting(model_type="bert")), "|cannot be loaded|lack"),
    ("text encoder: code", within("text_encoder", setting(auto_map={"AutoModel": "x.Y"})), "has the setting auto_map"),
    (
        "text encoder: attention from elsewhere",
        within("text_encoder", setting(attn_implementation="someone/kernel")),
        "by which other code would be loaded",
    ),
    (
        "text encoder: other weights",
        within("text_encoder", setting(transformers_weights="x.bin")),
        "has the setting transformers_weights",
    ),
    ("text encoder: dtype", within("text_encoder", setting(dtype="os.system")), "|cannot be loaded"),
    (
        "text encoder: quantised",
        within("text_encoder", setting(quantization_config={"quant_method": "gptq"})),
        "cannot",
    ),
    (
        "text encoder: a file",
        lambda f: (shutil.rmtree(f / "text_encoder"), (f / "text_encoder").touch()),
        "has no folder",
    ),
    ("tokenizer: empty", lambda f: [file.unlink() for file in (f / "tokenizer").iterdir()], "tokenizer is empty"),
    (
        "tokenizer: code",
        within("tokenizer", setting("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})),
        "|cannot be loaded",
    ),
    (
        "tokenizer: class",
        within("tokenizer", setting("tokenizer_config.json", tokenizer_class="Evil")),
        "|cannot be loaded",
    ),
    (
        "tokenizer: length",
        within("tokenizer", setting("tokenizer_config.json", model_max_length="x")),
        "|cannot be load",
    ),
    ("tokenizer: text", within("tokenizer", partial(write, "tokenizer_config.json", "x")), "cannot be loaded"),
    ("tokenizer: words", within("tokenizer", partial(write, "vocab.json", "[]")), "|cannot be loaded"),
    ("vae: terabytes", within("vae", setting(block_out_channels=[2**20] * 4)), "cannot be loaded"),
    ("vae: latents", within("vae", setting(latent_channels=HUGE)), "no size of a network"),
    ("vae: factor", within("vae", setting(scaling_factor=float("nan"))), "no size of a network"),
    ("vae: text", within("vae", partial(write, "config.json", "x")), "cannot be read"),
    ("scheduler: text", within("scheduler", partial(write, "scheduler_config.json", "x")), "cannot be read"),
    ("scheduler: none", lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler is empty"),
    (
        "scheduler: other name",
        lambda f: (f / "scheduler" / "scheduler_config.json").rename(f / "scheduler" / "config.json"),
        "cannot be loaded",
    ),
    *(
        (f"scheduler: {each}", within("scheduler", setting("scheduler_config.json", **each)), "|.")
        for each, _ in SCHEDULERS
    ),
    ("safety checker: pickled", lambda f: pickled_part(f, "safety_checker"), "would be unpickled"),
)
"""Parts of a pipeline."""


def pickled_part(folder: Path, part: str) -> None:
    """A further part whose weights are pickled."""
    (folder / part).mkdir(exist_ok=True)
    (folder / part / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (folder / part / "config.json").write_text("{}")
    configured(folder, "model_index.json", **{part: ["transformers", "CLIPTextModel"]})
